"""Videos from a prompt through pipelines of diffusers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from heads.experts.expert_head import Request
from heads.experts.pipelines import PipelineExpert
from heads.experts.pool import ExpertPool
from heads.generation.arguments import positive, whole
from heads.generation.images import PictureHead, canvas_of, seeded, to_uint8
from heads.generation.prompts import note_of, prompt_arguments, unread
from layers.calls import HeadContext, Result, VideoResult


class VideoHead(PictureHead):
    """Films what a prompt says with a frozen pipeline: ModelScope and ZeroScope, AnimateDiff, Wan, CogVideoX, LTX.

    Args:
        expert: Directory as diffusers saves it, or a repository of the Hugging Face hub.
        experts: The pool that loads it.
        num_frames: Frames (the session's parameter ``num_frames`` overrides it).
        fps: Frames a second (parameter ``fps``).
        num_steps: Denoising steps (parameter ``num_steps``).
        guidance: Weight of the prompt against the negative prompt; 1 is none (parameter ``guidance``).
        size: (width, height) in pixels; the expert's own by default (parameters ``width`` and ``height``).
        negative_prompt: What to go away from.
        seed: Of the noise (parameter ``seed``).
        variant: Of the weights' files, such as ``fp16``.
        revision: Revision on the hub.
    """

    def __init__(
        self,
        expert: str,
        experts: ExpertPool | None = None,
        num_frames: int = 16,
        fps: float = 8.0,
        num_steps: int = 30,
        guidance: float = 7.5,
        size: tuple[int, int] | None = None,
        negative_prompt: str = "",
        seed: int = 0,
        variant: str | None = None,
        revision: str | None = None,
    ) -> None:
        takes = ("prompt", "num_frames", "num_inference_steps", "guidance_scale", "generator", "output_type")
        pipeline = PipelineExpert(expert, takes, ("image", "video"), variant, revision)
        # Not all of them take several prompts, and one film fills a card.
        super().__init__(pipeline, experts, num_steps, guidance, negative_prompt, seed, batch_size=1)
        self.num_frames, self.fps = num_frames, fps
        self.size = None if size is None else (int(size[0]), int(size[1]))

    def request(self, context: HeadContext) -> Request:
        """Prompt, size and length; see :meth:`heads.experts.expert_head.ExpertHead.request`."""
        size = {name: side for name, side in canvas_of(context, self.size).items() if side is not None}
        frames = whole(context, "num_frames", self.num_frames)
        own = {"fps": positive(context, "fps", self.fps)}
        return self.asked(context, {**size, "num_frames": frames}, own)

    def answer(self, expert: Any, requests: Sequence[Request]) -> list[Result]:
        """One video; see :meth:`heads.experts.expert_head.ExpertHead.answer`."""
        (request,) = requests
        rate = {"frame_rate": request.own["fps"]} if _takes(expert, "frame_rate") else {}
        output = expert(
            **prompt_arguments(expert, [request.prompt], self.negative_prompt),
            **request.shared,
            **rate,
            generator=seeded(requests)[0],
            output_type="pt",
        )
        frames = to_uint8(output.frames[0])
        notes = []
        if rest := unread(expert, request.prompt):
            notes.append(note_of(rest))
        if len(frames) != request.shared["num_frames"]:
            notes.append(f"{request.shared['num_frames']} frames were asked for, the expert makes {len(frames)}")
        return [VideoResult(request.context.call, frames, request.own["fps"], notes=tuple(notes))]


def _takes(expert: Any, argument: str) -> bool:
    return argument in inspect.signature(expert.__call__).parameters
