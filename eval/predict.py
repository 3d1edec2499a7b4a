"""Ask a checkpoint the questions of benchmarks, free-running, and log what it says."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from data.media import MediaError, decode_media
from data.shards import Sample
from eval.benchmarks.benchmark import Benchmark
from eval.controls import (
    PREDICTED_CONTROLS,
    blind,
    media_donors,
    random_generalist,
    swap_media,
    zeroed,
    zeroed_for_heads,
)
from eval.log import Header, PredictionLog
from eval.prediction import Prediction, predicted
from inference.conversation import Conversation, Reply
from inference.session import FeatureTransform, Session
from models.checkpoint import MANIFEST, file_sha256
from models.generalist import Generalist

VERSIONED = ("torch", "transformers", "timm", "torch_geometric", "diffusers", "numpy")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_BATCHES_PER_WRITE = 4


@dataclass(frozen=True)
class Options:
    """How to ask.

    Args:
        control: One of :data:`eval.controls.PREDICTED_CONTROLS`, or None.
        constrained: Decode under the grammar; never for a reported routing figure.
        limit: Ask only the first so many samples of each benchmark; the score says how many are missing.
        batch_size: Conversations decoded together; predictions do not depend on it in fp32.
        max_new_tokens: Longer replies are cut and count as failures.
        dtype: Of the parameters, "float32" or "bfloat16".
        device: Such as "cpu" or "cuda"; the GPU if there is one by default.
    """

    control: str | None = None
    constrained: bool = False
    limit: int | None = None
    batch_size: int = 32
    max_new_tokens: int = 96
    dtype: str = "float32"
    device: str | None = None

    def __post_init__(self) -> None:
        if self.control is not None and self.control not in PREDICTED_CONTROLS:
            raise ValueError(f"control: expected one of {PREDICTED_CONTROLS}, got {self.control!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {sorted(DTYPES)}, got {self.dtype!r}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit: expected at least 1, got {self.limit}")


class Asker:
    """A session with a control built in.

    Args:
        session: Asks the model.
        control: Name of the control, or None.
    """

    def __init__(self, session: Session, control: str | None = None) -> None:
        self.session = session
        self.control = control

    @property
    def _feature_transform(self) -> FeatureTransform | None:
        return zeroed if self.control == "zeroed" else None

    def conversation(self, sample: Sample) -> tuple[Conversation, dict[str, bytes]]:
        """What is asked, and the encoded media given.

        Raises:
            MediaError: If a media member does not decode.
        """
        files = {name: sample.members[item.file] for name, item in sample.record.media.items()}
        media = {name: decode_media(sample.record.media[name], data) for name, data in files.items()}
        conversation = Conversation.from_record(sample.record, media)
        if self.control == "blind":
            conversation = blind(conversation)
        return conversation, {name: data for name, data in files.items() if name in conversation.media}

    def ask(self, conversations: Sequence[Conversation], call: str | None = None) -> list[Reply | str]:
        """Replies; what cannot be rendered gives its error message, and costs nobody else's reply.

        Args:
            conversations: What to ask.
            call: The call that answers all of them, if there is one. With its features zeroed the model may rightly
                make none, and the control would say nothing about the features: its replies begin with the call.
        """
        if not conversations:
            return []
        zero = self.control == "zeroed"
        try:
            return [
                *self.session.generate(
                    conversations,
                    self._feature_transform,
                    head_media_transform=zeroed_for_heads if zero else None,
                    opening=call if zero else None,
                )
            ]
        except ValueError as error:
            if len(conversations) == 1:
                return [str(error)]
            return [answer for item in conversations for answer in self.ask([item], call)]


def predict(
    checkpoint: str | Path,
    benchmarks: Mapping[str, Benchmark],
    out: str | Path,
    options: Options,
    console: Console | None = None,
) -> int:
    """Write a prediction log, or continue one.

    Args:
        checkpoint: A checkpoint directory.
        benchmarks: What to ask.
        out: The log.
        options: How to ask.
        console: For messages and the progress bar; standard error by default.

    Returns:
        How many samples could not be asked (each is named on the console).

    Raises:
        ValueError: If the checkpoint, the data or the log do not fit.
    """
    console = console or Console(stderr=True)
    kept = {}
    for name, benchmark in benchmarks.items():
        if options.control in benchmark.without:
            console.print(f"{name}: no {options.control} control: {benchmark.without[str(options.control)]}")
        else:
            kept[name] = benchmark
    if not kept:
        return 0
    samples = {name: list(benchmark.records()) for name, benchmark in kept.items()}
    header = make_header(checkpoint, kept, {name: len(own) for name, own in samples.items()}, options)
    with PredictionLog(out, header) as log:
        if log.dropped:
            console.print(f"{out}: dropped an unfinished last line of {log.dropped} bytes")
        todo = {
            name: [i for i, item in enumerate(own[: options.limit]) if (name, item.key) not in log.done]
            for name, own in samples.items()
        }
        missing = sum(map(len, todo.values()))
        if log.done:
            console.print(f"{out}: {len(log.done)} predictions are there, {missing} to go")
        if not missing:
            return 0
        asker = Asker(open_session(checkpoint, options), options.control)
        skipped = 0
        with _progress(console) as progress:
            for name, indices in todo.items():
                donors = media_donors(samples[name]) if options.control == "shuffled" else None
                task = progress.add_task(name, total=len(indices))
                step = _BATCHES_PER_WRITE * options.batch_size
                for start in range(0, len(indices), step):
                    chosen = indices[start : start + step]
                    chunk = [samples[name][i] for i in chosen]
                    given = (
                        [swap_media(chunk[n], samples[name][donors[i]]) for n, i in enumerate(chosen)]
                        if donors
                        else chunk
                    )
                    rows = ask_chunk(asker, kept[name], chunk, given, console.print)
                    log.append(rows)
                    skipped += len(chunk) - len(rows)
                    progress.advance(task, len(chunk))
    if skipped:
        console.print(f"{out}: {skipped} samples could not be asked; scores will show them as missing")
    return skipped


def ask_chunk(
    asker: Asker, benchmark: Benchmark, chunk: Sequence[Sample], given: Sequence[Sample], say: Callable[[str], Any]
) -> list[Prediction]:
    """Predictions of some samples; one that cannot be asked is named and left out.

    Args:
        asker: Asks.
        benchmark: The benchmark.
        chunk: The samples, for their references.
        given: The same samples with the media that are given.
        say: Takes messages.
    """
    ready = []
    for sample, changed in zip(chunk, given, strict=True):
        try:
            ready.append((sample, *asker.conversation(changed)))
        except MediaError as error:
            say(f"{benchmark.name} '{sample.key}': left out: {error}")
    rows = []
    replies = asker.ask([conversation for _, conversation, _ in ready], benchmark.call)
    for (sample, conversation, media), reply in zip(ready, replies, strict=True):
        if isinstance(reply, str):
            say(f"{benchmark.name} '{sample.key}': left out: {reply}")
        else:
            rows.append(predicted(benchmark.name, sample, conversation, media, reply))
    return rows


def open_session(checkpoint: str | Path, options: Options) -> Session:
    """Load a checkpoint, or its randomly initialised twin for that control."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.control == "random_weights":
        generalist = random_generalist(checkpoint).to(device)
    else:
        generalist = Generalist.from_pretrained(checkpoint, device)
    generalist = generalist.to(DTYPES[options.dtype])
    return Session(
        generalist,
        max_new_tokens=options.max_new_tokens,
        constrained=options.constrained,
        batch_size=options.batch_size,
        eager_calls=False,  # nobody watches, and heads are faster in larger batches
    )


