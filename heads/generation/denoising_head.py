"""What heads have in common that train what a denoiser is told: tokens of states, dropout, guidance, drawing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heads.attend import CrossAttention, group_indices, pad_ragged, required_states
from heads.experts.expert_head import SharesExperts
from heads.experts.pool import ExpertPool
from heads.frames import ImageTargetProcessor
from heads.generation.arguments import number, whole
from heads.generation.denoising import Condition, Denoiser, denoising_loss, guided, sample, windowed
from heads.generation.images import to_uint8
from layers.calls import HeadContext, ImageResult, Result
from layers.head import Head, HeadTarget, LossTerm

Guides = tuple[list[Condition], list[float]]
"""Conditions that tell ever more, and a weight for each but the first."""


@dataclass(frozen=True)
class Tokens:
    """How states become tokens of a cross-attention.

    Args:
        count: Tokens per call.
        width: Inner width, a multiple of ``num_heads``.
        num_layers: Cross-attention layers between tokens and states.
        num_heads: Attention heads.
    """

    count: int = 16
    width: int = 512
    num_layers: int = 2
    num_heads: int = 8


@dataclass(frozen=True)
class Drawing:
    """How images are drawn.

    Args:
        canvas_size: (width, height) of images in training; larger ones are covered by windows of this size.
        num_steps: Denoising steps (the session's parameter ``num_steps`` overrides it).
        guidance: Weight of the states or the prompt; 1 is none (parameter ``guidance``).
        overlap: Pixels that neighbouring windows share at least.
        seed: Of the noise (parameter ``seed``).
        batch_size: Images that are denoised at once.
    """

    canvas_size: tuple[int, int] = (512, 512)
    num_steps: int = 30
    guidance: float = 7.5
    overlap: int = 128
    seed: int = 0
    batch_size: int = 4


class StateTokens(nn.Module):
    """Learned tokens that look at a call's states, however many these are.

    Args:
        state_size: Width of the states.
        token_size: Width of the tokens.
        shape: How many there are, and what is between.
    """

    def __init__(self, state_size: int, token_size: int, shape: Tokens) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(shape.count, shape.width) * 0.02)
        self.enter = nn.Sequential(nn.LayerNorm(state_size), nn.Linear(state_size, shape.width))
        self.layers = nn.ModuleList([CrossAttention(shape.width, shape.num_heads) for _ in range(shape.num_layers)])
        self.exit = nn.Sequential(nn.LayerNorm(shape.width), nn.Linear(shape.width, token_size))
        self.nothing = nn.Parameter(torch.zeros(shape.count, token_size))

    def forward(self, states: Tensor, lengths: Sequence[int]) -> Tensor:
        """(n, count, token_size) of (ΣK, state_size) states."""
        padded, mask = pad_ragged(torch.split(self.enter(states), list(lengths)))
        tokens = self.tokens.expand(len(lengths), -1, -1)
        for layer in self.layers:
            tokens = layer(tokens, padded, padded, mask)
        return self.exit(tokens)


@dataclass
class Conditions:
    """What the denoiser is told for n calls.

    Args:
        tokens: (k, d) for its cross-attention, per call.
        untold: (k, d) that say nothing in their place, per call.
        labels: (n,) for the timestep's embedding, or None.
    """

    tokens: list[Tensor]
    untold: list[Tensor]
    labels: Tensor | None = None

    def of(self, calls: Sequence[int]) -> tuple[Condition, Condition]:
        """What some calls with equally many tokens are told, and the same without their tokens."""
        labels = None if self.labels is None else self.labels[list(calls)]
        told = torch.stack([self.tokens[i] for i in calls])
        return Condition(told, labels), Condition(torch.stack([self.untold[i] for i in calls]), labels)


class DenoisingHead(SharesExperts, Head):
    """Draws by denoising, told by tokens that it learns to make of states.

    Args:
        experts: The pool that loads the expert.
        state_size: Width of the language model's states.
        cross_attention_size: Width of the denoiser's cross-attention.
        num_queries: Learned queries in the language model, for the link ``queries``; 0 for ``hidden``.
        tokens: How states become tokens; None for a head that reads no states.
        drawing: How images are drawn.
        condition_dropout: Share of calls that do without their tokens in training.
    """

    def __init__(
        self,
        experts: ExpertPool | None,
        state_size: int,
        cross_attention_size: int,
        num_queries: int,
        tokens: Tokens | None,
        drawing: Drawing,
        condition_dropout: float,
    ) -> None:
        super().__init__(experts, num_queries, state_size)
        if not 0 <= condition_dropout < 1:
            raise ValueError(f"condition_dropout: expected a share from 0 to below 1, got {condition_dropout}")
        self.cross_attention_size = cross_attention_size
        self.drawing, self.condition_dropout = drawing, condition_dropout
        self.reader = None if tokens is None else StateTokens(state_size, cross_attention_size, tokens)
        width, height = drawing.canvas_size
        self.canvas_size = (int(width), int(height))
        self.target_processor = ImageTargetProcessor(self.canvas_size)

    @abstractmethod
    def denoiser(self) -> AbstractContextManager[Denoiser]:
        """The denoiser, while it is in use."""

    def forward(self, states: Tensor | None, lengths: Sequence[int], contexts: Sequence[HeadContext]) -> Conditions:
        """What the denoiser is told, see :meth:`layers.head.Head.forward`."""
        assert self.reader is not None
        states = required_states(states, type(self).__name__)
        tokens = list(self.reader(states, lengths)) if contexts else []
        return Conditions(tokens, [self.reader.nothing] * len(tokens))

    def loss(self, predictions: Conditions, targets: Sequence[HeadTarget]) -> LossTerm:
        """Sum over calls of the squared error of the denoiser's prediction."""
        if not targets:
            return LossTerm(self.zero_touch(), 0)
        total = torch.zeros((), device=predictions.tokens[0].device)
        with self.denoiser() as denoiser:
            for group in group_indices([tokens.shape for tokens in predictions.tokens]):
                told, untold = predictions.of(group)
                images = torch.stack([targets[i]["canvas"] for i in group]).to(told.tokens.device)
                latents = denoiser.space.encode(images)
                condition = self.dropped(told, untold) if self.training else told
                errors = denoising_loss(denoiser.unet, denoiser.scheduler, latents, condition)
                total = total + errors.sum()
        return LossTerm(total, len(targets))

    def dropped(self, told: Condition, untold: Condition) -> Condition:
        """What is told in training: nothing for a random share of the calls."""
        drop = torch.rand(len(told.tokens), device=told.tokens.device) < self.condition_dropout
        return Condition(torch.where(drop[:, None, None], untold.tokens.to(told.tokens), told.tokens), told.labels)

    def guides(self, told: Condition, untold: Condition, context: HeadContext) -> Guides:
        """What guides calls that have their arguments in common."""
        scale = number(context, "guidance", self.drawing.guidance)
        return ([told], []) if scale == 1 else ([untold, told], [scale])

    @torch.no_grad()
    def decode(self, predictions: Conditions, contexts: Sequence[HeadContext]) -> list[Result]:
        """One image per call."""
        if not contexts:
            return []
        images: dict[int, Tensor] = {}
        keys = [(self.arguments(c), t.shape) for c, t in zip(contexts, predictions.tokens, strict=True)]
        with self.denoiser() as denoiser:
            for group in group_indices(keys):
                for start in range(0, len(group), self.drawing.batch_size):
                    batch = group[start : start + self.drawing.batch_size]
                    made = self.draw(denoiser, *predictions.of(batch), [contexts[i] for i in batch])
                    images.update(zip(batch, made, strict=True))
        return [ImageResult(context.call, images[i]) for i, context in enumerate(contexts)]

    def arguments(self, context: HeadContext) -> Hashable:
        """What calls that are drawn at once have in common."""
        scale = number(context, "guidance", self.drawing.guidance)
        return (self.size_of(context), self.steps_of(context), scale)

    def size_of(self, context: HeadContext) -> tuple[int, int]:
        """(width, height) of a call's image."""
        width, height = self.canvas_size
        return whole(context, "width", width), whole(context, "height", height)

    def steps_of(self, context: HeadContext) -> int:
        """Denoising steps of a call."""
        return whole(context, "num_steps", self.drawing.num_steps)

    def draw(
        self, denoiser: Denoiser, told: Condition, untold: Condition, contexts: Sequence[HeadContext]
    ) -> list[Tensor]:
        """Images (3, H, W) uint8 of calls that have their arguments in common."""
        latents = self.drawn(denoiser, self.guides(told, untold, contexts[0]), contexts, self.size_of(contexts[0]))
        return list(to_uint8(denoiser.space.decode(latents)))

    def drawn(
        self,
        denoiser: Denoiser,
        guides: Guides,
        contexts: Sequence[HeadContext],
        size: tuple[int, int],
        known: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Latents of images of one size.

        Args:
            denoiser: The denoiser.
            guides: What it is told.
            contexts: The calls, which have their arguments in common.
            size: (width, height) in pixels.
            known: As in :func:`heads.generation.denoising.sample`.

        Raises:
            ValueError: If the denoiser cannot make images of this size.
        """
        unet, factor = denoiser.unet, denoiser.space.factor
        multiple = factor * 2 ** (len(unet.config.block_out_channels) - 1)
        if size[0] % multiple or size[1] % multiple:
            raise ValueError(f"width and height: expected multiples of {multiple}, got {size[0]}x{size[1]}")
        seeds = [whole(context, "seed", self.drawing.seed, least=0) for context in contexts]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        shape = (unet.config.in_channels, size[1] // factor, size[0] // factor)
        noise = torch.stack([torch.randn(shape, generator=own, dtype=unet.dtype) for own in generators])
        window = (self.canvas_size[0] // factor, self.canvas_size[1] // factor)
        overlap = min(self.drawing.overlap // factor, min(window) - 1)
        denoise = windowed(guided(unet, *guides), window, overlap)
        steps = self.steps_of(contexts[0])
        return sample(denoise, denoiser.scheduler, noise.to(unet.device), steps, generators, known)
