"""MME (https://arxiv.org/abs/2306.13394): one folder per subtask, two questions per image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from eval.benchmarks.benchmark import BenchmarkError
from eval.benchmarks.reader import Item, MediaFile, Reader, read_lines
from eval.metrics.answers.yes_no import MME_COGNITION, MME_PERCEPTION

_ASKED = "Please answer yes or no."
_IMAGES = (".jpg", ".png", ".jpeg")


class MmeReader(Reader):
    """``SUBTASK/NAME.txt`` with lines ``QUESTION<tab>Yes|No`` beside ``SUBTASK/NAME.jpg``, as the release has it.

    In artwork, celebrity, landmark, posters and scene texts lie in ``questions_answers_YN/`` and images in ``images/``;
    a subtask may have either form.

    Args:
        root: The benchmark's folder.
        plain: Leave out the questions' own request to answer yes or no, since the prompt has another.
    """

    def __init__(self, root: str | Path, plain: bool = True) -> None:
        super().__init__(root)
        self.plain = plain

    @property
    def files(self) -> tuple[Path, ...]:
        """The texts of all subtasks; a subtask without texts stands for itself."""
        found = []
        for subtask in (*MME_PERCEPTION, *MME_COGNITION):
            folder = self.root / subtask
            inner = folder / "questions_answers_YN"
            texts = sorted((inner if inner.is_dir() else folder).glob("*.txt"))
            found += texts or [folder / "*.txt"]
        return tuple(found)

    def items(self) -> Iterator[Item]:
        """Two per image."""
        for path in self.files:
            folder = path.parent.parent if path.parent.name == "questions_answers_YN" else path.parent
            images = folder / "images" if path.parent != folder else folder
            image = next(
                (images / (path.stem + end) for end in _IMAGES if (images / (path.stem + end)).is_file()), None
            )
            shown = image or images / f"{path.stem}{_IMAGES[0]}"
            for number, (question, answer) in enumerate(_lines(path)):
                yield Item(
                    key=f"{folder.name}/{path.stem}/{number}",
                    fields={"question": question.replace(_ASKED, "").strip() if self.plain else question},
                    media={"image": MediaFile("image", shown)},
                    answer=answer.capitalize(),
                    meta={
                        "subtask": folder.name,
                        "image": f"{folder.name}/{path.stem}",
                        "gold": answer,
                        "file": shown.name,
                        "question": question,
                    },
                )


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    kept = [(number, line) for number, line in enumerate(read_lines(path), 1) if line.strip()]
    if len(kept) != 2:
        raise BenchmarkError(f"'{path}': expected two questions, got {len(kept)}")
    for number, line in kept:
        question, _, answer = line.rpartition("\t")
        if not question or answer.strip().lower() not in ("yes", "no"):
            raise BenchmarkError(f"'{path}' line {number}: expected a question, a tab and Yes or No, got {line!r:.80}")
        yield question.strip(), answer.strip().lower()
