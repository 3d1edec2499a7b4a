"""Held-out samples, what the model answered to them, and a page of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torchvision.transforms.functional import resize
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from data.datamodule import PackedDataModule
from data.inspection.contact_sheet import card, page
from data.inspection.drawing import picture
from data.media import RawMedia, decode_media
from data.shards import Sample
from inference.conversation import Conversation, HeadError, Reply
from inference.session import Session
from layers.calls import BoxesResult, Call, ImageResult, LabelResult, MaskResult, Result, ScoreResult
from models.generalist import Generalist

_SHOWN_SIDE = 256  # boxes and masks are drawn on pictures that are at least this large


@dataclass(frozen=True)
class Answered:
    """A sample, the prompt that was made of it, and the reply."""

    sample: Sample
    asked: Conversation
    reply: Reply


def ask(generalist: Generalist, data: PackedDataModule, count: int, max_new_tokens: int) -> list[Answered]:
    """Ask, free-running, the same few samples every time, spread over the validation data."""
    held_out = data.val_samples()
    places = np.unique(np.linspace(0, len(held_out) - 1, min(count, len(held_out))).round().astype(int))
    samples = [held_out.sample(int(place)) for place in places]
    asked = [Conversation.from_record(sample.record, _media(sample)) for sample in samples]
    replies = Session(generalist, max_new_tokens=max_new_tokens).generate(asked)
    return [Answered(*row) for row in zip(samples, asked, replies, strict=True)]


def write_page(trainer: L.Trainer, answers: Sequence[Answered]) -> None:
    """Write ``samples/step-NUMBER.html`` below the trainer's root; TensorBoard gets the words and the pictures."""
    cards = []
    for item in answers:
        shown = answer(item.reply, list(item.asked.media.values()))
        cards.append(card(item.sample, _as_html(shown)))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                _log(logger, item.sample.key, shown, trainer.global_step)
    summary = f"<p class='soft'>step {trainer.global_step:,}; free-running, greedy</p>"
    path = Path(trainer.default_root_dir) / "samples" / f"step-{trainer.global_step:08d}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page("Answers", summary, f"<section><div class='cards'>{''.join(cards)}</div></section>"))


def _log(logger: TensorBoardLogger, key: str, shown: Sequence[tuple[str, Tensor | None]], step: int) -> None:
    board = logger.experiment
    board.add_text(f"samples/{key}", "\n\n".join(words for words, _ in shown), step)
    for number, image in enumerate(image for _, image in shown if image is not None):
        board.add_image(f"samples/{key}/{number}", image, step)


def answer(reply: Reply, media: Sequence[RawMedia]) -> list[tuple[str, Tensor | None]]:
    """A reply as words and pictures: its text, then every call with what its head made of it.

    Args:
        reply: The reply.
        media: Of the conversation; boxes and masks are drawn on its last image.
    """
    images = [item for item in media if isinstance(item, Tensor)]
    shown: list[tuple[str, Tensor | None]] = [(reply.text, None)] if reply.text else []
    for call, result in zip(reply.calls, reply.results, strict=True):
        shown.append(_called(call, result, images[-1] if images else None))
    shown += [(f"error: {error.message}", None) for error in reply.errors if isinstance(error, HeadError)]
    malformed = sum(not isinstance(error, HeadError) for error in reply.errors)
    if malformed:
        shown.append((f"{malformed} malformed calls", None))
    if reply.finish_reason == "length":
        shown.append(("(cut)", None))
    return shown or [("(nothing)", None)]


def _called(call: Call, result: Result | None, image: Tensor | None) -> tuple[str, Tensor | None]:
    words = f"{call.task}({call.prompt})"
    if isinstance(result, LabelResult):
        return f"{words} → {result.label}", None
    if isinstance(result, ScoreResult):
        return f"{words} → {result.score:.3f}", None
    if isinstance(result, ImageResult):
        return words, result.image
    if image is None or not isinstance(result, BoxesResult | MaskResult):
        return words, None
    scale = max(1.0, _SHOWN_SIDE / max(image.shape[-2:]))
    canvas = resize(image, [round(side * scale) for side in image.shape[-2:]])
    if isinstance(result, MaskResult):
        mask = resize(result.mask[None].to(torch.uint8), list(canvas.shape[-2:])) > 0
        return words, draw_segmentation_masks(canvas, mask, alpha=0.5, colors="magenta")
    boxes = torch.tensor(result.boxes_xyxy).reshape(-1, 4) * scale
    return words, draw_bounding_boxes(canvas, boxes, colors="cyan", width=2) if len(boxes) else canvas


def _media(sample: Sample) -> dict[str, RawMedia]:
    return {name: decode_media(item, sample.members[item.file]) for name, item in sample.record.media.items()}


def _as_html(shown: Sequence[tuple[str, Tensor | None]]) -> str:
    parts = [
        f"<p>{escape(words)}</p>" + (picture(image, "answer") if image is not None else "") for words, image in shown
    ]
    return f"<div class='turn answer'><span class='role'>answered</span>{''.join(parts)}</div>"
