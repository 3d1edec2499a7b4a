"""Options, yes or no, and one label of a set."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from eval.benchmarks.answer import Answer
from eval.benchmarks.parser import Parser
from eval.benchmarks.prompt import LETTERS
from eval.metrics.answers.choices import parse_choice, parse_exact_choice, parse_science_choice
from eval.metrics.answers.labels import only_label
from eval.metrics.answers.mmmu import parse_mmmu_choice, parse_mmmu_open
from eval.metrics.answers.yes_no import parse_mme, parse_pope, parse_yes_no
from eval.prediction import Prediction


def _first_letter(reply: str, options: Mapping[str, str]) -> str | None:
    """PhysBench's rule: the reply begins with the letter."""
    return reply[:1] if reply[:1] in options else None


CHOICES: Mapping[str, Callable[[str, Mapping[str, str]], str | None]] = {
    "cascade": parse_choice,
    "exact": parse_exact_choice,
    "mmmu": parse_mmmu_choice,
    "science": lambda reply, options: parse_science_choice(reply, len(options)),
    "first-letter": _first_letter,
}
"""Rule -> from a reply and letter -> text to a letter or None."""
YES_NO: Mapping[str, Callable[[str], str | None]] = {"pope": parse_pope, "mme": parse_mme, "strict": parse_yes_no}


class ChoiceParser(Parser):
    """The letter of an option.

    The options are ``meta.options``, or the letters ``meta.letters`` where their texts stand in the question only.

    Args:
        rule: One of :data:`CHOICES`.
        letters: Letters where a sample says nothing of its options.
    """

    def __init__(self, rule: str = "cascade", letters: str = "ABCD") -> None:
        if rule not in CHOICES:
            raise ValueError(f"rule: expected one of {sorted(CHOICES)}, got '{rule}'")
        self.rule, self.letters = rule, letters

    def parse(self, row: Prediction) -> Answer:
        """The letter, or "no option named"."""
        letter = CHOICES[self.rule](row.text, self.options(row))
        return Answer(letter) if letter is not None else Answer(None, "no option named")

    def options(self, row: Prediction) -> dict[str, str]:
        """Letter -> text."""
        texts = row.meta.get("options")
        if texts is None:
            return dict.fromkeys(str(row.meta.get("letters", self.letters)), "")
        return dict(zip(LETTERS, map(str, texts), strict=False))


class MmmuParser(ChoiceParser):
    """MMMU's own two parsers: a letter, or the list of everything that may be the open answer."""

    def __init__(self) -> None:
        super().__init__("mmmu")

    def parse(self, row: Prediction) -> Answer:
        """By ``meta.question_type``."""
        if row.meta.get("question_type") == "open":
            values = parse_mmmu_open(row.text)
            return Answer(values) if row.text.strip() else Answer(None, "empty reply")
        return super().parse(row)


class YesNoParser(Parser):
    """Yes or no.

    Args:
        rule: One of :data:`YES_NO`: "pope" (always one of both), "mme", or "strict".
    """

    def __init__(self, rule: str = "strict") -> None:
        if rule not in YES_NO:
            raise ValueError(f"rule: expected one of {sorted(YES_NO)}, got '{rule}'")
        self.rule = rule

    def parse(self, row: Prediction) -> Answer:
        """Yes, no, or "neither yes nor no"."""
        answer = YES_NO[self.rule](row.text)
        return Answer(answer) if answer is not None else Answer(None, "neither yes nor no")


class LabelParser(Parser):
    """A head's label, else the one of ``meta.options`` that the words mention; the value is ``{label, exact}``."""

    def parse(self, row: Prediction) -> Answer:
        """The label, and whether it is the whole reply."""
        result = row.first_result("label")
        if result is not None:
            return Answer({"label": str(result["label"]), "exact": True})
        label = only_label(row.text, [str(option) for option in row.meta["options"]])
        if label is None:
            return Answer(None, "not exactly one label named")
        return Answer({"label": label, "exact": row.text.strip(" .\n").casefold() == label.casefold()})


class ScoreParser(Parser):
    """A head's score, else 1 or 0 for yes or no."""

    def parse(self, row: Prediction) -> Answer:
        """A number between 0 and 1."""
        result = row.first_result("score")
        if result is not None:
            return Answer(float(result["score"]))
        answer = parse_yes_no(row.text)
        return Answer(None, "neither a score nor yes or no") if answer is None else Answer(float(answer == "yes"))


class RankingParser(Parser):
    """Scores of candidates: a head's ranking, else the probabilities of its label, else 1 for what the words name.

    Of a head that lists its best candidates only, the rest lies below and ties.
    """

    def parse(self, row: Prediction) -> Answer:
        """Candidate -> score."""
        ranking = row.first_result("ranking")
        if ranking is not None and ranking["items"]:
            return Answer(dict(zip(map(str, ranking["items"]), map(float, ranking["scores"]), strict=True)))
        result = row.first_result("label")
        if result is not None and result["probabilities"]:
            return Answer({str(name): float(value) for name, value in result["probabilities"].items()})
        named = str(result["label"]) if result is not None else row.text.strip()
        return Answer({named: 1.0}) if named else Answer(None, "empty reply")
