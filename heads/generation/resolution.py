"""Images of the ground at a chosen resolution and of any extent."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from heads.experts.files import ExpertError
from heads.experts.pool import ExpertPool
from heads.generation.arguments import number
from heads.generation.denoising import Condition, Denoiser, Space
from heads.generation.denoising_head import Conditions, DenoisingHead, Drawing, Guides, Tokens
from heads.generation.extending import SIDES, Side, extended
from heads.generation.prompts import encoded_prompt
from heads.generation.sources import source_image
from heads.generation.state_images import check_width, stable_diffusion
from layers.calls import HeadContext

UNKNOWN = 0.0
"""The level that says nothing about the resolution."""
_LEVEL = re.compile(r"\s*(\d+(?:\.\d+)?)_GOOGLE_LEVEL_\s*")
_METRES = re.compile(r"[\s,]*(?:\bat\s+)?\b(\d+(?:\.\d+)?)\s*m(?:\s*/\s*|\s+per\s+)(?:pixel|px)\b")


@dataclass(frozen=True)
class Resolution:
    """How the resolution is a condition.

    Args:
        lowest: The lowest level.
        highest: The highest level.
        dropout: Share of calls that do without their level in training, whatever their text.
        guidance: Weight of the level; that of the text by default (the session's parameter ``resolution_guidance``).
        scale: Factor of the level before it is encoded. The paper's is 1, by which neighbouring levels differ in the
            fastest sinusoids alone; a small UNet tells them apart sooner where they spread over the range of timesteps.
    """

    lowest: float = 10.0
    highest: float = 18.0
    dropout: float = 0.1
    guidance: float | None = None
    scale: float = 1.0


class ResolutionImageHead(DenoisingHead):
    """Draws the ground as seen from above, with the ground resolution as a condition of its own.

    Text2Earth (https://arxiv.org/abs/2501.00895): the resolution is a map level, ``2^(17 - level)`` metres per pixel;
    it is encoded as a timestep is, and its embedding is added to the timestep's (``class_embed_type: timestep`` of
    diffusers); level 0 means that it is unknown. Training drops text and resolution independently of each other;
    sampling goes beyond what is expected without them, with a weight for either:

        ``e(-, -) + w_r · (e(-, level) - e(-, -)) + w · (e(text, level) - e(-, level))``

    With ``w_r = w`` that is the paper's joint guidance. A prompt names its level as the paper's prompts do,
    ``15_GOOGLE_LEVEL_a harbour``, or as ``a harbour at 4 m/pixel``; the session's parameter ``level`` overrides it.

    Of any extent: the parameters ``width`` and ``height`` may exceed the canvas, which overlapping windows then cover;
    and a task of ``extending_tasks`` continues an image, an earlier result or the latest, on one side.

    Departures: levels may be fractions; text and level have weights of their own; extending needs no denoiser with
    further inputs: what is known is put in at each step.

    Args:
        state_size: Width of the language model's states; not used without ``tokens``.
        cross_attention_size: Width of the UNet's cross-attention.
        expert: Directory of a Stable Diffusion 1 or 2 pipeline, whose autoencoder, text encoder and noise are used, and
            its UNet unless there is one in ``unet``. None draws in pixels.
        unet: Arguments of a ``UNet2DConditionModel`` that this head owns and trains, or ``{pretrained: DIR}`` of one to
            begin with. By default the expert's, frozen, which must know the resolution already.
        noise: Arguments of the ``DDIMScheduler`` of a head without an expert.
        patch_size: Without an expert, pixels per side of a patch, whose channels the UNet sees side by side.
        experts: The pool that loads the expert.
        num_queries: Learned queries in the language model, for the link ``queries``; 0 for ``hidden``.
        tokens: How states become tokens; None, for the link ``text``, has the expert's text encoder read the prompt.
        drawing: How images are drawn.
        condition_dropout: Share of calls that do without their states or prompt in training.
        resolution: How the resolution is a condition.
        extending_tasks: Tasks that continue an image.
        side: Where they continue it.
    """

    unet: UNet2DConditionModel | None

    def __init__(
        self,
        state_size: int,
        cross_attention_size: int,
        expert: str | None = None,
        unet: dict[str, Any] | None = None,
        noise: dict[str, Any] | None = None,
        patch_size: int = 1,
        experts: ExpertPool | None = None,
        num_queries: int = 0,
        tokens: Tokens | None = None,
        drawing: Drawing | None = None,
        condition_dropout: float = 0.1,
        resolution: Resolution | None = None,
        extending_tasks: Sequence[str] = (),
        side: Side = "right",
    ) -> None:
        drawing = drawing or Drawing(canvas_size=(256, 256), num_steps=50, guidance=4.0, overlap=64)
        super().__init__(experts, state_size, cross_attention_size, num_queries, tokens, drawing, condition_dropout)
        self.links = frozenset({"text"} if tokens is None else {"hidden", "queries"})
        if expert is None and (unet is None or tokens is None):
            raise ValueError("expected an expert, or a unet and tokens of this head's own, got neither")
        if side not in SIDES:
            raise ValueError(f"side: expected one of {SIDES}, got {side!r}")
        self.resolution = resolution or Resolution()
        if not 0 < self.resolution.lowest < self.resolution.highest or not 0 <= self.resolution.dropout < 1:
            raise ValueError(f"resolution: expected levels above 0 and a dropout below 1, got {self.resolution}")
        self.extending_tasks, self.side = frozenset(extending_tasks), side
        self.expert = None if expert is None else stable_diffusion(expert)
        self.noise = None if expert is not None else DDIMScheduler(**{"clip_sample": False, **(noise or {})})
        self.unet = None if unet is None else _own_unet(unet, cross_attention_size)
        got = None if self.unet is None else config_of(self.unet).in_channels
        if expert is None and got != 3 * patch_size**2:
            raise ValueError(f"unet: expected in_channels {3 * patch_size**2} for patches of {patch_size}, got {got}")
        self.patch_size = patch_size
        self.bases = {"unet.": unet["pretrained"]} if unet is not None and "pretrained" in unet else {}

    def forward(self, states: Tensor | None, lengths: Sequence[int], contexts: Sequence[HeadContext]) -> Conditions:
        """Tokens and levels, see :meth:`layers.head.Head.forward`.

        Raises:
            ValueError: If a level is out of range.
        """
        asked = [level_of(context, self.resolution) for context in contexts]
        if self.reader is not None:
            conditions = super().forward(states, lengths, contexts)
        elif states is not None and states.shape[0]:
            raise ValueError("ResolutionImageHead without tokens reads no states: give its task the link 'text'")
        else:
            conditions = self._read([prompt for _, prompt in asked])
        labels = [level * self.resolution.scale for level, _ in asked]
        conditions.labels = torch.tensor(labels, device=self.device, dtype=torch.float32)
        return conditions

    def _read(self, prompts: Sequence[str]) -> Conditions:
        if not prompts:
            return Conditions([], [])
        assert self.expert is not None
        with self.experts.borrow(self.expert, self.device) as pipeline:
            told, untold = zip(*[encoded_prompt(pipeline, prompt) for prompt in prompts], strict=True)
        return Conditions(list(told), list(untold))

    def dropped(self, told: Condition, untold: Condition) -> Condition:
        """Text and level, each dropped for a random share of the calls by itself."""
        kept = super().dropped(told, untold)
        assert kept.labels is not None
        unknown = torch.rand(len(kept.labels), device=kept.labels.device) < self.resolution.dropout
        return Condition(kept.tokens, kept.labels.masked_fill(unknown, UNKNOWN))

    def guides(self, told: Condition, untold: Condition, context: HeadContext) -> Guides:
        """Nothing, the level, the text with it; the level is no step of its own where it weighs as much as the text."""
        assert told.labels is not None
        text, level = self._weights(context)
        if text == level == 1:
            return [told], []
        nothing = Condition(untold.tokens, torch.full_like(told.labels, UNKNOWN))
        if text == level or bool((told.labels == UNKNOWN).all()):
            return [nothing, told], [text]
        return [nothing, untold, told], [level, text]

    def arguments(self, context: HeadContext) -> Hashable:
        """As for every drawing, and the level's weight; an extension is drawn alone."""
        alone = id(context) if self._extends(context) else None
        return (super().arguments(context), self._weights(context), alone)

    def draw(
        self, denoiser: Denoiser, told: Condition, untold: Condition, contexts: Sequence[HeadContext]
    ) -> list[Tensor]:
        """Images (3, H, W) uint8 of calls that have their arguments in common."""
        if not self._extends(contexts[0]):
            return super().draw(denoiser, told, untold, contexts)
        guides = self.guides(told, untold, contexts[0])
        source = source_image(contexts[0])

        def fill(size: tuple[int, int], known: tuple[Tensor, Tensor]) -> Tensor:
            return self.drawn(denoiser, guides, contexts, size, known)

        return [extended(source, self.side, self.canvas_size, self.drawing.overlap, denoiser, fill)]

    def _extends(self, context: HeadContext) -> bool:
        return context.call.task in self.extending_tasks

    def _weights(self, context: HeadContext) -> tuple[float, float]:
        text = number(context, "guidance", self.drawing.guidance)
        own = text if self.resolution.guidance is None else self.resolution.guidance
        return text, number(context, "resolution_guidance", own)

    @contextmanager
    def denoiser(self) -> Iterator[Denoiser]:
        """This head's UNet or the expert's, with the expert's noise and autoencoder where there is one.

        Raises:
            heads.experts.files.ExpertError: If the expert does not fit.
        """
        if self.expert is None:
            assert self.unet is not None
            yield Denoiser(self.unet, self.noise, Space(None, self.patch_size))
            return
        with self.experts.borrow(self.expert, self.device) as pipeline:
            unet = pipeline.unet if self.unet is None else self.unet
            check_width(unet, self.cross_attention_size, self.expert.name)
            if (got := config_of(unet).class_embed_type) != "timestep":
                raise ExpertError(
                    f"expert '{self.expert.name}': expected a UNet with class_embed_type timestep, which knows the "
                    f"resolution, got {got}; unet: {{pretrained: DIR}} trains one to"
                )
            yield Denoiser(unet, pipeline.scheduler, Space(pipeline.vae, pipeline.vae_scale_factor))


def config_of(unet: Any) -> Any:
    """The configuration of a model of diffusers, by attribute."""
    return unet.config


def level_of(context: HeadContext, resolution: Resolution) -> tuple[float, str]:
    """The map level of a call, 0 where none is named, and its prompt without it.

    Raises:
        ValueError: If the level is out of range.
    """
    prompt, level = context.call.prompt.strip(), UNKNOWN
    if match := _LEVEL.match(prompt):
        level, prompt = float(match[1]), prompt[match.end() :]
    elif match := _METRES.search(prompt):
        level = level_of_metres(float(match[1])) if float(match[1]) > 0 else math.inf
        prompt = (prompt[: match.start()] + prompt[match.end() :]).strip()
    level = number(context, "level", level) if "level" in context.parameters else level
    if level != UNKNOWN and not resolution.lowest <= level <= resolution.highest:
        raise ValueError(
            f"level of '{context.call.prompt}': expected {resolution.lowest:g} to {resolution.highest:g} "
            f"({metres_of_level(resolution.lowest):g} to {metres_of_level(resolution.highest):g} m/pixel), or 0 for "
            f"unknown, got {level:g}"
        )
    return level, prompt


def level_of_metres(metres_per_pixel: float) -> float:
    """The map level of a ground resolution."""
    return 17 - math.log2(metres_per_pixel)


def metres_of_level(level: float) -> float:
    """Metres per pixel of a map level."""
    return 2.0 ** (17 - level)


def _own_unet(arguments: Mapping[str, Any], cross_attention_size: int) -> UNet2DConditionModel:
    """A UNet to train, which adds the level's embedding to the timestep's.

    One that has none yet gets one that adds nothing at first, so that training begins where the UNet was.
    """
    if "pretrained" not in arguments:
        options = {"class_embed_type": "timestep", "cross_attention_dim": cross_attention_size, **arguments}
        return UNet2DConditionModel(**options)
    if set(arguments) != {"pretrained"}:
        raise ValueError(f"unet: expected pretrained alone, or arguments, got {sorted(arguments)}")
    unet = UNet2DConditionModel.from_pretrained(arguments["pretrained"], use_safetensors=True, local_files_only=True)
    if unet.config.class_embed_type is None:
        width = unet.config.block_out_channels[0]
        embedding = TimestepEmbedding(width, 4 * width)
        nn.init.zeros_(embedding.linear_2.weight)
        nn.init.zeros_(embedding.linear_2.bias)
        unet.class_embedding = embedding
        unet.register_to_config(class_embed_type="timestep")
    return unet.train()
