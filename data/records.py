"""The record: what one sample of a shard says, as ``KEY.json`` with its media beside it as ``KEY.NAME.EXT``.

Records carry no token strings: a renderer writes those, so shards stay valid when the vocabulary changes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any, Literal, cast

RECORD_VERSION = 1
KEY_PATTERN = re.compile(r"[a-z0-9_-]+\Z")
FILE_PATTERN = re.compile(r"[a-z0-9_-]+\.[a-z0-9]+\Z")

MediaType = Literal["image", "video", "audio", "graph"]
MEDIA_TYPES: tuple[str, ...] = ("image", "video", "audio", "graph")
GROUNDING_TYPES: tuple[str, ...] = ("region", "time_span", "node", "result")
TARGET_TYPES: tuple[str, ...] = ("box", "boxes", "mask", "masks", "image", "label", "score", "order", "pair")
PAIR_ROLES: tuple[str, ...] = ("query", "positive", "negative")
_ITEMS = {"boxes": "box_xyxy", "masks": "mask"}
SPLITS: tuple[str, ...] = ("train", "val", "test")
_FIELDS = frozenset(
    ("version", "task", "source", "license", "split", "messages", "media", "targets", "meta", "companions")
)
_SIZE_NAMES = {
    "image": "(width, height)",
    "video": "(width, height, frames)",
    "audio": "(samples,)",
    "graph": "(nodes,)",
}


class RecordError(ValueError):
    """A record that does not follow the format; the message says what was expected and what was given."""


@dataclass(frozen=True)
class Media:
    """A media member.

    Args:
        type: "image", "video", "audio" or "graph".
        file: Its member name without the key: ``NAME.EXT``.
        size: (width, height) in pixels, (width, height, frames), (samples,) at ``sample_rate``, or (nodes,).
        sample_rate: Hertz, for audio.
    """

    type: MediaType
    file: str
    size: tuple[int, ...]
    sample_rate: int | None = None


@dataclass(frozen=True)
class Part:
    """One content part of a message.

    ``type`` is "text", one of the media types, or "call" (assistant turns only).

    Args:
        type: The kind of part.
        text: The text of a text part.
        media: Name of the media of a media part.
        task: Task of a call.
        prompt: Prompt of a call.
        groundings: Of a call, in order: ``{"type": "region", "box_xyxy": [...]}`` in original pixels (of a drawing to
            be made, where no image is before it, with its ``"canvas": [width, height]``),
            ``{"type": "time_span", "start": s, "end": s}``, ``{"type": "node", "index": i}`` or
            ``{"type": "result", "call_index": i}``.
        target: Id of the call's target, or None.
    """

    type: str
    text: str = ""
    media: str = ""
    task: str = ""
    prompt: str = ""
    groundings: tuple[Mapping[str, Any], ...] = ()
    target: str | None = None


@dataclass(frozen=True)
class Message:
    """A chat turn."""

    role: Literal["system", "user", "assistant"]
    content: tuple[Part, ...]


@dataclass(frozen=True)
class Target:
    """What a head learns or is scored against.

    Args:
        type: "box" (value: xyxy in original pixels), "mask" (value: COCO run-length dictionary, or a PNG member),
            "boxes" and "masks" (value: a list, maybe empty, of ``{"box_xyxy": ..., "label": ...}`` and of
            ``{"mask": ..., "label": ...}``), "image" (a member), "label" (value: string), "score" (value: number),
            "order" (value: indices of inputs, such as nodes, in order) or "pair" (value: ``{"group", "role"}`` of a
            query and what it is compared with, and what the head learns of them).
        value: The value, unless a member holds it.
        file: The member name without the key, or None.
    """

    type: str
    value: Any = None
    file: str | None = None


@dataclass(frozen=True)
class Record:
    """One sample; see the module docstring for how it lies in a shard.

    Args:
        key: The sample's key, unique in its data set; never parsed for meaning.
        task: The kind of sample, for counting, mixing and scoring.
        source: Where it comes from.
        license: SPDX identifier, or a sentence.
        split: "train", "val" or "test".
        messages: The conversation.
        media: Name -> media member.
        targets: Id -> target.
        meta: Language, domain, difficulty, expected answers of an evaluation, ...
        companions: Further conversations, read apart from ``messages`` but never parted from them: the passages that a
            query is compared with, the other half of a pair.
    """

    key: str
    task: str
    source: str
    license: str
    split: str
    messages: tuple[Message, ...]
    media: Mapping[str, Media] = field(default_factory=dict)
    targets: Mapping[str, Target] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)
    companions: tuple[tuple[Message, ...], ...] = ()

    @property
    def conversations(self) -> tuple[tuple[Message, ...], ...]:
        """``messages`` and the companions."""
        return (self.messages, *self.companions)

    @property
    def parts(self) -> Iterator[Part]:
        """The parts of all conversations, in order."""
        return (part for turns in self.conversations for message in turns for part in message.content)

    def to_json(self) -> bytes:
        """The ``KEY.json`` member: deterministic, UTF-8."""
        value = asdict(self)
        del value["key"]
        value = {"version": RECORD_VERSION, **value}
        if not value["companions"]:
            del value["companions"]
        for message in chain(value["messages"], *value.get("companions", ())):
            message["content"] = [_compact_part(part) for part in message["content"]]
        value["media"] = {name: _without_none(media) for name, media in value["media"].items()}
        value["targets"] = {name: _without_none(target) for name, target in value["targets"].items()}
        return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, key: str, data: bytes | str) -> Record:
        """Parse and check a ``KEY.json`` member.

        Raises:
            RecordError: Naming the key, the field, what was expected and what was given.
        """
        try:
            value = parse_json(data)
        except ValueError as error:
            raise RecordError(f"record '{key}': not JSON: {error}") from None
        try:
            return _parse_record(key, value)
        except RecordError as error:
            raise RecordError(f"record '{key}': {error}") from None
        except (KeyError, TypeError, AttributeError) as error:
            raise RecordError(f"record '{key}': malformed: {type(error).__name__}: {error}") from None

    @property
    def files(self) -> tuple[str, ...]:
        """The member names that must stand beside the JSON."""
        media = [item.file for item in self.media.values()]
        return tuple(media + [item.file for item in self.targets.values() if item.file])


def parse_json(data: bytes | str) -> Any:
    """JSON of finite numbers and whole characters; the parser alone takes NaN and halves of surrogate pairs.

    Raises:
        ValueError: If it is none, or nested too deeply.
    """
    text = data.decode() if isinstance(data, bytes) else data
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise ValueError("expected values nested less deeply") from None
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"expected finite numbers, got {name}")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _without_none(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in value.items() if item is not None}


def _compact_part(part: Mapping[str, Any]) -> dict[str, Any]:
    keep = {"text": ("text",), "call": ("task", "prompt", "groundings", "target")}.get(part["type"], ("media",))
    return {"type": part["type"], **{name: part[name] for name in keep if part[name] is not None}}


def _parse_record(key: str, value: Any) -> Record:
    _expect(bool(KEY_PATTERN.match(key)), "key", "[a-z0-9_-]+", key)
    _expect(isinstance(value, dict), "record", "a JSON object", type(value).__name__)
    _expect(value.get("version") == RECORD_VERSION, "version", RECORD_VERSION, value.get("version"))
    if not value.keys() <= _FIELDS:
        _expect(False, "fields", f"only {sorted(_FIELDS)}", sorted(set(value) - _FIELDS))
    for name in ("task", "source", "license", "split"):
        _expect(isinstance(value.get(name), str), name, "a string", value.get(name))
    _expect(value["split"] in SPLITS, "split", SPLITS, value["split"])
    media = {name: _parse_media(name, item) for name, item in value.get("media", {}).items()}
    targets = {name: _parse_target(name, item) for name, item in value.get("targets", {}).items()}
    messages = _parse_messages("messages", value.get("messages"), media, targets)
    others = value.get("companions", [])
    _expect(isinstance(others, list), "companions", "a list of conversations", others)
    companions = tuple(_parse_messages("companion", item, media, targets) for item in others)
    meta = value.get("meta", {})
    _expect(isinstance(meta, dict), "meta", "a JSON object", meta)
    _check_pairs((messages, *companions), targets)
    return Record(
        key=key,
        task=value["task"],
        source=value["source"],
        license=value["license"],
        split=value["split"],
        messages=messages,
        media=media,
        targets=targets,
        meta=meta,
        companions=companions,
    )


def _parse_media(name: str, value: Mapping[str, Any]) -> Media:
    kind = value.get("type")
    _expect(kind in MEDIA_TYPES, f"media '{name}' type", MEDIA_TYPES, kind)
    _check_file(f"media '{name}'", value.get("file"))
    size = value.get("size")
    wanted = _SIZE_NAMES[str(kind)]
    good = isinstance(size, list) and len(size) == wanted.count(",") + (wanted[-2] != ",")
    good = good and all(type(item) is int and item > 0 for item in size or ())
    _expect(good, f"media '{name}' size", f"positive integers {wanted}", size)
    rate = value.get("sample_rate")
    good = rate is None or (type(rate) is int and rate > 0)
    _expect(good, f"media '{name}' sample_rate", "a positive integer, in Hz", rate)
    return Media(type=cast(MediaType, kind), file=value["file"], size=tuple(size or ()), sample_rate=rate)


def _parse_target(name: str, value: Mapping[str, Any]) -> Target:
    kind = value.get("type")
    _expect(kind in TARGET_TYPES, f"target '{name}' type", TARGET_TYPES, kind)
    if value.get("file") is not None:
        _check_file(f"target '{name}'", value["file"])
    else:
        _expect(value.get("value") is not None, f"target '{name}'", "a value or a file", dict(value))
    if kind == "box":
        _check_box(f"target '{name}' value", value.get("value"))
    elif kind in _ITEMS:
        _check_items(f"target '{name}' value", _ITEMS[str(kind)], value.get("value"))
    elif kind == "order":
        order: Any = value.get("value")
        good = isinstance(order, list) and all(type(index) is int and index >= 0 for index in order)
        _expect(good, f"target '{name}' value", "a list of indices", order)
    elif kind == "pair":
        pair: Any = value.get("value")
        good = isinstance(pair, dict) and isinstance(pair.get("group"), str) and pair.get("role") in PAIR_ROLES
        _expect(good, f"target '{name}' value", f"an object with a group and a role of {PAIR_ROLES}", pair)
    return Target(type=str(kind), value=value.get("value"), file=value.get("file"))


def _check_pairs(conversations: Iterable[tuple[Message, ...]], targets: Mapping[str, Target]) -> None:
    """Whatever is compared with something has it in its record: packs hold whole records."""
    parts = (part for turns in conversations for message in turns for part in message.content)
    learned = (targets[part.target] for part in parts if part.target is not None)
    pairs = [target.value for target in learned if target.type == "pair"]
    groups = {pair["group"] for pair in pairs if pair["role"] == "positive"}
    alone = sorted({pair["group"] for pair in pairs if pair["role"] == "query"} - groups)
    _expect(not alone, "pair targets", "a call with a positive for every query", alone)


def _parse_messages(
    what: str, value: Any, media: Mapping[str, Media], targets: Mapping[str, Target]
) -> tuple[Message, ...]:
    _expect(isinstance(value, list), what, "a list", value)
    messages = tuple(_parse_message(item, media, targets) for item in value)
    _expect(bool(messages), what, "at least one message", [])
    return messages


def _check_items(what: str, field: str, items: Any) -> None:
    wanted = f"a list of {{'{field}': ..., 'label': a string, or left out}}"
    _expect(isinstance(items, list), what, wanted, items)
    for item in items:
        good = isinstance(item, dict) and field in item and set(item) <= {field, "label"}
        _expect(good and isinstance(item.get("label", ""), str), what, wanted, item)
        if field == "box_xyxy":
            _check_box(f"{what}, box_xyxy", item[field])


def _check_box(what: str, box: Any) -> None:
    good = isinstance(box, list) and len(box) == 4 and all(type(x) in (int, float) for x in box)
    good = good and box[0] < box[2] and box[1] < box[3]
    _expect(good, what, "[x1, y1, x2, y2] with x1 < x2 and y1 < y2", box)


def _parse_message(value: Mapping[str, Any], media: Mapping[str, Media], targets: Mapping[str, Target]) -> Message:
    role = value.get("role")
    _expect(role in ("system", "user", "assistant"), "role", "system, user or assistant", role)
    _expect(isinstance(value.get("content"), list), "content", "a list of parts", value.get("content"))
    parts = tuple(_parse_part(part, str(role), media, targets) for part in value["content"])
    return Message(role=role, content=parts)  # type: ignore[arg-type]


def _parse_part(value: Mapping[str, Any], role: str, media: Mapping[str, Media], targets: Mapping[str, Target]) -> Part:
    kind = value.get("type")
    if kind == "text":
        _expect(isinstance(value.get("text"), str), "text part", "a string", value.get("text"))
        return Part(type="text", text=value["text"])
    if kind in MEDIA_TYPES:
        name = value.get("media")
        _expect(name in media, f"{kind} part", f"one of the media {sorted(media)}", name)
        _expect(media[str(name)].type == kind, f"media '{name}'", kind, media[str(name)].type)
        return Part(type=str(kind), media=str(name))
    _expect(kind == "call", "part type", "text, call or " + ", ".join(MEDIA_TYPES), kind)
    _expect(role == "assistant", "call part", "an assistant message", role)
    target = value.get("target")
    _expect(target is None or target in targets, "call target", f"one of {sorted(targets)}", target)
    groundings = value.get("groundings", [])
    _expect(isinstance(groundings, list), "groundings", "a list", groundings)
    for item in groundings:
        good = isinstance(item, dict) and item.get("type") in GROUNDING_TYPES
        _expect(good, "grounding type", f"one of {GROUNDING_TYPES}", item)
    task, prompt = value.get("task"), value.get("prompt", "")
    _expect(isinstance(task, str), "call task", "a string", task)
    _expect(isinstance(prompt, str), "call prompt", "a string", prompt)
    return Part(type="call", task=str(task), prompt=prompt, groundings=tuple(groundings), target=target)


def _check_file(what: str, name: Any) -> None:
    good = isinstance(name, str) and bool(FILE_PATTERN.match(name))
    _expect(good, f"{what} file", "a member name NAME.EXT of [a-z0-9_-]", name)


def _expect(condition: bool, what: str, expected: object, given: object) -> None:
    if not condition:
        raise RecordError(f"{what}: expected {expected}, got {given!r}")
