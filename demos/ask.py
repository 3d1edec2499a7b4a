"""Ask a trained model: ``python -m demos.ask --checkpoint DIR [--image F] [--audio F] [--graph F] ... "question"``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from demos.describe import describe_call, describe_result
from demos.results import ResultWriter
from heads.experts.expert_head import share_experts
from heads.experts.pool import ExpertPool
from inference.conversation import Conversation, HeadError, Reply
from inference.events import CallAnswered, CallWritten, Event, TextWritten
from inference.files import read_audio, read_graph, read_image, read_video
from inference.session import Session

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
        told = Told(Console(), ResultWriter(conversation, Path(options.out), session.plan.max_frames))
        (reply,) = session.generate([conversation], listener=told)
        told.end(reply)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"ask: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _parameter(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        raise ValueError(f"--parameter: expected NAME=NUMBER, got '{text}'") from None


class Told:
    """Prints a reply while it is written: its text as it comes, each call, and each result when its head has answered.

    Args:
        console: Where it goes.
        writer: Writes the results as files.
    """

    def __init__(self, console: Console, writer: ResultWriter) -> None:
        self.console, self.writer = console, writer
        self._is_within_line = False

    def __call__(self, event: Event) -> None:
        """Take what happens."""
        if isinstance(event, TextWritten):
            self.console.print(Text(event.text, style="bold"), end="", soft_wrap=True)
            self._is_within_line = not event.text.endswith("\n")
        elif isinstance(event, CallWritten):
            self._line(f"[{event.call_index}] {describe_call(event.call)}", "cyan")
        elif isinstance(event, CallAnswered):
            files = self.writer.add(event.result)
            if event.error is not None:
                self._line(f"    {event.error.cause.replace('_', ' ')}: {event.error.message}", "yellow")
            if event.result is not None:
                self._line("  ".join(["    " + describe_result(event.result), *map(str, files)]))
                for note in event.result.notes:
                    self._line(f"    {note}", "yellow")

    def end(self, reply: Reply) -> None:
        """Write the reply to its file, and print what went wrong with it as a whole."""
        self.writer.finish(reply)
        if not reply.text and not reply.calls:
            self._line("(no text)", "dim")
        for error in reply.errors:
            if not isinstance(error, HeadError):  # those stand by their calls
                self._line(f"{error.kind}: {error.message}", "yellow")
        if reply.finish_reason == "length":
            self._line("the reply was cut at --max-new-tokens", "yellow")
        self._line(reply.raw_text, "dim")

    def _line(self, words: str, style: str = "") -> None:
        if self._is_within_line:
            self.console.print()
            self._is_within_line = False
        self.console.print(Text(words, style=style), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
