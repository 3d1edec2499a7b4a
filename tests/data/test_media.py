from __future__ import annotations

import io
import json

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from data.media import (
    MediaError,
    decode_mask,
    decode_media,
    decode_target,
    encode_flac,
    encode_graph,
    encode_mask,
    encode_png,
    resample,
    resampled_length,
)
from data.records import Media, Target
from layers.media import Audio, Graph

IMAGE = torch.arange(3 * 6 * 8, dtype=torch.uint8).reshape(3, 6, 8)
NOISE = encode_png(torch.randint(0, 256, (3, 30, 30), generator=torch.Generator().manual_seed(0)).byte())


def _wav(samples: np.ndarray, rate: int = 16_000, subtype: str = "FLOAT") -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format="WAV", subtype=subtype)
    return stream.getvalue()


def test_png_is_lossless() -> None:
    assert torch.equal(decode_media(Media("image", "i.png", (8, 6)), encode_png(IMAGE)), IMAGE)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_the_size_is_the_oriented_one(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.fromarray(IMAGE.permute(1, 2, 0).numpy()).save(stream, "PNG", exif=exif)
    size = (8, 6) if orientation <= 4 else (6, 8)
    image = decode_media(Media("image", "i.png", size), stream.getvalue())
    assert isinstance(image, torch.Tensor) and image.shape == (3, size[1], size[0])
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    row, column = corner[orientation]
    assert torch.equal(image[:, row, column], IMAGE[:, 0, 0])
    if orientation > 4:
        with pytest.raises(MediaError, match=r"expected.*\(8, 6\), got \(6, 8\)"):
            decode_media(Media("image", "i.png", (8, 6)), stream.getvalue())


@pytest.mark.parametrize(
    "data", [b"", b"not an image", NOISE[:60], NOISE[: len(NOISE) // 2], NOISE[500:], b"\x80\x04N."], ids=len
)
def test_an_image_that_does_not_decode(data: bytes) -> None:
    with pytest.raises(MediaError, match=r"'i\.png': expected an image"):
        decode_media(Media("image", "i.png", (30, 30)), data)


def test_an_image_of_another_size() -> None:
    with pytest.raises(MediaError, match=r"'i\.png'.*\(9, 6\), got \(8, 6\)"):
        decode_media(Media("image", "i.png", (9, 6)), encode_png(IMAGE))


def test_flac_round_trip() -> None:
    waveform = torch.sin(torch.arange(4000) / 30) * 0.9
    audio = decode_media(Media("audio", "a.flac", (4000,), 16_000), encode_flac(waveform))
    assert isinstance(audio, Audio) and audio.sample_rate == 16_000
    assert (audio.waveform - waveform).abs().max() < 1 / 32_000


def test_stereo_becomes_the_mean() -> None:
    stereo = np.stack([np.full(500, 0.5), np.full(500, -0.25)], axis=1).astype(np.float32)
    audio = decode_media(Media("audio", "a.wav", (500,), 16_000), _wav(stereo))
    assert isinstance(audio, Audio) and torch.allclose(audio.waveform, torch.full((500,), 0.125))


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_audio_is_resampled_to_the_records_rate(rate: int) -> None:
    seconds = np.arange(rate) / rate
    data = _wav(np.sin(2 * np.pi * 440 * seconds).astype(np.float32), rate)
    audio = decode_media(Media("audio", "a.wav", (16_000,), 16_000), data)
    assert isinstance(audio, Audio)
    expected = torch.sin(2 * torch.pi * 440 * torch.arange(16_000) / 16_000)
    assert (audio.waveform - expected)[500:-500].abs().max() < 0.01


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.sampled_from([7350, 8000, 16_000, 44_100]), st.sampled_from([8000, 16_000, 24_000]))
def test_resampled_length_is_exact(samples: int, before: int, after: int) -> None:
    result = resample(Audio(torch.zeros(samples), before), after)
    assert result.waveform.shape[0] == resampled_length(samples, before, after)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_wav(np.zeros(0, dtype=np.float32)), "empty"),
        (b"", "do not decode"),
        (b"RIFFnonsense", "do not decode"),
        (encode_flac(torch.linspace(-0.5, 0.5, 500))[:40], "'a.wav'"),
        (_wav(np.array([0.0, np.nan] * 250, dtype=np.float32)), "NaN"),
        (_wav(np.array([0.0, np.inf] * 250, dtype=np.float32)), "infinity"),
        (_wav(np.zeros(499, dtype=np.float32)), "expected 500 samples at 16000 Hz, got 499"),
        (_wav(np.zeros(500, dtype=np.float32), 8000), "expected 500 samples at 16000 Hz, got 1000"),
    ],
    ids=["no samples", "no bytes", "nonsense", "cut short", "NaN", "infinity", "one sample less", "another rate"],
)
def test_bad_audio(data: bytes, message: str) -> None:
    with pytest.raises(MediaError, match=message) as caught:
        decode_media(Media("audio", "a.wav", (500,), 16_000), data)
    assert "a.wav" in str(caught.value)


