"""Sounds and music from a prompt through pipelines of diffusers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from heads.experts.expert_head import ExpertHead, Request
from heads.experts.files import ExpertError
from heads.experts.pipelines import PipelineExpert
from heads.experts.pool import ExpertPool
from heads.generation.arguments import number, positive, required_prompt, whole
from heads.generation.images import seeded
from heads.generation.prompts import note_of, prompt_arguments, unread
from layers.calls import AudioResult, HeadContext, Result

_LENGTHS = ("audio_length_in_s", "audio_end_in_s")
"""How pipelines call the seconds they are asked for."""


class SoundHead(ExpertHead):
    """Makes the sound that a prompt describes with a frozen pipeline: AudioLDM, AudioLDM 2, Stable Audio.

    Args:
        expert: Directory as diffusers saves it, or a repository of the Hugging Face hub.
        experts: The pool that loads it.
        seconds: Duration (the session's parameter ``seconds`` overrides it).
        num_steps: Denoising steps (parameter ``num_steps``).
        guidance: Weight of the prompt against the negative prompt; 1 is none (parameter ``guidance``).
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
        seconds: float = 5.0,
        num_steps: int = 50,
        guidance: float = 2.5,
        negative_prompt: str = "",
        seed: int = 0,
        batch_size: int = 4,
        variant: str | None = None,
        revision: str | None = None,
    ) -> None:
        takes = ("prompt", "num_inference_steps", "guidance_scale", "generator", "output_type")
        super().__init__(PipelineExpert(expert, takes, ("image", "num_frames"), variant, revision), experts, batch_size)
        self.seconds, self.num_steps, self.guidance = seconds, num_steps, guidance
        self.negative_prompt, self.seed = negative_prompt, seed

    def request(self, context: HeadContext) -> Request:
        """Prompt and duration; see :meth:`heads.experts.expert_head.ExpertHead.request`."""
        shared = {
            "num_inference_steps": whole(context, "num_steps", self.num_steps),
            "guidance_scale": number(context, "guidance", self.guidance),
            "seconds": positive(context, "seconds", self.seconds),
        }
        return Request(context, required_prompt(context), whole(context, "seed", self.seed, least=0), shared)

    def answer(self, expert: Any, requests: Sequence[Request]) -> list[Result]:
        """Waveforms of a batch; see :meth:`heads.experts.expert_head.ExpertHead.answer`."""
        arguments = inspect.signature(expert.__call__).parameters
        length = next((name for name in _LENGTHS if name in arguments), None)
        if length is None:
            raise ExpertError(f"expected a pipeline that takes one of {_LENGTHS}, got {type(expert).__name__}")
        shared = dict(requests[0].shared)
        shared[length] = shared.pop("seconds")
        output = expert(
            **prompt_arguments(expert, [request.prompt for request in requests], self.negative_prompt),
            **shared,
            generator=seeded(requests),
            output_type="pt",
        )
        maker = expert.vocoder if hasattr(expert, "vocoder") else expert.vae
        results: list[Result] = []
        for request, waveform in zip(requests, output.audios, strict=True):
            rest = unread(expert, request.prompt)
            results.append(
                AudioResult(
                    request.context.call,
                    (waveform if waveform.ndim == 2 else waveform[None]).float().cpu().clamp(-1, 1),
                    int(maker.config.sampling_rate),
                    notes=(note_of(rest),) if rest else (),
                )
            )
        return results
