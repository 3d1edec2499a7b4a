"""The speech encoder against transformers' own, batch = single, lengths, and the spectrogram."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from encoders.speech import AudioProcessor, SpeechEncoder, weighted_sum
from layers.layout import Layout
from layers.media import Audio

WHISPER = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 32,
    "num_mel_bins": 16,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "decoder_start_token_id": 0,
}
SHORT = {**WHISPER, "max_source_positions": 40}  # chunks of 0.8 s
WAVLM = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


def _audio(samples: int, seed: int = 0) -> Audio:
    return Audio(torch.randn(samples, generator=torch.Generator().manual_seed(seed)) * 0.1, 16_000)


def _encode(encoder: SpeechEncoder, audios: list[Audio]) -> tuple[torch.Tensor, Layout]:
    items, layouts = zip(*[encoder.processor(audio) for audio in audios], strict=True)
    return encoder(encoder.collate(items), Layout(layouts)), Layout(layouts)


@pytest.mark.parametrize("layer_type", ["sdpa", "eager"])
def test_full_chunks_equal_transformers(tmp_path, layer_type: str) -> None:
    torch.manual_seed(0)
    oracle = WhisperModel(WhisperConfig(**WHISPER)).eval()
    oracle.save_pretrained(tmp_path, safe_serialization=True)
    encoder = SpeechEncoder(str(tmp_path), full_chunks=True).eval()
    encoder.whisper.encoder.set_attn_implementation(layer_type)
    audio = _audio(36 * 16_000 + 77)
    features, layout = _encode(encoder, [audio])
    extractor = WhisperFeatureExtractor(feature_size=16)
    chunks = [chunk.numpy() for chunk in audio.waveform.split(30 * 16_000)]
    mel = extractor(chunks, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        expected = oracle.encoder(mel).last_hidden_state
    assert layout.lengths == (1801,)
    torch.testing.assert_close(features, torch.cat([expected[0], expected[1, :301]]), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("wavlm", [None, WAVLM, {**WAVLM, "feat_extract_norm": "layer", "do_stable_layer_norm": True}])
@pytest.mark.parametrize("full_chunks", [False, True])
def test_items_do_not_influence_each_other(wavlm: dict | None, full_chunks: bool) -> None:
    torch.manual_seed(0)
    encoder = SpeechEncoder(SHORT, wavlm, full_chunks, weighted_layers=True, hidden_size=20).eval()
    audios = [_audio(samples, seed) for seed, samples in enumerate((4_000, 13_000, 12_801, 31_111, 4_000))]
    together, layout = _encode(encoder, audios)
    assert layout.lengths == (13, 41, 41, 98, 13)
    for audio, features in zip(audios, layout.split(together), strict=True):
        torch.testing.assert_close(features, _encode(encoder, [audio])[0], atol=1e-5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(samples=st.integers(4_000, 40 * 16_000))
def test_layout_predicts_the_features(samples: int) -> None:
    processor = AudioProcessor(num_mel_bins=8)
    item, layout = processor(_audio(samples))
    assert layout == processor.layout((samples,))
    assert item["input_features"].shape == (8, 2 * layout.num_features)
    assert 0 <= layout.num_features * 320 - samples < 320


@pytest.mark.parametrize("samples", [1, 200, 30 * 16_000 - 1, 30 * 16_000, 30 * 16_000 + 1, 95 * 16_000])
def test_feature_count_at_boundaries(samples: int) -> None:
    torch.manual_seed(0)
    small = {**WHISPER, "d_model": 8, "encoder_layers": 1, "encoder_ffn_dim": 8}
    encoder = SpeechEncoder(small).eval()
    with torch.no_grad():
        features, layout = _encode(encoder, [_audio(samples)])
    assert features.shape == (-(-samples // 320), 8) and layout.total == features.shape[0]
    assert features.isfinite().all()


@pytest.mark.parametrize("full_chunks", [False, True])
def test_spectrogram_equals_the_extractor(full_chunks: bool) -> None:
    audio = _audio(2 * 16_000)
    processor = AudioProcessor(num_mel_bins=80, full_chunks=full_chunks)
    found = processor(audio)[0]["input_features"]
    extractor = WhisperFeatureExtractor(feature_size=80)
    padding = "max_length" if full_chunks else "do_not_pad"
    expected = extractor(audio.waveform.numpy(), sampling_rate=16_000, padding=padding, return_tensors="pt")
    torch.testing.assert_close(found, expected.input_features[0], atol=1e-5, rtol=1e-5)


def test_frozen_encoder_stays_deterministic() -> None:
    torch.manual_seed(0)
    encoder = SpeechEncoder({**SHORT, "dropout": 0.5}, {**WAVLM, "hidden_dropout": 0.5})
    assert encoder.train().whisper.training
    encoder.requires_grad_(False)
    assert not encoder.train().whisper.training
    first, second = (_encode(encoder, [_audio(9_000)])[0] for _ in range(2))
    assert torch.equal(first, second)


def test_branches_side_by_side() -> None:
    torch.manual_seed(0)
    encoder = SpeechEncoder(SHORT, WAVLM, fusion="concat").eval()
    assert encoder.hidden_size == 32 + 24
    features, _ = _encode(encoder, [_audio(9_000)])
    alone = SpeechEncoder(SHORT).eval()
    alone.whisper.load_state_dict(encoder.whisper.state_dict())
    torch.testing.assert_close(features[:, :32], _encode(alone, [_audio(9_000)])[0])
    with pytest.raises(ValueError, match="expected the branches' 56 with fusion 'concat', got 40"):
        SpeechEncoder(SHORT, WAVLM, hidden_size=40, fusion="concat")


def test_wavlm_by_itself_needs_no_spectrogram() -> None:
    torch.manual_seed(0)
    both = SpeechEncoder(SHORT, WAVLM, fusion="concat").eval()
    alone = SpeechEncoder(None, WAVLM).eval()
    alone.wavlm.load_state_dict(both.wavlm.state_dict())
    audio = _audio(9_001)
    inputs, layout = alone.processor(audio)
    assert set(inputs) == {"waveform"} and layout == both.processor(audio)[1] and alone.hidden_size == 24
    torch.testing.assert_close(_encode(alone, [audio])[0], _encode(both, [audio])[0][:, 32:])
    with pytest.raises(ValueError, match="expected whisper, wavlm or both, got neither"):
        SpeechEncoder(None)


def test_every_parameter_learns() -> None:
    encoder = SpeechEncoder(SHORT, WAVLM, weighted_layers=True)
    features, _ = _encode(encoder, [_audio(9_000), _audio(5_000)])
    features.square().sum().backward()
    unused = {name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None}
    assert unused <= {"wavlm.model.masked_spec_embed"}


@pytest.mark.parametrize(
    "raw, message",
    [
        (Audio(torch.zeros(0), 16_000), "at least one sample"),
        (Audio(torch.zeros(2, 100), 16_000), "mono"),
        (Audio(torch.zeros(100), 44_100), "16000 Hz, got 44100 Hz"),
        (Audio(torch.tensor([0.0, float("nan")]), 16_000), "not finite"),
        (torch.zeros(100), "Audio"),
    ],
)
def test_bad_audio_is_refused(raw: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AudioProcessor()(raw)


def test_processor_is_picklable() -> None:
    processor = AudioProcessor(num_mel_bins=8)
    audio = _audio(3_000)
    before = processor(audio)[0]["input_features"]
    assert torch.equal(pickle.loads(pickle.dumps(processor))(audio)[0]["input_features"], before)


def test_wavlm_of_another_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="one feature per 320 samples, got one per 160"):
        SpeechEncoder(SHORT, {**WAVLM, "conv_stride": [5, 2, 2, 2, 2, 2, 1]})


def test_weighted_sum_is_convex() -> None:
    states = [torch.full((2, 3), float(value)) for value in (0, 1, 2)]
    torch.testing.assert_close(weighted_sum(states, torch.tensor([0.0, 0.0, 50.0])), states[2])
    torch.testing.assert_close(weighted_sum(states, torch.zeros(3)), states[1])
