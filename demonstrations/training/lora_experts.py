"""Paper 36: the third stage's mixture of low-rank updates, against plain ones of as many parameters.

UnifiedMLLM (https://arxiv.org/abs/2408.02503) ends with a frozen model beside which a mixture of low-rank experts
learns many tasks, so that what the model knew is kept. Here the model knows facts, which it tells in a chat, and four
orders in which letters are written; then it is frozen. The third stage teaches four families of tasks, each an order
with a secret alphabet of its own, all at once or one after the other, without a word of chat. What is left of the
facts, of the orders and of the first families is measured after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import nn

from demonstrations.demonstration import Claim, Demonstration, Metrics
from demonstrations.text_model import (
    Example,
    TextModel,
    exact_match,
    make_tokenizer,
    open_session,
    train,
    write_examples,
)
from demonstrations.vector_model import made_up_words
from inference.session import Session
from models.adapters.lora import Lora
from models.adapters.lora_experts import ExpertLinear, LoraExperts
from models.language import LanguageModel

NAMES, LETTERS, LENGTH = 24, "abcdefghijkl", 6
BASE, FAMILY, TEST = 16_000, 1_500, 80
"""Examples of the base's training, and of a family in training and in a measurement."""
BASE_STEPS, STEPS = 450, 240
RATES = (3e-3, 1e-2)
ORDERS: Mapping[str, Callable[[str], str]] = {
    "same": lambda text: text,
    "back": lambda text: text[::-1],
    "turn": lambda text: text[1:] + text[0],
    "ends": lambda text: text[-1] + text[1:-1] + text[0],
}
FAMILIES = ("north", "south", "east", "west")  # words that the base knows: where things live
FACTS: Mapping[str, tuple[Sequence[str], Sequence[str], str]] = {
    "colour": (
        ("red", "blue", "green", "black", "white", "pink"),
        ("what colour is {}", "which colour has {}", "tell me the colour of {}", "name the colour of {}"),
        "{} is {}",
    ),
    "home": (
        FAMILIES,
        ("where does {} live", "which way is the home of {}", "tell me the home of {}", "name the home of {}"),
        "{} lives in the {}",
    ),
    "food": (
        ("rice", "milk", "corn", "meat", "salt", "fish"),
        ("what does {} eat", "which food has {}", "tell me the food of {}", "name the food of {}"),
        "{} eats {}",
    ),
}
MODEL = TextModel(hidden_size=96, num_layers=3, max_tokens=2048, block="gemma3_text")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
EXPERTS: dict[str, dict[str, Any]] = {
    "lora_experts": {"num_experts": 4, "rank": 4, "alpha": 32, "targets": FEED_FORWARD}
}
PLAIN: dict[str, dict[str, Any]] = {"lora": {"rank": 18, "alpha": 36, "targets": FEED_FORWARD}}
"""As many parameters as the experts with their routers, to 2 %, and an update that begins at the same scale."""


