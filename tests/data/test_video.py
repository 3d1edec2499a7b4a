"""Videos: the frames that are asked for, what players do with rotation, damage, and the way into a pack."""

from __future__ import annotations

import argparse
import io
import json
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from data.checks import problems_of
from data.converters import llava
from data.converters.conversion import Tally
from data.media import MediaError, Video, decode_media, encode_mask, encode_video, measure
from data.media.video import _seconds, frame_places
from data.packing import pack
from data.records import Media, Message, Part, Record, Target
from data.render import render, rendered_size
from data.shards import Sample
from inference.conversation import Conversation
from inference.session import Session
from layers.calls import MediaFeatures
from tests.tiny import tiny_generalist

pytest.importorskip("av")
FRAMES, FPS = 10, 4
SAMPLE = Video.sample


def rasters(count: int = FRAMES, width: int = 32, height: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, height, width), generator=generator).to(torch.uint8) for _ in range(count)]


@pytest.fixture(scope="module")
def clip() -> Video:
    return Video("clip.mkv", encode_video(rasters(), FPS, "ffv1"), (32, 16, FRAMES))


def video_record(clip: Video, question: str = "where is the red 7 ?") -> Record:
    user = Message("user", (Part("video", media="clip"), Part("text", text=question)))
    answer = Message("assistant", (Part("text", text="yes"),))
    media = {"clip": Media("video", "clip.mkv", clip.size)}
    return Record("a", "video", "test", "CC0-1.0", "train", (user, answer), media)


@pytest.mark.parametrize(
    ("frames", "count", "places"),
    [(10, 4, [1, 3, 6, 8]), (3, 8, [0, 1, 2]), (1, 1, [0]), (9, 1, [4]), (4, 4, [0, 1, 2, 3])],
)
def test_places_are_the_middles_of_equal_stretches(frames: int, count: int, places: list[int]) -> None:
    assert frame_places(frames, count) == places


def test_sampled_frames_are_those_that_were_written(clip: Video) -> None:
    found, seconds = clip.sample(4)
    for raster, place in zip(found, (1, 3, 6, 8), strict=True):
        assert torch.equal(raster, rasters()[place])
    assert seconds == pytest.approx([0.25, 0.75, 1.5, 2.0], abs=2e-3)
    assert len(clip.sample(99)[0]) == FRAMES and measure("clip", clip.data) == clip.size


def test_lossy_mp4_is_read() -> None:
    grey = [torch.full((3, 32, 48), 20 * i, dtype=torch.uint8) for i in range(8)]
    found, _ = Video("clip.mp4", encode_video(grey, 8), (48, 32, 8)).sample(8)
    assert all((a.float() - b.float()).abs().max() < 12 for a, b in zip(found, grey, strict=True))


