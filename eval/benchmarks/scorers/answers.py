"""Short answers and choices: VQA accuracy, ANLS, relaxed accuracy, containment, letters, circular groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from eval.benchmarks.metric import Answered, MeanMetric, Metric, parts_of
from eval.metrics.answers.documents import ANLS_VARIANTS, anls, contains_gold, relaxed_match
from eval.metrics.answers.mmmu import mmmu_open_right
from eval.metrics.answers.vqa import ACCURACIES, normalise_evalai
from eval.metrics.statistics import Estimate, Score
from eval.tally import Tally

_WORDS = {
    "official": "normalised as the VQA server does, only where the golds differ; mean over leave-one-out of golds",
    "evalai": "normalised as Pythia's EvalAI processor does; mean over leave-one-out of golds",
    "direct-answer": "compared as it stands with all golds",
}
UNANSWERABLE = "unanswerable"


class VqaAccuracy(Metric):
    """Soft accuracy min(1, matches / 3), under one normaliser as the headline and under others beside it.

    Args:
        normalisers: Of :data:`eval.metrics.answers.vqa.ACCURACIES`; ``accuracy`` is under the first.
        parts: Entries of the meta that scores are broken down by.
        unanswerable: Give precision and recall of saying "unanswerable" as parts, against ``meta.answerable`` being 0.
    """

    def __init__(
        self, normalisers: Sequence[str] = ("official", "evalai"), parts: Sequence[str] = (), unanswerable: bool = False
    ) -> None:
        unknown = sorted(set(normalisers) - set(ACCURACIES))
        if unknown or not normalisers:
            raise ValueError(f"normalisers: expected some of {sorted(ACCURACIES)}, got {list(normalisers)}")
        self.normalisers, self.parts, self.unanswerable = tuple(normalisers), tuple(parts), unanswerable
        self.names = ("accuracy", *(f"accuracy_{name}" for name in self.normalisers[1:]))

    def score(self, answers: Iterable[Answered]) -> dict[str, Score]:
        """The means."""
        tallies = [Tally() for _ in self.normalisers]
        said = meant = both = 0
        for item in answers:
            for name, tally in zip(self.normalisers, tallies, strict=True):
                tally.add(item.row, self._value(item, name), parts=parts_of(item.row, self.parts))
            if self.unanswerable:
                says = item.answer.parsed and normalise_evalai(str(item.answer.value)) == UNANSWERABLE
                is_so = not item.row.meta.get("answerable", 1)
                said, meant, both = said + says, meant + is_so, both + (says and is_so)
        scores = {
            name: tally.mean(f"soft accuracy min(1, matches / 3); {_WORDS[normaliser]}")
            for name, normaliser, tally in zip(self.names, self.normalisers, tallies, strict=True)
        }
        if self.unanswerable:
            first = scores["accuracy"]
            first.parts["unanswerable: precision"] = Estimate(both / said if said else 0.0, said)
            first.parts["unanswerable: recall"] = Estimate(both / meant if meant else 0.0, meant)
        return scores

    def right(self, answered: Answered) -> bool:
        """From one half on."""
        return self._value(answered, self.normalisers[0]) >= 0.5

    def _value(self, item: Answered, normaliser: str) -> float:
        if not item.answer.parsed:
            return 0.0
        return ACCURACIES[normaliser](str(item.answer.value), item.row.meta["answers"])


class Anls(Metric):
    """Average normalised Levenshtein similarity, threshold 0.5, in both variants.

    Args:
        variant: "paper" or "rrc": what ``anls`` is; the other stands beside it.
        parts: Entries of the meta that scores are broken down by.
    """

    def __init__(self, variant: str = "rrc", parts: Sequence[str] = ()) -> None:
        if variant not in ANLS_VARIANTS:
            raise ValueError(f"variant: expected one of {ANLS_VARIANTS}, got '{variant}'")
        self.variants = (variant, *(name for name in ANLS_VARIANTS if name != variant))
        self.parts = tuple(parts)
        self.names = ("anls", f"anls_{self.variants[1]}")

    def score(self, answers: Iterable[Answered]) -> dict[str, Score]:
        """The means."""
        tallies = [Tally() for _ in self.variants]
        for item in answers:
            for variant, tally in zip(self.variants, tallies, strict=True):
                tally.add(item.row, self._value(item, variant), parts=parts_of(item.row, self.parts))
        return {
            name: tally.mean(f"ANLS, threshold 0.5, variant '{variant}' of eval.metrics.answers.documents")
            for name, variant, tally in zip(self.names, self.variants, tallies, strict=True)
        }

    def right(self, answered: Answered) -> bool:
        """Where it is not 0."""
        return self._value(answered, self.variants[0]) > 0

    def _value(self, item: Answered, variant: str) -> float:
        if not item.answer.parsed:
            return 0.0
        return anls(str(item.answer.value), item.row.meta["answers"], variant=variant)  # type: ignore[arg-type]


class RelaxedAccuracy(Metric):
    """ChartQA's relaxed accuracy, and the same with years compared exactly.

    Args:
        parts: Entries of the meta that scores are broken down by.
    """

    names = ("relaxed_accuracy", "strict_years")

    def __init__(self, parts: Sequence[str] = ()) -> None:
        self.parts = tuple(parts)

    def score(self, answers: Iterable[Answered]) -> dict[str, Score]:
        """The means."""
        tallies = {name: Tally() for name in self.names}
        for item in answers:
            for name, tally in tallies.items():
                tally.add(item.row, self._value(item, name), parts=parts_of(item.row, self.parts))
        words = "numbers within 5 % of the gold, other text equal but for case"
        return {
            "relaxed_accuracy": tallies["relaxed_accuracy"].mean(words),
            "strict_years": tallies["strict_years"].mean(f"{words}; golds that look like a year are compared as text"),
        }

    def right(self, answered: Answered) -> bool:
        """As the headline has it."""
        return self._value(answered, self.names[0]) == 1

    def _value(self, item: Answered, name: str) -> float:
        if not item.answer.parsed:
            return 0.0
        strict = name == "strict_years"
        return float(relaxed_match(str(item.answer.value), item.row.answer, strict_years=strict))


class Containment(MeanMetric):
    """OCRBench: whether a gold is part of the reply; its published score is the sum over its 1,000 questions.

    Args:
        parts: Entries of the meta that scores are broken down by.
        formulas: Names of data sets whose golds are compared with case and without spaces.
        dataset: Entry of the meta with that name.
    """

    names = ("accuracy",)
    protocol = "a gold is part of the reply after lower-casing; handwritten formulas with case and without spaces"

    def __init__(
        self, parts: Sequence[str] = (), formulas: Sequence[str] = ("HME100k",), dataset: str = "dataset_name"
    ) -> None:
        super().__init__(parts)
        self.formulas, self.dataset = frozenset(formulas), dataset

    def value(self, answered: Answered) -> float:
        """1 where it is."""
        is_formula = answered.row.meta.get(self.dataset) in self.formulas
        return float(contains_gold(str(answered.answer.value), answered.row.meta["answers"], formula=is_formula))


class ChoiceAccuracy(MeanMetric):
    """Whether the letter is the gold's."""

    names = ("accuracy",)
    protocol = "letter of the option; a reply that names none, or several, is wrong"

    def value(self, answered: Answered) -> float:
        """1 where it is."""
        return float(answered.answer.value == answered.row.answer)


