"""InstructPix2Pix folders (https://arxiv.org/abs/2211.09800): ``prompt.json``, ``SEED_0.jpg`` and ``SEED_1.jpg``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.converters.conversion import (
    ConversionError,
    Converted,
    SkipItemError,
    Tally,
    draft,
    read_below,
    read_json,
    tidy,
)
from data.drafts import image_size
from data.media import MediaError

FIELDS = {"edit", "input", "output", "caption", "url"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the format."""
    parser.add_argument("--edit-task", default="edit", help="task of the calls (%(default)s)")
    parser.add_argument("--seeds", choices=("first", "all"), default="all", help="pairs per instruction (%(default)s)")


def convert(source: Path, options: argparse.Namespace, tally: Tally) -> Iterator[Converted]:
    """One record per pair of images; ``prompt.json`` may lie at any depth below the source."""
    prompts = sorted(source.rglob("prompt.json"))
    if not prompts:
        raise ConversionError(f"'{source}': expected folders with prompt.json, got none")
    number = 0
    for prompt in prompts:
        try:
            value = read_json(prompt, dict, "prompt")
        except ConversionError:
            tally.skip(prompt.parent.relative_to(source), "prompt.json that is no JSON object")
            continue
        tally.fields(value, FIELDS, "prompt")
        befores = sorted(item for item in prompt.parent.iterdir() if item.stem.endswith("_0"))
        if not befores:
            tally.skip(prompt.parent.relative_to(source), "no image SEED_0")
        for before in befores[:1] if options.seeds == "first" else befores:
            number += 1
            try:
                yield _record(before, value, options, number)
            except (SkipItemError, MediaError) as error:
                tally.skip(before.relative_to(source), str(error))


def _record(before: Path, value: dict[str, Any], options: argparse.Namespace, number: int) -> Converted:
    instruction = tidy(str(value.get("edit") or ""))
    if not instruction:
        raise SkipItemError("no instruction 'edit'")
    made = draft(options, number, "edit")
    size = made.add_image(read_below(before.parent, before.name))
    after = read_below(before.parent, f"{before.stem[:-1]}1{before.suffix}")
    if image_size(after)[0] != size:
        raise SkipItemError("edited image of another size")
    made.user(made.medium("image"), instruction)
    made.assistant(made.call(options.edit_task, instruction, made.add_target("image", image=after)))
    made.meta |= {name: value[name] for name in ("input", "output") if name in value}
    made.meta["id"] = f"{before.parent.name}/{before.stem[:-2]}"
    return made.finish()