class World:
    """Facts about things with made-up names, and an alphabet per family."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])
        self.names = made_up_words(NAMES, rng)
        self.facts = {kind: rng.choice(values, NAMES).tolist() for kind, (values, _, _) in FACTS.items()}
        letters = list(LETTERS)
        self.alphabets = [dict(zip(letters, rng.permutation(letters).tolist(), strict=True)) for _ in FAMILIES]

    def fact(self, place: int, kind: str, phrasing: int) -> Example:
        """A fact, asked in one of four ways; each fact has one that training never uses for it, number 0."""
        _, questions, answer = FACTS[kind]
        number = (place + list(FACTS).index(kind) + phrasing) % len(questions)
        name = self.names[place]
        return Example(questions[number].format(name), answer.format(name, self.facts[kind][place]))

    def facts_of_test(self) -> list[Example]:
        """Every fact, asked as it was not in training."""
        return [self.fact(place, kind, 0) for kind in FACTS for place in range(NAMES)]

    def letters(self, order: str, rng: np.random.Generator) -> Example:
        """Letters to be written in an order."""
        text = "".join(rng.choice(list(LETTERS), LENGTH))
        return Example(f"{order} : {_spaced(text)}", _spaced(ORDERS[order](text)))

    def family(self, number: int, rng: np.random.Generator) -> Example:
        """Letters to be written in a family's order and alphabet."""
        asked = self.letters(list(ORDERS)[number], rng)
        coded = " ".join(self.alphabets[number][letter] for letter in asked.answer.split())
        question = asked.question.split(" : ")[1]
        return Example(f"{FAMILIES[number]} : {question}", coded, {"family": FAMILIES[number]})

    def base(self, rng: np.random.Generator) -> Iterator[Example]:
        """What the base learns: facts and orders in turn."""
        for number in range(BASE):
            if number % 2:
                yield self.letters(list(ORDERS)[number // 2 % len(ORDERS)], rng)
            else:
                kind = str(rng.choice(list(FACTS)))
                yield self.fact(int(rng.integers(NAMES)), kind, 1 + int(rng.integers(3)))

    def families(self, count: int, rng: np.random.Generator) -> Iterator[Example]:
        """So many examples of each family, family by family."""
        return (self.family(number, rng) for number in range(len(FAMILIES)) for _ in range(count))


def num_trained(adapters: Mapping[str, Any]) -> int:
    """Parameters that an adapter trains beside the frozen base."""
    kinds: dict[str, Any] = {"lora": Lora, "lora_experts": LoraExperts}
    config = MODEL.config(Path(), 600)["language_model"]
    with torch.device("meta"):
        model = LanguageModel(**config, **{name: kinds[name](**value) for name, value in adapters.items()})
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def measure(arm: str, seed: int, folder: Path) -> Metrics:
    """Train one arm at several rates, of which validation chooses; what it has learned and what is left."""
    world, shared = World(seed), folder.parent / f"data-{seed}"
    base_examples = list(world.base(np.random.default_rng([seed, 1])))
    write_examples(shared, "base", base_examples)
    write_examples(shared, "families", world.families(FAMILY, np.random.default_rng([seed, 2])))
    texts = [text for item in base_examples[:4000] for text in (item.question, item.answer)]
    vocab_size = make_tokenizer(shared / "tokenizer", texts, size=900)
    base = folder.parent / f"base-{seed}"
    if not (base / "checkpoint").is_dir():
        data = {"sources": [{"path": str(shared / "base-*.tar")}]}
        train(MODEL, shared / "tokenizer", vocab_size, data, BASE_STEPS, seed, base)
    session = open_session(base / "checkpoint")
    adapters = EXPERTS if "experts" in arm else PLAIN
    if arm != "base":
        data = third_stage(shared, in_turn=arm.endswith("in_turn"))
        start = [{"path": str(base / "checkpoint"), "allow_new": ["lora_", "experts_", r"\.router\."]}]
        model = replace(MODEL, adapters=adapters)
        validation = list(world.families(TEST // 2, np.random.default_rng([seed, 3])))
        tried = []
        for rate in RATES:
            changes = {"muon": {}, "learning_rate": rate, "weight_decay": 0.0}
            trained = [r"^language_model\..*(lora_|experts_|\.router\.)"]
            place = (model, shared / "tokenizer", vocab_size, data, STEPS, seed, folder / f"{rate:g}")
            one = open_session(train(*place, start, trained, changes))
            tried.append((fmean(exact_match(one, validation)), one))
        session = max(tried, key=lambda pair: pair[0])[1]
    metrics = _scores(session, world, np.random.default_rng([seed, 4]))
    metrics["parameters"] = num_trained(adapters) if arm != "base" else 0
    if adapters is EXPERTS:
        _forget_routes(session)
        metrics["uniform"] = _scores(session, world, np.random.default_rng([seed, 4]))["families"]
    return metrics


def third_stage(shared: Path, in_turn: bool) -> dict[str, Any]:
    """The data of the third stage: all families, or each for its share of the steps."""
    path = str(shared / "families-*.tar")
    sources = [{"name": name, "path": path, "where": {"family": name}} for name in FAMILIES]
    if not in_turn:
        return {"sources": sources}
    share = STEPS // len(FAMILIES)
    stages = [
        {"until": share * (number + 1), "weights": {name: float(name == own) for name in FAMILIES}}
        for number, own in enumerate(FAMILIES)
    ]
    return {"sources": sources, "mixture": {"curriculum": stages}}


def _scores(session: Session, world: World, rng: np.random.Generator) -> Metrics:
    """Exact match on every kind of question."""
    families = list(world.families(TEST, rng))
    right = exact_match(session, families)
    orders = [world.letters(order, rng) for order in ORDERS for _ in range(TEST)]
    counts = Counter(item.answer for item in families)
    return {
        "families": fmean(right),
        "first_families": fmean(right[:-TEST]),
        "last_family": fmean(right[-TEST:]),
        "chat": fmean(exact_match(session, world.facts_of_test())),
        "orders": fmean(exact_match(session, orders)),
        "constant": max(counts.values()) / len(families),
    }


def _forget_routes(session: Session) -> None:
    """Let every expert weigh the same for every token."""
    for module in session.generalist.modules():
        if isinstance(module, ExpertLinear):
            module.router.weight = nn.Parameter(torch.zeros_like(module.router.weight))


def _spaced(text: str) -> str:
    return " ".join(text)


DEMONSTRATION = Demonstration(
    paper=36,
    address="https://arxiv.org/abs/2408.02503",
    shows="four families of tasks learned beside a frozen model, at once or in turn, and what is left of all before",
    arms={
        "base": "the frozen model, before the third stage",
        "lora": "plain low-rank updates of the feed-forward layers, all families at once",
        "experts": "a mixture of four with a router, as many parameters, all families at once",
        "lora_in_turn": "the plain ones, one family after the other",
        "experts_in_turn": "the mixture, one family after the other",
    },
    measure=measure,
    claims=[
        Claim(
            "at once, experts learn the families as well as plain updates, to .03, and .50 at least",
            lambda mean: mean("experts", "families") >= max(0.5, mean("lora", "families") - 0.03),
        ),
        Claim(
            "at once, experts keep .05 more of the chat than plain updates",
            lambda mean: mean("experts", "chat") >= mean("lora", "chat") + 0.05,
        ),
        Claim(
            "at once, experts keep .05 more of the earlier orders",
            lambda mean: mean("experts", "orders") >= mean("lora", "orders") + 0.05,
        ),
        Claim(
            "in turn, experts keep .05 more of the first three families",
            lambda mean: mean("experts_in_turn", "first_families") >= mean("lora_in_turn", "first_families") + 0.05,
        ),
        Claim(
            "it is the routes that do it: without them .10 of the families are lost",
            lambda mean: mean("experts", "uniform") <= mean("experts", "families") - 0.1,
        ),
    ],
    controls={"zeroed": ("experts", "uniform"), "constant": ("base", "constant"), "frozen_base": ("base", "families")},
    controls_na={
        "blind": "without the letters there is no task",
        "random_weights": "every arm stands beside the same trained base",
    },
)
