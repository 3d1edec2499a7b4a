"""Ask a trained model: ``python -m demos.ask --checkpoint DIR [--image F] [--audio F] [--graph F] ... "question"``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from data.media import Video
from demos.render import draw_boxes, overlay_mask, overlay_masks, to_pil
from heads.experts.expert_head import share_experts
from heads.experts.pool import ExpertPool
from inference.conversation import Conversation, HeadError, Reply
from inference.files import encode_audio, encode_frames, read_audio, read_graph, read_image, read_video
from inference.session import Session
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

_EPILOG = """examples:
  python -m demos.ask --checkpoint runs/quickstart/checkpoint --image scene.png "where is the red 7?"
  python -m demos.ask --checkpoint runs/quickstart/checkpoint --image scene.png --audio question.wav
  python -m demos.ask --checkpoint runs/quickstart/checkpoint --graph a.json --graph b.json "does a import b?"
  python -m demos.ask --checkpoint runs/quickstart/checkpoint "draw a blue 4" --out drawings

A graph is JSON: {"node_texts": ["text of node 0", ...], "edge_index": [[sources...], [targets...]]}, with
"node_features": [[numbers of node 0], ...] where an encoder reads these; node 0 is the one that questions are about.
Media are shown to the model in the order images, videos, audio, graphs, then the question."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m demos.ask",
        description="Ask a trained model about images, videos, audio and graphs, and save what its heads answer.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("question", nargs="?", default="", help="may be left out when the audio asks it")
    result.add_argument("--checkpoint", required=True, metavar="DIR", help="checkpoint directory written by training")
    for kind, formats in (
        ("image", "PNG, JPEG, WebP, BMP, GIF or TIFF"),
        ("video", "MP4, MKV, WebM, MOV, AVI; of each, a few frames are shown"),
        ("audio", "WAV, FLAC, OGG, MP3, any rate and channels"),
        ("graph", "JSON, see below"),
    ):
        help_text = f"a file to ask about ({formats}); may be given several times"
        result.add_argument(f"--{kind}", action="append", default=[], metavar="FILE", help=help_text)
    result.add_argument("--out", default="answer", metavar="DIR", help="where results are written (default: ./answer)")
    result.add_argument("--constrained", action="store_true", help="permit only well-formed calls of available tasks")
    result.add_argument("--max-new-tokens", type=int, default=96, metavar="N", help="cut the reply there (default: 96)")
    result.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default), above samples"
    )
    result.add_argument("--seed", type=int, default=0, help="of sampling and of drawings (default: 0)")
    result.add_argument(
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="for the heads: num_steps, guidance, width, height, seconds, num_frames, fps, level, voice; see "
        "docs/heads.md; may be given several times",
    )
    result.add_argument("--expert-memory", metavar="SIZE", help="budget of frozen experts' weights, such as 12GiB")
    result.add_argument("--expert-device", metavar="DEVICE", help="where they work (default: as --device)")
    result.add_argument("--device", default=None, help="cpu, cuda, ... (default: the GPU if there is one)")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The command line; the process's own by default.

    Returns:
        The exit status: 0, or 2 after one line on stderr that says what was wrong with the input.
    """
    options = parser().parse_args(arguments)
    try:
        conversation = Conversation.ask(
            options.question,
            images=[read_image(path) for path in options.image],
            audio=[read_audio(path) for path in options.audio],
            graphs=[read_graph(path) for path in options.graph],
            videos=[read_video(path) for path in options.video],
        )
        session = Session.from_pretrained(
            options.checkpoint,
            options.device,
            constrained=options.constrained,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            seed=options.seed,
            parameters=dict(_parameter(text) for text in options.parameter),
        )
        pool = ExpertPool(options.expert_memory, options.expert_device, progress=sys.stderr.isatty())
        share_experts(session.generalist.heads.values(), pool, replace_own=True)
        (reply,) = session.generate([conversation])
        files = write_results(conversation, reply, Path(options.out), session.plan.max_frames)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"ask: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    show(reply, files, Console())
    return 0


def _parameter(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        raise ValueError(f"--parameter: expected NAME=NUMBER, got '{text}'") from None


def write_results(conversation: Conversation, reply: Reply, directory: Path, max_frames: int) -> dict[int, list[Path]]:
    """Write each result as files, and the whole reply as ``reply.json``.

    Boxes are drawn on the latest image, which may be a video's last shown frame; a mask becomes a PNG of the original
    raster and an overlay.

    Args:
        conversation: What was asked.
        reply: What was answered.
        directory: Made if it is missing; files of the same names are replaced.
        max_frames: Frames that stand for a video.

    Returns:
        Call index -> the files written for it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    seen = _last_seen(conversation, max_frames)
    files: dict[int, list[Path]] = {}
    for index, result in enumerate(reply.results):
        drawings: dict[str, Any] = {}
        if isinstance(result, BoxesResult) and seen is not None:
            drawings["boxes"] = draw_boxes(seen, result.boxes_xyxy, captions(result))
        elif isinstance(result, MaskResult) and seen is not None:
            drawings["mask"] = to_pil(result.mask)
            drawings["overlay"] = overlay_mask(seen, result.mask)
        elif isinstance(result, MasksResult) and seen is not None:
            drawings |= {f"mask{place}": to_pil(mask) for place, mask in enumerate(result.masks)}
            drawings["overlay"] = overlay_masks(seen, result.masks, captions(result))
        elif isinstance(result, ImageResult):
            drawings["image"] = to_pil(result.image)
        for name, drawing in drawings.items():
            path = directory / f"call{index}_{reply.calls[index].task}_{name}.png"
            drawing.save(path)
            files.setdefault(index, []).append(path)
        if isinstance(result, AudioResult | VideoResult):
            data, kind = _encoded(result)
            path = directory / f"call{index}_{reply.calls[index].task}.{kind}"
            path.write_bytes(data)
            files.setdefault(index, []).append(path)
    text = json.dumps(reply_as_json(reply, files), ensure_ascii=False, indent=1)
    (directory / "reply.json").write_text(text + "\n", encoding="utf-8")
    return files


