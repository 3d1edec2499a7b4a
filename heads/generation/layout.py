"""Layout to image: phrases at boxes, with GLIGEN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from heads.experts.expert_head import Request
from heads.experts.pipelines import PipelineExpert
from heads.experts.pool import ExpertPool
from heads.generation.arguments import required_prompt
from heads.generation.images import PictureHead, canvas_of
from heads.generation.sources import fractions
from layers.calls import HeadContext, Result

MOST_BOXES = 30
"""That GLIGEN's pipeline reads; more would be dropped."""


class LayoutImageHead(PictureHead):
    """Draws a scene whose things stand where the call's regions are, with a frozen GLIGEN pipeline.

    GLIGEN (https://arxiv.org/abs/2301.07093) adds gated attention to tokens of phrases and their boxes to Stable
    Diffusion. The call's prompt names the things in the order of its regions, between semicolons:
    ``a red car; a dog`` with two regions, or ``a street at night; a red car; a dog`` where the first part says what the
    whole is. One part for several regions stands for each of them. Regions are fractions of the latest image, or of an
    empty canvas where the conversation has none; boxes of an earlier result may take their place.

    Args:
        expert: Directory of a ``StableDiffusionGLIGENPipeline``, or a repository of the Hugging Face hub.
        experts: The pool that loads it.
        num_steps: Denoising steps (the session's parameter ``num_steps`` overrides it).
        guidance: Weight of the prompt against the negative prompt; 1 is none (parameter ``guidance``).
        grounded_share: Share of the steps, from the first, in which the boxes are attended to.
        size: (width, height) in pixels; the expert's own by default (parameters ``width`` and ``height``).
        negative_prompt: What to go away from.
        seed: Of the noise (parameter ``seed``).
        variant: Of the weights' files, such as ``fp16``.
        revision: Revision on the hub.
    """

    draws_layouts = True

    def __init__(
        self,
        expert: str,
        experts: ExpertPool | None = None,
        num_steps: int = 50,
        guidance: float = 7.5,
        grounded_share: float = 1.0,
        size: tuple[int, int] | None = None,
        negative_prompt: str = "",
        seed: int = 0,
        variant: str | None = None,
        revision: str | None = None,
    ) -> None:
        pipeline = PipelineExpert(expert, ("prompt", "gligen_phrases", "gligen_boxes"), ("image",), variant, revision)
        # The pipeline takes one layout per batch.
        super().__init__(pipeline, experts, num_steps, guidance, negative_prompt, seed, batch_size=1)
        if not 0 <= grounded_share <= 1:
            raise ValueError(f"grounded_share: expected a share from 0 to 1, got {grounded_share}")
        self.grounded_share = grounded_share
        self.size = None if size is None else (int(size[0]), int(size[1]))

    def request(self, context: HeadContext) -> Request:
        """Phrases and boxes; see :meth:`heads.experts.expert_head.ExpertHead.request`."""
        boxes = fractions(context)
        if not 0 < len(boxes) <= MOST_BOXES:
            raise ValueError(f"task '{context.call.task}': expected 1 to {MOST_BOXES} regions, got {len(boxes)}")
        caption, phrases = phrases_of(required_prompt(context), len(boxes))
        own = {"phrases": phrases, "boxes": [list(box) for box in boxes]}
        return self.asked(context, canvas_of(context, self.size), own, caption)

    def own_arguments(self, expert: Any, requests: Sequence[Request]) -> dict[str, Any]:
        """Phrases and boxes of the one request."""
        (request,) = requests
        return {
            "gligen_phrases": request.own["phrases"],
            "gligen_boxes": request.own["boxes"],
            "gligen_scheduled_sampling_beta": self.grounded_share,
        }

    def answer(self, expert: Any, requests: Sequence[Request]) -> list[Result]:
        """One image; see :meth:`heads.experts.expert_head.ExpertHead.answer`.

        Raises:
            ValueError: If a phrase is longer than the text encoder reads, which would fail inside it.
        """
        limit = expert.tokenizer.model_max_length
        for phrase in requests[0].own["phrases"]:
            length = len(expert.tokenizer(phrase, verbose=False).input_ids)
            if length > limit:
                raise ValueError(f"the phrase of a region: expected at most {limit} tokens, got {length}: '{phrase}'")
        return super().answer(expert, requests)


def phrases_of(prompt: str, num_boxes: int) -> tuple[str, list[str]]:
    """The words for the whole picture, and a phrase per box.

    Raises:
        ValueError: If the prompt has neither one part, nor as many as boxes, nor one more.
    """
    parts = [part.strip() for part in prompt.split(";") if part.strip()]
    if len(parts) == num_boxes:
        return ", ".join(parts), parts
    if len(parts) == num_boxes + 1:
        return ", ".join(parts), parts[1:]
    if len(parts) == 1:
        return parts[0], parts * num_boxes
    raise ValueError(
        f"expected 1, {num_boxes} or {num_boxes + 1} phrases between semicolons, got {len(parts)}: '{prompt}'"
    )
