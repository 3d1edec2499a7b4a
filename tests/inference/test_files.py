from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image, ImageSequence

from data.media import MediaError, Video, decode_mask, measure
from inference import files
from inference.conversation import HeadError
from inference.files import (
    call_to_json,
    decode_image,
    decode_vector,
    encode_audio,
    encode_frames,
    error_to_json,
    read_audio,
    read_graph,
    read_image,
    result_to_json,
)
from layers import calls
from layers.calls import (
    AudioResult,
    BoxesResult,
    Call,
    EmbeddingResult,
    ImageResult,
    LabelResult,
    MaskResult,
    MasksResult,
    NodeRef,
    RankingResult,
    Region,
    Result,
    ResultRef,
    ScoreResult,
    SelectionResult,
    TimeSpan,
    VideoResult,
)
from routers.parser import ParseError


def test_an_image_is_turned_as_its_exif_says(tmp_path):
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, :15] = (255, 0, 0)  # the left half is red
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise: left becomes top
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    image = read_image(tmp_path / "turned.png")
    assert image.shape == (3, 30, 20) and image.dtype == torch.uint8
    assert image[0, :15].min() == 255 and image[0, 15:].max() == 0


@pytest.mark.parametrize("mode, suffix", [("RGBA", "png"), ("L", "bmp"), ("P", "gif"), ("CMYK", "jpg"), ("1", "png")])
def test_any_pixel_format_becomes_rgb(tmp_path, mode, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.new(mode, (7, 5)).save(path)
    assert read_image(path).shape == (3, 5, 7)


@pytest.mark.parametrize("rate, channels, suffix", [(16000, 1, "flac"), (44100, 2, "wav"), (8000, 1, "ogg")])
def test_audio_of_any_rate_keeps_its_pitch(tmp_path, rate, channels, suffix):
    time = np.arange(rate) / rate
    tone = np.repeat(0.5 * np.sin(2 * np.pi * 440 * time)[:, None], channels, axis=1)
    soundfile.write(tmp_path / f"tone.{suffix}", tone, rate)
    audio = read_audio(tmp_path / f"tone.{suffix}")
    assert audio.sample_rate == 16000 and audio.waveform.ndim == 1
    assert audio.waveform.shape[0] == pytest.approx(16000, abs=16)
    spectrum = torch.fft.rfft(audio.waveform[2000:14000]).abs()
    assert spectrum.argmax().item() / 12000 * 16000 == pytest.approx(440, abs=2)


def test_a_graph_is_read(tmp_path):
    path = tmp_path / "graph.json"
    path.write_text(json.dumps({"node_texts": ["a", "b"], "edge_index": [[0, 1], [1, 0]]}))
    graph = read_graph(path)
    assert graph.node_texts == ("a", "b") and graph.edge_index.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("read", [read_image, read_audio, read_graph])
@pytest.mark.parametrize("content", [b"", b"neither fish nor fowl", b"\x89PNG\r\n\x1a\n\x00\x00", b"[1]", b'{"a": 1}'])
def test_what_does_not_decode_is_named(tmp_path, read, content):
    path = tmp_path / "bad.bin"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=r"bad\.bin.*expected"):
        read(path)


def test_half_an_image_is_refused(tmp_path):
    path = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 90).save(path)
    data = path.read_bytes()
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match=r"half\.png"):
        read_image(tmp_path / "half.png")


def test_audio_that_is_empty_or_not_finite_is_refused(tmp_path):
    soundfile.write(tmp_path / "empty.wav", np.zeros((0, 1)), 16000)
    with pytest.raises(MediaError, match="empty"):
        read_audio(tmp_path / "empty.wav")
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 16000, subtype="FLOAT")
    with pytest.raises(MediaError, match="finite"):
        read_audio(tmp_path / "nan.wav")


