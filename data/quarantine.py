"""Bad samples: counted, written down, and limited; one of them never ends a run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path


class QuarantineError(ValueError):
    """More bad samples than the run allows."""


@dataclass(frozen=True)
class BadSample:
    """A sample that was left out.

    Args:
        shard: Its shard.
        key: Its key.
        reason: What was expected and what was given.
    """

    shard: str
    key: str
    reason: str


class Quarantine:
    """Remembers each bad sample once.

    Args:
        path: JSON lines are appended here, one per bad sample; None keeps them in memory only.
        num_samples: Samples of the data set.
        max_fraction: Share of them that may be bad.
        grace: So many may be bad in any case, for streams that begin with few samples.

    Attributes:
        bad: The bad samples, in order of discovery.
    """

    def __init__(self, path: str | Path | None, num_samples: int, max_fraction: float = 0.05, grace: int = 0) -> None:
        self.path = Path(path) if path is not None else None
        self.num_samples, self.max_fraction, self.grace = num_samples, max_fraction, grace
        self.bad: list[BadSample] = []
        self._known: set[tuple[str, str]] = set()
        self._written = self._already_written()

    def add(self, samples: Iterable[BadSample]) -> None:
        """Write down samples that are not known yet.

        Raises:
            QuarantineError: If there are now more than ``max_fraction`` of all.
        """
        new = [sample for sample in dict.fromkeys(samples) if (sample.shard, sample.key) not in self._known]
        self._known.update((sample.shard, sample.key) for sample in new)
        self.bad += new
        self._write([sample for sample in new if (sample.shard, sample.key) not in self._written])
        if new and len(self.bad) > max(self.max_fraction * self.num_samples, self.grace):
            place = f", listed in '{self.path}'" if self.path is not None else ""
            raise QuarantineError(
                f"quarantine: expected at most {self.max_fraction:.1%} of {self.num_samples} samples to be bad, got "
                f"{len(self.bad)}{place}; the last one: {new[-1].shard}, '{new[-1].key}': {new[-1].reason}"
            )

    def _write(self, samples: list[BadSample]) -> None:
        if self.path is None or not samples:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in samples)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(lines)

    def _already_written(self) -> set[tuple[str, str]]:
        if self.path is None or not self.path.is_file():
            return set()
        written = set()
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                continue  # the last line of a run that was killed while writing
            written.add((value["shard"], value["key"]))
        return written
