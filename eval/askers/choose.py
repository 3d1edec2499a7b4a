"""From what the command line says to an asker."""

from __future__ import annotations

from pathlib import Path

from eval.askers.asker import Asker
from eval.askers.scripted import AnswersFileAsker, ConstantAsker, GoldAsker, ReplayAsker
from eval.askers.session import Decoding, SessionAsker

KINDS = "transformers:DIR, vectors:DIR, gold, constant, constant:TEXT, replay:LOG or answers:FILE"


def choose_asker(
    checkpoint: str | Path | None,
    model: str | None,
    decoding: Decoding,
    control: str | None = None,
    boxes: str | None = None,
) -> Asker:
    """Who answers.

    Args:
        checkpoint: A checkpoint directory of ours, or None.
        model: One of :data:`KINDS`, or None.
        decoding: How a model that decodes is asked.
        control: What is taken away from it, or None.
        boxes: How a model of transformers writes boxes.

    Raises:
        ValueError: Unless exactly one of the two is given and is known.
    """
    if (checkpoint is None) == (model is None):
        raise ValueError("expected either a checkpoint or a model, got " + ("both" if model else "neither"))
    if checkpoint is not None:
        return SessionAsker(checkpoint, decoding, control)
    kind, _, rest = str(model).partition(":")
    if kind == "transformers" and rest:
        from eval.askers.pretrained import TransformersAsker

        return TransformersAsker(rest, decoding, control, boxes)
    if kind == "vectors" and rest:
        from eval.askers.embedders import EmbeddingAsker

        return EmbeddingAsker(rest, decoding, control)
    if kind == "gold" and not rest:
        return GoldAsker()
    if kind == "constant":
        return ConstantAsker(rest or None)
    if kind == "replay" and rest:
        return ReplayAsker(rest)
    if kind == "answers" and rest:
        return AnswersFileAsker(rest)
    raise ValueError(f"model: expected {KINDS}, got {model!r}")