class MmmuAccuracy(MeanMetric):
    """MMMU: letters, and open answers by its own rule; micro-averaged."""

    names = ("accuracy",)
    protocol = (
        "MMMU's own parsers without its random guess (what cannot be read is wrong): the last letter named, or an open "
        "gold that is part of a key phrase or equals a number in one; micro average"
    )

    def value(self, answered: Answered) -> float:
        """1 where it is right."""
        if answered.row.meta.get("question_type") == "open":
            return float(mmmu_open_right(answered.answer.value, answered.row.meta["answers"]))
        return float(answered.answer.value == answered.row.answer)


class CircularAccuracy(Metric):
    """MMBench: a question is right if it is in every rotation of its options; and as it is asked first, beside it.

    Args:
        parts: Entries of the meta that scores are broken down by.
    """

    names = ("circular", "vanilla")

    def __init__(self, parts: Sequence[str] = ()) -> None:
        self.parts = tuple(parts)

    def score(self, answers: Iterable[Answered]) -> dict[str, Score]:
        """Shares of groups; n counts the samples that were asked."""
        groups: dict[int, _Group] = {}
        total = 0
        for item in answers:
            total += 1
            meta = item.row.meta
            group = groups.setdefault(
                meta["group"], _Group(meta["rotations"], item.row.cluster, parts_of(item.row, self.parts))
            )
            group.add(meta["rotation"], self.right(item))
        circular, vanilla = Tally(), Tally()
        for name, group in groups.items():
            circular.put(str(name), group.cluster, [float(group.seen == group.wanted and group.right)], group.parts)
            vanilla.put(str(name), group.cluster, [float(group.first)], group.parts)
        incomplete = sum(group.seen != group.wanted for group in groups.values())
        words = f"share of {len(groups)} questions, each asked in all rotations of its options"
        missing = f"; {incomplete} whose rotations were not all asked count as wrong" if incomplete else ""
        scores = {
            "circular": circular.mean(f"{words}, right in every one{missing}"),
            "vanilla": vanilla.mean(f"{words}, right in the first"),
        }
        return {name: replace(score, n=total) for name, score in scores.items()}

    def right(self, answered: Answered) -> bool:
        """Whether this rotation is right."""
        return answered.answer.parsed and answered.answer.value == answered.row.answer


class _Group:
    """The rotations of a question."""

    def __init__(self, wanted: int, cluster: str, parts: Sequence[str]) -> None:
        self.wanted, self.cluster, self.parts = wanted, cluster, parts
        self.seen, self.right, self.first = 0, True, False

    def add(self, rotation: int, right: bool) -> None:
        """Count one."""
        self.seen += 1
        self.right = self.right and right
        if rotation == 0:
            self.first = right
