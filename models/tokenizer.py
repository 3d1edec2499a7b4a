"""Training a small tokenizer on the text of shards, preparing any tokenizer for a task table, and loading it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from routers.tasks import TaskTable
from routers.vocabulary import add_task_tokens

PAD, END = "<|pad|>", "<|end|>"
ROLES = ("system", "user", "assistant")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int, table: TaskTable) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer whose digits stay single, with the table's tokens added.

    A space goes with the digit that follows it, as with any word: split from it, every number would cost two ids, and
    stand two places from the word before it.

    Args:
        texts: The training text.
        vocab_size: Ids of ordinary text, control tokens apart.
        table: The task table.

    Returns:
        A tokenizer with chat template, padding and end-of-turn token.
    """
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r" ?\p{Nd}"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    special = [PAD, END, *(f"<|{role}|>" for role in ROLES)]
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=special[2:],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    add_task_tokens(tokenizer, table)
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: str | Path) -> None:
    """Write a tokenizer directory for :class:`models.generalist.Generalist`."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(directory))


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer directory; nothing in it is executed.

    Raises:
        ValueError: If the directory holds no tokenizer, or one without a chat template or an end-of-turn token.
    """
    if not (Path(directory) / "tokenizer.json").is_file():
        raise ValueError(f"expected a tokenizer directory with tokenizer.json, got '{directory}'")
    tokenizer: Any = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)
    if tokenizer.chat_template is None or tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer '{directory}': expected a chat template and an end-of-turn (eos) token")
    return tokenizer
