"""A reply as files: the results of its calls as they are answered, and the whole as ``reply.json``."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from data.media import Video
from data.media.results import kind_made, made_by
from data.render.made import stills_made
from demos.describe import captions
from demos.render import draw_boxes, overlay_mask, overlay_masks, to_pil
from inference.conversation import Conversation, Reply
from inference.files import call_to_json, encode_audio, encode_frames, error_to_json, result_to_json
from layers.calls import AudioResult, BoxesResult, ImageResult, MaskResult, MasksResult, Result, VideoResult


class ResultWriter:
    """Writes each result as files, and the whole reply as ``reply.json``.

    Boxes are drawn on the image that they are on: what an earlier call made, if the call was about that, or the latest
    image, which may be a video's last shown frame. A mask becomes a PNG of that raster and an overlay.

    Args:
        conversation: What is asked.
        directory: Made if it is missing; files of the same names are replaced.
        max_frames: Frames that stand for a video.

    Attributes:
        files: Call index -> the files written for it.
    """

    def __init__(self, conversation: Conversation, directory: Path, max_frames: int) -> None:
        self.conversation, self.directory, self.max_frames = conversation, directory, max_frames
        self.files: dict[int, list[Path]] = {}
        self._results: list[Result | None] = []

    def add(self, result: Result | None) -> list[Path]:
        """Write the result of the next call, None if it has none.

        Returns:
            The files.
        """
        index = len(self._results)
        self._results.append(result)
        if result is None:
            return []
        stem = f"call{index}_{result.call.task}"
        made = {f"{stem}_{name}.png": drawing for name, drawing in self._drawings(result).items()}
        if made or isinstance(result, AudioResult | VideoResult):
            self.directory.mkdir(parents=True, exist_ok=True)
        for name, drawing in made.items():
            drawing.save(self.directory / name)
        names = list(made)
        if isinstance(result, AudioResult | VideoResult):
            data, kind = _encoded(result)
            names.append(f"{stem}.{kind}")
            (self.directory / names[-1]).write_bytes(data)
        paths = [self.directory / name for name in names]
        if paths:
            self.files[index] = paths
        return paths

    def finish(self, reply: Reply) -> None:
        """Write ``reply.json``."""
        self.directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_json(reply), ensure_ascii=False, indent=1)
        (self.directory / "reply.json").write_text(text + "\n", encoding="utf-8")

    def to_json(self, reply: Reply) -> dict[str, Any]:
        """The reply as plain values: boxes in original pixels, spans in seconds, media by the names of their files."""
        calls = [
            {
                **call_to_json(call),
                "result": None if result is None else result_to_json(result, with_data=False),
                "files": [path.name for path in self.files.get(index, [])],
            }
            for index, (call, result) in enumerate(zip(reply.calls, reply.results, strict=True))
        ]
        return {
            "text": reply.text,
            "raw_text": reply.raw_text,
            "finish_reason": reply.finish_reason,
            "calls": calls,
            "errors": [error_to_json(error) for error in reply.errors],
            "seconds": {name: round(seconds, 4) for name, seconds in reply.timings.items()},
        }

    def _drawings(self, result: Result) -> dict[str, Any]:
        if isinstance(result, ImageResult):
            return {"image": to_pil(result.image)}
        if not isinstance(result, BoxesResult | MaskResult | MasksResult):
            return {}
        seen = self._seen_by(result)
        if seen is None:
            return {}
        if isinstance(result, BoxesResult):
            return {"boxes": draw_boxes(seen, result.boxes_xyxy, captions(result))}
        if isinstance(result, MaskResult):
            return {"mask": to_pil(result.mask), "overlay": overlay_mask(seen, result.mask)}
        masks = {f"mask{place}": to_pil(mask) for place, mask in enumerate(result.masks)}
        return {**masks, "overlay": overlay_masks(seen, result.masks, captions(result))}

    def _seen_by(self, result: Result) -> Tensor | None:
        """The raster (3, H, W) that a call's boxes and masks refer to, or None without one."""
        made = [self._results[index] for index in made_by(result.call, self._results)]
        pictures = [item for item in made if item is not None and kind_made(item) == "image"]
        if not pictures:
            return self._last_shown
        still = stills_made(pictures[-1], self.max_frames)[-1][0]
        assert isinstance(still, Tensor)
        return still

    @cached_property
    def _last_shown(self) -> Tensor | None:
        parts = [part for turn in self.conversation.messages for part in turn.content if part.media]
        shown = [self.conversation.media[part.media] for part in parts]
        visual = [item for item in shown if isinstance(item, Tensor | Video)]
        if not visual:
            return None
        return visual[-1] if isinstance(visual[-1], Tensor) else visual[-1].sample(self.max_frames)[0][-1]


def _encoded(result: AudioResult | VideoResult) -> tuple[bytes, str]:
    """A sound or video as a file's bytes, and the end of its name."""
    if isinstance(result, AudioResult):
        return encode_audio(result.waveform, result.sample_rate, "wav"), "wav"
    return encode_frames(result.frames, result.fps)