def turned(degrees: int, first: int = 0) -> bytes:
    """The clip with a display rotation, its first frame at a later stamp."""
    av = pytest.importorskip("av")
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("libx264rgb", rate=FPS, options={"crf": "0"})
        track.width, track.height, track.pix_fmt = 32, 16, "rgb24"
        track.set_display_rotation(degrees)
        for number, raster in enumerate(rasters()):
            frame = av.VideoFrame.from_ndarray(raster.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
            frame.pts = first + number
            container.mux(track.encode(frame))
        container.mux(track.encode())
    return stream.getvalue()


def test_a_clip_that_was_filmed_sideways_stands_upright() -> None:
    data = turned(90)
    assert measure("clip.mp4", data) == (16, 32, FRAMES)
    found, _ = Video("clip.mp4", data, (16, 32, FRAMES)).sample(FRAMES)
    assert all(torch.equal(a, torch.rot90(b, 1, (1, 2))) for a, b in zip(found, rasters(), strict=True))


def test_seconds_count_from_the_start_and_without_stamps_by_the_frame_rate(clip: Video) -> None:
    late = Video("clip.mp4", turned(0, first=12), (32, 16, FRAMES))
    assert late.sample(4)[1] == pytest.approx([0.25, 0.75, 1.5, 2.0], abs=2e-3)
    track = SimpleNamespace(average_rate=Fraction(4), start_time=None, time_base=Fraction(1, 100))
    assert _seconds(SimpleNamespace(pts=None, dts=None), track, 6) == 1.5
    assert _seconds(SimpleNamespace(pts=None, dts=50), track, 6) == 0.5


def test_a_missing_package_is_no_bad_sample(clip: Video, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError, match="install the extra 'video'"):
        clip.sample(2)


def test_boxes_and_masks_after_a_video_lie_on_its_frames(clip: Video) -> None:
    user = Message("user", (Part("video", media="clip"), Part("text", text="where ?")))
    call = Message("assistant", (Part("call", task="ground", prompt="it", target="t0"),))
    media = {"clip": Media("video", "clip.mkv", clip.size)}

    def problems(box: list[float], kind: str = "box") -> list[str]:
        value = box if kind == "box" else encode_mask(torch.ones(16, 32, dtype=torch.bool))
        targets = {"t0": Target(kind, value=value)}
        record = Record("a", "video", "test", "CC0-1.0", "train", (user, call), media, targets)
        return problems_of(Sample("a", record, {"clip.mkv": clip.data}))

    assert problems([1, 2, 30, 14]) == [] == problems([], "mask")
    assert len(problems([1, 2, 40, 14])) == 1


def test_what_is_wrong_is_named(clip: Video) -> None:
    with pytest.raises(MediaError, match=r"'clip\.mkv': expected 12 frames, got 10"):
        Video("clip.mkv", clip.data, (32, 16, 12)).sample(12)
    with pytest.raises(MediaError, match=r"expected \(width, height, frames\) \(32, 16, 9\), got \(32, 16, 10\)"):
        Video("clip.mkv", clip.data, (32, 16, 9)).check()
    with pytest.raises(MediaError, match=r"expected frames of \(width, height\) \(16, 32\), got \(32, 16\)"):
        Video("clip.mkv", clip.data, (16, 32, 10)).sample(2)
    for data in (b"", b"no video at all", clip.data[:300]):
        with pytest.raises(MediaError, match="expected a video, got"):
            Video("bad.mkv", data, (32, 16, 10)).sample(2)
    assert problems_of(Sample("a", video_record(clip), {"clip.mkv": clip.data})) == []
    damaged = problems_of(Sample("a", video_record(clip), {"clip.mkv": clip.data[: len(clip.data) // 2]}))
    assert len(damaged) == 1 and "clip.mkv" in damaged[0]


def test_frames_become_images_in_order_with_their_times(clip: Video, tmp_path: Path) -> None:
    generalist = tiny_generalist(tmp_path)
    generalist.max_frames = 4
    plan = generalist.plan()
    record = video_record(clip)
    media = decode_media(record.media["clip"], clip.data)
    rendered = render(record, {"clip": media}, plan, {})
    assert [item.frame for item in rendered.media] == [0, 1, 2, 3]
    assert [item.layout.seconds for item in rendered.media] == pytest.approx([0.25, 0.75, 1.5, 2.0], abs=2e-3)
    assert rendered_size(record, plan).tokens == len(rendered.input_ids)
    stills = [Media("image", f"f{i}.png", (32, 16)) for i in range(4)]
    user = Message("user", (*(Part("image", media=f"f{i}") for i in range(4)), *record.messages[0].content[1:]))
    shown = Record(
        "b", "x", "", "", "train", (user, record.messages[1]), {f"f{i}": item for i, item in enumerate(stills)}
    )
    frames = {f"f{i}": raster for i, raster in enumerate(clip.sample(4)[0])}
    same = render(shown, frames, plan, {})
    assert same.input_ids == rendered.input_ids and same.labels == rendered.labels
    first, second = (generalist.eval()(pack([item], plan)) for item in (rendered, same))
    torch.testing.assert_close(first["token"].total, second["token"].total)


def test_a_video_is_asked_about(clip: Video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(tiny_generalist(tmp_path), max_new_tokens=4)
    seen: list[Tensor] = []

    def look(media: MediaFeatures) -> MediaFeatures:
        assert media.load_original is not None
        seen.append(media.load_original())
        return media

    decoded: list[int] = []
    monkeypatch.setattr(Video, "sample", lambda self, count: decoded.append(count) or SAMPLE(self, count))
    session.generate([Conversation.ask("where is the red 7 ?", videos=[clip])], head_media_transform=look)
    assert len(seen) == 8 and torch.equal(seen[6], rasters()[frame_places(FRAMES, 8)[6]])
    assert decoded == [8, 8]  # once for the model, once for all originals


def test_llava_conversations_with_video_files(clip: Video, tmp_path: Path) -> None:
    (tmp_path / "a.mkv").write_bytes(clip.data)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    turns = [{"from": "human", "value": "<video>\nWhat is this?"}, {"from": "gpt", "value": "A clip."}]
    items: list[Any] = [{"id": name, "video": name, "conversations": turns} for name in ("a.mkv", "b.mp4", "c.mp4")]
    (tmp_path / "data.json").write_text(json.dumps(items))
    options = argparse.Namespace(
        media_root=None, max_frames=4, license="CC0-1.0", split="train", source_name="test", prefix="x"
    )
    tally = Tally()
    (converted,) = list(llava.convert(tmp_path / "data.json", options, tally))
    record = converted[0]
    assert record.media["video"] == Media("video", "video.mkv", clip.size)
    assert [part.type for part in record.messages[0].content] == ["video", "text"]
    assert sum(tally.skipped.values()) == 2
