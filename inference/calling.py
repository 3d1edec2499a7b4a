"""Head calls at inference: contexts from the encoded media, rounds over the calls of a batch, original units."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from inference.conversation import FailureCause, HeadError
from layers.calls import Call, Grounding, HeadContext, MediaFeatures, Region, Result, ResultRef, TimeSpan
from layers.head import Head
from routers.tasks import TaskTable

_LOG = logging.getLogger(__name__)
HeadStates = Callable[[Sequence[Call], Tensor, Tensor], Tensor | None]


@dataclass
class PendingReply:
    """A reply whose calls are being answered.

    Args:
        calls: As parsed: regions and spans are fractions of the model's input.
        token_ids: (n,) the reply's tokens.
        hidden_states: (n, d) states at them.
        media: The conversation's media.
        results: One per call answered so far, None where it failed.
        errors: What failed.
    """

    calls: Sequence[Call]
    token_ids: Tensor
    hidden_states: Tensor
    media: list[MediaFeatures]
    results: list[Result | None] = field(default_factory=list)
    errors: list[HeadError] = field(default_factory=list)


def answer_calls(
    pending: Sequence[PendingReply],
    heads: Mapping[str, Head],
    tasks: TaskTable,
    parameters: Mapping[str, float],
    head_states: HeadStates,
) -> None:
    """Answer every call of a batch of replies, in place.

    Round i takes the i-th call of each reply, batched per head, so that a later call can refer to an earlier
    result.  Whatever a head raises, running out of memory included, costs the call that caused it and no other.

    Args:
        pending: Replies with parsed calls and no results.
        heads: Head name -> head.
        tasks: Says which head answers a task and whether it reads states.
        parameters: Scalar conditions handed to every head.
        head_states: What calls hand to their head, such as :meth:`models.generalist.Generalist.head_states`.
    """
    for turn in range(max((len(reply.calls) for reply in pending), default=0)):
        groups: dict[tuple[str, bool], list[PendingReply]] = {}
        for reply in pending:
            if turn >= len(reply.calls):
                continue
            call = reply.calls[turn]
            refusal = _refusal(call, turn, reply)
            if refusal:
                _fail(reply, refusal)
                continue
            spec = tasks[call.task]
            groups.setdefault((spec.head, spec.link in ("hidden", "queries")), []).append(reply)
        for (name, reads_states), replies in groups.items():
            _answer_round(heads[name], head_states if reads_states else None, replies, turn, parameters)


def _answer_round(
    head: Head,
    head_states: HeadStates | None,
    replies: Sequence[PendingReply],
    turn: int,
    parameters: Mapping[str, float],
) -> None:
    contexts = [_context(reply, turn, parameters) for reply in replies]
    states, lengths = None, [0] * len(replies)
    if head_states is not None:
        calls = [reply.calls[turn] for reply in replies]
        rows = [
            head_states([call], reply.hidden_states, reply.token_ids)
            for call, reply in zip(calls, replies, strict=True)
        ]
        states = torch.cat([row for row in rows if row is not None])
        lengths = [len(call.state_positions) for call in calls]
    results, failure = _attempt(head, states, lengths, contexts)
    if failure is not None and len(replies) == 1:
        _fail(replies[0], *failure)
        return
    if failure is not None:
        for reply in replies:
            _answer_round(head, head_states, [reply], turn, parameters)
        return
    for reply, result in zip(replies, results, strict=True):
        reply.results.append(replace(result, call=to_original(reply.calls[turn], reply.media)))


def _attempt(
    head: Head, states: Tensor | None, lengths: Sequence[int], contexts: Sequence[HeadContext]
) -> tuple[list[Result], tuple[str, FailureCause] | None]:
    """The results, or why there are none.

    The exception does not leave: it would keep alive the tensors of the frames that it passed, and what is tried next
    may need their memory.
    """
    try:
        return head.decode(head(states, lengths, contexts), contexts), None
    except ValueError as error:
        return [], (str(error), "refused")
    except (MemoryError, torch.OutOfMemoryError) as error:
        message = f"no memory to answer it: {error}" if str(error) else "no memory to answer it"
        failure: tuple[str, FailureCause] = (message, "out_of_memory")
    except Exception as error:
        if len(contexts) == 1:  # a batch is tried again, call by call
            _LOG.exception("%s failed on a call of '%s'", type(head).__name__, contexts[0].call.task)
        return [], (f"{type(error).__name__}: {error}", "raised")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return [], failure


def _context(reply: PendingReply, turn: int, parameters: Mapping[str, float]) -> HeadContext:
    call = reply.calls[turn]
    referred = {item.call_index for item in call.groundings if isinstance(item, ResultRef)}
    earlier = [result if index in referred else None for index, result in enumerate(reply.results[:turn])]
    return HeadContext(call, reply.media, earlier, dict(parameters))


def _refusal(call: Call, turn: int, reply: PendingReply) -> str | None:
    kinds = [item.kind for item in reply.media]
    for grounding in call.groundings:
        if isinstance(grounding, Region) and "image" not in kinds:
            return "a region needs an image, the conversation has none"
        if isinstance(grounding, TimeSpan) and "audio" not in kinds:
            return "a time span needs audio, the conversation has none"
        if isinstance(grounding, ResultRef):
            index = grounding.call_index
            if index >= turn:
                return f"refers to the result of call {index}, expected an earlier call than {turn}"
            if reply.results[index] is None:
                return f"refers to the result of call {index}, which failed"
    return None


def _fail(reply: PendingReply, message: str, cause: FailureCause = "refused") -> None:
    turn = len(reply.results)
    reply.results.append(None)
    reply.errors.append(HeadError(turn, reply.calls[turn].task, message, cause=cause))


def to_original(call: Call, media: Sequence[MediaFeatures]) -> Call:
    """The call with regions in original pixels of the latest image and time spans in seconds of the latest clip.

    Groundings whose media the conversation lacks stay as they are; :func:`answer_calls` refuses such calls.
    """
    images = [item.layout.transform for item in media if item.kind == "image"]
    clips = [item.layout.seconds for item in media if item.kind == "audio"]
    mapped: list[Grounding] = []
    for grounding in call.groundings:
        if isinstance(grounding, Region) and images and images[-1] is not None:
            width, height = images[-1].input_size
            x1, y1, x2, y2 = grounding.box_xyxy
            box = images[-1].invert_boxes([(x1 * width, y1 * height, x2 * width, y2 * height)])[0].tolist()
            mapped.append(Region((box[0], box[1], box[2], box[3])))
        elif isinstance(grounding, TimeSpan) and clips and clips[-1] is not None:
            mapped.append(TimeSpan(grounding.start * clips[-1], grounding.end * clips[-1]))
        else:
            mapped.append(grounding)
    return replace(call, groundings=tuple(mapped))