def _encoded(result: AudioResult | VideoResult) -> tuple[bytes, str]:
    """A sound or video as a file's bytes, and the end of its name."""
    if isinstance(result, AudioResult):
        return encode_audio(result.waveform, result.sample_rate, "wav"), "wav"
    return encode_frames(result.frames, result.fps)


def captions(result: BoxesResult | MasksResult) -> list[str]:
    """What is written beside each box or mask: its label, or what the call asked for, and its score."""
    labels = result.labels or (result.call.prompt,) * len(result.scores)
    return [f"{label} {score:.2f}".strip() for label, score in zip(labels, result.scores, strict=True)]


def _last_seen(conversation: Conversation, max_frames: int) -> Tensor | None:
    """The raster (3, H, W) that boxes and masks refer to, or None without one."""
    shown = [conversation.media[part.media] for turn in conversation.messages for part in turn.content if part.media]
    visual = [item for item in shown if isinstance(item, Tensor | Video)]
    if not visual:
        return None
    return visual[-1] if isinstance(visual[-1], Tensor) else visual[-1].sample(max_frames)[0][-1]


def reply_as_json(reply: Reply, files: dict[int, list[Path]]) -> dict[str, Any]:
    """The reply as plain values; boxes in original pixels, spans in seconds, rasters by file name."""
    calls = []
    for index, (call, result) in enumerate(zip(reply.calls, reply.results, strict=True)):
        calls.append(
            {
                "task": call.task,
                "prompt": call.prompt,
                "groundings": [describe_grounding(item) for item in call.groundings],
                "result": result_as_json(result),
                "notes": [] if result is None else list(result.notes),
                "files": [path.name for path in files.get(index, [])],
            }
        )
    return {
        "text": reply.text,
        "raw_text": reply.raw_text,
        "finish_reason": reply.finish_reason,
        "calls": calls,
        "errors": [_error_as_json(error) for error in reply.errors],
        "seconds": {name: round(seconds, 4) for name, seconds in reply.timings.items()},
    }


def _error_as_json(error: ParseError | HeadError) -> dict[str, Any]:
    where = {"call": error.call_index, "cause": error.cause} if isinstance(error, HeadError) else {}
    return {"kind": error.kind, **where, "message": error.message}


def result_as_json(result: Result | None) -> dict[str, Any] | None:
    """What of a result fits in JSON."""
    if isinstance(result, BoxesResult):
        return {"boxes_xyxy": [list(box) for box in result.boxes_xyxy], **_scored(result)}
    if isinstance(result, MaskResult):
        return {"mask_pixels": int(result.mask.sum()), "size": list(result.mask.shape[::-1])}
    if isinstance(result, MasksResult):
        size = list(result.masks.shape[:0:-1])
        return {"mask_pixels": [int(mask.sum()) for mask in result.masks], "size": size, **_scored(result)}
    if isinstance(result, ImageResult):
        return {"size": list(result.image.shape[:0:-1])}
    if isinstance(result, AudioResult):
        return {"samples": result.waveform.shape[1], "sample_rate": result.sample_rate}
    if isinstance(result, VideoResult):
        return {"frames": len(result.frames), "size": list(result.frames.shape[:1:-1]), "fps": result.fps}
    if isinstance(result, LabelResult):
        return {"label": result.label, "probabilities": dict(result.probabilities)}
    if isinstance(result, ScoreResult):
        return {"score": result.score}
    if isinstance(result, EmbeddingResult):
        return {"vector": result.vector.tolist()}
    if isinstance(result, RankingResult):
        return {"items": list(result.items), "scores": list(result.scores)}
    if isinstance(result, SelectionResult):
        return {"indices": list(result.indices), "score": result.score}
    return None


