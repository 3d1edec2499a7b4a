"""``python -m data schema``: the JSON schema of a record, for whoever writes shards without this code."""

from __future__ import annotations

import argparse
import json
from typing import Any

from data.records import FILE_PATTERN, GROUNDING_TYPES, RECORD_VERSION, SPLITS, TARGET_TYPES

HELP = "print the JSON schema of a record"
_SIZES = {"image": 2, "video": 3, "audio": 1, "graph": 1}


def configure(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def run(_: argparse.Namespace) -> int:
    """Print it."""
    print(json.dumps(record_schema(), indent=1))
    return 0


def record_schema() -> dict[str, Any]:
    """The schema of ``KEY.json`` (JSON Schema, draft 2020-12).

    It says what a schema can say. That names refer to something, and that media and targets fit one another, is for
    ``python -m data validate``.
    """
    text, number = {"type": "string"}, {"type": "number"}
    file = {"type": "string", "pattern": "^" + FILE_PATTERN.pattern.replace(r"\Z", "$")}
    target = _object({"type": {"enum": list(TARGET_TYPES)}, "file": file, "value": {}}, required=["type"])
    box = {"type": "array", "items": number, "minItems": 4, "maxItems": 4}
    target["allOf"] = [
        {"if": {"not": {"required": ["file"]}}, "then": {"required": ["value"]}},
        _valued("box", box),
        _valued("boxes", _array(_object({"box_xyxy": box, "label": text}, required=["box_xyxy"]))),
        _valued("masks", _array(_object({"mask": {"type": "object"}, "label": text}, required=["mask"]))),
    ]
    message = _object(
        {"role": {"enum": ["system", "user"]}, "content": _array({"oneOf": [*_media_parts(), _text_part()]})}
    )
    reply = _object(
        {"role": {"const": "assistant"}, "content": _array({"oneOf": [*_media_parts(), _text_part(), _call_part()]})}
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Switchyard record",
        "description": "One sample: KEY.json in a shard, its media beside it as KEY.NAME.EXT.",
        **_object(
            {
                "version": {"const": RECORD_VERSION},
                "task": text,
                "source": text,
                "license": text,
                "split": {"enum": list(SPLITS)},
                "media": {"type": "object", "additionalProperties": {"oneOf": _media(file)}},
                "messages": {**_array({"oneOf": [message, reply]}), "minItems": 1},
                "targets": {"type": "object", "additionalProperties": target},
                "meta": {"type": "object"},
                "companions": _array({**_array({"oneOf": [message, reply]}), "minItems": 1}),
            },
            required=["version", "task", "source", "license", "split", "messages"],
        ),
    }


def _valued(kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"if": {"properties": {"type": {"const": kind}}}, "then": {"properties": {"value": value}}}


def _media(file: dict[str, Any]) -> list[dict[str, Any]]:
    positive = {"type": "integer", "minimum": 1}
    variants = []
    for kind, axes in _SIZES.items():
        size = {"type": "array", "items": positive, "minItems": axes, "maxItems": axes}
        fields = {"type": {"const": kind}, "file": file, "size": size, "sample_rate": positive}
        variants.append(_object(fields, required=["type", "file", "size"]))
    return variants


def _media_parts() -> list[dict[str, Any]]:
    return [_object({"type": {"const": kind}, "media": {"type": "string"}}) for kind in _SIZES]


def _text_part() -> dict[str, Any]:
    return _object({"type": {"const": "text"}, "text": {"type": "string"}})


def _call_part() -> dict[str, Any]:
    grounding = {"type": "object", "properties": {"type": {"enum": list(GROUNDING_TYPES)}}, "required": ["type"]}
    fields = {
        "type": {"const": "call"},
        "task": {"type": "string"},
        "prompt": {"type": "string"},
        "groundings": _array(grounding),
        "target": {"type": "string"},
    }
    return _object(fields, required=["type", "task"])


def _object(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    needed = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}
