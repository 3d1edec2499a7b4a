"""Paper 37: gradients of one length per task, where the losses of unmixed steps differ a hundredfold in scale.

Uni-Perceiver v2 (https://arxiv.org/abs/2211.09808) draws one task per step and balances them in its optimizer. Here
one small language model learns three notions of similarity, one per step, seen through projections that stay as they
were drawn, so that all that learns is shared. The losses count equally, or 10, 1 and .1. AdamW may
clip or not as well; weights of the tasks, which would undo the spread, are what nobody knows beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from demonstrations.demonstration import Claim, Demonstration, Metrics
from demonstrations.heads.domain_experts import DOMAINS, VALUES, World, pairs, recall
from demonstrations.text_model import make_tokenizer, train
from demonstrations.vector_model import VectorModel, write_sides
from eval.controls import random_generalist
from inference.session import Session

WIDTH, STEPS = 64, 150
DRAWS = 4
"""Sets of one pair per value and domain in a measurement."""
SCALES: Mapping[str, Sequence[float]] = {"spread": (10.0, 1.0, 0.1), "equal": (1.0, 1.0, 1.0)}
CHOICES: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "adamw": [{"learning_rate": rate, "max_grad_norm": norm} for rate, norm in product((3e-3, 1e-2), (1.0, 0.0))],
    "balanced": [{"learning_rate": rate, "balance": {"weights": {}}} for rate in (3e-3, 1e-2)],
}
Asked = Sequence[list[tuple[str, str]]]
"""Per domain, things and what is alike to them."""


def model() -> VectorModel:
    """The model: a task and a head per domain."""
    arguments = {"state_size": WIDTH, "embedding_size": 64, "temperature": 0.1}
    head = {"class_path": "heads.embedding.EmbeddingHead", "init_args": arguments}
    return VectorModel(
        hidden_size=WIDTH,
        num_layers=2,
        max_tokens=2048,
        tasks={f"embed_{domain}": domain for domain in DOMAINS},
        heads=dict.fromkeys(DOMAINS, head),
    )


def settings_of(choice: Mapping[str, Any], scales: Sequence[float]) -> dict[str, Any]:
    """The recipe's arguments: the optimizer, and how much the loss of each task counts; that of the tokens does not."""
    weights = {"token": 0.0, **dict(zip(DOMAINS, scales, strict=True))}
    return {"muon": {}, "loss_weights": weights, **choice}


def asked(world: World, rng: np.random.Generator, draws: int) -> list[Asked]:
    """So many sets of pairs, one pair per value and domain in each."""
    return [[[world.pair(d, value, rng) for value in range(VALUES)] for d in range(len(DOMAINS))] for _ in range(draws)]


def measure(arm: str, seed: int, folder: Path) -> Metrics:
    """Train one arm with each of its settings, of which validation chooses; how often the nearest thing is right."""
    optimizer, scale = arm.split("_")
    world, shared = World(seed), folder.parent / f"data-{seed}"
    for number, domain in enumerate(DOMAINS):
        made = pairs(world, number, f"embed_{domain}", np.random.default_rng([seed, 1, number]))
        write_sides(shared, domain, made, {})
    texts = [" ".join(world.words.flatten())] * 20
    vocab_size = make_tokenizer(shared / "tokenizer", texts, model().task_table(), 900)
    sources = [{"name": domain, "path": str(shared / f"{domain}-*.tar")} for domain in DOMAINS]
    data = {"sources": sources, "mixture": {"unmixed": True}}
    validation = asked(world, np.random.default_rng([seed, 2]), 2)
    tried = []
    for number, choice in enumerate(CHOICES[optimizer]):
        place = (model(), shared / "tokenizer", vocab_size, data, STEPS, seed, folder / str(number))
        checkpoint = train(*place, trainable=[r"^language_model\."], changes=settings_of(choice, SCALES[scale]))
        tried.append((fmean(_recalls(Session.from_pretrained(checkpoint), validation)), choice, checkpoint))
    _, choice, checkpoint = max(tried, key=lambda item: item[0])
    test = asked(world, np.random.default_rng([seed, 3]), DRAWS)
    found = _recalls(Session.from_pretrained(checkpoint), test)
    random = _recalls(Session(random_generalist(checkpoint, seed)), test)
    named = {f"recall_1_{number}": value for number, value in enumerate(found, start=1)}
    chosen = {"learning_rate": choice["learning_rate"], "max_grad_norm": choice.get("max_grad_norm", 0.0)}
    return {"recall_1": fmean(found), **named, **chosen, "random_weights": fmean(random), "constant": 1 / VALUES}


def _recalls(session: Session, sets: Sequence[Asked]) -> list[float]:
    """Per domain, the share of things whose own partner lies nearest."""
    tasks = [f"embed_{domain}" for domain in DOMAINS]
    return [fmean(recall(session, draw[number], task) for draw in sets) for number, task in enumerate(tasks)]


DEMONSTRATION = Demonstration(
    paper=37,
    address="https://arxiv.org/abs/2211.09808",
    shows="three notions of similarity learned in steps of one each, their losses at scales of 10, 1 and .1, or equal",
    arms={
        "adamw_spread": "AdamW at the best of two rates, clipped or not, losses spread a hundredfold",
        "balanced_spread": "balanced gradients at the best of two rates, losses spread a hundredfold",
        "adamw_equal": "AdamW as above, equal losses",
        "balanced_equal": "balanced gradients as above, equal losses",
    },
    measure=measure,
    claims=[
        Claim(
            "losses spread: balanced gradients exceed tuned AdamW by .10",
            lambda mean: mean("balanced_spread", "recall_1") >= mean("adamw_spread", "recall_1") + 0.1,
        ),
        Claim(
            "it is the task of the smallest losses that gains: .20",
            lambda mean: mean("balanced_spread", "recall_1_3") >= mean("adamw_spread", "recall_1_3") + 0.2,
        ),
        Claim(
            "losses equal: balanced gradients are within .05 of tuned AdamW",
            lambda mean: mean("balanced_equal", "recall_1") >= mean("adamw_equal", "recall_1") - 0.05,
        ),
        Claim(
            "the spread costs balanced gradients at most .03",
            lambda mean: mean("balanced_spread", "recall_1") >= mean("balanced_equal", "recall_1") - 0.03,
        ),
    ],
    controls={"random_weights": ("balanced_spread", "random_weights"), "constant": ("balanced_spread", "constant")},
    controls_na={"blind": "without the words there is no task"},
)