def _scored(result: BoxesResult | MasksResult) -> dict[str, Any]:
    return {"scores": list(result.scores), **({"labels": list(result.labels)} if result.labels else {})}


def describe_grounding(grounding: object) -> str:
    """One grounding in words."""
    if isinstance(grounding, Region):
        where = "" if grounding.canvas is None else f" of a canvas of {grounding.canvas[0]:g}x{grounding.canvas[1]:g}"
        return "box " + ", ".join(f"{e:.1f}" if not where else f"{e:.3f}" for e in grounding.box_xyxy) + where
    if isinstance(grounding, TimeSpan):
        return f"{grounding.start:.2f} s to {grounding.end:.2f} s"
    if isinstance(grounding, NodeRef):
        return f"node {grounding.index}"
    assert isinstance(grounding, ResultRef)
    return f"result of call {grounding.call_index}"


def describe_result(result: Result | None) -> str:
    """One result in words."""
    if isinstance(result, BoxesResult):
        labels = [f"{label}: " for label in result.labels] or [""] * len(result.scores)
        found = [
            f"{label}box {', '.join(f'{edge:.1f}' for edge in box)} ({score:.2f})"
            for label, box, score in zip(labels, result.boxes_xyxy, result.scores, strict=True)
        ]
        return "; ".join(found) or "no box"
    if isinstance(result, MaskResult):
        return f"mask of {int(result.mask.sum())} pixels"
    if isinstance(result, MasksResult):
        sizes = zip(captions(result), result.masks, strict=True)
        return "; ".join(f"{caption}: mask of {int(mask.sum())} pixels" for caption, mask in sizes) or "no mask"
    if isinstance(result, ImageResult):
        return f"image of {result.image.shape[2]}x{result.image.shape[1]} pixels"
    if isinstance(result, AudioResult):
        return f"{result.waveform.shape[1] / result.sample_rate:.2f} s of sound at {result.sample_rate} Hz"
    if isinstance(result, VideoResult):
        size = f"{result.frames.shape[3]}x{result.frames.shape[2]}"
        return f"{len(result.frames)} frames of {size} pixels, {result.fps:g} a second"
    if isinstance(result, LabelResult):
        probability = result.probabilities.get(result.label)
        return result.label if probability is None else f"{result.label} ({probability:.2f})"
    if isinstance(result, ScoreResult):
        return f"{result.score:.3f}"
    if isinstance(result, EmbeddingResult):
        return f"vector of {len(result.vector)} numbers"
    if isinstance(result, RankingResult):
        best = list(zip(result.items, result.scores, strict=True))[:5]
        return "; ".join(f"{item} ({score:.3f})" for item, score in best) or "no item"
    if isinstance(result, SelectionResult):
        return ", ".join(str(index) for index in result.indices) or "none"
    return "no result"


def show(reply: Reply, files: dict[int, list[Path]], console: Console) -> None:
    """Print a reply, its calls with their results and files, and what went wrong."""
    console.print(Text(reply.text or "(no text)", style="bold" if reply.text else "dim"))
    if reply.calls:
        table = Table("", "call", "prompt", "grounding", "result", "files")
        for index, (call, result) in enumerate(zip(reply.calls, reply.results, strict=True)):
            table.add_row(
                str(index), *(Text(cell, overflow="fold") for cell in _cells(call, result, files.get(index, [])))
            )
        console.print(table)
    for index, result in enumerate(reply.results):
        for note in result.notes if result is not None else ():
            console.print(Text(f"call {index} ({reply.calls[index].task}): {note}", style="yellow"))
    for error in reply.errors:
        what = f"call {error.call_index} ({error.task})" if isinstance(error, HeadError) else error.kind
        console.print(Text(f"{what}: {error.message}", style="yellow"))
    if reply.finish_reason == "length":
        console.print(Text("the reply was cut at --max-new-tokens", style="yellow"))
    console.print(Text(reply.raw_text, style="dim"))


def _cells(call: Call, result: Result | None, files: Sequence[Path]) -> tuple[str, ...]:
    groundings = "; ".join(describe_grounding(item) for item in call.groundings)
    return call.task, call.prompt, groundings, describe_result(result), "\n".join(str(path) for path in files)


if __name__ == "__main__":
    sys.exit(main())
