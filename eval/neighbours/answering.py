"""Questions as lines in, replies as lines out: how programs of other environments ask a checkpoint."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import IO, Any

import torch

from data.media import RawMedia, decode_media
from data.records import MEDIA_TYPES, Media, Message, Part
from inference.conversation import Conversation, Reply
from inference.files import call_to_json, error_to_json, result_to_json
from inference.session import Session
from layers.media import Audio


def answer_lines(session: Session, questions: IO[str], replies: IO[str]) -> None:
    """Answer groups of lines.

    Args:
        session: Asks the model.
        questions: ``{"messages": [{"role", "content": [{"type": "text", "text"} | {"type": "image", "data": base64,
            "file": NAME} | {"type": "audio", "samples", "sample_rate"}]}], "max_new_tokens"}`` per line; an empty line
            ends a group.
        replies: One line per question, in order: ``text``, ``calls``, ``results``, ``errors``, ``finish_reason``; or
            ``error`` where it could not be asked.
    """
    limit = session.options.max_new_tokens
    for group in _groups(questions):
        for answer in _answers(session, group, limit):
            replies.write(json.dumps(answer, ensure_ascii=False) + "\n")
        replies.flush()


def _groups(lines: IO[str]) -> Iterator[list[str]]:
    group: list[str] = []
    for line in lines:
        if line.strip():
            group.append(line)
        elif group:
            yield group
            group = []
    if group:
        yield group


def _answers(session: Session, lines: Sequence[str], default: int) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = [{} for _ in lines]
    asked: dict[int, list[tuple[int, Conversation]]] = {}
    for place, line in enumerate(lines):
        try:
            question = json.loads(line)
            limit = int(question.get("max_new_tokens", default))
            asked.setdefault(limit, []).append((place, _conversation(question["messages"])))
        except (ValueError, KeyError, TypeError) as error:
            answers[place] = {"error": f"{type(error).__name__}: {error}"}
    for limit, members in asked.items():
        session.options = replace(session.options, max_new_tokens=limit)
        try:
            replies: list[Reply | str] = [*session.generate([conversation for _, conversation in members])]
        except ValueError:
            replies = [_alone(session, conversation) for _, conversation in members]
        for (place, _), reply in zip(members, replies, strict=True):
            if isinstance(reply, str):
                answers[place] = {"error": reply}
                continue
            answers[place] = {
                "text": reply.text,
                "calls": [call_to_json(call) for call in reply.calls],
                "results": [None if result is None else result_to_json(result) for result in reply.results],
                "errors": [error_to_json(error) for error in reply.errors],
                "finish_reason": reply.finish_reason,
            }
    return answers


def _alone(session: Session, conversation: Conversation) -> Reply | str:
    try:
        return session.generate([conversation])[0]
    except ValueError as error:
        return str(error)


def _conversation(messages: Sequence[Mapping[str, Any]]) -> Conversation:
    media: dict[str, RawMedia] = {}
    turns = []
    for message in messages:
        parts = []
        for part in message["content"]:
            kind = part["type"]
            if kind == "text":
                parts.append(Part("text", text=str(part["text"])))
                continue
            if kind not in MEDIA_TYPES:
                raise ValueError(f"part: expected text or one of {MEDIA_TYPES}, got {kind!r}")
            name = f"{kind}{len(media)}"
            if "samples" in part:
                media[name] = _clip(part)
            else:
                media[name] = decode_media(Media(kind, str(part["file"]), ()), base64.b64decode(part["data"]))
            parts.append(Part(kind, media=name))
        turns.append(Message(message["role"], tuple(parts)))
    return Conversation(tuple(turns), media)


def _clip(part: Mapping[str, Any]) -> Audio:
    return Audio(torch.tensor(part["samples"], dtype=torch.float32), int(part["sample_rate"]))
