"""Videos: the frames that are asked for, what players do with rotation, damage, and the way into a pack."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data.checks import problems_of
from data.converters import llava
from data.converters.conversion import Tally
from data.media import MediaError, Video, decode_media, encode_video, frame_places, measure
from data.packing import pack
from data.records import Media, Message, Part, Record
from data.render import render, rendered_size
from data.shards import Sample
from inference.conversation import Conversation
from inference.session import Session
from tests.tiny import tiny_generalist

pytest.importorskip("av")
FRAMES, FPS = 10, 4


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


def test_a_video_is_asked_about(clip: Video, tmp_path: Path) -> None:
    session = Session(tiny_generalist(tmp_path), max_new_tokens=4)
    (reply,) = session.generate([Conversation.ask("where is the red 7 ?", videos=[clip])])
    assert reply.token_ids is not None


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
