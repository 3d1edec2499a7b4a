"""What happens while replies are written, as a listener is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from inference.conversation import HeadError, Reply
from layers.calls import Call, Result


@dataclass(frozen=True)
class TextWritten:
    """A reply's text has grown; what stands inside of a call comes only if the call turns out malformed.

    Args:
        index: Which conversation.
        text: What is new.
    """

    index: int
    text: str


@dataclass(frozen=True)
class CallWritten:
    """A call is complete, and its head begins.

    Args:
        index: Which conversation.
        call_index: Which call of the reply.
        call: In original units.
    """

    index: int
    call_index: int
    call: Call


@dataclass(frozen=True)
class CallAnswered:
    """A head has answered, or failed.

    Args:
        index: Which conversation.
        call_index: Which call of the reply.
        result: In original units; None if it failed.
        error: Why it failed.
    """

    index: int
    call_index: int
    result: Result | None
    error: HeadError | None


@dataclass(frozen=True)
class ReplyEnded:
    """A reply is complete, its calls are answered.

    Args:
        index: Which conversation.
        reply: The reply.
    """

    index: int
    reply: Reply


Event = TextWritten | CallWritten | CallAnswered | ReplyEnded
Listener = Callable[[Event], None]
