"""``python -m data write``: shards from a JSON Lines file of records that name their media by path."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.progress import track

from data.converters.conversion import SkipItemError, read_below
from data.drafts import Draft, Origin
from data.media import MediaError, decode_media
from data.records import MEDIA_TYPES, RECORD_VERSION, Media, Record, RecordError
from data.shards import ShardError, ShardWriter
from layers.media import Graph

HELP = "shards from a JSON Lines file of records that name their media by path"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "A line is a record with its key, and 'path' instead of 'file' and 'size' in media and targets:\n"
        '  {"key": "a1", "task": "box", "source": "mine", "license": "CC0-1.0", "split": "train",\n'
        '   "media": {"photo": {"type": "image", "path": "a1.jpg"}},\n'
        '   "messages": [{"role": "user", "content": [{"type": "image", "media": "photo"}]}, ...],\n'
        '   "targets": {"cut": {"type": "mask", "path": "a1_mask.png"}}}'
    )
    parser.add_argument("source", type=Path, metavar="JSONL", help="one record per line")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the shards, one below per split"
    )
    parser.add_argument("--prefix", default="records", help="first part of the shards' names (%(default)s)")
    parser.add_argument("--media-root", type=Path, help="folder of the media (default: the JSONL's)")
    parser.add_argument("--samples", type=int, default=1000, help="records per shard (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Write; the first bad line ends it with status 2 and leaves no shard of its split half written."""
    writers: dict[str, ShardWriter] = {}
    try:
        lines = args.source.read_text(encoding="utf-8").splitlines()
        root = args.media_root or args.source.parent
        for number, line in enumerate(track(lines, "writing", transient=True, disable=not sys.stderr.isatty()), 1):
            if not line.strip():
                continue
            try:
                record, members = read_line(line, root)
                if record.split not in writers:
                    writers[record.split] = ShardWriter(args.out / record.split, args.prefix, args.samples)
                writers[record.split].write(record, members)
            except (RecordError, ShardError, MediaError, SkipItemError) as error:
                raise ShardError(f"{args.source} line {number}: {error}") from None
        for writer in writers.values():
            writer.close()
    except (OSError, UnicodeDecodeError, ShardError, ModuleNotFoundError) as error:
        for writer in writers.values():
            writer.discard()
        print(f"error: {error}", file=sys.stderr)
        return 2
    shards = sum(len(writer.paths) for writer in writers.values())
    print(f"{sum(writer.count for writer in writers.values())} records in {shards} shards below {args.out}")
    return 0


def read_line(line: str, root: Path) -> tuple[Record, dict[str, bytes]]:
    """A record and its members from a line.

    Raises:
        RecordError: If it is no record.
        MediaError: If a medium is not what it says.
        SkipItemError: If a file is not there.
    """
    try:
        value = json.loads(line)
    except ValueError as error:
        raise RecordError(f"not JSON: {error}") from None
    if not isinstance(value, dict) or not isinstance(value.get("key"), str):
        raise RecordError(f"expected a JSON object with a key, got {line!r:.80}")
    key = value.pop("key")
    made = Draft(key, "", Origin("", "", "train"))
    for name, item in _objects(value, "media").items():
        if "path" in item:
            _add_media(made, name, item, read_below(root, str(item["path"])))
            item.clear()
            item.update(_described(made.media[name]))
    for name, item in _objects(value, "targets").items():
        if "path" in item:
            file = f"{name}{Path(str(item['path'])).suffix.lower()}"
            made.members[file] = read_below(root, str(item.pop("path")))
            item["file"] = file
    record = Record.from_json(key, json.dumps({"version": RECORD_VERSION, **value}))
    missing = sorted(set(record.files) - set(made.members))
    if missing:
        raise RecordError(f"record '{key}': expected a path for the members {missing}, got none")
    return record, made.members


def _objects(value: Mapping[str, Any], name: str) -> dict[str, dict[str, Any]]:
    items = value.get(name, {})
    if not isinstance(items, dict) or not all(isinstance(item, dict) for item in items.values()):
        raise RecordError(f"{name}: expected an object of objects, got {items!r:.80}")
    return items


def _add_media(made: Draft, name: str, item: Mapping[str, Any], data: bytes) -> None:
    kind = item.get("type")
    if kind == "image":
        made.add_image(data, name)
    elif kind == "audio":
        made.add_audio(data, name)
    elif kind == "video":
        made.add_video(data, str(item["path"]), name)
    elif kind == "graph":
        nodes = json.loads(data).get("node_texts", [])
        graph = decode_media(Media("graph", f"{name}.json", (max(len(nodes), 1),)), data)
        assert isinstance(graph, Graph)
        made.add_graph(graph, name)
    else:
        raise RecordError(f"media '{name}' type: expected one of {MEDIA_TYPES}, got {kind!r}")


def _described(media: Media) -> dict[str, Any]:
    described: dict[str, Any] = {"type": media.type, "file": media.file, "size": list(media.size)}
    return described if media.sample_rate is None else {**described, "sample_rate": media.sample_rate}
