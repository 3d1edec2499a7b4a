"""Paper 17: what decides generalisation to unseen instructions is how many different ones were seen.

String rewriting as in the paper (https://arxiv.org/abs/2410.04717), with sides of one letter: an instruction says which
letter becomes which other letter, and a string of different letters is given; the letter is replaced where it
occurs, or the string is copied if it does not. The number of examples is the same in every arm; the number of different
rules is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import numpy as np

from demonstrations.demonstration import Claim, Demonstration, Metrics
from demonstrations.text_model import LETTER_IDS, Example, TextModel, exact_match, make_tokenizer, train, write_examples

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LENGTH = 8
EXAMPLES = 8000
NO_OCCURRENCE = 0.25
RULES = (4, 32, 256)
UNSEEN_RULES = 64
TEST_EXAMPLES = 300
STEPS = 400
MODEL = TextModel(num_layers=3, max_tokens=2048)


def rules(seed: int) -> list[tuple[str, str]]:
    """All rules in a random order: those of training first, in nested sets, and the unseen ones at the end."""
    every = [(x, y) for x in LETTERS for y in LETTERS if x != y]
    order = np.random.default_rng([seed, 0]).permutation(len(every))
    return [every[place] for place in order.tolist()]


def examples(
    chosen: list[tuple[str, str]], count: int, rng: np.random.Generator, occurs: bool | None
) -> Iterator[Example]:
    """So many examples, the rules in turn; ``occurs`` None mixes strings with and without the letter."""
    for number in range(count):
        x, y = chosen[number % len(chosen)]
        letters = rng.choice([letter for letter in LETTERS if letter != x], LENGTH, replace=False).tolist()
        if occurs if occurs is not None else rng.random() >= NO_OCCURRENCE:
            letters[int(rng.integers(LENGTH))] = x
        string = "".join(letters)
        yield Example(f"{x}>{y}:{string}", string.replace(x, y))


def measure(arm: str, seed: int, folder: Path) -> Metrics:
    """Train on one number of rules; exact match on unseen rules, and on new strings of seen ones."""
    ordered, shared = rules(seed), folder.parent / f"data-{seed}"
    unseen = ordered[-UNSEEN_RULES:]
    for number in RULES:
        rng = np.random.default_rng([seed, number])
        made = examples(ordered[:number], EXAMPLES, rng, None)
        tagged = (Example(item.question, item.answer, {"rules": number}) for item in made)
        write_examples(shared, f"rules{number}", tagged)
    vocab_size = make_tokenizer(shared / "tokenizer", [LETTERS], size=LETTER_IDS)
    number = int(arm.split("_")[1])
    data = {"sources": [{"path": str(shared), "where": {"rules": number}}]}
    checkpoint = train(MODEL, shared / "tokenizer", vocab_size, data, STEPS, seed, folder)
    rng = np.random.default_rng([seed, 1])
    seen_items = list(examples(ordered[:number], TEST_EXAMPLES, rng, True))
    unseen_items = list(examples(unseen, TEST_EXAMPLES, rng, True))
    copied = list(examples(unseen, TEST_EXAMPLES, rng, False))
    return {
        "unseen_rules": fmean(exact_match(checkpoint, unseen_items)),
        "seen_rules": fmean(exact_match(checkpoint, seen_items)),
        "unseen_without_occurrence": fmean(exact_match(checkpoint, copied)),
        "shuffled": fmean(exact_match(checkpoint, _with_the_next_rule(unseen_items))),
        "constant": fmean(item.question.split(":")[1] == item.answer for item in unseen_items),
    }


def _with_the_next_rule(items: list[Example]) -> list[Example]:
    """Each string under the rule of the next item; the answers stay."""
    parts = [item.question.split(":") for item in items]
    return [
        Example(f"{parts[(place + 1) % len(parts)][0]}:{string}", items[place].answer)
        for place, (_, string) in enumerate(parts)
    ]


DEMONSTRATION = Demonstration(
    paper=17,
    address="https://arxiv.org/abs/2410.04717",
    shows=f"{EXAMPLES} examples of string rewriting in every arm, of few or many rules; tested on rules never seen",
    arms={f"rules_{number}": f"{EXAMPLES} examples of {number} rules" for number in RULES},
    measure=measure,
    claims=[
        Claim(
            "rules never seen: many rules exceed few by .30 of exact match",
            lambda mean: mean(f"rules_{RULES[-1]}", "unseen_rules") >= mean(f"rules_{RULES[0]}", "unseen_rules") + 0.3,
        ),
        Claim(
            "few rules were learned all the same: .80 on new strings of seen rules",
            lambda mean: mean(f"rules_{RULES[0]}", "seen_rules") >= 0.8,
        ),
    ],
    controls={"constant": (f"rules_{RULES[0]}", "constant"), "shuffled": (f"rules_{RULES[-1]}", "shuffled")},
    controls_na={
        "blind": "without the string there is no task",
        "random_weights": "an untrained model never ends a reply in the right string: 0 by construction",
    },
)
