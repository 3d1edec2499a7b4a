"""Paper 62: a language model that was pretrained retrieves better, with less data and in domains it was not tuned in.

As in https://arxiv.org/abs/2408.12194 the state of a decoder's last token is the vector of a query or a passage,
trained with in-batch negatives. Every concept has two words: queries use the one, passages the other, so that they
share none. Pretraining is on text alone, which says of things of all domains what they are like, in the same terms, and
calls them by either word; retrieval is tuned in two domains, with all pairs or with a tenth of them, and tested there
and in a third domain that only pretraining has seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from demonstrations.demonstration import Claim, Demonstration, Metrics
from demonstrations.text_model import Example, make_tokenizer, train, write_examples
from demonstrations.vector_model import Side, VectorModel, made_up_words, vectors_of, write_sides
from eval.metrics.retrieval import hits_at, mean_reciprocal_rank, tie_averaged_ranks
from inference.session import Session
from models.build import build_generalist

DOMAINS, CONCEPTS, TUNED = 3, 24, 2
ATTRIBUTES = 12
"""Of all domains; a concept has three of them."""
QUERY_WORDS, PASSAGE_WORDS = 4, 6
PRETRAINING, PAIRS, TEST = 6000, 1500, 200
PRETRAINING_STEPS, STEPS = 300, 120
TUNING_RATE = 0.5
"""Of the rates at which random weights are trained, for those that were pretrained."""
SIZES = {"small": (32, 1), "large": (96, 2)}
HEAD = {"class_path": "heads.embedding.EmbeddingHead", "init_args": {"embedding_size": 64, "temperature": 0.05}}


class World:
    """Concepts of every domain, with a word for queries and one for passages, and terms for what they are like."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])
        made = made_up_words(2 * DOMAINS * CONCEPTS + ATTRIBUTES, rng)
        self.words = np.array(made[: 2 * DOMAINS * CONCEPTS]).reshape(2, DOMAINS, CONCEPTS)
        self.attributes = np.array(made[2 * DOMAINS * CONCEPTS :])
        possible = rng.permutation(np.array(list(combinations(range(ATTRIBUTES), 3))))
        self.like = possible[: DOMAINS * CONCEPTS].reshape(DOMAINS, CONCEPTS, 3)

    def pretraining(self, rng: np.random.Generator) -> Iterator[Example]:
        """What things of one domain are like, each under either word, and things by what they are like."""
        for number in range(PRETRAINING):
            domain = number % DOMAINS
            told = []
            for concept in rng.choice(CONCEPTS, 3, replace=False).tolist():
                name = self.words[rng.integers(2), domain, concept]
                like = " ".join(self.attributes[rng.permutation(self.like[domain, concept])])
                told.append(f"{name} is {like}" if rng.integers(2) else f"{like} is {name}")
            yield Example(f", {told[0]}", f", {told[1]} , {told[2]}")

    def pair(self, domain: int, rng: np.random.Generator) -> tuple[str, str]:
        """A query, and the passage that holds all that it asks for."""
        concepts = rng.choice(CONCEPTS, PASSAGE_WORDS, replace=False)
        asked = rng.permutation(concepts)[:QUERY_WORDS]
        return " ".join(self.words[0, domain, asked]), " ".join(self.words[1, domain, concepts])


def model_of(size: str) -> VectorModel:
    """The model of one size, its head reading its states."""
    width, layers = SIZES[size]
    head = {**HEAD, "init_args": {**HEAD["init_args"], "state_size": width}}  # type: ignore[dict-item]
    return VectorModel(
        hidden_size=width,
        num_layers=layers,
        max_tokens=2048,
        block="llama",  # its words begin near zero: what is learned of them is soon most of their vectors
        tasks={"embed": "embed"},
        heads={"embed": head},
    )


def pairs(world: World, count: int, rng: np.random.Generator) -> Iterator[list[Side]]:
    """Records of a query and its passage, in the tuned domains."""
    for number in range(count):
        query, passage = world.pair(number % TUNED, rng)
        sides = (("query", query), ("positive", passage))
        yield [Side(text, "embed", {"group": str(number), "role": role}) for role, text in sides]


