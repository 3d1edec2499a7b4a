from collections.abc import Callable
from functools import lru_cache

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from routers.tasks import TaskSpec, TaskTable
from routers.vocabulary import Vocabulary, add_task_tokens

CORPUS = [
    "the red 7 and the blue 4 are on the left of the largest green digit",
    "cut out the red 7, draw a blue 4, make the 7 green",
    "0.123,0.456,0.789,0.125 10.12,0.5 0,0.25 999 100 000",
] * 4
TASKS = (
    TaskSpec("ground", "boxes", needs=("image",), payload=("prompt", "regions")),
    TaskSpec("seg", "masks", needs=("image",)),
    TaskSpec("draw", "image", link="queries", num_queries=3),
    TaskSpec("edit", "image", link="queries", num_queries=1, payload=("prompt", "regions", "results")),
    TaskSpec("speak", "voice", link="text", payload=("prompt", "time_spans", "results")),
    TaskSpec("layout", "image", link="boxes", payload=("regions", "nodes", "time_spans")),
    TaskSpec("classify", "nodes", needs=("graph",), payload=()),
    TaskSpec("rank", "nodes", needs=("graph", "graph"), payload=("nodes",)),
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<pad>", "<eos>", "<|user|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="<eos>")


@lru_cache
def make_vocabulary(coordinates: str = "bins", num_bins: int = 16) -> Vocabulary:
    tokenizer: PreTrainedTokenizerBase = make_tokenizer()
    table = TaskTable(TASKS, coordinates=coordinates, num_bins=num_bins, num_time_bins=7, max_nodes=5, max_results=3)
    add_task_tokens(tokenizer, table)
    return Vocabulary(tokenizer, table)


@pytest.fixture(scope="session")
def tokenizer_factory() -> Callable[[], PreTrainedTokenizerFast]:
    return make_tokenizer


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return make_vocabulary()


@pytest.fixture(scope="session")
def decimal_vocabulary() -> Vocabulary:
    return make_vocabulary("decimals")


@pytest.fixture(scope="session", params=["bins", "decimals"])
def any_vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    return make_vocabulary(request.param)
