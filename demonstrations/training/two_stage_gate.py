"""Paper 25: single tasks first and combined instructions with the gate after them, against all of it in one stage.

WavLLM (https://arxiv.org/abs/2404.00656) first learns single tasks with low-rank updates; then a gate by the
instruction joins, and instructions that combine tasks. Here speech is a row of sounds, as a tokenizer of speech would
give them: every word is two sounds, which a high voice says with other vowels than a low one, and a slow speaker says
twice. A frozen language model can hear words and follows instructions about written sentences; the stages teach it
tasks over what is heard. Arms see as many examples of each kind, to a tenth. Tested are pairs and triples of tasks that
were never combined so, worded as in no training example.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from demonstrations.demonstration import Claim, Demonstration, Metrics
from demonstrations.text_model import Example, TextModel, answers, make_tokenizer, open_session, train, write_examples
from demonstrations.vector_model import made_up_words

WORDS, SOUNDS = 20, 12
NUMBERS = {2: "two", 3: "three", 4: "four"}
VOICES = {"low": "ao", "high": "ei"}
PACES = ("quick", "slow")
TASKS: Mapping[str, Sequence[str]] = {
    "write": ("write what is said", "put down the words", "repeat the sentence"),
    "translate": ("translate it", "say it in the other tongue", "put it in foreign words"),
    "count": ("count the words", "how many words are there", "give the number of words"),
    "voice": ("tell the voice", "how high is the voice", "say who speaks"),
    "pace": ("tell the pace", "how fast is it", "say how it is spoken"),
}
WRITTEN = ("write", "translate", "count")
"""Tasks that a written sentence knows too."""
OPENINGS = ("", "please ", "now ", "kindly ")
BASE, EXAMPLES, TEST = 16_000, 4_000, 200
BASE_STEPS, FIRST_STEPS, SECOND_STEPS = 500, 150, 150
SEEN_PAIRS = 15
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MODEL = TextModel(hidden_size=96, num_layers=3, max_tokens=2048, block="gemma3_text")
UPDATES: Mapping[str, Any] = {"lora": {"rank": 8, "alpha": 16, "targets": ATTENTION}}
GATED: Mapping[str, Any] = {**UPDATES, "prompt_gate": {"hidden_size": 64}}


@dataclass(frozen=True)
class Said:
    """A sentence, and how it is spoken; without a voice it is written."""

    words: tuple[int, ...]
    voice: str = ""
    pace: str = ""


class World:
    """Words of two languages, their sounds, and the pairs of tasks that training combines."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])
        words = made_up_words(2 * WORDS, rng)
        self.own, self.foreign = words[:WORDS], words[WORDS:]
        consonants = rng.permutation(list("bdfgklmnprstvz"))[: SOUNDS // 2]
        vowels = zip(*VOICES.values(), strict=True)  # of either voice, sound by sound
        rows = [(c + low, c + high) for low, high in vowels for c in consonants]
        self.sounds = dict(zip(VOICES, zip(*rows, strict=True), strict=True))
        chosen = rng.permutation(SOUNDS * SOUNDS)[:WORDS].tolist()
        self.spelling = [divmod(number, SOUNDS) for number in chosen]
        pairs = rng.permutation(list(permutations(TASKS, 2))).tolist()
        self.seen, self.unseen = pairs[:SEEN_PAIRS], pairs[SEEN_PAIRS:]

    def sentence(self, rng: np.random.Generator, spoken: bool = True) -> Said:
        """Two to four words, of any voice and pace."""
        words = tuple(rng.integers(WORDS, size=int(rng.choice(list(NUMBERS)))).tolist())
        return Said(words, str(rng.choice(list(VOICES))), str(rng.choice(PACES))) if spoken else Said(words)

    def heard(self, said: Said) -> str:
        """What stands before the question: sounds, or written words."""
        if not said.voice:
            return f": {self._words(self.own, said)}"  # behind a colon its first word is the same token as elsewhere
        row, times = self.sounds[said.voice], 1 + (said.pace == "slow")
        return " ".join(
            [":", *(row[sound] for word in said.words for sound in self.spelling[word] for _ in range(times))]
        )

    def part(self, task: str, said: Said) -> str:
        """The answer to one task."""
        return {
            "write": self._words(self.own, said),
            "translate": self._words(self.foreign, said),
            "count": f"{NUMBERS[len(said.words)]} words",
            "voice": f"a {said.voice} voice",
            "pace": said.pace,
        }[task]

    def kind(self, part: str) -> str:
        """Which task a part of a reply answers, whether rightly or not; empty for none."""
        words = part.split()
        if words and set(words) <= set(self.own):
            return "write"
        if words and set(words) <= set(self.foreign):
            return "translate"
        return {"words": "count", "voice": "voice"}.get(words[-1] if words else "", "pace" if part in PACES else "")

    def example(self, tasks: Sequence[str], said: Said, rng: np.random.Generator, test: bool = False) -> Example:
        """An instruction of these tasks; opening and first wording go together in training or in the test."""
        numbers = rng.integers(3, size=len(tasks)).tolist()
        opening = int(rng.integers(3)) - numbers[0] if not test else 3 - numbers[0]
        phrases = " then ".join(TASKS[task][number] for task, number in zip(tasks, numbers, strict=True))
        answer = " ; ".join(self.part(task, said) for task in tasks)
        meta = {"tasks": " ".join(tasks)}
        return Example(OPENINGS[opening % len(OPENINGS)] + phrases, answer, meta, self.heard(said))

    def base(self, rng: np.random.Generator) -> Iterator[Example]:
        """What the language model knew before: to hear words, and single and paired instructions about written ones."""
        for number in range(BASE):
            if number % 2:
                tasks = rng.permutation(WRITTEN)[: 1 + number // 2 % 2].tolist()
                yield self.example(tasks, self.sentence(rng, spoken=False), rng)
            else:
                said = self.sentence(rng)
                yield Example("hear", self.part("write", said), context=self.heard(said))

    def singles(self, count: int, rng: np.random.Generator, test: bool = False) -> Iterator[Example]:
        """Single tasks in turn."""
        names = list(TASKS)
        return (self.example([names[i % len(names)]], self.sentence(rng), rng, test) for i in range(count))

    def combined(
        self, combinations: Sequence[Sequence[str]], count: int, rng: np.random.Generator, test: bool = False
    ) -> Iterator[Example]:
        """Combined tasks in turn."""
        return (self.example(combinations[i % len(combinations)], self.sentence(rng), rng, test) for i in range(count))

    def triples(self, count: int, rng: np.random.Generator) -> Iterator[Example]:
        """Three tasks at once, as in no training example."""
        every = rng.permutation(list(permutations(TASKS, 3)))[:count].tolist()
        return self.combined(every, count, rng, test=True)

    def _words(self, words: Sequence[str], said: Said) -> str:
        return " ".join(words[word] for word in said.words)


def measure(arm: str, seed: int, folder: Path) -> Metrics:
    """Train one arm; replies that are right as a whole, and that at least do what was asked, part by part."""
    world, shared = World(seed), folder.parent / f"data-{seed}"
    base_examples = list(world.base(np.random.default_rng([seed, 1])))
    singles = list(world.singles(EXAMPLES, np.random.default_rng([seed, 2])))
    pairs = list(world.combined(world.seen, EXAMPLES, np.random.default_rng([seed, 3])))
    for name, made in (("base", base_examples), ("single", singles), ("combined", pairs)):
        write_examples(shared, name, made)
    texts = [text for item in (*base_examples[:4000], *pairs) for text in (item.context, item.question, item.answer)]
    vocab_size = make_tokenizer(shared / "tokenizer", texts, size=900)

    def fit(model: TextModel, shares: Mapping[str, float], steps: int, place: Path, start: Path | None) -> Path:
        """One stage, from a checkpoint of an earlier one; the base's trains everything."""
        sources = [{"path": str(shared / f"{name}-*.tar"), "weight": share} for name, share in shares.items()]
        if start is None:
            return train(model, shared / "tokenizer", vocab_size, {"sources": sources}, steps, seed, place)
        patterns = ["lora_", *([r"^language_model\.gate\."] if "prompt_gate" in model.adapters else [])]
        changes = {"muon": {}, "learning_rate": 5e-3, "weight_decay": 0.0}
        source = [{"path": str(start), "allow_new": patterns}]
        arguments = (model, shared / "tokenizer", vocab_size, {"sources": sources}, steps, seed, place)
        return train(*arguments, source, patterns, changes)

    base, first = folder.parent / f"base-{seed}", folder.parent / f"first-{seed}"
    if not (base / "checkpoint").is_dir():
        fit(MODEL, {"base": 1.0}, BASE_STEPS, base, None)
    plain, gated = replace(MODEL, adapters=UPDATES), replace(MODEL, adapters=GATED)
    start = base / "checkpoint"
    if arm == "single_tasks":
        checkpoint = fit(plain, {"single": 1.0}, FIRST_STEPS + SECOND_STEPS, folder, start)
    elif arm == "one_stage":  # a quarter of its samples are combined: as many as half of the second stage's
        checkpoint = fit(gated, {"single": 1.0, "combined": 1 / 3}, FIRST_STEPS + SECOND_STEPS, folder, start)
    else:
        if not (first / "checkpoint").is_dir():
            fit(plain, {"single": 1.0}, FIRST_STEPS, first, start)
        model = plain if arm == "two_stage_no_gate" else gated
        checkpoint = fit(model, {"single": 1.0, "combined": 1.0}, SECOND_STEPS, folder, first / "checkpoint")
    return _scores(checkpoint, world, np.random.default_rng([seed, 4]))


def _scores(checkpoint: Path, world: World, rng: np.random.Generator) -> Metrics:
    session = open_session(checkpoint)
    singles = list(world.singles(TEST, rng, test=True))
    pairs = list(world.combined(world.unseen, TEST, rng, test=True))
    triples = list(world.triples(TEST, rng))

    def right(wanted: Sequence[Example], given: Sequence[Example]) -> float:
        replies = answers(session, given)
        return fmean(reply.strip() == item.answer for reply, item in zip(replies, wanted, strict=True))

    replies = answers(session, pairs)
    order = rng.permutation(len(pairs)).tolist()
    shuffled = [replace(item, context=pairs[other].context) for item, other in zip(pairs, order, strict=True)]
    counts = Counter(item.answer for item in pairs)
    return {
        "single": right(singles, singles),
        "pairs": fmean(reply.strip() == item.answer for reply, item in zip(replies, pairs, strict=True)),
        "pairs_followed": fmean(map(followed, [world] * len(pairs), replies, pairs)),
        "triples": right(triples, triples),
        "blind": right(pairs, [replace(item, context="") for item in pairs]),
        "shuffled": right(pairs, shuffled),
        "constant": max(counts.values()) / len(pairs),
    }


def followed(world: World, reply: str, asked: Example) -> bool:
    """Whether a reply has the parts that were asked for, in order, right or wrong."""
    return " ".join(world.kind(part.strip()) for part in reply.split(";")) == asked.meta["tasks"]


DEMONSTRATION = Demonstration(
    paper=25,
    address="https://arxiv.org/abs/2404.00656",
    shows="combined instructions over sounds, by low-rank updates and a gate, learned in one stage or in two",
    arms={
        "single_tasks": f"single tasks alone for {FIRST_STEPS + SECOND_STEPS} steps, no gate",
        "one_stage": f"single tasks and combined ones, with the gate, for {FIRST_STEPS + SECOND_STEPS} steps",
        "two_stage": f"{FIRST_STEPS} steps of single tasks; {SECOND_STEPS} of both, where the gate joins",
        "two_stage_no_gate": "the same two stages without a gate",
    },
    measure=measure,
    claims=[
        Claim(
            "pairs never combined: two stages exceed one by .03",
            lambda mean: mean("two_stage", "pairs") >= mean("one_stage", "pairs") + 0.03,
        ),
        Claim(
            "single tasks: two stages lose at most .02 against one",
            lambda mean: mean("two_stage", "single") >= mean("one_stage", "single") - 0.02,
        ),
        Claim(
            "the second stage is what teaches to combine: .30 over single tasks alone",
            lambda mean: mean("two_stage", "pairs") >= mean("single_tasks", "pairs") + 0.3,
        ),
        Claim(
            "in two stages the gate is worth .03 of the pairs",
            lambda mean: mean("two_stage", "pairs") >= mean("two_stage_no_gate", "pairs") + 0.03,
        ),
        Claim(
            "without the sounds, or with others', at most .15 are right",
            lambda mean: max(mean("two_stage", "blind"), mean("two_stage", "shuffled")) <= 0.15,
        ),
    ],
    controls={
        "blind": ("two_stage", "blind"),
        "shuffled": ("two_stage", "shuffled"),
        "constant": ("two_stage", "constant"),
    },
    controls_na={"random_weights": "every arm stands on the same trained model"},
)
