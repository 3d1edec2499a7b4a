"""MathVista: the answer is extracted, by rule where the reply is plain and by a judge elsewhere, and compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from eval.benchmarks.metric import Answered, Metric, parts_of
from eval.judges.judge import NO_JUDGE, Template
from eval.metrics.answers.mathvista import extract_directly, normalise_extraction
from eval.metrics.statistics import Score
from eval.tally import Tally

_CHUNK = 64
TEMPLATE = Template(
    "A model was asked a question and replied. Write down the answer that its reply gives, and nothing else: the "
    "letter of the option, or the number or list in the form that the question asks for. If it gives none, write "
    "nothing.\n\nQuestion:\n{question}\n\nReply:\n{reply}\n\nAnswer:"
)


class MathVistaAccuracy(Metric):
    """Accuracy after extraction and normalisation.

    ``accuracy`` asks the judge for what a reply answers wherever a rule cannot tell; without a judge it is n/a as soon
    as one reply needs it. ``rule_accuracy`` counts those replies as wrong: a lower bound, and another protocol.

    Args:
        parts: Entries of the meta that scores are broken down by.
    """

    names = ("accuracy", "rule_accuracy")
    needs_judge = True

    def __init__(self, parts: Sequence[str] = ()) -> None:
        self.parts = tuple(parts)

    def score(self, answers: Iterable[Answered]) -> dict[str, Score]:
        """Both."""
        judged, ruled = Tally(), Tally()
        unread, missing = 0, 0
        stream = iter(answers)
        while chunk := list(islice(stream, _CHUNK)):
            found = {item.row.key: _direct(item) for item in chunk}
            asked = [item for item in chunk if item.answer.parsed and found[item.row.key] is None]
            unread += len(asked)
            for item in chunk:
                value = found[item.row.key]
                ruled.add(item.row, float(_matches(item, value)), parts=parts_of(item.row, self.parts))
            if asked and self.judge is not None:
                verdicts = self.judge.verdicts(TEMPLATE, [self.payload(item) for item in asked])
                for item, verdict in zip(asked, verdicts, strict=True):
                    missing += verdict.text is None
                    found[item.row.key] = (verdict.text or "").strip()
            for item in chunk:
                right = _matches(item, found[item.row.key])
                judged.add(item.row, float(right), parts=parts_of(item.row, self.parts))
        who = self.judge.identity if self.judge is not None else "none"
        words = "plain replies, options and 'The answer is \"...\".' are read by rule"
        score = judged.mean(f"{words}, the other {unread} by the judge {who}")
        reason = ""
        if unread and self.judge is None:
            reason = f"{NO_JUDGE} for {unread} replies that no rule can read"
        elif missing:
            reason = f"{missing} verdicts are missing; score again to ask for them"
        if reason:
            score = Score(float("nan"), len(judged), None, score.protocol, na=reason)
        return {
            "accuracy": score,
            "rule_accuracy": ruled.mean(f"{words}, the other {unread} are wrong"),
        }

    def right(self, answered: Answered) -> bool:
        """By rule, else as the judge reads it."""
        value = _direct(answered)
        if value is None and answered.answer.parsed and self.judge is not None:
            (verdict,) = self.judge.verdicts(TEMPLATE, [self.payload(answered)])
            value = (verdict.text or "").strip()
        return _matches(answered, value)

    def payload(self, answered: Answered) -> Mapping[str, str]:
        """What the judge sees of an answer; not the gold."""
        return {"question": answered.row.prompt, "reply": str(answered.answer.value)}


def _direct(item: Answered) -> str | None:
    """What a rule reads, or None where it needs a judge."""
    if not item.answer.parsed:
        return None
    meta = item.row.meta
    choices = [str(option) for option in meta.get("choices") or ()]
    return extract_directly(str(item.answer.value), meta["question_type"], meta["answer_type"], choices)


def _matches(item: Answered, extraction: str | None) -> bool:
    if extraction is None:
        return False
    meta = item.row.meta
    choices = [str(option) for option in meta.get("choices") or ()]
    value = normalise_extraction(extraction, meta["question_type"], meta["answer_type"], choices, meta.get("precision"))
    return value is not None and value == item.row.answer
