"""Paper 61: with an expert per domain one model is worth as many models, where domains disagree on what is similar.

As in https://arxiv.org/abs/2401.15713 the domain is not guessed: its token, here that of the task, sends a text through
the domain's own feed-forward layer, and pairs of a domain are told from each other by their batch. The same things are
alike in one domain if they have their colour in common, in another if they have their material, in a third if they have
their shape; what else is said of them is noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import numpy as np

from demonstrations.demonstration import Claim, Demonstration, Metrics
from demonstrations.text_model import make_tokenizer, train
from demonstrations.vector_model import Side, VectorModel, made_up_words, vectors_of, write_sides
from eval.metrics.retrieval import hits_at, tie_averaged_ranks
from inference.session import Session

DOMAINS, VALUES = ("colour", "material", "shape"), 40
PAIRS, STEPS, TEST = 2000, 100, VALUES
WIDTH = 64
TASKS = {f"embed_{domain}": "embed" for domain in DOMAINS} | {"embed": "embed"}


class World:
    """Things with one of so many values of every property."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])
        self.words = np.array(made_up_words(len(DOMAINS) * VALUES, rng)).reshape(len(DOMAINS), VALUES)

    def pair(self, domain: int, value: int, rng: np.random.Generator) -> tuple[str, str]:
        """Two things that have one property in common, their properties told in any order."""
        things = rng.integers(VALUES, size=(2, len(DOMAINS)))
        things[:, domain] = value
        first, second = (" ".join(rng.permutation(self.words[range(len(DOMAINS)), thing])) for thing in things)
        return first, second


def model_of(experts: bool) -> VectorModel:
    """The model, with an expert per domain or with one layer for all."""
    domains = [task for task in TASKS if task != "embed"] if experts else []
    arguments = {"state_size": WIDTH, "embedding_size": 64, "temperature": 0.1, "domains": domains}
    head = {"class_path": "heads.embedding.EmbeddingHead", "init_args": arguments}
    return VectorModel(hidden_size=WIDTH, num_layers=2, max_tokens=2048, tasks=TASKS, heads={"embed": head})


def pairs(world: World, domain: int, task: str, rng: np.random.Generator) -> Iterator[list[Side]]:
    """Records of two things that are alike in a domain."""
    for number in range(PAIRS):
        value = int(rng.integers(VALUES))
        own = {"group": f"{domain}-{number}", "item": f"{domain}-{value}"}
        roles = zip(("query", "positive"), world.pair(domain, value, rng), strict=True)
        yield [Side(text, task, {**own, "role": role}) for role, text in roles]


def measure(arm: str, seed: int, folder: Path) -> Metrics:
    """Train one arm; how often a thing's nearest among others is the one that is alike in its domain."""
    world, shared = World(seed), folder.parent / f"data-{seed}"
    for number, domain in enumerate(DOMAINS):
        for name, task in ((domain, f"embed_{domain}"), (f"{domain}-any", "embed")):
            write_sides(shared, name, pairs(world, number, task, np.random.default_rng([seed, 1, number])), {})
    model = model_of(arm.startswith("experts"))
    vocab_size = make_tokenizer(shared / "tokenizer", [" ".join(world.words.flatten())] * 20, model.task_table(), 900)

    def fit(names: list[str], folder: Path, steps: int) -> Session:
        data = {"sources": [{"path": str(shared / f"{name}-0*.tar")} for name in names]}
        return Session.from_pretrained(str(train(model, shared / "tokenizer", vocab_size, data, steps, seed, folder)))

    asked = [f"embed_{domain}" for domain in DOMAINS]
    if arm == "separate":
        sessions = [fit([domain], folder / domain, STEPS) for domain in DOMAINS]
    elif arm == "shared":
        asked = ["embed"] * len(DOMAINS)
        sessions = [fit([f"{domain}-any" for domain in DOMAINS], folder, STEPS * len(DOMAINS))] * len(DOMAINS)
    else:
        sessions = [fit(list(DOMAINS), folder, STEPS * len(DOMAINS))] * len(DOMAINS)
    rng = np.random.default_rng([seed, 2])
    tests = [[world.pair(domain, value, rng) for value in range(TEST)] for domain in range(len(DOMAINS))]
    right = [recall(*row) for row in zip(sessions, tests, asked, strict=True)]
    swapped = [recall(*row) for row in zip(sessions, tests, [*asked[1:], asked[0]], strict=True)]
    found = {f"recall_1_{domain}": value for domain, value in zip(DOMAINS, right, strict=True)}
    return {"recall_1": fmean(right), **found, "swapped": fmean(swapped), "constant": 1 / TEST}


def recall(session: Session, asked: list[tuple[str, str]], task: str) -> float:
    """Share of things whose own partner lies nearest."""
    first, second = (vectors_of(session, list(side), task) for side in zip(*asked, strict=True))
    return hits_at(tie_averaged_ranks((first @ second.T).numpy(), list(range(len(asked)))), 1)


DEMONSTRATION = Demonstration(
    paper=61,
    address="https://arxiv.org/abs/2401.15713",
    shows="the nearest thing under three notions of similarity that contradict each other, seen equally often",
    arms={
        "shared": "one model for all domains, which is not told the domain",
        "token": "one model for all domains, told the domain by the task's token alone",
        "experts": "the same with a feed-forward expert per domain, chosen by that token",
        "separate": "a model per domain, each trained on as many pairs of its own",
    },
    measure=measure,
    claims=[
        Claim(
            "experts exceed the shared model by .20",
            lambda mean: mean("experts", "recall_1") >= mean("shared", "recall_1") + 0.2,
        ),
        Claim(
            "experts are within .05 of a model per domain",
            lambda mean: mean("experts", "recall_1") >= mean("separate", "recall_1") - 0.05,
        ),
        Claim(
            "another domain's token costs .30",
            lambda mean: mean("experts", "swapped") <= mean("experts", "recall_1") - 0.3,
        ),
    ],
    controls={"shuffled": ("experts", "swapped"), "constant": ("experts", "constant")},
    controls_na={"blind": "without the words there is no task", "random_weights": "the arms differ in what is trained"},
)
