"""Qwen2-Audio's encoder: a Whisper-type network on whole chunks of 30 s, two of its features averaged to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Qwen2AudioEncoder, Qwen2AudioEncoderConfig
from transformers.masking_utils import create_bidirectional_mask

from encoders.speech import HOP, AudioProcessor
from layers.encoder import Encoder
from layers.layout import ItemLayout, Layout
from layers.pretrained import load_pretrained


@dataclass
class PooledAudioProcessor(AudioProcessor):
    """Whole chunks, and as many features as Qwen2-Audio's processor counts: one per two of 20 ms, no odd one.

    Longer audio is cut into consecutive chunks, which theirs cannot.
    """

    full_chunks: bool = True

    def layout(self, size: Sequence[int]) -> ItemLayout:
        """The features of ``size`` (samples,): those of its chunks together.

        Raises:
            ValueError: If ``size`` is not one number, or there is too little audio for one feature.
        """
        samples, chunk = super().layout(size).original_size[0], self.chunk_features * 2 * HOP
        pooled = sum(pooled_length(min(chunk, samples - start)) for start in range(0, samples, chunk))
        if pooled == 0:
            raise ValueError(f"expected audio of at least {2 * HOP + 1} samples, got {samples}")
        return ItemLayout(grid=(pooled,), original_size=(samples,), seconds=samples / self.sample_rate)

    def __call__(self, raw: Any) -> tuple[dict[str, Tensor], ItemLayout]:
        """As :meth:`AudioProcessor.__call__`, and ``lengths`` (chunks,): features of every chunk before the average."""
        inputs, layout = super().__call__(raw)
        samples, chunk = layout.original_size[0], self.chunk_features * 2 * HOP
        lengths = [unpooled_length(min(chunk, samples - start)) for start in range(0, samples, chunk)]
        return {**inputs, "lengths": torch.tensor(lengths)}, layout


def unpooled_length(samples: int) -> int:
    """Features of so many samples at 50 Hz, as Qwen2-Audio counts them: one per two started frames of 10 ms."""
    frames = -(-samples // HOP)
    return (frames - 1) // 2 + 1


def pooled_length(samples: int) -> int:
    """Features of so many samples after the average of two; one that is left over is dropped."""
    return unpooled_length(samples) // 2


class Qwen2AudioTower(Encoder):
    """The audio tower of transformers' Qwen2-Audio.

    Args:
        pretrained: A local directory with the tower's safetensors.
        config: Arguments of ``Qwen2AudioEncoderConfig``, for random weights or over those of ``pretrained``.
    """

    kind: ClassVar[str] = "audio"
    processor: PooledAudioProcessor

    def __init__(self, pretrained: str | None = None, config: dict[str, Any] | None = None) -> None:
        super().__init__()
        if pretrained is not None:
            self.tower = load_pretrained(Qwen2AudioEncoder, pretrained, **(config or {}))
        else:
            self.tower = Qwen2AudioEncoder(Qwen2AudioEncoderConfig(**(config or {})))
        self.bases = {} if pretrained is None else {"tower.": pretrained}
        own = self.tower.config
        self.hidden_size = own.d_model
        self.processor = PooledAudioProcessor(num_mel_bins=own.num_mel_bins, chunk_features=own.max_source_positions)

    def train(self, mode: bool = True) -> Qwen2AudioTower:
        """Switch the mode; an encoder without trainable parameters stays deterministic."""
        super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))
        return self

    def collate(self, items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """All chunks of all items: ``input_features`` (C, mels, frames) and ``lengths`` (C,)."""
        size = 2 * self.processor.chunk_features
        chunks = [chunk for item in items for chunk in item["input_features"].split(size, dim=1)]
        return {"input_features": torch.stack(chunks), "lengths": torch.cat([item["lengths"] for item in items])}

    def forward(self, inputs: Mapping[str, Tensor], layout: Layout) -> Tensor:
        """Encode to (ΣN, d); what pads a chunk is not attended to."""
        features = inputs["input_features"].to(self.tower.conv1.weight.dtype)
        lengths = inputs["lengths"].to(features.device)
        positions = torch.arange(self.processor.chunk_features, device=features.device)
        mask = create_bidirectional_mask(
            config=self.tower.config,
            inputs_embeds=features.new_zeros(len(features), len(positions), 1),
            attention_mask=(positions < lengths[:, None]).long(),
        )
        states = self.tower(features, attention_mask=mask).last_hidden_state
        kept = torch.arange(states.shape[1], device=states.device) < (lengths // 2)[:, None]
        encoded: Tensor = states[kept]
        assert encoded.shape[0] == layout.total, "the layout does not describe these clips"
        return encoded
