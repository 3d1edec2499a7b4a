"""Text to image through any pipeline of diffusers that draws what a prompt says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from heads.experts.expert_head import ExpertHead, Request
from heads.experts.pipelines import PipelineExpert
from heads.experts.pool import ExpertPool
from heads.generation.arguments import number, required_prompt, whole
from heads.generation.prompts import note_of, num_windows, prompt_arguments, unread
from layers.calls import HeadContext, ImageResult, Result

OTHER_KINDS = (
    "image",
    "mask_image",
    "control_image",
    "gligen_boxes",
    "num_frames",
    "audio_length_in_s",
    "audio_end_in_s",
)
"""Arguments of pipelines that do something else than draw from a prompt."""
_BLACKED = "the expert's safety checker replaced this image by a black one"


def seeded(requests: Sequence[Request]) -> list[torch.Generator]:
    """One generator per request, so that its answer depends on nothing that is asked beside it."""
    return [torch.Generator().manual_seed(request.seed) for request in requests]


def to_uint8(images: Tensor) -> Tensor:
    """Images 0 to 1 as uint8 on the CPU, rounded as diffusers does."""
    return (images.float() * 255).round().clamp(0, 255).to(torch.uint8).cpu()


class PictureHead(ExpertHead):
    """What heads of pipelines that return images have in common; they differ in :meth:`request`.

    Args:
        expert: The pipeline.
        experts: The pool that loads it.
        num_steps: Denoising steps (the session's parameter ``num_steps`` overrides it).
        guidance: Weight of the prompt against the negative prompt; 1 is none (parameter ``guidance``).
        negative_prompt: What to go away from.
        seed: Of the noise (parameter ``seed``).
        batch_size: Calls that the pipeline answers at once.
    """

    def __init__(
        self,
        expert: PipelineExpert,
        experts: ExpertPool | None,
        num_steps: int,
        guidance: float,
        negative_prompt: str,
        seed: int,
        batch_size: int,
    ) -> None:
        super().__init__(expert, experts, batch_size)
        self.num_steps, self.guidance, self.seed = num_steps, guidance, seed
        self.negative_prompt = negative_prompt

    def asked(
        self,
        context: HeadContext,
        shared: Mapping[str, Any],
        own: Mapping[str, Any] | None = None,
        prompt: str | None = None,
    ) -> Request:
        """A request with seed, steps and guidance of the call, and its prompt unless another is given."""
        steps = whole(context, "num_steps", self.num_steps)
        scales = {"num_inference_steps": steps, "guidance_scale": number(context, "guidance", self.guidance)}
        seed = whole(context, "seed", self.seed, least=0)
        words = required_prompt(context) if prompt is None else prompt
        return Request(context, words, seed, {**scales, **shared}, own or {})

    def batch_key(self, expert: Any, request: Request) -> Any:
        """Equal arguments, and prompts that are read in as many windows."""
        return (super().batch_key(expert, request), num_windows(expert, request.prompt))

    def answer(self, expert: Any, requests: Sequence[Request]) -> list[Result]:
        """Images of a batch; see :meth:`heads.experts.expert_head.ExpertHead.answer`."""
        output = expert(
            **prompt_arguments(expert, [request.prompt for request in requests], self.negative_prompt),
            **requests[0].shared,
            **self.own_arguments(expert, requests),
            generator=seeded(requests),
            output_type="pt",
        )
        flagged = getattr(output, "nsfw_content_detected", None) or [False] * len(requests)
        results: list[Result] = []
        for request, image, blacked in zip(requests, to_uint8(output.images), flagged, strict=True):
            rest = unread(expert, request.prompt)
            said = request.noting(*([note_of(rest)] if rest else []), *([_BLACKED] if blacked else []))
            results.append(ImageResult(request.context.call, self.finished(image, request), notes=said.notes))
        return results

    def own_arguments(self, expert: Any, requests: Sequence[Request]) -> dict[str, Any]:
        """Arguments besides the prompt that each request has for itself, stacked."""
        return {}

    def finished(self, image: Tensor, request: Request) -> Tensor:
        """The image (3, H, W) uint8 as it is answered."""
        return image


class TextToImageHead(PictureHead):
    """Draws what a prompt says with a frozen pipeline: Stable Diffusion of any version, and its likes.

    Args:
        expert: Directory as diffusers saves it, or a repository of the Hugging Face hub.
        experts: The pool that loads it; heads that are given one pool share its budget.
        num_steps: Denoising steps (the session's parameter ``num_steps`` overrides it).
        guidance: Weight of the prompt against the negative prompt; 1 is none (parameter ``guidance``).
        size: (width, height) in pixels; the expert's own by default (parameters ``width`` and ``height``).
        negative_prompt: What to go away from.
        seed: Of the noise (parameter ``seed``).
        batch_size: Calls that the pipeline answers at once.
        variant: Of the weights' files, such as ``fp16``.
        revision: Revision on the hub.
    """

    def __init__(
        self,
        expert: str,
        experts: ExpertPool | None = None,
        num_steps: int = 30,
        guidance: float = 7.5,
        size: tuple[int, int] | None = None,
        negative_prompt: str = "",
        seed: int = 0,
        batch_size: int = 4,
        variant: str | None = None,
        revision: str | None = None,
    ) -> None:
        takes = ("prompt", "num_inference_steps", "guidance_scale", "height", "width", "generator", "output_type")
        pipeline = PipelineExpert(expert, takes, OTHER_KINDS, variant, revision)
        super().__init__(pipeline, experts, num_steps, guidance, negative_prompt, seed, batch_size)
        self.size = None if size is None else (int(size[0]), int(size[1]))

    def request(self, context: HeadContext) -> Request:
        """Prompt and size; see :meth:`heads.experts.expert_head.ExpertHead.request`."""
        return self.asked(context, canvas_of(context, self.size))


def canvas_of(context: HeadContext, size: tuple[int, int] | None) -> dict[str, int | None]:
    """Width and height of a drawing: the session's parameters, else ``size``, else None for the expert's own.

    Raises:
        ValueError: If the session gives one alone, and there is no ``size`` to take the other from.
    """
    given = [name for name in ("width", "height") if name in context.parameters]
    if size is None and not given:
        return {"width": None, "height": None}
    if size is None and len(given) == 1:
        raise ValueError(f"parameters: expected width and height, got {given[0]} alone")
    width, height = size or (1, 1)
    return {"width": whole(context, "width", width), "height": whole(context, "height", height)}
