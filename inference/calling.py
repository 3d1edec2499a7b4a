"""Head calls at inference: contexts from the encoded media, rounds over the calls of a batch, original units."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from data.media.results import kind_made, made_by
from data.render.made import carried_over
from heads.experts.files import ExpertError
from inference.conversation import FailureCause, HeadError
from layers.calls import Call, Grounding, HeadContext, MediaFeatures, NodeRef, Region, Result, ResultRef, TimeSpan
from layers.head import Head
from routers.tasks import TaskSpec, TaskTable

See = Callable[[Result], list[MediaFeatures]]
HeadStates = Callable[[Sequence[Call], Tensor, Tensor], Tensor | None]
_LOG = logging.getLogger(__name__)


@dataclass
class PendingReply:
    """A reply whose calls are being answered.

    Args:
        media: The conversation's media.
        calls: As parsed so far: regions and spans are fractions of the model's input.
        token_ids: The reply's tokens so far.
        hidden_states: The state (d,) at each of them.
        results: One per call answered so far, None where it failed.
        errors: What failed.
        episode: The conversation's.
        made: Index of a call -> what heads see of the image, sound or video that it made, if a later call is about it.
    """

    media: list[MediaFeatures]
    calls: list[Call] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    hidden_states: list[Tensor] = field(default_factory=list)
    results: list[Result | None] = field(default_factory=list)
    errors: list[HeadError] = field(default_factory=list)
    episode: str = ""
    made: dict[int, list[MediaFeatures]] = field(default_factory=dict)

    @property
    def next_call(self) -> Call | None:
        """The first call without an answer."""
        return self.calls[len(self.results)] if len(self.results) < len(self.calls) else None

    def states(self, call: Call, head_states: HeadStates) -> Tensor | None:
        """What a call hands to its head, from the tokens around it."""
        start, end = call.token_span
        ids = torch.tensor(self.token_ids[start:end], device=self.hidden_states[0].device)
        return head_states([call.shifted(-start)], torch.stack(self.hidden_states[start:end]), ids)


class HeadCaller:
    """Answers calls with expert heads.

    Args:
        heads: Head name -> head; one that is not there is an error of the call that needs it.
        tasks: Says which head answers a task and whether it reads states.
        parameters: Scalar conditions handed to every head.
        head_states: What calls hand to their head, such as :meth:`models.generalist.Generalist.head_states`.
        see: What heads see of a medium that a call made, such as :meth:`inference.encoding.PromptReader.see`.
    """

    def __init__(
        self,
        heads: nn.ModuleDict,
        tasks: TaskTable,
        parameters: Mapping[str, float],
        head_states: HeadStates,
        see: See,
    ) -> None:
        self._heads, self._tasks = heads, tasks
        self._parameters, self._head_states, self._see = parameters, head_states, see

    def answer(self, pending: Sequence[PendingReply]) -> None:
        """Answer every call of a batch of replies that has no answer yet, in place.

        Round by round the next call of each reply, batched per head, so that a later call can refer to an earlier
        result.  Whatever a head raises, running out of memory included, costs the call that caused it and no other.
        """
        while waiting := [reply for reply in pending if reply.next_call is not None]:
            groups: dict[tuple[str, bool], list[PendingReply]] = {}
            for reply in waiting:
                call = reply.next_call
                assert call is not None
                spec = self._tasks[call.task]
                if spec.head not in self._heads:
                    known = sorted(self._heads)
                    _fail(reply, f"task '{call.task}' needs head '{spec.head}', loaded are {known}", "not_loaded")
                elif refusal := _refusal(call, reply, self._heads[spec.head]) or _unmet(spec, call, reply):
                    _fail(reply, refusal)
                else:
                    groups.setdefault((spec.head, bool(call.state_positions)), []).append(reply)
            for (name, reads_states), replies in groups.items():
                self._answer_round(name, reads_states, replies)

    def _answer_round(self, name: str, reads_states: bool, replies: Sequence[PendingReply]) -> None:
        results, error = self._try(name, reads_states, replies)
        if error is None:
            for reply, result in zip(replies, results, strict=True):
                call = reply.next_call
                assert call is not None
                reply.results.append(replace(result, call=to_original(call, reply.media)))
        elif len(replies) == 1:
            _fail(replies[0], *error)
        else:
            for reply in replies:
                self._answer_round(name, reads_states, [reply])

    def _try(
        self, name: str, reads_states: bool, replies: Sequence[PendingReply]
    ) -> tuple[list[Result], tuple[str, FailureCause] | None]:
        """The results, or why there are none.

        The exception does not leave: it would keep alive the tensors of the frames that it passed, and what is tried
        next may need their memory.
        """
        try:
            head = self._heads[name]
            assert isinstance(head, Head)
            contexts = [self._context(reply) for reply in replies]
            states, lengths = None, [0] * len(replies)
            if reads_states:
                rows = [
                    reply.states(context.call, self._head_states)
                    for reply, context in zip(replies, contexts, strict=True)
                ]
                states = torch.cat([row for row in rows if row is not None])
                lengths = [len(context.call.state_positions) for context in contexts]
            results = head.decode(head(states, lengths, contexts), contexts)
            if len(results) != len(replies):
                raise RuntimeError(f"head '{name}': expected {len(replies)} results, got {len(results)}")
            wrong = [type(item).__name__ for item in results if not isinstance(item, Result)]
            if wrong:
                raise RuntimeError(f"head '{name}': expected a result for each call, got a {wrong[0]}")
            return results, None
        except (ExpertError, ImportError) as error:  # an expert that loads when it is called, or its extra
            return [], (str(error), "not_loaded")
        except ValueError as error:
            return [], (str(error), "refused")
        except (MemoryError, torch.OutOfMemoryError) as error:
            failure: tuple[str, FailureCause] = (f"no memory to answer it: {error}".removesuffix(": "), "out_of_memory")
        except Exception as error:  # an expert is a program of its own: its end must not be that of the reply
            if len(replies) == 1:  # a batch is tried again, call by call
                failed = replies[0].next_call
                _LOG.exception("head '%s' failed on a call of '%s'", name, failed.task if failed else "")
            return [], (f"{type(error).__name__}: {error}", "raised")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return [], failure

    def _context(self, reply: PendingReply) -> HeadContext:
        call = reply.next_call
        assert call is not None
        referred = {item.call_index for item in call.groundings if isinstance(item, ResultRef)}
        earlier = [result if index in referred else None for index, result in enumerate(reply.results)]
        made: list[MediaFeatures] = []
        for index in made_by(call, reply.results):
            result = reply.results[index]
            assert result is not None
            if index not in reply.made:
                reply.made[index] = self._see(result)
            made += reply.made[index]
        seen, drawn = ([item.layout for item in media if item.kind == "image"] for media in (reply.media, made))
        call = carried_over(call, to_original(call, reply.media), seen, drawn)
        return HeadContext(call, [*reply.media, *made], earlier, dict(self._parameters), reply.episode)


def _refusal(call: Call, reply: PendingReply, head: nn.Module) -> str | None:
    if refusal := _unanswered_reference(call, reply):
        return refusal
    is_about_made = bool(made_by(call, reply.results))
    latest = {item.kind: item.layout for item in reply.media}
    for written, grounding in zip(call.groundings, to_original(call, reply.media).groundings, strict=True):
        if isinstance(grounding, Region):
            if "image" not in latest:
                if is_about_made or (isinstance(head, Head) and head.draws_layouts):
                    continue
                return "a region needs an image, the conversation has none"
            if _lies_outside(grounding, latest["image"].original_size):
                return f"region {written}: expected one that meets the image, it lies outside"
        elif isinstance(grounding, TimeSpan) and "audio" not in latest:
            return "a time span needs audio, the conversation has none"
        elif isinstance(grounding, NodeRef):
            nodes = latest["graph"].original_size[0] if "graph" in latest else 0
            if grounding.index >= nodes:
                return f"node {grounding.index}: expected one of the {nodes} nodes of the latest graph"
    return None


def _unanswered_reference(call: Call, reply: PendingReply) -> str | None:
    turn = len(reply.results)
    for index in (item.call_index for item in call.groundings if isinstance(item, ResultRef)):
        if index >= turn:
            return f"refers to the result of call {index}, expected an earlier call than {turn}"
        if reply.results[index] is None:
            return f"refers to the result of call {index}, which failed"
    return None


def _unmet(spec: TaskSpec, call: Call, reply: PendingReply) -> str | None:
    """Why neither the conversation nor what the call refers to is what its task needs."""
    kinds = [item.kind for item in reply.media]
    kinds += [kind_made(reply.results[index]) for index in made_by(call, reply.results)]
    if spec.is_met(kinds):
        return None
    return f"task '{spec.name}' needs the media {list(spec.needs)}, the conversation and what it refers to are {kinds}"


def _lies_outside(region: Region, size: Sequence[int]) -> bool:
    """Whether a box in original pixels, clipped to the raster, has nothing of it: it lay in the padding."""
    x1, y1, x2, y2 = region.box_xyxy
    return x2 <= 0 or y2 <= 0 or x1 >= size[0] or y1 >= size[1]


def _fail(reply: PendingReply, message: str, cause: FailureCause = "refused") -> None:
    turn = len(reply.results)
    reply.results.append(None)
    reply.errors.append(HeadError(turn, reply.calls[turn].task, message, cause=cause))


def to_original(call: Call, media: Sequence[MediaFeatures]) -> Call:
    """The call with regions in original pixels of the latest image and time spans in seconds of the latest clip.

    Without an image, regions are fractions of an empty canvas. Time spans without a clip stay as they are;
    :class:`HeadCaller` refuses such calls.
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
        elif isinstance(grounding, Region):
            mapped.append(replace(grounding, canvas=(1.0, 1.0)))
        elif isinstance(grounding, TimeSpan) and clips and clips[-1] is not None:
            mapped.append(TimeSpan(grounding.start * clips[-1], grounding.end * clips[-1]))
        else:
            mapped.append(grounding)
    return replace(call, groundings=tuple(mapped))
