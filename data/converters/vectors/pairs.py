"""Queries with what answers them: JSON lines of texts, or a BEIR folder (https://arxiv.org/abs/2104.08663)."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.converters.conversion import (
    ConversionError,
    Converted,
    SkipItemError,
    Tally,
    draft,
    read_json,
    record_split,
    tidy,
)

QUERY = ("query", "anchor", "question")
POSITIVES, NEGATIVES = ("pos", "positive", "positives"), ("neg", "negative", "negatives")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the format."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        'Lines are objects with a "query" (or "anchor"), "pos" (or "positive") and "neg" (or "negative"), each a text\n'
        "or a list of texts. A folder has corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv."
    )
    parser.add_argument("--task", default="embed", help="task of the calls (%(default)s)")
    parser.add_argument("--instruction", default="", help="text before every query, such as what it looks for")
    parser.add_argument("--max-positives", type=int, default=1, help="per query (%(default)s)")
    parser.add_argument("--max-negatives", type=int, default=7, help="hard ones per query (%(default)s)")


def convert(source: Path, options: argparse.Namespace, tally: Tally) -> Iterator[Converted]:
    """One record per query, its passages being companions."""
    if options.max_positives < 1 or options.max_negatives < 0:
        raise ConversionError("expected --max-positives of at least 1 and --max-negatives of at least 0")
    found = _folder(source, tally) if source.is_dir() else _lines(source, tally)
    for number, (where, split, query, positives, negatives) in enumerate(found, 1):
        try:
            yield _record(options, number, split, query, positives, negatives)
        except SkipItemError as error:
            tally.skip(where, str(error))


_Item = tuple[str, str | None, str, Sequence[str], Sequence[str]]
"""Where it stands, its split if that is told, the query, what answers it, and what does not."""


def _lines(source: Path, tally: Tally) -> Iterator[_Item]:
    for number, value in enumerate(read_json(source, list, "pairs"), 1):
        if not isinstance(value, dict):
            tally.skip(f"line {number}", "line that is no object")
            continue
        tally.fields(value, (*QUERY, *POSITIVES, *NEGATIVES))
        query = next(iter(_texts(value, QUERY)), "")
        yield f"line {number}", None, query, _texts(value, POSITIVES), _texts(value, NEGATIVES)


def _texts(value: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    given: Any = next((value[name] for name in names if name in value), [])
    items = given if isinstance(given, list) else [given]
    return [tidy(item) for item in items if isinstance(item, str) and item.strip()]


def _folder(source: Path, tally: Tally) -> Iterator[_Item]:
    files = sorted((source / "qrels").glob("*.tsv"))
    if not files:
        raise ConversionError(f"'{source}': expected corpus.jsonl, queries.jsonl and qrels/*.tsv, got no qrels")
    corpus = {str(row["_id"]): row for row in read_json(source / "corpus.jsonl", list, "corpus") if "_id" in row}
    queries = {str(row["_id"]): row for row in read_json(source / "queries.jsonl", list, "queries") if "_id" in row}
    for path in files:
        judged: dict[str, tuple[list[str], list[str]]] = {}
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                query, passage, score = (row.get(name) or "" for name in ("query-id", "corpus-id", "score"))
                if query not in queries or passage not in corpus or not score.lstrip("-").isdigit():
                    tally.skip(f"{path.name}: {query} {passage}", "judgement of an unknown query or passage")
                    continue
                judged.setdefault(query, ([], []))[int(score) <= 0].append(_passage(corpus[passage]))
        for query, (positives, negatives) in judged.items():
            yield (
                f"{path.name}: {query}",
                record_split(path.stem),
                tidy(queries[query].get("text", "")),
                positives,
                negatives,
            )


def _passage(row: Mapping[str, Any]) -> str:
    return tidy(f"{row.get('title') or ''} {row.get('text') or ''}")


def _record(
    options: argparse.Namespace,
    number: int,
    split: str | None,
    query: str,
    positives: Sequence[str],
    negatives: Sequence[str],
) -> Converted:
    if not query or not positives:
        raise SkipItemError("no query" if not query else "nothing that answers the query")
    made = draft(options, number, "pair", split)
    sides = [("query", tidy(f"{options.instruction} {query}"))]
    sides += [("positive", text) for text in positives[: options.max_positives]]
    sides += [("negative", text) for text in negatives[: options.max_negatives]]
    for place, (role, text) in enumerate(sides):
        if place:
            made.next_conversation()
        value = {"group": made.key, "role": role}
        if role != "negative" and len(positives[: options.max_positives]) == 1:
            value["item"] = positives[0]  # the same passage of another query is no negative
        made.user(text)
        made.assistant(made.call(options.task, target=made.add_target("pair", value)))
    return made.finish()
