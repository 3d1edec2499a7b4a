"""What a session is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from torch import Tensor

from data.media import RawMedia, Video
from data.records import Message, Part, Record
from inference.decoding import FinishReason
from inference.reading.reader import Loop
from layers.calls import Call, Result
from layers.media import Audio, Graph
from routers.parser import ParseError


@dataclass(frozen=True)
class Conversation:
    """Turns that end with the one to answer, and their media.

    Args:
        messages: The turns; an answer is generated after the last one.
        media: Name -> decoded media: an image (3, H, W) uint8, :class:`layers.media.Audio`,
            :class:`layers.media.Graph` or :class:`data.media.Video`.
        written: Index of an assistant turn -> the tokens that the model wrote there; they stand instead of its content,
            so that what a session has read of them serves again.
        episode: Names what stateful heads remember together; conversations of one episode are asked one by one.
    """

    messages: Sequence[Message]
    media: Mapping[str, RawMedia] = field(default_factory=dict)
    written: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    episode: str = ""

    @classmethod
    def ask(
        cls,
        question: str = "",
        *,
        images: Sequence[Tensor] = (),
        audio: Sequence[Audio] = (),
        graphs: Sequence[Graph] = (),
        videos: Sequence[Video] = (),
    ) -> Conversation:
        """One user turn: the media, then the question.

        Args:
            question: May be empty where audio asks.
            images: (3, H, W) uint8 RGB each.
            audio: Clips.
            graphs: Graphs.
            videos: Videos, of which the model sees a few frames.

        Raises:
            ValueError: If there is neither a question nor audio.
        """
        return cls(())._asked(question, {"image": images, "video": videos, "audio": audio, "graph": graphs})

    def then(
        self,
        reply: Reply,
        question: str = "",
        *,
        images: Sequence[Tensor] = (),
        audio: Sequence[Audio] = (),
        graphs: Sequence[Graph] = (),
        videos: Sequence[Video] = (),
    ) -> Conversation:
        """The conversation as it goes on after a reply to it.

        Args:
            reply: What was answered; its tokens are kept as they are.
            question: The next one, as in :meth:`ask`.
            images: That come with it.
            audio: Likewise.
            graphs: Likewise.
            videos: Likewise.
        """
        written = {**self.written, len(self.messages): reply.token_ids}
        answered = Conversation((*self.messages, reply.message), self.media, written)
        return answered._asked(question, {"image": images, "video": videos, "audio": audio, "graph": graphs})

    def _asked(self, question: str, given: Mapping[str, Sequence[RawMedia]]) -> Conversation:
        if not question.strip() and not given["audio"]:
            raise ValueError("expected a question, or audio that asks one, got neither")
        parts: list[Part] = []
        media = dict(self.media)
        for kind, items in given.items():
            numbers = (number for number in count() if f"{kind}{number}" not in self.media)
            for number, item in zip(numbers, items, strict=False):
                media[f"{kind}{number}"] = item
                parts.append(Part(type=kind, media=f"{kind}{number}"))
        if question.strip():
            parts.append(Part(type="text", text=question.strip()))
        return Conversation((*self.messages, Message("user", tuple(parts))), media, self.written)

    @classmethod
    def from_record(cls, record: Record, media: Mapping[str, RawMedia]) -> Conversation:
        """The turns of a record before its last assistant turn, which is the reference.

        Raises:
            ValueError: If nothing stands before that turn.
        """
        turns = list(record.messages)
        while turns and turns[-1].role == "assistant":
            turns.pop()
        if not turns:
            raise ValueError(f"record '{record.key}': expected a user turn before the answer, got none")
        used = {part.media for turn in turns for part in turn.content if part.media}
        return cls(tuple(turns), {name: media[name] for name in record.media if name in used})


FailureCause = Literal["refused", "not_loaded", "raised", "out_of_memory"]


@dataclass(frozen=True)
class HeadError:
    """A call that its head could not answer; the reply's text and other calls are untouched.

    Args:
        call_index: Which call of the reply.
        task: Its task.
        message: What was expected and what was given, or what was raised.
        cause: ``refused``: the call does not fit (a ``ValueError``); ``not_loaded``: the head is not here, or its
            expert cannot be loaded (an ``ExpertError`` or an ``ImportError``); ``raised``: the head or its expert
            failed; ``out_of_memory``: there was no memory for it, even alone.
    """

    call_index: int
    task: str
    message: str
    kind: str = "head"
    cause: FailureCause = "refused"


@dataclass(frozen=True)
class Reply:
    """An answer.

    Args:
        text: What the model said, without its calls; malformed calls are left in it.
        calls: In order; regions in original pixels, time spans in seconds.
        results: One per call; None where ``errors`` holds a :class:`HeadError` for it.
        errors: Malformed calls, calls of tasks that the media do not allow, calls that a head refused.
        token_ids: The generated tokens, without the one that ended the turn.
        raw_text: Those tokens as text, control tokens included.
        finish_reason: "stop" if the model ended its turn, "length" if it was cut.
        timings: Seconds per phase, an equal share of the batch's: ``render``, ``encode``, ``prefill``, ``decode``,
            ``heads``.
        message: The turn as a record holds it: text and calls, in original units; malformed calls are text.
        prompt_ids: The tokens that the model read.
        log_probability: How likely the model found its reply; None unless the session was told to add that up.
        loop: Which decode loop wrote it, "fused" or "generic"; "" where none of ours did.
    """

    text: str
    calls: tuple[Call, ...]
    results: tuple[Result | None, ...]
    errors: tuple[ParseError | HeadError, ...]
    token_ids: tuple[int, ...]
    raw_text: str
    finish_reason: FinishReason
    timings: Mapping[str, float]
    message: Message = field(default_factory=lambda: Message("assistant", ()))
    prompt_ids: tuple[int, ...] = ()
    log_probability: float | None = None
    loop: Loop | Literal[""] = ""
