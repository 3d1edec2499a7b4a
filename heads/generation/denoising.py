"""Denoising with a UNet of diffusers: loss, guidance by several conditions, windows over large canvases, the loop."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(noisy latents (n, c, h, w), timestep) -> prediction of the same shape."""


@dataclass(frozen=True)
class Space:
    """Where the noise is: in the latents of an autoencoder, or without one in pixels, a patch of them to a latent.

    Args:
        autoencoder: An ``AutoencoderKL``, or None.
        factor: Pixels per latent, along a side.
    """

    autoencoder: Any = None
    factor: int = 1

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents of images (n, 3, H, W) in [-1, 1]."""
        if self.autoencoder is None:
            return F.pixel_unshuffle(images, self.factor)
        own = self.autoencoder
        return own.encode(images.to(own.dtype)).latent_dist.sample() * own.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images (n, 3, H, W), 0 to 1, of latents."""
        if self.autoencoder is None:
            images = F.pixel_shuffle(latents, self.factor)
        else:
            images = self.autoencoder.decode(latents / self.autoencoder.config.scaling_factor).sample
        return (images / 2 + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class Denoiser:
    """A UNet, its noise, and the space in which it works.

    Args:
        unet: A ``UNet2DConditionModel``.
        scheduler: A scheduler of diffusers.
        space: Of its inputs.
    """

    unet: Any
    scheduler: Any
    space: Space


@dataclass(frozen=True)
class Condition:
    """What a denoiser is told.

    Args:
        tokens: (n, k, d) that its cross-attention reads.
        labels: (n,) what is added to the embedding of the timestep, or None.
    """

    tokens: Tensor
    labels: Tensor | None = None


def denoising_loss(unet: Any, scheduler: Any, latents: Tensor, condition: Condition) -> Tensor:
    """(n,) squared error of what the scheduler has the UNet predict (noise, velocity or sample), at random times.

    Whatever the scheduler of sampling is, training adds noise that preserves the variance, with the same betas.

    Raises:
        ValueError: If the scheduler asks for something else.
    """
    scheduler = DDPMScheduler.from_config(scheduler.config)
    noise = torch.randn_like(latents)
    times = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),), device=latents.device)
    noisy = scheduler.add_noise(latents, noise, times)
    predicted = _predict(unet, noisy, times, condition)
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        wanted = noise
    elif kind == "v_prediction":
        wanted = scheduler.get_velocity(latents, noise, times)
    elif kind == "sample":
        wanted = latents
    else:
        raise ValueError(f"the scheduler's prediction_type: expected epsilon, v_prediction or sample, got {kind!r}")
    return F.mse_loss(predicted.float(), wanted.float(), reduction="none").flatten(1).mean(dim=1)


def guided(unet: Any, conditions: Sequence[Condition], weights: Sequence[float]) -> Denoise:
    """A denoiser led by several conditions, each told more than the one before it.

    ``e_0 + Σ_i w_i (e_i - e_{i-1})``; with two conditions, classifier-free guidance
    (https://arxiv.org/abs/2207.12598, eq. 6). All are computed in one batch.

    Args:
        unet: The denoiser.
        conditions: The first is told least; a single one is not guided.
        weights: One per condition after the first.
    """
    tokens = torch.cat([condition.tokens for condition in conditions])
    labels = [condition.labels for condition in conditions if condition.labels is not None]
    together = Condition(tokens, torch.cat(labels) if labels else None)

    def denoise(noisy: Tensor, time: Tensor) -> Tensor:
        repeated = torch.cat([noisy] * len(conditions))
        predictions = _predict(unet, repeated, time, together).chunk(len(conditions))
        result = predictions[0]
        for weight, before, after in zip(weights, predictions[:-1], predictions[1:], strict=True):
            result = result + weight * (after - before)
        return result

    return denoise


def windowed(denoise: Denoise, window: tuple[int, int], overlap: int) -> Denoise:
    """A denoiser of canvases larger than it was trained on: overlapping windows, whose predictions are averaged.

    Each window counts less towards its edges, so that neighbours fade into each other
    (https://arxiv.org/abs/2302.08113). A canvas of one window is left to the denoiser as it is.

    Args:
        denoise: A denoiser of windows.
        window: (width, height) of one, in latents.
        overlap: Latents that neighbours share at least.

    Raises:
        ValueError: If the overlap is not smaller than the window.
    """
    if not 0 <= overlap < min(window):
        raise ValueError(f"overlap: expected 0 to {min(window) - 1} latents, got {overlap}")

    def denoise_canvas(noisy: Tensor, time: Tensor) -> Tensor:
        height, width = noisy.shape[-2:]
        columns, rows = starts(width, window[0], overlap), starts(height, window[1], overlap)
        if len(columns) * len(rows) == 1:
            return denoise(noisy, time)
        total, weight = torch.zeros_like(noisy), noisy.new_zeros(height, width)
        for top in rows:
            for left in columns:
                place = (..., slice(top, top + window[1]), slice(left, left + window[0]))
                predicted = denoise(noisy[place], time)
                fading = _ramp(predicted.shape[-2], predicted)[:, None] * _ramp(predicted.shape[-1], predicted)
                total[place] += predicted * fading
                weight[place[1:]] += fading
        return total / weight

    return denoise_canvas


def starts(length: int, window: int, overlap: int) -> list[int]:
    """Where windows begin so that they cover a length evenly, each sharing at least ``overlap`` with the next."""
    if length <= window:
        return [0]
    count = -(-(length - overlap) // (window - overlap))
    return [round(index * (length - window) / (count - 1)) for index in range(count)]


def sample(
    denoise: Denoise,
    scheduler: Any,
    noise: Tensor,
    num_steps: int,
    generators: list[torch.Generator] | None = None,
    known: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Latents from noise, step by step as diffusers' own pipelines go.

    Args:
        denoise: The denoiser.
        scheduler: A scheduler of diffusers.
        noise: (n, c, h, w) of unit variance.
        num_steps: Steps.
        generators: Of the noise that some schedulers add.
        known: Latents (n, c, h, w) and a mask (h, w) of those that are given: at each step they are what they would be
            at its noise level, so that the rest fits them.
    """
    scheduler.set_timesteps(num_steps, device=noise.device)
    accepted = inspect.signature(scheduler.step).parameters
    extra = {"generator": generators} if "generator" in accepted and generators is not None else {}
    latents = noise * scheduler.init_noise_sigma
    for time in scheduler.timesteps:
        latents = _given(latents, known, scheduler, noise, time)
        predicted = denoise(scheduler.scale_model_input(latents, time), time)
        latents = scheduler.step(predicted, time, latents, return_dict=False, **extra)[0]
    return latents if known is None else torch.where(known[1], known[0], latents)


def _given(latents: Tensor, known: tuple[Tensor, Tensor] | None, scheduler: Any, noise: Tensor, time: Tensor) -> Tensor:
    if known is None:
        return latents
    times = time.expand(len(latents))
    return torch.where(known[1], scheduler.add_noise(known[0], noise, times), latents)


def _predict(unet: Any, noisy: Tensor, time: Tensor, condition: Condition) -> Tensor:
    labels = {} if condition.labels is None else {"class_labels": condition.labels}
    tokens = condition.tokens.to(unet.dtype)
    return unet(noisy.to(unet.dtype), time, encoder_hidden_states=tokens, return_dict=False, **labels)[0]


def _ramp(length: int, like: Tensor) -> Tensor:
    """1/length at the edges, rising linearly to 1 in the middle."""
    distance = torch.arange(length, device=like.device, dtype=like.dtype) + 0.5
    return torch.minimum(distance, length - distance) / (length / 2)
