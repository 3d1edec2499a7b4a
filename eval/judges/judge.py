"""The contract of a judge, the memory of its verdicts, and judges that need no model."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from eval.metrics.text import exact_match

NO_JUDGE = "no judge"
_FIELD = re.compile(r"\{([a-z_]\w*)\}")
RULES: Mapping[str, Callable[[Mapping[str, str]], str]] = {
    "exact": lambda payload: f"{float(exact_match(payload['reply'], payload['answer'])):.1f}",
    "contains": lambda payload: f"{float(payload['answer'].strip().casefold() in payload['reply'].casefold()):.1f}",
}
"""Judges by rule, of payloads with ``answer`` and ``reply``; they say "1.0" or "0.0"."""


@dataclass(frozen=True)
class Template:
    """What a judge is asked.

    Args:
        text: With fields in braces, which a payload fills; braces mean nothing else.
    """

    text: str

    @property
    def sha256(self) -> str:
        """Of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields."""
        return tuple(dict.fromkeys(_FIELD.findall(self.text)))

    def fill(self, payload: Mapping[str, str]) -> str:
        """The prompt.

        Raises:
            ValueError: If the payload lacks a field.
        """
        missing = sorted(set(self.fields) - set(payload))
        if missing:
            raise ValueError(f"judge template: expected the fields {missing}, got {sorted(payload)}")
        return _FIELD.sub(lambda match: payload[match[1]], self.text)


@dataclass(frozen=True)
class Verdict:
    """What a judge said.

    Args:
        text: Its words, or None where there are none.
        error: Why not, such as a time-out.
    """

    text: str | None
    error: str = ""


class Judge(ABC):
    """Grades. Verdicts of the same judge, template and payload are asked for once only, see :class:`Remembered`.

    Attributes:
        identity: What changes its verdicts: a model's name, a rule's; part of the protocol of every score.
    """

    identity: str

    @abstractmethod
    def verdicts(self, template: Template, payloads: Sequence[Mapping[str, str]]) -> Iterator[Verdict]:
        """One verdict per payload, in order; a failure is a verdict without words and never an exception."""


class RuleJudge(Judge):
    """Grades by rule, without a model.

    Args:
        rule: One of :data:`RULES`.

    Raises:
        ValueError: For an unknown rule.
    """

    def __init__(self, rule: str) -> None:
        if rule not in RULES:
            raise ValueError(f"judge rule: expected one of {sorted(RULES)}, got {rule!r}")
        self.identity, self._rule = f"rule:{rule}@1", RULES[rule]

    def verdicts(self, template: Template, payloads: Sequence[Mapping[str, str]]) -> Iterator[Verdict]:
        """The rule's word; what it looks at is the payload alone."""
        for payload in payloads:
            yield Verdict(self._rule(payload))


class Remembered(Judge):
    """A judge whose verdicts are written down, so that none is paid for twice and a killed run goes on.

    Args:
        judge: Asked for what is not known yet.
        path: JSON lines, appended; several processes may use the same.

    Raises:
        ValueError: If the file holds anything else.
    """

    def __init__(self, judge: Judge, path: str | Path) -> None:
        self.judge, self.path = judge, Path(path)
        self.identity = judge.identity
        self._known: dict[str, str] = {}
        self._lock = threading.Lock()
        if self.path.exists():
            self._read()

    def verdicts(self, template: Template, payloads: Sequence[Mapping[str, str]]) -> Iterator[Verdict]:
        """Known verdicts, and new ones for the rest, each written as it comes; failures are not remembered."""
        keys = [self._key(template, payload) for payload in payloads]
        missing = {key: place for place, key in reversed(list(enumerate(keys))) if key not in self._known}
        order = sorted(missing.values())
        errors: dict[str, str] = {}
        if order:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as stream:
                fresh = self.judge.verdicts(template, [payloads[place] for place in order])
                for place, verdict in zip(order, fresh, strict=True):
                    if verdict.text is None:
                        errors[keys[place]] = verdict.error
                    else:
                        self._write(stream, keys[place], verdict.text)
        for key in keys:
            text = self._known.get(key)
            yield Verdict(text, "" if text is not None else errors[key])

    def _key(self, template: Template, payload: Mapping[str, str]) -> str:
        content = json.dumps(dict(sorted(payload.items())), ensure_ascii=False)
        return "/".join((self.identity, template.sha256, hashlib.sha256(content.encode()).hexdigest()))

    def _write(self, stream: IO[bytes], key: str, text: str) -> None:
        with self._lock:
            stream.write((json.dumps({"key": key, "verdict": text}, ensure_ascii=False) + "\n").encode())
            stream.flush()
            os.fsync(stream.fileno())
            self._known[key] = text

    def _read(self) -> None:
        lines = self.path.read_bytes().split(b"\n")
        if lines[-1]:  # torn by a kill; what follows starts a new line
            with self.path.open("ab") as stream:
                stream.write(b"\n")
        for number, line in enumerate(lines[:-1], 1):
            try:
                row = json.loads(line)
                self._known[row["key"]] = row["verdict"]
            except ValueError:
                continue  # an earlier torn line: that verdict is asked for again
            except (KeyError, TypeError):
                raise ValueError(f"'{self.path}' line {number}: expected key and verdict, got {line[:80]!r}") from None
