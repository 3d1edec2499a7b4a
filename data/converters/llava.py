"""LLaVA conversation JSON, ``[{"id", "image", "conversations": [{"from", "value"}]}]``, with frames and audio."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.converters.conversion import Converted, SkipItemError, Tally, draft, read_below, read_json
from data.drafts import Draft
from data.media import MediaError
from data.records import Part

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
PLACEHOLDERS = {"<image>": "image", "<video>": "video", "<audio>": "audio", "<speech>": "audio"}
FIELDS = {"id", "image", "video", "audio", "conversations"}
FRAME_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
_SPLIT = re.compile("(" + "|".join(map(re.escape, PLACEHOLDERS)) + ")")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the format."""
    parser.add_argument("--media-root", type=Path, help="folder of images, frames and clips (default: the JSON's)")
    parser.add_argument("--max-frames", type=int, default=16, help="frames of a video that is a folder (%(default)s)")


def convert(source: Path, options: argparse.Namespace, tally: Tally) -> Iterator[Converted]:
    """One record per conversation; a video is a file, or its frames as images, in order."""
    root = options.media_root or source.parent
    for number, item in enumerate(read_json(source, list, "conversations")):
        try:
            yield _record(item, root, options, draft(options, number, "conversation"), tally)
        except (SkipItemError, MediaError) as error:
            tally.skip(item.get("id", number) if isinstance(item, Mapping) else number, str(error))


def _record(item: Any, root: Path, options: argparse.Namespace, made: Draft, tally: Tally) -> Converted:
    if not isinstance(item, Mapping) or not isinstance(item.get("conversations"), list):
        raise SkipItemError("no list of conversations")
    tally.fields(item, FIELDS)
    waiting = {
        "image": [[name] for name in _names(item, "image", made, root)],
        "video": _frames(item, made, root, options),
        "audio": [[name] for name in _names(item, "audio", made, root)],
    }
    for turn in item["conversations"]:
        tally.fields(turn, {"from", "value"}, "conversations")
        role = ROLES.get(str(turn.get("from")).lower())
        if role is None:
            raise SkipItemError(f"speaker {turn.get('from')!r} is none of {sorted(ROLES)}")
        parts = _parts(str(turn.get("value", "")), waiting, made)
        if role == "assistant":
            made.assistant(*parts)
        elif role == "user":
            made.user(*parts)
        else:
            made.system(*parts)
    left = {kind: len(items) for kind, items in waiting.items() if items}
    if left:
        raise SkipItemError(f"more {' and '.join(sorted(left))} files than placeholders")
    if not any(message.role == "assistant" for message in made.messages):
        raise SkipItemError("no reply")
    if "id" in item:
        made.meta["id"] = item["id"]
    return made.finish()


def _parts(text: str, waiting: Mapping[str, list[list[str]]], made: Draft) -> list[str | Part]:
    parts: list[str | Part] = []
    for piece in _SPLIT.split(text):
        kind = PLACEHOLDERS.get(piece)
        if kind is None:
            if piece.strip():
                parts.append(piece.strip())
        elif not waiting[kind]:
            raise SkipItemError(f"more {piece} than files")
        else:
            parts += [made.medium(name) for name in waiting[kind].pop(0)]
    return parts


def _names(item: Mapping[str, Any], kind: str, made: Draft, root: Path) -> list[str]:
    """Add the files of a kind; returns the media names."""
    files = item.get(kind) or []
    names: list[str] = []
    for file in [files] if isinstance(files, str) else files:
        name = f"{kind}{len(names)}"
        data = read_below(root, str(file))
        made.add_image(data, name) if kind == "image" else made.add_audio(data, name)
        names.append(name)
    return names


def _frames(item: Mapping[str, Any], made: Draft, root: Path, options: argparse.Namespace) -> list[list[str]]:
    """Add the video, or the frames of one that is a folder or a list; returns their names, at most one list."""
    video = item.get("video")
    if not video:
        return []
    if isinstance(video, str) and not (root / video).is_dir():
        made.add_video(read_below(root, video), video)
        return [["video"]]
    files = video if isinstance(video, list) else _listed(root, str(video))
    step = max(1.0, len(files) / options.max_frames)
    chosen = [files[int(place * step)] for place in range(min(len(files), options.max_frames))]
    for number, file in enumerate(chosen):
        made.add_image(read_below(root, str(file)), f"frame{number}")
    made.meta["frames"] = {"shown": len(chosen), "of": len(files)}
    return [[f"frame{number}" for number in range(len(chosen))]]


def _listed(root: Path, folder: str) -> list[str]:
    path = root / folder
    if not path.is_dir():
        raise SkipItemError("video that is no file, no folder and no list of frames")
    found = sorted(item.name for item in path.iterdir() if item.suffix.lower() in FRAME_SUFFIXES)
    if not found:
        raise SkipItemError("video folder without frames")
    return [f"{folder}/{name}" for name in found]
