"""Search items by what they are: ``python -m demos.search --checkpoint DIR --task T --items FILE.jsonl "query"``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from data.records import Message, Part
from heads.embedding import ExactIndex
from heads.embedding.vectors import VectorHead
from heads.entity_ranking import EntityRankingHead
from inference.conversation import Conversation
from inference.files import read_audio, read_graph, read_image
from inference.given import answer_given, build_index
from inference.session import Session
from layers.calls import Call, EmbeddingResult

_EPILOG = """examples:
  python -m demos.search --checkpoint DIR --task embed --items passages.jsonl --index passages.safetensors "what purrs?"
  python -m demos.search --checkpoint DIR --task embed --index passages.safetensors --image cat.png
  python -m demos.search --checkpoint DIR --task entity --items places.jsonl --relation "part of" "a city on the rhone"

A line of the items is JSON: {"name": "...", "text": "..."}, with "image", "audio" or "graph", a file beside the items,
where it is to be seen or heard. The index holds each item's vector; items that it has already are not read again."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m demos.search",
        description="Search items by their vectors, which a model makes once and an index keeps.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("query", nargs="?", default="", help="text; may be left out beside a medium, or to index only")
    result.add_argument("--checkpoint", required=True, metavar="DIR", help="checkpoint directory written by training")
    result.add_argument("--task", required=True, help="a task whose head answers with vectors")
    result.add_argument("--items", type=Path, metavar="FILE", help="JSON lines of what can be found")
    result.add_argument(
        "--index", type=Path, metavar="FILE", help="safetensors of the vectors: read if there, extended"
    )
    for kind in ("image", "audio", "graph"):
        result.add_argument(f"--{kind}", metavar="FILE", help=f"{kind} that the query is about")
    result.add_argument(
        "--relation", help="of a knowledge graph: rank where it leads to, or with 'inverse of ' from where"
    )
    result.add_argument("--top", type=int, default=10, metavar="K", help="items shown (default: 10)")
    result.add_argument("--json", action="store_true", help="print JSON instead of a table")
    result.add_argument("--device", default=None, help="cpu, cuda, ... (default: the GPU if there is one)")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 0, or 2 after one line on stderr that says what was wrong with the input.
    """
    options = parser().parse_args(arguments)
    media = {kind: getattr(options, kind) for kind in ("image", "audio", "graph") if getattr(options, kind)}
    try:
        if options.items is None and (options.index is None or not options.index.exists()):
            raise ValueError("expected --items, or an --index that is there, got neither")
        session = Session.from_pretrained(options.checkpoint, options.device)
        head = session.head_of(options.task)
        if not isinstance(head, VectorHead):
            raise ValueError(f"task '{options.task}': expected a head of vectors, got a {type(head).__name__}")
        index = _index(session, options)
        if not (options.query.strip() or media):
            print(f"{len(index)} items of width {index.size}", file=sys.stderr)
            return 0
        found = search(session, options.task, index, _conversation(options.query, media), options.top, options.relation)
    except (ValueError, OSError) as error:
        print(f"search: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps([{"name": name, "score": score} for name, score in found], ensure_ascii=False, indent=1))
        return 0
    table = Table("", "item", "score")
    for place, (name, score) in enumerate(found, 1):
        table.add_row(str(place), Text(name, overflow="fold"), f"{score:.4f}")
    Console().print(table)
    return 0


@torch.inference_mode()
def search(
    session: Session, task: str, index: ExactIndex, asked: Conversation, k: int, relation: str | None = None
) -> list[tuple[str, float]]:
    """The best items for a conversation, with their scores.

    Args:
        session: Whose model.
        task: A task whose head answers with vectors.
        index: Of vectors that this task has made.
        asked: What is looked for; with a relation, the entity that it starts from.
        k: How many.
        relation: Of a knowledge graph.

    Raises:
        ValueError: If the task has no relations, or not this one.
    """
    head = session.head_of(task)
    assert isinstance(head, VectorHead)
    (result,) = answer_given(session, [asked], Call(task, ""))
    assert isinstance(result, EmbeddingResult)  # nothing has primed the head
    query = result.vector
    if relation is not None:
        if not isinstance(head, EntityRankingHead):
            raise ValueError(f"--relation: expected a task of a knowledge graph, '{task}' has no relations")
        query = head.query(query, relation)
    scores, rows = index.search(query[None], k, head.score)
    return list(zip((index.items[row] for row in rows[0].tolist()), scores[0].tolist(), strict=True))


def read_items(path: Path) -> dict[str, Conversation]:
    """Items of a file of JSON lines.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If a line is no item, or a name comes twice, naming the line.
    """
    items: dict[str, Conversation] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            if not isinstance(value, dict) or not isinstance(value.get("name"), str):
                raise ValueError(f"expected an object with a name, got {line!r:.80}")
            unknown = sorted(set(value) - {"name", "text", "image", "audio", "graph"})
            if unknown or value["name"] in items:
                raise ValueError(f"expected a new name and known fields, got '{value['name']}' with {unknown}")
            media = {kind: path.parent / value[kind] for kind in ("image", "audio", "graph") if kind in value}
            items[value["name"]] = _conversation(value.get("text", ""), media)
        except ValueError as error:
            raise ValueError(f"{path} line {number}: {error}") from None
    return items


def _conversation(text: str, media: Mapping[str, str | Path]) -> Conversation:
    if not (text.strip() or media):
        raise ValueError("expected a text, or a medium, got neither")
    readers: dict[str, Any] = {"image": read_image, "audio": read_audio, "graph": read_graph}
    parts = [Part(kind, media=kind) for kind in media] + ([Part("text", text=text.strip())] if text.strip() else [])
    return Conversation((Message("user", tuple(parts)),), {kind: readers[kind](file) for kind, file in media.items()})


def _index(session: Session, options: argparse.Namespace) -> ExactIndex:
    known = None
    if options.index is not None and options.index.exists():
        known = ExactIndex.load(options.index, session.generalist.device)
    if options.items is None:
        assert known is not None
        return known
    items = read_items(options.items)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("reading items", total=sum(known is None or name not in known for name in items))
        index = build_index(session, items, options.task, known, lambda count: progress.advance(bar, count))
    if options.index is not None:
        index.save(options.index)
    return index


if __name__ == "__main__":
    sys.exit(main())
