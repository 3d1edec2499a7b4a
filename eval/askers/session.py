"""A checkpoint of ours, asked through a session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml

from eval.askers.asker import Asker, Question
from eval.askers.given import ask_given
from eval.benchmarks.benchmark import Benchmark
from eval.controls import encoders_zeroed, random_generalist, zeroed, zeroed_for_heads
from eval.prediction import Prediction, predicted
from inference.conversation import Conversation, Reply
from inference.session import Session
from models.checkpoint import CONFIG, MANIFEST, TASKS, file_sha256
from models.generalist import Generalist
from routers.router import MarkerRouter

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MAX_NEW_TOKENS = 96


@dataclass(frozen=True)
class Decoding:
    """How a model is asked.

    Args:
        max_new_tokens: Longer replies are cut and count as failures; the benchmark's own limit, or 96, by default.
        batch_size: Questions decoded together; answers do not depend on it in fp32.
        dtype: Of the parameters, "float32" or "bfloat16".
        device: Such as "cpu" or "cuda"; the GPU if there is one by default.
        constrained: Decode under the grammar; never for a reported routing figure.
        confidence: Log how likely the model found each reply, for calibration.
        markers: Let the task tokens that the model writes route, whatever router the checkpoint holds.
        fused: Decode with fused layers where the language model allows it.
    """

    max_new_tokens: int | None = None
    batch_size: int = 32
    dtype: str = "float32"
    device: str | None = None
    constrained: bool = False
    confidence: bool = False
    markers: bool = False
    fused: bool = True

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {sorted(DTYPES)}, got {self.dtype!r}")
        for name in ("max_new_tokens", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")

    @property
    def place(self) -> str:
        """The device."""
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    def tokens_for(self, benchmark: Benchmark) -> int:
        """The limit of a benchmark's replies."""
        return int(self.max_new_tokens or benchmark.generation.get("max_new_tokens", MAX_NEW_TOKENS))


class SessionAsker(Asker):
    """Asks a checkpoint, or under a control what is left of it.

    Args:
        checkpoint: Its directory.
        decoding: How.
        control: One of :data:`eval.controls.PREDICTED_CONTROLS`, or None.

    Raises:
        ValueError: If there is no checkpoint.
    """

    controls = frozenset({"blind", "shuffled", "zeroed", "random_weights"})

    def __init__(self, checkpoint: str | Path, decoding: Decoding, control: str | None = None) -> None:
        self.checkpoint, self.decoding, self.control = Path(checkpoint), decoding, control
        if not (self.checkpoint / MANIFEST).is_file():
            raise ValueError(f"expected a checkpoint directory with {MANIFEST}, got '{checkpoint}'")

    @property
    def identity(self) -> Mapping[str, Any]:
        """Hash of the checkpoint's manifest, which holds the hashes of its files, and how it is decoded."""
        session = {"constrained": self.decoding.constrained, "dtype": self.decoding.dtype, "decoding": "greedy"}
        if not self.decoding.markers and (router := _router_of(self.checkpoint)):
            session["router"] = router
        return {"checkpoint_sha256": file_sha256(self.checkpoint / MANIFEST), "session": session}

    @property
    def info(self) -> Mapping[str, Any]:
        """Where and how fast."""
        return {
            "checkpoint": str(self.checkpoint),
            "device": self.decoding.place,
            "batch_size": self.decoding.batch_size,
        }

    @cached_property
    def session(self) -> Session:
        """The session, opened when it is first asked for."""
        device = self.decoding.place
        if self.control == "random_weights":
            generalist = random_generalist(self.checkpoint).to(device)
        else:
            generalist = Generalist.from_pretrained(str(self.checkpoint), device)
        generalist = generalist.to(DTYPES[self.decoding.dtype])
        if self.decoding.markers:
            generalist.router = MarkerRouter(generalist.vocabulary)
        return Session(
            generalist,
            constrained=self.decoding.constrained,
            batch_size=self.decoding.batch_size,
            eager_calls=False,  # nobody watches, and heads are faster in larger batches
            log_probabilities=self.decoding.confidence,
            fused=self.decoding.fused,
        )

    def refuses(self, benchmark: Benchmark) -> str:
        """Where a benchmark gives a call of a task that the checkpoint does not have."""
        table = yaml.safe_load((self.checkpoint / TASKS).read_text())
        names = [str(task["name"]) for task in table["tasks"]]
        if not benchmark.given or benchmark.call in names:
            return ""
        return f"expected a checkpoint with the task '{benchmark.call}', got one with {', '.join(names)}"

    def settings(self, benchmark: Benchmark) -> Mapping[str, Any]:
        """Greedy decoding up to a limit; nothing where the call is given."""
        if benchmark.given:
            return {"decoding": "given call"}
        given = {"decoding": "greedy", "max_new_tokens": self.decoding.tokens_for(benchmark)}
        if self.decoding.constrained:
            given["constrained"] = True
        if self._opening(benchmark) is not None:
            given["opened_with"] = self._opening(benchmark)
        return given

    def ask(self, benchmark: Benchmark, questions: Sequence[Question]) -> list[Prediction | str]:
        """Replies as rows; where a benchmark gives the call, what its head answers."""
        if benchmark.given:
            with encoders_zeroed(self.session.generalist) if self.control == "zeroed" else nullcontext():
                return ask_given(self.session, benchmark, questions)
        self.session.options = replace(self.session.options, max_new_tokens=self.decoding.tokens_for(benchmark))
        replies = self._replies([item.conversation for item in questions], self._opening(benchmark))
        rows: list[Prediction | str] = []
        for item, reply in zip(questions, replies, strict=True):
            if isinstance(reply, str):
                rows.append(reply)
            else:
                row = predicted(benchmark.name, item.sample, item.conversation, item.media, reply)
                rows.append(replace(row, rendered=self.session.prompt_text(reply)))
        return rows

    def _opening(self, benchmark: Benchmark) -> str | None:
        """With its features zeroed a model may rightly make no call, which would say nothing about the features."""
        return benchmark.call if self.control == "zeroed" and not benchmark.given else None

    def _replies(self, conversations: Sequence[Conversation], opening: str | None) -> list[Reply | str]:
        """Replies; what cannot be rendered gives its error message, and a batch too large for memory is halved."""
        zero = self.control == "zeroed"
        try:
            return [
                *self.session.generate(
                    conversations,
                    zeroed if zero else None,
                    head_media_transform=zeroed_for_heads if zero else None,
                    opening=opening,
                )
            ]
        except (ValueError, torch.OutOfMemoryError) as error:
            if len(conversations) == 1:
                return [str(error)]
        half = (len(conversations) + 1) // 2
        return self._replies(conversations[:half], opening) + self._replies(conversations[half:], opening)


def _router_of(checkpoint: Path) -> str | None:
    """Name of the class of a checkpoint's router, where it holds one."""
    router = yaml.safe_load((checkpoint / CONFIG).read_text()).get("router")
    return router["class_path"].rpartition(".")[2] if router else None
