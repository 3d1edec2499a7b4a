"""Speech encoders from transformers: a Whisper branch, a WavLM branch, either or both, and their processor.

WavLLM's dual encoder (https://arxiv.org/abs/2404.00656) reads meaning from Whisper and speaker and tone from WavLM:
``h = W [whisper(x); sum_i softmax(a)_i wavlm_i(x)]``.  Departures: both branches are padded to give exactly
``ceil(samples / 320)`` features, so nothing is truncated to the shorter one, and the connectors that lower the rate
are a projector (:class:`models.projectors.ConvGLUProjector`), not part of the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import WavLMConfig, WavLMModel, WhisperConfig, WhisperFeatureExtractor, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from layers.encoder import Encoder
from layers.layout import ItemLayout, Layout
from layers.media import Audio
from layers.pretrained import load_pretrained

SAMPLE_RATE = 16_000
HOP = 160
FFT_SIZE = 400
FEATURE_SAMPLES = 2 * HOP
"""Samples per feature: Whisper's second convolution halves the 100 Hz of the spectrogram to 50 Hz."""


@dataclass
class AudioProcessor:
    """Turns a waveform into Whisper's log-mel ``input_features`` and, for a second branch, keeps the ``waveform``.

    Audio is cut into consecutive chunks, never truncated.  A chunk's spectrogram equals that of
    ``transformers.WhisperFeatureExtractor`` on the same samples, padded with zeros to a whole feature (or, with
    ``full_chunks``, to a whole chunk as released Whisper weights expect).

    Args:
        num_mel_bins: Mel bands.
        chunk_features: Features per chunk; 1500 are Whisper's 30 seconds.
        full_chunks: Pad every chunk to its whole length.
        with_waveform: Also return the raw samples.
        normalize_waveform: Bring those samples to zero mean and unit variance, as layer-norm WavLM models expect.
        with_features: Compute the spectrogram; a WavLM by itself needs none.
    """

    num_mel_bins: int = 80
    chunk_features: int = 1500
    full_chunks: bool = False
    with_waveform: bool = False
    normalize_waveform: bool = False
    with_features: bool = True
    kind: str = field(default="audio", init=False)
    sample_rate: int = field(default=SAMPLE_RATE, init=False)

    def layout(self, size: Sequence[int]) -> ItemLayout:
        """The features of ``size`` (samples,) at 16 kHz: one per started 20 ms.

        Raises:
            ValueError: If ``size`` is not one positive number.
        """
        if len(size) != 1 or size[0] < 1:
            raise ValueError(f"expected an audio size (samples,) of at least 1, got {tuple(size)}")
        samples = size[0]
        return ItemLayout(
            grid=(-(-samples // FEATURE_SAMPLES),), original_size=(samples,), seconds=samples / SAMPLE_RATE
        )

    def __call__(self, raw: Any) -> tuple[dict[str, Tensor], ItemLayout]:
        """Compute (mels, frames) log-mel features of :class:`layers.media.Audio`.

        Raises:
            ValueError: If it is empty, not mono, not finite or not at 16 kHz.
        """
        waveform = _checked_waveform(raw)
        layout = self.layout(tuple(waveform.shape))
        inputs: dict[str, Tensor] = {}
        if self.with_features:
            inputs["input_features"] = self._spectrogram(waveform)
        if self.with_waveform:
            inputs["waveform"] = self._normalized(waveform)
        return inputs, layout

    def _spectrogram(self, waveform: Tensor) -> Tensor:
        """(mels, frames) of all chunks, one after the other."""
        padded = F.pad(waveform, (0, -waveform.shape[0] % FEATURE_SAMPLES))
        chunks = padded.split(self.chunk_features * FEATURE_SAMPLES)
        if self.full_chunks:
            missing = self.chunk_features * FEATURE_SAMPLES - chunks[-1].shape[0]
            chunks = (*chunks[:-1], F.pad(chunks[-1], (0, missing)))
        return torch.cat([self._log_mel(chunk) for chunk in chunks], dim=1)

    def fingerprint(self) -> Mapping[str, Any]:
        """Every field, JSON-serialisable."""
        return {"processor": type(self).__name__, **asdict(self)}

    @cached_property
    def _mel_filters(self) -> Tensor:
        extractor = WhisperFeatureExtractor(feature_size=self.num_mel_bins, hop_length=HOP, n_fft=FFT_SIZE)
        return torch.from_numpy(extractor.mel_filters).float().T.contiguous()  # (mels, FFT_SIZE / 2 + 1)

    def _log_mel(self, chunk: Tensor) -> Tensor:
        """Whisper's log-mel spectrogram of (samples,): (mels, samples / HOP)."""
        spectrum = torch.stft(chunk, FFT_SIZE, HOP, window=torch.hann_window(FFT_SIZE), return_complex=True)
        power = (spectrum[:, :-1].abs() ** 2).contiguous()
        log_mel = (self._mel_filters @ power).clamp(min=1e-10).log10()
        return (torch.maximum(log_mel, log_mel.max() - 8.0) + 4.0) / 4.0

    def _normalized(self, waveform: Tensor) -> Tensor:
        if not self.normalize_waveform:
            return waveform
        return (waveform - waveform.mean()) / (waveform.var(correction=0) + 1e-7).sqrt()


def _checked_waveform(raw: Any) -> Tensor:
    if not isinstance(raw, Audio):
        raise ValueError(f"expected layers.media.Audio, got {type(raw).__name__}")
    if raw.sample_rate != SAMPLE_RATE:
        raise ValueError(
            f"expected audio at {SAMPLE_RATE} Hz, got {raw.sample_rate} Hz; resample it when it is decoded"
        )
    if raw.waveform.dim() != 1 or raw.waveform.shape[0] == 0:
        raise ValueError(f"expected mono audio of at least one sample, got shape {tuple(raw.waveform.shape)}")
    waveform = raw.waveform.float()
    if not bool(torch.isfinite(waveform).all()):
        raise ValueError("audio contains values that are not finite")
    return waveform


class WhisperBranch(nn.Module):
    """transformers' Whisper encoder on ragged chunks: padding inside a batch changes nothing.

    Args:
        whisper: Arguments of ``WhisperConfig`` for random weights, or a local directory with a safetensors model.
        weighted_layers: Return the softmax-weighted sum of the input embedding and all layers (the last one after
            the final norm) instead of the last layer alone.
    """

    def __init__(self, whisper: Mapping[str, Any] | str, weighted_layers: bool = False) -> None:
        super().__init__()
        self.encoder = _load_whisper(whisper)
        config = self.encoder.config
        self.hidden_size: int = config.d_model
        self.layer_logits = nn.Parameter(torch.ones(config.encoder_layers + 1)) if weighted_layers else None

    def forward(self, input_features: Tensor, lengths: Sequence[int], keep: Sequence[int] | None = None) -> Tensor:
        """Encode (C, mels, frames), zero beyond each chunk's ``2 * length`` frames.

        Args:
            input_features: The chunks' spectrograms.
            lengths: Features that each chunk computes and attends to.
            keep: Features that each chunk returns, its first ones; all of them by default.

        Returns:
            (sum of ``keep``, d).
        """
        encoder, longest = self.encoder, max(lengths)
        sizes = torch.tensor(lengths).to(input_features.device, non_blocking=True)
        valid = torch.arange(longest, device=input_features.device) < sizes[:, None]  # (C, L)
        ragged = min(lengths) < longest
        hidden = F.gelu(encoder.conv1(input_features))  # (C, d, 2L)
        if ragged:
            hidden = hidden * valid.repeat_interleave(2, dim=1)[:, None]
        hidden = F.gelu(encoder.conv2(hidden)).transpose(1, 2)  # (C, L, d)
        hidden = hidden + encoder.embed_positions.weight[:longest]
        hidden = F.dropout(hidden, encoder.dropout, self.training)
        mask = hidden.new_zeros(valid.shape).masked_fill(~valid, torch.finfo(hidden.dtype).min) if ragged else None
        mask = None if mask is None else mask[:, None, None].expand(-1, 1, longest, -1)
        states = [hidden]
        for layer in encoder.layers:
            states.append(layer(states[-1], mask))
        states[-1] = encoder.layer_norm(states[-1])
        output = states[-1] if self.layer_logits is None else weighted_sum(states, self.layer_logits)
        return torch.cat([row[:count] for row, count in zip(output, keep or lengths, strict=True)])


class WavLMBranch(nn.Module):
    """transformers' WavLM, its layers summed with softmax weights; items of one length run together.

    WavLM-base normalises its first convolution over time, so padding would change an item's features; therefore
    only items of equal length share a forward pass.  SpecAugment and layer drop are off.

    Args:
        wavlm: Arguments of ``WavLMConfig`` for random weights, or a local directory with a safetensors model.
    """

    def __init__(self, wavlm: Mapping[str, Any] | str) -> None:
        super().__init__()
        fixed: dict[str, Any] = {"apply_spec_augment": False, "layerdrop": 0.0}
        if isinstance(wavlm, str):
            fixed |= {"may_lack": "masked_spec_embed", "local_files_only": True}
            self.model = load_pretrained(WavLMModel, wavlm, **fixed)
        else:
            self.model = WavLMModel(WavLMConfig(**{**wavlm, **fixed}))
        config = self.model.config
        reach, step = 1, 1
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            reach, step = reach + (kernel - 1) * step, step * stride
        if step != FEATURE_SAMPLES or config.add_adapter:
            raise ValueError(f"expected a WavLM with one feature per {FEATURE_SAMPLES} samples, got one per {step}")
        self.overlap = reach - step
        self.hidden_size: int = config.hidden_size
        self.layer_logits = nn.Parameter(torch.ones(config.num_hidden_layers + 1))

    def forward(self, waveforms: Tensor, lengths: Sequence[int]) -> Tensor:
        """Encode (M, samples) waveforms, zero-padded on the right, to (sum of ``lengths``, d) features."""
        outputs: dict[int, Tensor] = {}
        for length in sorted(set(lengths)):
            rows = [row for row, other in enumerate(lengths) if other == length]
            needed = length * FEATURE_SAMPLES + self.overlap
            batch = waveforms[rows, :needed]
            batch = F.pad(batch, (0, needed - batch.shape[1]))
            states = self.model(batch, output_hidden_states=True).hidden_states
            outputs.update(zip(rows, weighted_sum(states, self.layer_logits), strict=True))
        return torch.cat([outputs[row] for row in range(len(lengths))])


class SpeechEncoder(Encoder):
    """One or two speech branches at 50 Hz; frozen branches stay in evaluation mode.

    Args:
        whisper: Arguments of ``WhisperConfig`` for random weights, or a local directory with a safetensors model; None
            for WavLM alone.
        wavlm: The same of ``WavLMConfig``; None for Whisper alone.
        full_chunks: Pad every chunk to its whole length, as released Whisper weights were trained.
        weighted_layers: Sum Whisper's layers with learned weights instead of taking the last.
        hidden_size: Width of the features; None takes Whisper's, or that of a WavLM that is alone, and then a lone
            branch has no linear layer.
        fusion: "linear" mixes the branches to ``hidden_size``; "concat" leaves them side by side, for a projector that
            treats each by itself (:class:`models.projectors.ConvGLUProjector`).

    Raises:
        ValueError: If there is no branch, or ``hidden_size`` is given with "concat", where the branches decide it.
    """

    kind: ClassVar[str] = "audio"
    processor: AudioProcessor

    def __init__(
        self,
        whisper: dict[str, Any] | str | None,
        wavlm: dict[str, Any] | str | None = None,
        full_chunks: bool = False,
        weighted_layers: bool = False,
        hidden_size: int | None = None,
        fusion: Literal["linear", "concat"] = "linear",
    ) -> None:
        super().__init__()
        if whisper is None and wavlm is None:
            raise ValueError("expected whisper, wavlm or both, got neither")
        self.whisper = None if whisper is None else WhisperBranch(whisper, weighted_layers)
        self.wavlm = None if wavlm is None else WavLMBranch(wavlm)
        branches = {"whisper.encoder.": whisper, "wavlm.model.": wavlm}
        self.bases = {prefix: source for prefix, source in branches.items() if isinstance(source, str)}
        widths = [branch.hidden_size for branch in (self.whisper, self.wavlm) if branch is not None]
        width = sum(widths)
        if fusion == "concat" and hidden_size not in (None, width):
            raise ValueError(f"hidden_size: expected the branches' {width} with fusion 'concat', got {hidden_size}")
        self.hidden_size = width if fusion == "concat" else hidden_size or widths[0]
        alone = fusion == "concat" or (len(widths) == 1 and width == self.hidden_size)
        self.fuse: nn.Module = nn.Identity() if alone else nn.Linear(width, self.hidden_size)
        self.processor = AudioProcessor(
            **_chunks(self.whisper),
            full_chunks=full_chunks,
            with_waveform=self.wavlm is not None,
            normalize_waveform=self.wavlm is not None and self.wavlm.model.config.feat_extract_norm == "layer",
            with_features=self.whisper is not None,
        )

    def train(self, mode: bool = True) -> SpeechEncoder:
        """Switch the mode; an encoder without trainable parameters stays deterministic."""
        super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))
        return self

    def collate(self, items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Pad all chunks of all items: ``input_features`` (C, mels, frames) and ``waveform`` (M, samples)."""
        inputs = {}
        if self.whisper is not None:
            size = 2 * self.processor.chunk_features
            chunks = [chunk for item in items for chunk in item["input_features"].split(size, dim=1)]
            inputs["input_features"] = _pad_stack(chunks)
        if self.wavlm is not None:
            inputs["waveform"] = _pad_stack([item["waveform"] for item in items])
        return inputs

    def forward(self, inputs: Mapping[str, Tensor], layout: Layout) -> Tensor:
        """Encode to (ΣN, d), one feature per 20 ms of each item."""
        dtype = next(self.parameters()).dtype
        features = []
        if self.whisper is not None:
            size = self.processor.chunk_features
            keep = [min(size, total - start) for total in layout.lengths for start in range(0, total, size)]
            lengths = [size] * len(keep) if self.processor.full_chunks else keep
            features.append(self.whisper(inputs["input_features"].to(dtype), lengths, keep))
        if self.wavlm is not None:
            features.append(self.wavlm(inputs["waveform"].to(dtype), layout.lengths))
        fused: Tensor = self.fuse(torch.cat(features, dim=-1))
        return fused


def _chunks(whisper: WhisperBranch | None) -> dict[str, int]:
    """How a Whisper cuts and analyses sound; without one nothing is."""
    if whisper is None:
        return {}
    config = whisper.encoder.config
    return {"num_mel_bins": config.num_mel_bins, "chunk_features": config.max_source_positions}


def weighted_sum(states: Sequence[Tensor], logits: Tensor) -> Tensor:
    """The convex combination of layers ``sum_i softmax(logits)_i states_i``."""
    weights = logits.softmax(0)
    assert len(states) == len(weights), f"{len(weights)} weights for {len(states)} layers"
    return sum((weight * state for weight, state in zip(weights, states, strict=True)), torch.zeros_like(states[0]))


def _load_whisper(whisper: Mapping[str, Any] | str) -> WhisperEncoder:
    if isinstance(whisper, str):
        encoder: WhisperEncoder = load_pretrained(
            WhisperModel, whisper, may_lack=r"(^|\.)decoder\.", local_files_only=True
        ).encoder
        return encoder
    return WhisperEncoder(WhisperConfig(**whisper))


def _pad_stack(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors that differ along the last axis, zero-padded on the right."""
    longest = max(tensor.shape[-1] for tensor in tensors)
    return torch.stack([F.pad(tensor, (0, longest - tensor.shape[-1])) for tensor in tensors])