def make_header(
    checkpoint: str | Path, benchmarks: Mapping[str, Benchmark], expected: Mapping[str, int], options: Options
) -> Header:
    """The log's first line; see :class:`eval.log.Header`.

    Raises:
        ValueError: If the checkpoint has no manifest.
    """
    manifest = Path(checkpoint) / MANIFEST
    if not manifest.is_file():
        raise ValueError(f"expected a checkpoint directory with {MANIFEST}, got '{checkpoint}'")
    session: dict[str, Any] = {
        "max_new_tokens": options.max_new_tokens,
        "constrained": options.constrained,
        "dtype": options.dtype,
        "decoding": "greedy",
    }
    if options.control == "zeroed":
        session["opened_with"] = {name: item.call for name, item in benchmarks.items() if item.call is not None}
    identity = {
        "checkpoint_sha256": file_sha256(manifest),
        "data_sha256": {name: benchmark.data_sha256 for name, benchmark in benchmarks.items()},
        "n_expected": dict(expected),
        "split": next((benchmark.split for benchmark in benchmarks.values()), "test"),
        "control": options.control,
        "session": session,
        "versions": {name: _version(name) for name in VERSIONED},
    }
    info = {
        "checkpoint": str(checkpoint),
        "data": str(next((benchmark.data for benchmark in benchmarks.values()), "")),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": options.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        "batch_size": options.batch_size,
        "python": platform.python_version(),
    }
    return Header(identity, info)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