def test_graph_round_trip() -> None:
    graph = Graph(("os", "sys", "ä"), torch.tensor([[0, 2], [1, 1]]))
    again = decode_media(Media("graph", "g.json", (3,)), encode_graph(graph))
    assert isinstance(again, Graph) and again.node_texts == graph.node_texts
    assert torch.equal(again.edge_index, graph.edge_index)
    alone = decode_media(Media("graph", "g.json", (1,)), encode_graph(Graph(("os",), torch.zeros(2, 0).long())))
    assert isinstance(alone, Graph) and alone.edge_index.shape == (2, 0) and alone.edge_index.dtype == torch.int64


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"node_texts": ["a", "b"], "edge_index": [[0], [2]]}, r"expected nodes 0 to 1, got \[2\]"),
        ({"node_texts": ["a", "b"], "edge_index": [[-1], [0]]}, r"got \[-1\]"),
        ({"node_texts": ["a", "b"], "edge_index": [[0, 1], [0]]}, "two lists"),
        ({"node_texts": ["a", "b"], "edge_index": [[0.5], [0]]}, "two lists"),
        ({"node_texts": ["a"], "edge_index": [[], []]}, "expected 2 nodes, got 1"),
        ({"node_texts": ["a", 3], "edge_index": [[], []]}, "list of strings"),
        ({"node_texts": ["a", "b"]}, "expected the fields"),
        ({"node_texts": ["a", "b"], "edge_index": [[], []], "x": 1}, "'x'"),
        ([], "expected the fields.*list"),
    ],
)
def test_bad_graphs(value: object, message: str) -> None:
    with pytest.raises(MediaError, match=message) as caught:
        decode_media(Media("graph", "g.json", (2,)), json.dumps(value).encode())
    assert "g.json" in str(caught.value)


def test_video_has_no_decoder() -> None:
    with pytest.raises(MediaError, match="video"):
        decode_media(Media("video", "v.mp4", (8, 6, 3)), b"")


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 10_000))
def test_masks_equal_cocos(height: int, width: int, density: float, seed: int) -> None:
    mask = torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < density
    ours = encode_mask(mask)
    theirs = coco.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    assert ours == {"size": theirs["size"], "counts": theirs["counts"].decode()}
    assert torch.equal(decode_mask(ours), mask)
    assert torch.equal(decode_mask(json.loads(json.dumps(ours))), mask)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "dictionary"),
        ({"size": [2, 2]}, "dictionary"),
        ({"size": [0, 2], "counts": "04"}, "size"),
        ({"size": [2, 2], "counts": [1, 2]}, "add up to 2x2, got 3"),
        ({"size": [2, 2], "counts": [5, -1]}, "non-negative"),
        ({"size": [2, 2], "counts": "o"}, "breaks off"),
        ({"size": [2, 2], "counts": "\n"}, "characters"),
    ],
)
def test_bad_masks(value: object, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        decode_mask(value)


def test_targets() -> None:
    mask = torch.zeros(6, 8, dtype=torch.bool)
    mask[1:3, 2:5] = True
    assert decode_target(Target("box", [1, 2, 3, 4.5])) == [1.0, 2.0, 3.0, 4.5]
    assert torch.equal(decode_target(Target("mask", encode_mask(mask))), mask)
    assert torch.equal(decode_target(Target("mask", file="m.png"), encode_png(mask)), mask)
    assert torch.equal(decode_target(Target("image", file="i.png"), encode_png(IMAGE)), IMAGE)
    assert decode_target(Target("label", "email")) == "email"
    assert decode_target(Target("score", 1)) == 1.0
    for bad in (Target("label", 3), Target("score", "high"), Target("score", float("nan")), Target("score", True)):
        with pytest.raises(MediaError, match=f"{bad.type} target: expected"):
            decode_target(bad)
    with pytest.raises(MediaError, match=r"expected the member 'i\.png'"):
        decode_target(Target("image", file="i.png"))