@pytest.mark.parametrize(
    "value",
    [
        {"node_texts": ["a"], "edge_index": [[0], [1]]},
        {"node_texts": [], "edge_index": [[], []]},
        {"node_texts": ["a"], "edge_index": [[0]]},
    ],
)
def test_a_graph_that_contradicts_itself_is_refused(tmp_path, value):
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(value))
    with pytest.raises(MediaError, match="expected"):
        read_graph(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        read_image(tmp_path / "nowhere.png")


def test_sounds_are_written_as_they_are():
    waveform = torch.stack([torch.linspace(-1.5, 1.5, 800), torch.zeros(800)])
    for kind in ("flac", "wav"):
        samples, rate = soundfile.read(io.BytesIO(encode_audio(waveform, 8000, kind)), dtype="float32")
        assert rate == 8000 and samples.shape == (800, 2)
        assert np.abs(samples.T - waveform.clamp(-1, 1).numpy()).max() < 1e-4
    with pytest.raises(ValueError, match="flac or wav, got 'mp3'"):
        encode_audio(waveform, 8000, "mp3")
    with pytest.raises(ValueError, match="finite"):
        encode_audio(waveform * float("nan"), 8000)


def test_videos_are_written_and_read_again(monkeypatch):
    frames = torch.zeros(5, 3, 15, 21, dtype=torch.uint8)
    frames[2:, 0] = 255  # it turns red
    data, kind = encode_frames(frames, 12.5)
    video = Video("made.mp4", data, measure("made.mp4", data))
    assert kind == "mp4" and video.size == (22, 16, 5), "even sides"
    read, seconds = video.sample(5)
    assert seconds == pytest.approx([i / 12.5 for i in range(5)])
    assert [int(frame[0].float().mean() > 128) for frame in read] == [0, 0, 1, 1, 1]

    def missing(*_):
        raise ModuleNotFoundError("No module named 'av'")

    monkeypatch.setattr(files, "encode_video", missing)
    data, kind = encode_frames(frames, 12.5)
    with Image.open(io.BytesIO(data)) as image:
        shown = [frame.info["duration"] for frame in ImageSequence.Iterator(image)]
        assert kind == "gif" and image.size == (21, 15) and sum(shown) == 400  # equal frames are joined
    with pytest.raises(ValueError, match="at least one frame"):
        encode_frames(frames[:0], 8.0)


CALL = Call("seg", "red 7", (Region((1.0, 2.0, 3.0, 4.0)), ResultRef(0)))
MASK = torch.eye(6, 4, dtype=torch.bool)
RESULTS = {
    "boxes": BoxesResult(CALL, ((1.0, 2.0, 3.0, 4.0),), (0.5,), ("red 7",)),
    "mask": MaskResult(CALL, MASK, 0.5),
    "masks": MasksResult(CALL, torch.stack([MASK, ~MASK]), (0.5, 0.25), ("a", "b")),
    "image": ImageResult(CALL, torch.arange(72, dtype=torch.uint8).view(3, 6, 4)),
    "audio": AudioResult(CALL, torch.zeros(1, 800), 8000),
    "video": VideoResult(CALL, torch.zeros(2, 3, 16, 16, dtype=torch.uint8), 4.0),
    "label": LabelResult(CALL, "xml", {"xml": 0.75, "json": 0.25}),
    "score": ScoreResult(CALL, 0.25),
    "embedding": EmbeddingResult(CALL, torch.tensor([0.5, -2.0])),
    "ranking": RankingResult(CALL, ("b", "a"), (2.0, 1.0)),
    "selection": SelectionResult(CALL, (2, 0), -0.5),
}


@pytest.mark.parametrize("kind", RESULTS)
def test_every_result_has_one_form_in_json(kind):
    """With its data, as logs hold it, and without, as it stands beside files."""
    result = RESULTS[kind]
    whole, about = result_to_json(result), result_to_json(result, with_data=False)
    for value in (whole, about):
        assert json.loads(json.dumps(value)) == value and value["type"] == kind and "notes" not in value
    assert (whole == about) == (kind not in ("mask", "masks", "image", "audio", "video"))
    noted = result_to_json(replace(result, notes=("it did not read 'loudly'",)), with_data=False)
    assert noted == {**about, "notes": ["it did not read 'loudly'"]}


def test_what_is_written_is_read_again():
    written = {kind: result_to_json(result) for kind, result in RESULTS.items()}
    assert torch.equal(decode_mask(written["mask"]["mask"]), MASK)
    assert torch.equal(decode_image(written["image"]["png"]), RESULTS["image"].image)
    assert torch.equal(decode_vector(written["embedding"]["float32"]), RESULTS["embedding"].vector)
    about = {kind: result_to_json(result, with_data=False) for kind, result in RESULTS.items()}
    assert about["mask"] == {"type": "mask", "pixels": 4, "size": [4, 6], "score": 0.5}
    assert about["masks"]["pixels"] == [4, 20] and about["masks"]["size"] == [4, 6]
    assert about["image"]["size"] == [4, 6] and about["video"]["size"] == [16, 16] and about["audio"]["seconds"] == 0.1
    assert set(RESULTS) == {result_to_json(item)["type"] for item in RESULTS.values()}
    types = {item for item in vars(calls).values() if isinstance(item, type) and issubclass(item, Result)}
    assert {type(item) for item in RESULTS.values()} == types - {Result}, "a new type of result has no form yet"
    with pytest.raises(TypeError, match="expected a result that has a JSON form, got Result"):
        result_to_json(Result(CALL))


def test_calls_and_errors_in_json():
    span = Call("speak", "", (TimeSpan(0.5, 1.5), NodeRef(3), Region((0.1, 0.2, 0.3, 0.4), (1.0, 1.0))))
    assert call_to_json(CALL) == {
        "task": "seg",
        "prompt": "red 7",
        "groundings": [{"type": "region", "box_xyxy": [1.0, 2.0, 3.0, 4.0]}, {"type": "result", "call_index": 0}],
    }
    assert call_to_json(span)["groundings"] == [
        {"type": "time_span", "start": 0.5, "end": 1.5},
        {"type": "node", "index": 3},
        {"type": "region", "box_xyxy": [0.1, 0.2, 0.3, 0.4], "canvas": [1.0, 1.0]},
    ]
    head = HeadError(1, "seg", "no memory", cause="out_of_memory")
    assert error_to_json(head) == {"kind": "head", "call_index": 1, "cause": "out_of_memory", "message": "no memory"}
    assert error_to_json(ParseError("unclosed", 3, "expected </seg>", (0, 3))) == {
        "kind": "unclosed",
        "message": "expected </seg>",
    }
