"""Images from a language model's states through a frozen Stable Diffusion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from heads.experts.files import ExpertError
from heads.experts.pipelines import PipelineExpert
from heads.experts.pool import ExpertPool
from heads.generation.denoising import Denoiser, Space
from heads.generation.denoising_head import DenoisingHead, Drawing, Tokens


class StateImageHead(DenoisingHead):
    """Draws from hidden or query states: they take the place of the text encoder's states in a frozen UNet.

    Learned tokens look at the call's states and are projected to the width of the UNet's cross-attention; the denoising
    loss reaches them, and the language model, through the frozen UNet. As in GILL and VisionLLM v2
    (https://arxiv.org/abs/2305.17216, https://arxiv.org/abs/2406.08394), without a loss on captions.

    Args:
        state_size: Width of the language model's states.
        cross_attention_size: Width of the UNet's cross-attention: 768 for Stable Diffusion 1, 1024 for 2.
        expert: Directory of a Stable Diffusion 1 or 2 pipeline, or a repository of the Hugging Face hub.
        experts: The pool that loads it.
        num_queries: Learned queries in the language model, for the link ``queries``; 0 for ``hidden``.
        tokens: How states become tokens.
        drawing: How images are drawn.
        condition_dropout: Share of calls that do without their states in training.
        variant: Of the weights' files, such as ``fp16``.
        revision: Revision on the hub.
    """

    links = frozenset({"hidden", "queries"})

    def __init__(
        self,
        state_size: int,
        cross_attention_size: int,
        expert: str,
        experts: ExpertPool | None = None,
        num_queries: int = 0,
        tokens: Tokens | None = None,
        drawing: Drawing | None = None,
        condition_dropout: float = 0.1,
        variant: str | None = None,
        revision: str | None = None,
    ) -> None:
        super().__init__(
            experts,
            state_size,
            cross_attention_size,
            num_queries,
            tokens or Tokens(),
            drawing or Drawing(),
            condition_dropout,
        )
        self.expert = stable_diffusion(expert, variant, revision)

    @contextmanager
    def denoiser(self) -> Iterator[Denoiser]:
        """The expert's.

        Raises:
            heads.experts.files.ExpertError: If it is not a Stable Diffusion of this width.
        """
        with self.experts.borrow(self.expert, self.device) as pipeline:
            check_width(pipeline.unet, self.cross_attention_size, self.expert.name)
            yield Denoiser(pipeline.unet, pipeline.scheduler, Space(pipeline.vae, pipeline.vae_scale_factor))


def stable_diffusion(name: str, variant: str | None = None, revision: str | None = None) -> PipelineExpert:
    """A pipeline with a UNet that a text encoder's states tell what to draw."""
    return PipelineExpert(name, ("prompt_embeds", "negative_prompt_embeds"), ("image", "num_frames"), variant, revision)


def check_width(unet: Any, cross_attention_size: int, name: str) -> None:
    """Check that a UNet reads tokens of this width and nothing beside them.

    Raises:
        heads.experts.files.ExpertError: Naming the expert and what it reads.
    """
    if unet.config.addition_embed_type is not None:
        raise ExpertError(f"expert '{name}': expected Stable Diffusion 1 or 2, got a UNet that reads more than tokens")
    if unet.config.cross_attention_dim != cross_attention_size:
        got = unet.config.cross_attention_dim
        raise ExpertError(f"expert '{name}': expected cross-attention of width {cross_attention_size}, got {got}")
