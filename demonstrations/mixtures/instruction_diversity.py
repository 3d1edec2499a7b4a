"""Paper 17: what decides generalisation to unseen instructions is how many different ones were seen.

String rewriting as in the paper (https://arxiv.org/abs/2410.04717): an instruction says which pair of letters becomes
which other pair, and a string is given; the first occurrence is replaced, or the string is copied if there is none. The
number of examples is the same in every arm; the number of different rules is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import numpy as np

from demonstrations.demonstration import Claim, Demonstration, Metrics
from demonstrations.text_model import Example, TextModel, exact_match, make_tokenizer, train, write_examples

LETTERS = "abcdefgh"
LENGTH = 8
EXAMPLES = 8000
NO_OCCURRENCE = 0.25
RULES = (4, 32, 256)
UNSEEN_RULES = 64
TEST_EXAMPLES = 300
STEPS = 500
MODEL = TextModel()


def rules(seed: int) -> list[tuple[str, str]]:
    """All rules in a random order: those of training first, in nested sets, and the unseen ones at the end."""
    pairs = [first + second for first in LETTERS for second in LETTERS]
    every = [(x, y) for x in pairs for y in pairs if x != y]
    order = np.random.default_rng([seed, 0]).permutation(len(every))
    return [every[place] for place in order.tolist()]


def examples(
    chosen: list[tuple[str, str]], count: int, rng: np.random.Generator, occurs: bool | None
) -> Iterator[Example]:
    """So many examples, the rules in turn; ``occurs`` None mixes strings with and without the pair."""
    for number in range(count):
        x, y = chosen[number % len(chosen)]
        wanted = rng.random() >= NO_OCCURRENCE if occurs is None else occurs
        while True:
            string = "".join(rng.choice(list(LETTERS), LENGTH))
            if wanted and x not in string:
                place = int(rng.integers(LENGTH - 1))
                string = string[:place] + x + string[place + 2 :]
            if (x in string) == wanted:
                break
        yield Example(f"{_spaced(x)} > {_spaced(y)} : {_spaced(string)}", _spaced(string.replace(x, y, 1)))


def measure(arm: str, seed: int, folder: Path) -> Metrics:
    """Train on one number of rules; exact match on unseen rules, and on new strings of seen ones."""
    ordered, shared = rules(seed), folder.parent / f"data-{seed}"
    unseen = ordered[-UNSEEN_RULES:]
    for number in RULES:
        rng = np.random.default_rng([seed, number])
        made = examples(ordered[:number], EXAMPLES, rng, None)
        tagged = (Example(item.question, item.answer, {"rules": number}) for item in made)
        write_examples(shared, f"rules{number}", tagged)
    vocab_size = make_tokenizer(shared / "tokenizer", [_spaced(LETTERS) + " > :"])
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
        "constant": fmean(item.question.split(" : ")[1] == item.answer for item in unseen_items),
    }


def _spaced(text: str) -> str:
    return " ".join(text)


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
    controls={"constant": (f"rules_{RULES[0]}", "constant")},
    controls_na={
        "blind": "without the string there is no task",
        "random_weights": "an untrained model never ends a reply in the right string: 0 by construction",
    },
)
