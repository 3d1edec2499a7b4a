"""Images changed by an instruction (InstructPix2Pix), or filled in where a call points (inpainting)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from heads.experts.expert_head import Request
from heads.experts.pipelines import PipelineExpert
from heads.experts.pool import ExpertPool
from heads.generation.arguments import number
from heads.generation.images import PictureHead
from heads.generation.sources import fitted, region_mask, resized, source_image
from layers.calls import HeadContext


class EditingHead(PictureHead):
    """What heads that change an image have in common: they work at the expert's size and answer at the source's.

    Args:
        expert: The pipeline.
        experts: The pool that loads it.
        num_steps: Denoising steps.
        guidance: Weight of the prompt.
        longest_side: Pixels of the longer side at which the expert works; its own by default.
        negative_prompt: What to go away from.
        seed: Of the noise.
        batch_size: Calls that the pipeline answers at once.
    """

    draws_layouts = True  # on an earlier drawing that the call refers to

    def __init__(
        self,
        expert: PipelineExpert,
        experts: ExpertPool | None,
        num_steps: int,
        guidance: float,
        longest_side: int | None,
        negative_prompt: str,
        seed: int,
        batch_size: int,
    ) -> None:
        super().__init__(expert, experts, num_steps, guidance, negative_prompt, seed, batch_size)
        self.longest_side = longest_side

    def batch_key(self, expert: Any, request: Request) -> Any:
        """As for drawings, and the size at which the expert works."""
        return (super().batch_key(expert, request), self.working_size(expert, request.own["source"]))

    def working_size(self, expert: Any, source: Tensor) -> tuple[int, int]:
        """(width, height) at which the expert works on a source (3, H, W)."""
        longest = self.longest_side or native_side(expert)
        return fitted((source.shape[2], source.shape[1]), longest, expert.vae_scale_factor)

    def own_arguments(self, expert: Any, requests: Sequence[Request]) -> dict[str, Any]:
        """The sources (n, 3, h, w), 0 to 1."""
        size = self.working_size(expert, requests[0].own["source"])
        return {"image": torch.stack([resized(item.own["source"], size).float() / 255 for item in requests])}

    def finished(self, image: Tensor, request: Request) -> Tensor:
        """The image at the source's size; where the call points, it is the source elsewhere."""
        source, mask = request.own["source"].cpu(), request.own["mask"]
        image = resized(image, (source.shape[2], source.shape[1]))
        return image if mask is None else torch.where(mask, image, source)


class InstructEditHead(EditingHead):
    """Changes an image as the prompt says, with a frozen InstructPix2Pix (https://arxiv.org/abs/2211.09800).

    The image is an earlier result that the call refers to, or else the latest of the conversation; where the call has
    regions or refers to a mask or boxes, nothing changes elsewhere. Two weights guide it, eq. 3 of the paper: that of
    the instruction, and that of the source.

    Args:
        expert: Directory of a pipeline such as ``StableDiffusionInstructPix2PixPipeline``, or a repository of the hub.
        experts: The pool that loads it.
        num_steps: Denoising steps (the session's parameter ``num_steps`` overrides it).
        guidance: Weight of the instruction; 1 is no guidance (parameter ``guidance``).
        image_guidance: Weight of the source, at least 1 (parameter ``image_guidance``).
        longest_side: Pixels of the longer side at which the expert works; its own by default.
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
        num_steps: int = 50,
        guidance: float = 7.5,
        image_guidance: float = 1.5,
        longest_side: int | None = None,
        negative_prompt: str = "",
        seed: int = 0,
        batch_size: int = 4,
        variant: str | None = None,
        revision: str | None = None,
    ) -> None:
        pipeline = PipelineExpert(
            expert, ("prompt", "image", "image_guidance_scale"), ("mask_image",), variant, revision
        )
        super().__init__(pipeline, experts, num_steps, guidance, longest_side, negative_prompt, seed, batch_size)
        self.image_guidance = image_guidance

    def request(self, context: HeadContext) -> Request:
        """Instruction and source; see :meth:`heads.experts.expert_head.ExpertHead.request`."""
        source = source_image(context)
        mask = region_mask(context, (source.shape[2], source.shape[1]))
        scale = number(context, "image_guidance", self.image_guidance, least=1.0)
        return self.asked(context, {"image_guidance_scale": scale}, {"source": source, "mask": mask})


class InpaintHead(EditingHead):
    """Fills in what a prompt says where a call points, with a frozen inpainting pipeline.

    Where: the regions of the call, and the masks and boxes of earlier results that it refers to, so that one expert's
    output feeds the next ("cut out the dog, then put a cat there"). Everything else stays as it is, to the pixel.

    Args:
        expert: Directory of a pipeline such as ``StableDiffusionInpaintPipeline``, or a repository of the hub.
        experts: The pool that loads it.
        num_steps: Denoising steps (the session's parameter ``num_steps`` overrides it).
        guidance: Weight of the prompt against the negative prompt; 1 is none (parameter ``guidance``).
        strength: Share of the denoising that is done; below 1 some of what was there shows through.
        longest_side: Pixels of the longer side at which the expert works; its own by default.
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
        num_steps: int = 50,
        guidance: float = 7.5,
        strength: float = 1.0,
        longest_side: int | None = None,
        negative_prompt: str = "",
        seed: int = 0,
        batch_size: int = 4,
        variant: str | None = None,
        revision: str | None = None,
    ) -> None:
        if not 0 < strength <= 1:
            raise ValueError(f"strength: expected a share above 0, at most 1, got {strength}")
        pipeline = PipelineExpert(
            expert, ("prompt", "image", "mask_image", "strength"), ("control_image",), variant, revision
        )
        super().__init__(pipeline, experts, num_steps, guidance, longest_side, negative_prompt, seed, batch_size)
        self.strength = strength

    def request(self, context: HeadContext) -> Request:
        """Prompt, source and mask; see :meth:`heads.experts.expert_head.ExpertHead.request`."""
        source = source_image(context)
        mask = region_mask(context, (source.shape[2], source.shape[1]))
        if mask is None:
            raise ValueError(
                f"task '{context.call.task}' fills in where it points: expected a region, or an earlier mask or box, "
                "got none"
            )
        return self.asked(context, {"strength": self.strength}, {"source": source, "mask": mask})

    def own_arguments(self, expert: Any, requests: Sequence[Request]) -> dict[str, Any]:
        """The sources, their masks (n, 1, h, w) with 1 where to fill, and the size."""
        sources = super().own_arguments(expert, requests)
        height, width = sources["image"].shape[-2:]
        masks = [resized(item.own["mask"][None].float(), (width, height)) for item in requests]
        return {**sources, "mask_image": (torch.stack(masks) > 0.5).float(), "height": height, "width": width}


def native_side(pipeline: Any) -> int:
    """Pixels per side of the images that a pipeline was trained on."""
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    side = denoiser.config.sample_size
    return int(side if isinstance(side, int) else max(side)) * int(pipeline.vae_scale_factor)
