"""Whether ways of answering say the same, and whether what they say differently could be told apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from benchmarks.evaluation.model import TEXT, prompts

Answers = list[list[int]]


def answers_of(folder: Path, work: str, way: str) -> Answers:
    """What an arm answered."""
    answers: Answers = json.loads((folder / f"{work}-{way}.json").read_text())
    return answers


def check_ids(folder: Path, work: str, ways: Sequence[str]) -> None:
    """All ways must answer alike.

    Raises:
        RuntimeError: If they do not, naming the first answer that differs.
    """
    first, *others = (answers_of(folder, work, way) for way in ways)
    for way, answers in zip(ways[1:], others, strict=True):
        for row, (one, other) in enumerate(zip(first, answers, strict=True)):
            if one != other:
                place = _first_difference(one, other)
                raise RuntimeError(f"{work}: answer {row} of '{ways[0]}' and '{way}' differ from token {place} on")


@torch.inference_mode()
def differences(folder: Path, ours: Answers, theirs: Answers) -> list[float]:
    """How far apart the tokens of each first difference are, as shares of what bf16 can tell apart there.

    The gap is that between the best logit and the lesser of the two tokens that were chosen, computed in fp32 from the
    weights in bf16; bf16 tells numbers apart that differ by its epsilon, relative to the best logit.

    Raises:
        RuntimeError: If a gap is larger than that.
    """
    model = LlamaForCausalLM.from_pretrained(folder / TEXT, dtype=torch.bfloat16).float().eval()
    gaps = []
    for row, (prompt, one, other) in enumerate(zip(prompts(len(ours)), ours, theirs, strict=True)):
        if one == other:
            continue
        place = _first_difference(one, other)
        said = torch.cat([prompt, torch.tensor(one[:place], dtype=torch.long)])
        logits = model(said[None], logits_to_keep=1).logits[0, -1]
        gap = logits.max() - torch.minimum(logits[one[place]], logits[other[place]])
        gaps.append(float(gap / (torch.finfo(torch.bfloat16).eps * logits.max().abs())))
        if gaps[-1] > 1:
            raise RuntimeError(
                f"bf16: row {row} differs from token {place} on, where the logits are {gaps[-1]:.2f} times as far "
                "apart as bf16 can tell"
            )
    return gaps


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
