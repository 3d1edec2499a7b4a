from __future__ import annotations

import io
import json
import struct
import zlib

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
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
    assert again.node_features is None
    numbers = Graph(graph.node_texts, graph.edge_index, torch.randn(3, 4))
    again = decode_media(Media("graph", "g.json", (3,)), encode_graph(numbers))
    assert isinstance(again, Graph) and again.node_features is not None
    assert torch.equal(again.node_features, numbers.node_features)
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
        ({"node_texts": ["a", "b"], "edge_index": [[], []], "node_features": [[1.0]]}, "2 rows of as many numbers"),
        ({"node_texts": ["a", "b"], "edge_index": [[], []], "node_features": [[1], [2, 3]]}, "2 rows of as many"),
        ({"node_texts": ["a", "b"], "edge_index": [[], []], "node_features": [["1"], ["2"]]}, "2 rows of as many"),
        ({"node_texts": ["a", "b"], "edge_index": [[], []], "node_features": [[], []]}, "2 rows of as many"),
        ({"node_texts": ["a", "b"], "edge_index": [[], []], "node_features": [[1e39], [2]]}, "expected finite"),
        ([], "expected the fields.*list"),
    ],
)
def test_bad_graphs(value: object, message: str) -> None:
    with pytest.raises(MediaError, match=message) as caught:
        decode_media(Media("graph", "g.json", (2,)), json.dumps(value).encode())
    assert "g.json" in str(caught.value)


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
    boxes = [{"box_xyxy": [1, 2, 3, 4], "label": "cat"}, {"box_xyxy": [0, 0, 1, 1]}]
    assert decode_target(Target("boxes", boxes)) == [boxes[0], {"box_xyxy": [0.0, 0.0, 1.0, 1.0], "label": ""}]
    (one,) = decode_target(Target("masks", [{"mask": encode_mask(mask), "label": "cat"}]))
    assert one["label"] == "cat" and torch.equal(one["mask"], mask)
    assert decode_target(Target("label", "email")) == "email"
    assert decode_target(Target("score", 1)) == 1.0
    for bad in (Target("label", 3), Target("score", "high"), Target("score", float("nan")), Target("score", True)):
        with pytest.raises(MediaError, match=f"{bad.type} target: expected"):
            decode_target(bad)
    with pytest.raises(MediaError, match=r"expected the member 'i\.png'"):
        decode_target(Target("image", file="i.png"))


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _smooth(width: int = 37, height: int = 22) -> Image.Image:
    ramp = np.linspace(0, 255, width * height).reshape(height, width)
    return Image.fromarray(np.stack([ramp, ramp[::-1], ramp[:, ::-1]], -1).astype(np.uint8))


