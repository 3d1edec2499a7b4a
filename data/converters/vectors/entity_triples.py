"""Knowledge graphs with descriptions, as BLP keeps them (https://arxiv.org/abs/2010.03496): TSV triples and texts."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from data.converters.conversion import ConversionError, Converted, Tally, draft, record_split, tidy

FILES = {"train": "train.tsv", "val": "dev.tsv", "test": "test.tsv"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the format."""
    parser.add_argument("--task", default="entity", help="task of the calls (%(default)s)")
    parser.add_argument(
        "--inductive", action="store_true", help="the files ind-*.tsv, whose entities are split as well"
    )
    parser.add_argument(
        "--long", action="store_true", help="descriptions of entity2textlong.txt instead of entity2text.txt"
    )
    parser.add_argument("--max-words", type=int, default=64, help="of a description (%(default)s)")


def convert(source: Path, options: argparse.Namespace, tally: Tally) -> Iterator[Converted]:
    """One record per triple: its head's description, and as a companion its tail's."""
    texts = _texts(source / ("entity2textlong.txt" if options.long else "entity2text.txt"))
    prefix = "ind-" if options.inductive else ""
    files = {split: source / f"{prefix}{name}" for split, name in FILES.items()}
    if not any(path.is_file() for path in files.values()):
        names = ", ".join(path.name for path in files.values())
        raise ConversionError(f"'{source}': expected some of {names}, got none")
    number = 0
    for split, path in files.items():
        if not path.is_file():
            continue
        for place, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            parts = line.split("\t")
            if len(parts) != 3:
                tally.skip(f"{path.name} line {place}", "line that is no triple")
                continue
            head, relation, tail = parts
            if head not in texts or tail not in texts:
                tally.skip(f"{path.name} line {place}", "entity without a description")
                continue
            number += 1
            made = draft(options, number, "triple", record_split(split))
            value = {"group": made.key, "role": "query", "item": head, "relation": relation}
            made.user(_cut(texts[head], options.max_words))
            made.assistant(made.call(options.task, target=made.add_target("pair", value)))
            made.next_conversation()
            value = {"group": made.key, "role": "positive", "item": tail}
            made.user(_cut(texts[tail], options.max_words))
            made.assistant(made.call(options.task, target=made.add_target("pair", value)))
            made.meta["triple"] = [head, relation, tail]
            yield made.finish()


def _texts(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"descriptions '{path}': cannot be read: {error}") from None
    pairs = (line.split("\t", 1) for line in lines)
    return {pair[0]: tidy(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].strip()}


def _cut(text: str, words: int) -> str:
    return " ".join(text.split()[:words])
