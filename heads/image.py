"""Image generation and editing from query states: a rectified flow in pixels."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from heads.attend import Relevance, StateReader, group_indices, perceptron
from heads.frames import ImageTargetProcessor, coordinates, rasterise, to_original
from heads.links import LinkedHead
from layers.calls import HeadContext, ImageResult, Result
from layers.head import HeadTarget, Link, LossTerm

SKETCH_SIDE, SKETCH_CHANNELS = 8, 4
"""Cells per side and channels of the map that a drawing's states lay out."""


@dataclass
class FlowConditions:
    """What the flow of n calls depends on.

    Args:
        embedding: (n, time embedding width) from the query states.
        maps: Per call (8 + SKETCH_CHANNELS, H, W): source RGB in [-1, 1], region, has-source flag, x, y, relevance,
            sketch; zeros where a call has no source, or a source and hence no sketch. H and W are the canvas.
        heat: Per call the logits (H, W) of the relevance, None where a call has no source.
    """

    embedding: Tensor
    maps: list[Tensor]
    heat: list[Tensor | None]

    @property
    def has_source(self) -> list[bool]:
        """Whether each call edits an image."""
        return [logits is not None for logits in self.heat]


class FlowImageHead(LinkedHead):
    """Draws an image, or edits the latest one, with a rectified flow conditioned on query states.

    The flow goes on straight lines (https://arxiv.org/abs/2209.03003): ``x_t = (1 - t)·image + t·start``, and Euler
    steps go from ``t = 1`` to 0. The network expects the image itself, not the velocity ``(x_t - image)/t`` that
    follows from it, since images lie on a manifold that a small network can learn and noise does not
    (https://arxiv.org/abs/2511.13720); with the velocity as the target digits stayed noise. A drawing starts from
    noise, an edit from its source plus a little noise, and what the network adds to the source is the edit. The
    network sees pixels in patches (space to depth). The states enter as FiLM of every block; a drawing's also lay out
    a coarse sketch, and an edit's mark, by attention over the image's features, what is to be changed.

    Drawings are guided without a classifier (https://arxiv.org/abs/2207.12598, eq. 6, in the expected image): the
    network learns now and then without the states, and a drawing goes beyond what it expects without them.

    Args:
        state_size: Width of the language model's states.
        feature_size: Width of the image encoder's features.
        num_queries: Learned queries in the language model; 0 to read the anchor's state, for the link ``hidden``.
        canvas_size: (width, height) of images generated without a source.
        source_tasks: Tasks that edit the latest image; every other task draws on an empty canvas.
        channels: Widths of the U-Net's levels, multiples of 8.
        patch_size: Pixels per side of a patch.
        num_draws: Times and noises per drawing in a training step: the network is small beside the model that
            conditions it, and learns from all of them. An edit begins near its source and has one.
        num_steps: Euler steps when decoding (the call's parameter ``num_steps`` overrides it).
        condition_dropout: Share of a drawing's draws in training that do without the states.
        guidance: Weight of what a drawing expects with the states against without them: 1 is no guidance, and halves
            the work (the call's parameter ``guidance`` overrides it).
        source_noise: Standard deviation of the noise on an edit's source.
        change_weight: Extra weight of pixels that an edit changes.
        heat_weight: Weight of the cross-entropy of the relevance with the pixels that an edit changes.
        width: Width of the attention over an edited image's features.
        num_layers: Its layers.
        num_heads: Its heads.
        seed: Seed of the noise, together with the call's words (the parameter ``seed`` overrides it).
        link: What crosses from the language model; ``text`` and ``boxes`` want ``num_queries`` 0.
        text_encoder: Directory of a pretrained text encoder, for the links ``text`` and ``boxes``.
    """

    def __init__(
        self,
        state_size: int,
        feature_size: int,
        num_queries: int = 4,
        canvas_size: tuple[int, int] = (32, 32),
        source_tasks: Sequence[str] = ("edit",),
        channels: Sequence[int] = (32, 48, 64),
        patch_size: int = 2,
        num_draws: int = 1,
        num_steps: int = 8,
        condition_dropout: float = 0.1,
        guidance: float = 3.0,
        source_noise: float = 0.1,
        change_weight: float = 4.0,
        heat_weight: float = 0.5,
        width: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        seed: int = 0,
        link: Link = "hidden",
        text_encoder: str | None = None,
    ) -> None:
        super().__init__(link, state_size, num_queries, text_encoder=text_encoder)
        if len(channels) < 2 or any(count % 8 for count in channels):
            raise ValueError(f"channels must be at least two multiples of 8, got {list(channels)}")
        if not 0 <= condition_dropout < 1:
            raise ValueError(f"condition_dropout: expected a share from 0 to below 1, got {condition_dropout}")
        if guidance != 1 and not condition_dropout:
            raise ValueError(f"guidance {guidance} needs draws without the states, got condition_dropout 0")
        self.num_states, self.state_size = num_queries or 1, state_size
        self.canvas_size = (int(canvas_size[0]), int(canvas_size[1]))
        self.source_tasks = frozenset(source_tasks)
        self.patch_size, self.num_draws, self.num_steps, self.seed = patch_size, num_draws, num_steps, seed
        self.condition_dropout, self.guidance = condition_dropout, guidance
        self.source_noise, self.change_weight, self.heat_weight = source_noise, change_weight, heat_weight
        self.multiple = patch_size * 2 ** (len(channels) - 1)
        embedding_size = 4 * channels[0]
        self.condition = nn.Sequential(
            nn.LayerNorm(state_size),
            nn.Flatten(),
            nn.Linear((self.num_states + 2) * state_size, embedding_size),
            nn.GELU(),
            perceptron(embedding_size, embedding_size, embedding_size),
        )
        self.sketch = nn.Linear(embedding_size, SKETCH_CHANNELS * SKETCH_SIDE**2)
        self.no_condition = nn.Parameter(torch.zeros(embedding_size))
        self.reader = StateReader(state_size, feature_size, width, num_layers, num_heads)
        self.relevance = Relevance(width)
        self.flow = UNet2DModel(
            in_channels=(3 + 8 + SKETCH_CHANNELS) * patch_size**2,
            out_channels=3 * patch_size**2,
            down_block_types=("DownBlock2D",) * (len(channels) - 1) + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (len(channels) - 1),
            block_out_channels=tuple(channels),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=8,
            resnet_time_scale_shift="scale_shift",
            class_embed_type="identity",
        ).to(memory_format=torch.channels_last)  # as CPU and GPU kernels want it; others reorder at every layer
        self.target_processor = ImageTargetProcessor(self.canvas_size)

    def forward(self, states: Tensor | None, lengths: Sequence[int], contexts: Sequence[HeadContext]) -> FlowConditions:
        """Compute the conditions of the flow, see :meth:`layers.head.Head.forward`.

        Raises:
            ValueError: If a call brings fewer states than queries, or none, or an edit has no image.
        """
        states, lengths = self.crossed(states, lengths, contexts)
        wrong = [length for length in lengths if length < self.num_states]
        if wrong:
            raise ValueError(f"FlowImageHead reads at least {self.num_states} states per call, got {wrong[0]}")
        pieces = torch.split(states, list(lengths)) if contexts else ()
        per_call = torch.cat([piece[-self.num_states :] for piece in pieces] or [states])
        per_call = per_call.unflatten(0, (len(contexts), self.num_states))
        embedding = self.condition(torch.cat([per_call, self._prompt_summary(pieces, per_call)], dim=1))
        heat = self._heat(pieces, contexts)
        maps = [
            self._draw_maps(embedding[i]) if logits is None else self._edit_maps(contexts[i], logits)
            for i, logits in enumerate(heat)
        ]
        return FlowConditions(embedding, maps, heat)

    def _prompt_summary(self, pieces: Sequence[Tensor], like: Tensor) -> Tensor:
        """(n, 2, d): mean and last of the prompt's states, zeros for calls that bring none."""
        prompts = [piece[: -self.num_states] for piece in pieces]
        rows = [row for prompt in prompts for row in self._mean_and_last(prompt)]
        return torch.stack(rows).unflatten(0, (-1, 2)) if rows else like.new_zeros(0, 2, self.state_size)

    @staticmethod
    def _mean_and_last(prompt: Tensor) -> tuple[Tensor, Tensor]:
        blank = prompt.new_zeros(prompt.shape[-1])
        return (prompt.mean(dim=0), prompt[-1]) if len(prompt) else (blank, blank)

    def loss(self, predictions: FlowConditions, targets: Sequence[HeadTarget]) -> LossTerm:
        """Sum over calls of the mean squared error of the image expected at random times of the flow.

        Raises:
            ValueError: If the target of an edit has another size than its source.
        """
        if not targets:
            return LossTerm(self.zero_touch(), 0)
        total = predictions.embedding.new_zeros((), dtype=torch.float32)
        shapes = [(*maps.shape, edits) for maps, edits in zip(predictions.maps, predictions.has_source, strict=True)]
        for group in group_indices(shapes):
            has_source = predictions.has_source[group[0]]
            conditions = torch.stack([predictions.maps[i] for i in group])
            images, weights = zip(
                *[self._target(targets[i], predictions.maps[i], predictions.has_source[i]) for i in group], strict=True
            )
            image, weight = torch.stack(images), torch.stack(weights)
            error = self._error(image, conditions, predictions.embedding[group], has_source)
            total = total + ((error * weight).sum(dim=(1, 2)) / weight.sum(dim=(1, 2)).clamp(min=1)).sum()
            for i, one in zip(group, weight, strict=True):
                logits = predictions.heat[i]
                if logits is not None:
                    changed = (one > 1).to(logits)
                    total = total + self.heat_weight * F.binary_cross_entropy_with_logits(logits, changed)
        return LossTerm(total, len(targets))

    def _error(self, image: Tensor, conditions: Tensor, embedding: Tensor, has_source: bool) -> Tensor:
        """(n, H, W) squared error of the image expected, mean over channels and over the draws of time and noise.

        The times of one image's draws are spread over the flow, one in each of as many parts.
        """
        draws = 1 if has_source else self.num_draws
        parts = torch.arange(draws, device=image.device).repeat(len(image))
        time = (parts + torch.rand(len(parts), device=image.device)) / draws
        image, conditions, embedding = (item.repeat_interleave(draws, dim=0) for item in (image, conditions, embedding))
        if self.training and not has_source and self.condition_dropout:
            dropped = torch.rand(len(image), device=image.device) < self.condition_dropout
            embedding = torch.where(dropped[:, None], self.no_condition.to(embedding), embedding)
            conditions = torch.where(dropped[:, None, None, None], self._draw_maps(self.no_condition), conditions)
        blend = time[:, None, None, None]
        sample = (1 - blend) * image + blend * self._start(conditions, torch.randn_like(image))
        error = (self._image(sample, time, conditions, embedding) - image).square().mean(dim=1)
        return error.unflatten(0, (-1, draws)).mean(dim=1)

    @torch.no_grad()
    def decode(self, predictions: FlowConditions, contexts: Sequence[HeadContext]) -> list[Result]:
        """Sample one image per call: drawings have the canvas's size, edits their source's original size."""
        canvases: dict[int, Tensor] = {}
        steps = [int(context.parameters.get("num_steps", self.num_steps)) for context in contexts]
        scales = [float(context.parameters.get("guidance", self.guidance)) for context in contexts]
        kinds = zip(predictions.maps, predictions.has_source, steps, strict=True)
        for group in group_indices([(*maps.shape, edits, count) for maps, edits, count in kinds]):
            conditions = torch.stack([predictions.maps[i] for i in group])
            noise = torch.stack([self._noise(contexts[i], conditions.shape[-2:]) for i in group]).to(conditions.device)
            sample = self._start(conditions, noise)
            embedding, scale = predictions.embedding[group], sample.new_tensor([scales[i] for i in group])
            guided = not predictions.has_source[group[0]] and any(scales[i] != 1 for i in group)
            anything = self._draw_maps(self.no_condition).expand_as(conditions) if guided else conditions
            scheduler = FlowMatchEulerDiscreteScheduler()
            scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps[group[0]], steps[group[0]]).tolist())
            for timestep in scheduler.timesteps:
                time = (timestep / scheduler.config.num_train_timesteps).to(sample.device).expand(len(group))
                expected = self._image(sample, time, conditions, embedding)
                if guided:
                    free = self._image(sample, time, anything, self.no_condition.to(embedding).expand_as(embedding))
                    expected = free + scale[:, None, None, None] * (expected - free)
                velocity = (sample - expected) / time[:, None, None, None]
                sample = scheduler.step(velocity, timestep, sample, return_dict=False)[0]
            canvases.update(zip(group, sample, strict=True))
        results: list[Result] = []
        for index, context in enumerate(contexts):
            canvas = ((canvases[index].clamp(-1, 1) + 1) * 127.5).round()
            image = to_original(canvas, context) if predictions.has_source[index] else canvas
            results.append(ImageResult(context.call, image.round().to(torch.uint8)))
        return results

    def _heat(self, pieces: Sequence[Tensor], contexts: Sequence[HeadContext]) -> list[Tensor | None]:
        """Per editing call (H, W) logits of the input frame's pixels: what is to be changed."""
        heat: list[Tensor | None] = [None] * len(contexts)
        edits = [i for i, context in enumerate(contexts) if context.call.task in self.source_tasks]
        if not edits:
            return heat
        images = [contexts[i].image for i in edits]
        reading = self.reader(
            torch.cat([pieces[i] for i in edits]),
            [len(pieces[i]) for i in edits],
            [image.features for image in images],
            [image.layout.grid for image in images],
        )
        for i, image, logits in zip(edits, images, self.relevance(reading).float(), strict=True):
            grid = logits[: image.features.shape[0]].view(1, 1, *image.layout.grid)
            size = image.inputs["pixel_values"].shape[-2:]
            heat[i] = F.interpolate(grid, size, mode="bilinear", align_corners=False)[0, 0]
        return heat

    def _draw_maps(self, embedding: Tensor) -> Tensor:
        width, height = self.canvas_size
        blank = embedding.new_zeros(6, height, width, dtype=torch.float32)
        sketch = self.sketch(embedding).view(1, SKETCH_CHANNELS, SKETCH_SIDE, SKETCH_SIDE)
        sketch = F.interpolate(sketch.float(), (height, width), mode="bilinear", align_corners=False)[0]
        return torch.cat([blank[:5], coordinates(blank), blank[:1], sketch])

    def _edit_maps(self, context: HeadContext, heat: Tensor) -> Tensor:
        source = context.image.inputs["pixel_values"].float() / 127.5 - 1
        region = rasterise(context, source)
        sketch = source.new_zeros(SKETCH_CHANNELS, *source.shape[-2:])
        return torch.cat([source, region, torch.ones_like(region), coordinates(source), heat.sigmoid()[None], sketch])

    def _target(self, target: HeadTarget, maps: Tensor, has_source: bool) -> tuple[Tensor, Tensor]:
        """The image (3, H, W) to generate and the weight (H, W) of each pixel."""
        if not has_source:
            image = target["canvas"].to(maps)
            return image, torch.ones_like(image[0])
        source = maps[:3]
        if "edited" not in target or target["edited"].shape != source.shape:
            raise ValueError("the target of an edit must have the original size of the image that it edits")
        image = torch.where(target["window"], target["edited"].to(source), source)
        changed = (image - source).abs().amax(dim=0) > 0.05
        return image, 1 + self.change_weight * changed

    def _start(self, conditions: Tensor, noise: Tensor) -> Tensor:
        """Where the flow starts: noise for drawings, the source with a little noise for edits."""
        has_source = conditions[:, 4:5]
        return conditions[:, :3] + noise * (1 - has_source * (1 - self.source_noise))

    def _image(self, sample: Tensor, time: Tensor, conditions: Tensor, embedding: Tensor) -> Tensor:
        """The expected image (n, 3, H, W), as a change of the source; pads the canvas to whole patches and levels."""
        height, width = sample.shape[-2:]
        stacked = torch.cat([sample, conditions], dim=1)
        pad_bottom, pad_right = -height % self.multiple, -width % self.multiple
        if pad_bottom or pad_right:
            stacked = F.pad(stacked, (0, pad_right, 0, pad_bottom))
        patches = F.pixel_unshuffle(stacked.to(embedding.dtype), self.patch_size)
        change = self.flow(patches, time * 1000, class_labels=embedding).sample
        return conditions[:, :3] + F.pixel_shuffle(change, self.patch_size)[..., :height, :width].float()

    def _noise(self, context: HeadContext, size: Sequence[int]) -> Tensor:
        """Noise (3, H, W) that depends on the seed and the call only, whatever else is decoded with it."""
        call = context.call
        seed = int(context.parameters.get("seed", self.seed))
        words = f"{seed}|{call.task}|{call.prompt}|{call.boxes_xyxy}".encode()
        generator = torch.Generator().manual_seed(zlib.crc32(words))
        return torch.randn(3, *size, generator=generator)