def measure(arm: str, seed: int, folder: Path) -> Metrics:
    """Pretrain, once per size, tune on all pairs or on a tenth, and retrieve."""
    world, shared = World(seed), folder.parent / f"data-{seed}"
    size, start, share = arm.split("_")
    model = model_of(size)
    write_examples(shared, "text", world.pretraining(np.random.default_rng([seed, 1])))
    write_sides(shared, "pairs", pairs(world, PAIRS, np.random.default_rng([seed, 2])), {"share": 100})
    write_sides(shared, "few", pairs(world, PAIRS // 10, np.random.default_rng([seed, 2])), {"share": 10})
    texts = [" ".join([*world.words.flatten(), *world.attributes]) + " is , "] * 20
    vocab_size = make_tokenizer(shared / "tokenizer", texts, model.task_table(), 1200)

    def fit(source: str, steps: int, folder: Path, base: Path | None = None) -> Path:
        data = {"sources": [{"path": str(shared / f"{source}-*.tar")}]}
        factor = TUNING_RATE if base else 1.0
        own = replace(model, learning_rate=factor * model.learning_rate, muon=factor * model.muon)
        return train(
            own, shared / "tokenizer", vocab_size, data, steps, seed, folder, [{"path": str(base)}] if base else []
        )

    base: Path | None = None
    if start == "pretrained":
        base = folder.parent / f"pretrained-{size}-{seed}" / "checkpoint"
        if not base.is_dir():
            fit("text", PRETRAINING_STEPS, base.parent)
    if start == "untrained":
        torch.manual_seed(seed)
        session = Session(build_generalist(model.config(shared / "tokenizer", vocab_size)))
    else:
        session = Session.from_pretrained(str(fit("few" if share == "10" else "pairs", STEPS, folder, base)))
    rng = np.random.default_rng([seed, 3])
    tuned = [world.pair(number % TUNED, rng) for number in range(TEST)]
    unseen = [world.pair(TUNED, rng) for _ in range(TEST)]
    ranks, other = (ranks_of(session, asked) for asked in (tuned, unseen))
    return {
        "mrr": mean_reciprocal_rank(ranks),
        "recall_1": hits_at(ranks, 1),
        "unseen_mrr": mean_reciprocal_rank(other),
        "unseen_recall_1": hits_at(other, 1),
        "constant": 1 / ((TEST + 1) / 2),
    }


def ranks_of(session: Session, asked: list[tuple[str, str]]) -> np.ndarray:
    """The rank of every query's own passage among all."""
    queries: Tensor = vectors_of(session, [query for query, _ in asked], "embed")
    passages: Tensor = vectors_of(session, [passage for _, passage in asked], "embed")
    return tie_averaged_ranks((queries @ passages.T).numpy(), list(range(len(asked))))


DEMONSTRATION = Demonstration(
    paper=62,
    address="https://arxiv.org/abs/2408.12194",
    shows="passages found by queries that share no word with them, by decoders that were pretrained on text or not",
    arms={
        "large_pretrained_100": f"pretrained for {PRETRAINING_STEPS} steps, then tuned on {PAIRS} pairs",
        "large_random_100": f"random weights, tuned on {PAIRS} pairs for as many steps",
        "large_pretrained_10": f"pretrained, tuned on {PAIRS // 10} pairs for as many steps",
        "large_random_10": f"random weights, tuned on {PAIRS // 10} pairs",
        "small_pretrained_10": "a narrower model of one layer, pretrained, tuned on as few pairs",
        "large_untrained_0": "control: random weights, not tuned",
    },
    measure=measure,
    claims=[
        Claim(
            "with a tenth of the pairs, pretraining raises the mean reciprocal rank by .10",
            lambda mean: mean("large_pretrained_10", "mrr") >= mean("large_random_10", "mrr") + 0.1,
        ),
        Claim(
            "in a domain without pairs, pretraining and a tenth of the others exceed random weights and all by .10",
            lambda mean: mean("large_pretrained_10", "unseen_mrr") >= mean("large_random_100", "unseen_mrr") + 0.1,
        ),
        Claim(
            "the larger of two pretrained models retrieves better",
            lambda mean: mean("large_pretrained_10", "mrr") > mean("small_pretrained_10", "mrr"),
        ),
    ],
    controls={"random_weights": ("large_untrained_0", "mrr"), "constant": ("large_untrained_0", "constant")},
    controls_na={"blind": "without the query there is nothing to look for"},
)
