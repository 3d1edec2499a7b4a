"""A prediction as a log row: what was asked, what came back, and the reference, all in plain JSON values."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.media import decode_target, encode_mask, encode_png
from data.records import Message, Part, Target
from data.shards import Sample
from inference.conversation import Conversation, HeadError, Reply
from inference.files import encode_audio, encode_frames
from layers.calls import (
    AudioResult,
    BoxesResult,
    Call,
    EmbeddingResult,
    Grounding,
    ImageResult,
    LabelResult,
    MaskResult,
    MasksResult,
    NodeRef,
    RankingResult,
    Region,
    Result,
    ResultRef,
    ScoreResult,
    SelectionResult,
    TimeSpan,
    VideoResult,
)
from routers.parser import ParseError

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
        errors: ``{"kind", "message"}`` each, of a head's also the ``cause``.
        finish_reason: "stop" or "length".
        results: One per call, or None where the head refused; see :func:`result_to_json`.
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
        errors=[_error_to_json(error) for error in reply.errors],
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


def call_to_json(call: Call) -> dict[str, Any]:
    """Task, prompt and groundings in the notation of records."""
    return {
        "task": call.task,
        "prompt": call.prompt,
        "groundings": [_grounding_to_json(grounding) for grounding in call.groundings],
    }


def result_to_json(result: Result) -> dict[str, Any]:
    """A result as JSON, and its notes.

    It is one of ``boxes``, ``mask`` and ``masks`` (COCO run-lengths), ``image`` (base64 PNG), ``audio`` (base64 FLAC),
    ``video`` (base64, its ``format`` MP4 or GIF), ``label``, ``score``, ``embedding`` (base64 of little-endian
    float32), ``ranking`` (names) and ``selection`` (indices).

    Raises:
        TypeError: For a result type that the log does not know.
    """
    return {**_value_to_json(result), **({"notes": list(result.notes)} if result.notes else {})}


def _value_to_json(result: Result) -> dict[str, Any]:
    if isinstance(result, BoxesResult):
        boxes = [[float(edge) for edge in box] for box in result.boxes_xyxy]
        return {"type": "boxes", "boxes_xyxy": boxes, **_scored(result)}
    if isinstance(result, MaskResult):
        score = {} if result.score is None else {"score": float(result.score)}
        return {"type": "mask", "mask": encode_mask(result.mask), **score}
    if isinstance(result, MasksResult):
        return {"type": "masks", "masks": [encode_mask(mask) for mask in result.masks], **_scored(result)}
    if isinstance(result, ImageResult):
        return {"type": "image", "png": encode_image(result.image)}
    if isinstance(result, AudioResult):
        data = encode_audio(result.waveform, result.sample_rate)
        seconds = result.waveform.shape[1] / result.sample_rate
        return {"type": "audio", "format": "flac", "data": _base64(data), "seconds": round(seconds, 3)}
    if isinstance(result, VideoResult):
        data, kind = encode_frames(result.frames, result.fps)
        return {"type": "video", "format": kind, "data": _base64(data), "frames": len(result.frames), "fps": result.fps}
    if isinstance(result, LabelResult):
        probabilities = {name: float(value) for name, value in result.probabilities.items()}
        return {"type": "label", "label": result.label, "probabilities": probabilities}
    if isinstance(result, ScoreResult):
        return {"type": "score", "score": float(result.score)}
    if isinstance(result, EmbeddingResult):
        return {"type": "embedding", "float32": encode_vector(result.vector)}
    if isinstance(result, RankingResult):
        return {"type": "ranking", "items": list(result.items), "scores": [float(score) for score in result.scores]}
    if isinstance(result, SelectionResult):
        return {"type": "selection", "indices": list(result.indices), "score": float(result.score)}
    raise TypeError(f"expected a result that the log can hold, got {type(result).__name__}")


def _scored(result: BoxesResult | MasksResult) -> dict[str, Any]:
    labels = {"labels": list(result.labels)} if result.labels else {}
    return {"scores": [float(score) for score in result.scores], **labels}


def encode_image(image: Tensor) -> str:
    """An image (3, H, W) uint8 as base64 PNG."""
    return _base64(encode_png(image))


def decode_image(png: str) -> Tensor:
    """The inverse of :func:`encode_image`."""
    image: Tensor = decode_target(Target(type="image", file="image.png"), base64.b64decode(png))
    return image


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def prompt_text(messages: Sequence[Message]) -> str:
    """Turns as text; media stand as ``[image]``, ``[audio]``, ``[graph]``."""
    return "\n".join(_turn_text(message) for message in messages)


def prompt_sha256(messages: Sequence[Message]) -> str:
    """Of turns as JSON."""
    turns = json.dumps([asdict(message) for message in messages], sort_keys=True)
    return hashlib.sha256(turns.encode()).hexdigest()


def encode_vector(vector: Tensor) -> str:
    """A vector (d,) as base64 of little-endian float32."""
    return base64.b64encode(vector.float().cpu().numpy().astype("<f4").tobytes()).decode("ascii")


def decode_vector(data: str) -> Tensor:
    """The inverse of :func:`encode_vector`."""
    return torch.from_numpy(np.frombuffer(base64.b64decode(data), dtype="<f4").astype(np.float32))


def _error_to_json(error: ParseError | HeadError) -> dict[str, str]:
    cause = {"cause": error.cause} if isinstance(error, HeadError) else {}
    return {"kind": error.kind, "message": error.message, **cause}


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


def _grounding_to_json(grounding: Grounding) -> dict[str, Any]:
    if isinstance(grounding, Region):
        canvas = {} if grounding.canvas is None else {"canvas": list(grounding.canvas)}
        return {"type": "region", "box_xyxy": [float(edge) for edge in grounding.box_xyxy], **canvas}
    if isinstance(grounding, TimeSpan):
        return {"type": "time_span", "start": grounding.start, "end": grounding.end}
    if isinstance(grounding, NodeRef):
        return {"type": "node", "index": grounding.index}
    assert isinstance(grounding, ResultRef)
    return {"type": "result", "call_index": grounding.call_index}
