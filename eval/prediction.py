"""A prediction as a log row: what was asked, what came back, and the reference, all in plain JSON values."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from data.media import decode_target
from data.records import Message, Part, Target
from data.shards import Sample
from inference.conversation import Conversation, Reply
from inference.files import call_to_json, error_to_json, result_to_json

HEAD_ERROR = "head"


@dataclass(frozen=True)
class Prediction:
    """One row of a prediction log.

    Args:
        benchmark: Name of the benchmark.
        key: The sample's key.
        index: Its place in the benchmark, or -1.
        prompt: The turns before the answer as text; media stand as ``[image]``, ``[audio]``, ``[graph]``.
        prompt_sha256: Of the turns as JSON.
        rendered: What the model read: its own template, with control tokens, runs of media placeholders as one.
        media_sha256: Media name -> sha256 of the bytes that the model was given.
        raw: What the model wrote, control tokens included.
        text: What remains without its calls.
        calls: ``{"task", "prompt", "groundings"}`` each; regions in original pixels.
        errors: ``{"kind", "message"}`` each, of a head's also the ``call_index`` and the ``cause``.
        finish_reason: "stop" or "length".
        results: One per call, or None where the head refused; see :func:`inference.files.result_to_json`.
        reference: ``{"text", "calls", "meta"}``; a reference call carries its target, see :func:`reference_of`.
        timings: Seconds per phase.
        generation: Settings of decoding, and which of our decode loops ran ("loop": "fused" or "generic").
        parsed: What was read from the reply when it was logged; scoring reads it anew.
        parse_status: "parsed", or why nothing could be read.
        log_probability: How likely the model found its reply, or None where that was not asked for.
    """

    benchmark: str
    key: str
    index: int = -1
    prompt: str = ""
    prompt_sha256: str = ""
    rendered: str = ""
    media_sha256: Mapping[str, str] = field(default_factory=dict)
    raw: str = ""
    text: str = ""
    calls: Sequence[Mapping[str, Any]] = ()
    errors: Sequence[Mapping[str, Any]] = ()
    finish_reason: str = "stop"
    results: Sequence[Mapping[str, Any] | None] = ()
    reference: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    parsed: Any = None
    parse_status: str = ""
    log_probability: float | None = None

    @property
    def failed(self) -> bool:
        """Whether the reply does not parse: a malformed or unavailable call, or a reply cut at the length limit."""
        return bool(self.failure)

    @property
    def failure(self) -> str:
        """Why the reply does not parse, alike for alike cases; "" where it does."""
        if self.finish_reason == "length":
            return "cut at the length limit"
        return next((f"{error['kind']} call" for error in self.errors if error["kind"] != HEAD_ERROR), "")

    @property
    def cluster(self) -> str:
        """What the sample shares with others that are not independent of it: ``meta.cluster``, or its own key."""
        return str(self.meta.get("cluster", self.key))

    @property
    def meta(self) -> Mapping[str, Any]:
        """The record's ``meta``."""
        return self.reference.get("meta", {})

    @property
    def answer(self) -> str:
        """The reference answer: ``meta.answer``, or the reference text."""
        return str(self.meta.get("answer", self.reference.get("text", "")))

    def first_result(self, kind: str) -> Mapping[str, Any] | None:
        """The first result of a type ("boxes", "mask", ...) of a reply that parses; None without one."""
        if self.failed:
            return None
        return next((item for item in self.results if item is not None and item["type"] == kind), None)

    def target(self, kind: str) -> Any:
        """The first reference target of a type, decoded.

        Raises:
            ValueError: If the reference has none.
        """
        for call in self.reference["calls"]:
            target = call.get("target")
            if target is not None and target["type"] == kind:
                return reference_value(target)
        raise ValueError(f"sample '{self.key}' of '{self.benchmark}': expected a {kind} target, got none")

    def to_json(self) -> dict[str, Any]:
        """A log row."""
        return {"type": "prediction", **vars(self)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Prediction:
        """The inverse of :meth:`to_json`."""
        return cls(**{name: value for name, value in row.items() if name != "type"})


def predicted(
    benchmark: str, sample: Sample, conversation: Conversation, media: Mapping[str, bytes], reply: Reply
) -> Prediction:
    """The log row of a reply.

    Args:
        benchmark: Name of the benchmark.
        sample: What was to be answered.
        conversation: What was asked (a control may have changed it).
        media: The encoded media that were given, by name.
        reply: What came back.
    """
    return Prediction(
        benchmark=benchmark,
        key=sample.key,
        prompt=prompt_text(conversation.messages),
        prompt_sha256=prompt_sha256(conversation.messages),
        media_sha256={name: hashlib.sha256(data).hexdigest() for name, data in media.items()},
        raw=reply.raw_text,
        text=reply.text,
        calls=[call_to_json(call) for call in reply.calls],
        errors=[error_to_json(error) for error in reply.errors],
        finish_reason=reply.finish_reason,
        results=[None if result is None else result_to_json(result) for result in reply.results],
        reference=reference_of(sample),
        timings={name: round(seconds, 6) for name, seconds in reply.timings.items()},
        generation={"loop": reply.loop} if reply.loop else {},
        log_probability=reply.log_probability,
    )


def silent(benchmark: str, sample: Sample) -> Prediction:
    """A prediction that says nothing, with the sample's prompt and reference."""
    messages = Conversation.from_record(sample.record, dict.fromkeys(sample.record.media)).messages  # type: ignore[arg-type]
    return Prediction(
        benchmark,
        sample.key,
        prompt=prompt_text(messages),
        prompt_sha256=prompt_sha256(messages),
        reference=reference_of(sample),
    )


def reference_of(sample: Sample) -> dict[str, Any]:
    """Text, calls (with their targets, members as base64 ``data``) and meta of a sample's last assistant turns."""
    parts = list(_reference_parts(sample))
    calls = []
    for part in parts:
        if part.type == "call":
            call: dict[str, Any] = {"task": part.task, "prompt": part.prompt, "groundings": list(part.groundings)}
            if part.target is not None:
                call["target"] = _target_to_json(sample, sample.record.targets[part.target])
            calls.append(call)
    text = " ".join(part.text for part in parts if part.type == "text").strip()
    return {"text": text, "calls": calls, "meta": dict(sample.record.meta)}


def reference_value(target: Mapping[str, Any]) -> Any:
    """A reference call's target, decoded as :func:`data.media.decode_target` does."""
    data = base64.b64decode(target["data"]) if "data" in target else None
    return decode_target(Target(type=target["type"], value=target.get("value"), file=target.get("file")), data)


def prompt_text(messages: Sequence[Message]) -> str:
    """Turns as text; media stand as ``[image]``, ``[audio]``, ``[graph]``."""
    return "\n".join(_turn_text(message) for message in messages)


def prompt_sha256(messages: Sequence[Message]) -> str:
    """Of turns as JSON."""
    turns = json.dumps([asdict(message) for message in messages], sort_keys=True)
    return hashlib.sha256(turns.encode()).hexdigest()


def _reference_parts(sample: Sample) -> Iterator[Part]:
    turns = list(sample.record.messages)
    start = len(turns)
    while start > 0 and turns[start - 1].role == "assistant":
        start -= 1
    for turn in turns[start:]:
        yield from turn.content


def _target_to_json(sample: Sample, target: Target) -> dict[str, Any]:
    if target.file is None:
        return {"type": target.type, "value": target.value}
    data = base64.b64encode(sample.members[target.file]).decode("ascii")
    return {"type": target.type, "file": target.file, "data": data}


def _turn_text(message: Message) -> str:
    parts = [part.text if part.type == "text" else f"[{part.type}]" for part in message.content]
    return f"{message.role}: {' '.join(parts)}"