@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
def test_jpeg_has_the_pixels_that_pil_gives(orientation: int | None, options: dict[str, object]) -> None:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    data = _encoded(_smooth(), "JPEG", exif=exif, **options)
    theirs = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    ours = decode_media(Media("image", "i.jpg", theirs.size), data)
    assert isinstance(ours, torch.Tensor)
    assert (ours.int() - torch.from_numpy(np.array(theirs)).permute(2, 0, 1).int()).abs().max() <= 1
    for cut in (10, len(data) // 2, len(data) - 10):
        with pytest.raises(MediaError, match=r"'i\.jpg': expected an image"):
            decode_media(Media("image", "i.jpg", theirs.size), data[:cut])


def test_colours_that_are_not_rgb() -> None:
    cmyk = Image.new("CMYK", (4, 3), (0, 255, 255, 0))
    red = decode_media(Media("image", "i.jpg", (4, 3)), _encoded(cmyk, "JPEG", quality=95))
    assert isinstance(red, torch.Tensor) and red[0].min() > 240 and red[1:].max() < 20
    grey = decode_media(Media("image", "i.png", (4, 3)), _encoded(Image.new("L", (4, 3), 7), "PNG"))
    assert isinstance(grey, torch.Tensor) and grey.unique().tolist() == [7]
    deep = np.array([[0, 128, 257, 32_896, 65_535]], dtype=np.uint16)
    given = decode_media(Media("image", "i.png", (5, 1)), _encoded(Image.fromarray(deep), "PNG"))
    assert isinstance(given, torch.Tensor) and given[0, 0].tolist() == [0, 0, 1, 128, 255]
    with pytest.raises(MediaError, match="8 or 16 bits per channel, got the mode 'F'"):
        floats = Image.fromarray(np.zeros((3, 4), dtype=np.float32))
        decode_media(Media("image", "i.tiff", (4, 3)), _encoded(floats, "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_image_of_several_frames_is_no_image(kind: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "green", "blue")]
    data = _encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(MediaError, match="expected a still image, got one of several frames"):
        decode_media(Media("image", "i.gif", (8, 6)), data)


def _png(width: int, height: int, chunks: list[tuple[bytes, bytes]]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in ((b"IHDR", header), *chunks, (b"IEND", b""))
    )


@pytest.mark.parametrize(
    ("name", "before"),
    [(b"zTXt", b"Comment\0\0"), (b"iTXt", b"Comment\0\1\0\0\0"), (b"iCCP", b"profile\0\0")],
    ids=("text", "international text", "colour profile"),
)
def test_a_png_that_unpacks_to_far_more_takes_no_memory(name: bytes, before: bytes) -> None:
    bomb = before + zlib.compress(bytes(2**24))
    data = _png(1, 1, [(name, bomb), (b"IDAT", zlib.compress(bytes(4)))])
    assert len(data) < 2**15
    with pytest.raises(MediaError, match=r"'i\.png': expected an image .* Decompressed data too large"):
        decode_media(Media("image", "i.png", (1, 1)), data)


@pytest.mark.parametrize(("width", "height"), [(30_000, 30_000), (30_000, 3_000)])
def test_a_huge_image_takes_no_memory(width: int, height: int) -> None:
    data = _png(width, height, [(b"IDAT", zlib.compress(bytes(1000)))])
    with pytest.raises(MediaError, match=r"'i\.png': expected.*(at most 64,000,000 pixels|decompression bomb)"):
        decode_media(Media("image", "i.png", (width, height)), data)


def test_audio_that_claims_hours_takes_no_memory() -> None:
    data = bytearray(encode_flac(torch.zeros(500)))
    data[21:26] = (data[21] & 0xF0 | 0x0F, 0xFF, 0xFF, 0xFF, 0xFF)  # STREAMINFO: 2^36 samples
    with pytest.raises(MediaError, match=r"at most 268,435,456 samples, got 68719476735"):
        decode_media(Media("audio", "a.flac", (2**36 - 1,), 16_000), bytes(data))


def test_five_channels_and_other_rates_become_one() -> None:
    surround = np.stack([np.full(800, level, dtype=np.float32) for level in (0.1, 0.2, 0.3, 0.4, 0.5)], axis=1)
    audio = decode_media(Media("audio", "a.wav", (1600,), 16_000), _wav(surround, 8_000))
    assert isinstance(audio, Audio) and audio.waveform.shape == (1600,)
    assert torch.allclose(audio.waveform[400:-400], torch.tensor(0.3), atol=1e-3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"node_texts": ["\\ud83d", "b"], "edge_index": [[], []]}', "surrogates not allowed"),
        (b"[" * 100_000, "expected a graph as JSON"),
        (b'{"node_texts": ["a", "b"], "edge_index": [[true], [1]]}', "two lists of node indices"),
    ],
)
def test_graphs_that_json_alone_would_take(data: bytes, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        decode_media(Media("graph", "g.json", (2,)), data)


def test_a_self_loop_is_an_edge() -> None:
    graph = Graph(("a", "b"), torch.tensor([[0, 1], [0, 0]]))
    again = decode_media(Media("graph", "g.json", (2,)), encode_graph(graph))
    assert isinstance(again, Graph) and again.edge_index.tolist() == [[0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"size": [10**9, 10**9], "counts": [10**18]}, "at most 64,000,000 pixels"),
        ({"size": [2, 2], "counts": [True, 3]}, "non-negative runs"),
        ({"size": [2, 2], "counts": "o" * 1_000_000}, r"runs below 2\*\*60"),
    ],
)
def test_masks_that_would_take_all_memory_or_time(value: object, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        decode_mask(value)
