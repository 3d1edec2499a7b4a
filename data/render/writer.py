"""Writes a conversation as ids and labels: markup, texts, placeholders of media, and calls with their targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from data.chat import chat_text
from data.media.results import kind_made, made_by, reference_result
from data.records import Message, Part
from data.render.groundings import grounding_of
from data.render.made import carried_over, processed, stills_made
from data.render.rendered import IGNORED, Rendered, RenderedMedia, RenderedSampleCall
from data.render.shown import Layouts, taken_by
from layers.calls import Call, Result, ResultRef
from layers.head import HeadTarget
from models.adapters.prompt_gate import QUOTED
from models.plan import BatchPlan
from routers.rendering import render_call


class Writer:
    """Writes one conversation.

    Args:
        key: Key of the record.
        plan: The model's plan.
        layouts: Media name -> its kind and its encoder layouts.
    """

    def __init__(self, key: str, plan: BatchPlan, layouts: Mapping[str, Layouts]) -> None:
        self.plan, self.layouts = plan, layouts
        self.text = chat_text(plan.tokenizer)
        self.out = Rendered(key)
        self.turn: list[tuple[Call, Any]] = []  # its calls so far in original units, and their targets
        self.made: dict[int, list[int]] = {}  # what they made: places among the media

    def write(
        self,
        messages: Sequence[Message],
        targets: Mapping[str, Any],
        generation_prompt: bool,
        written: Mapping[int, Sequence[int]],
    ) -> Rendered:
        """Write all turns.

        Args:
            messages: The turns.
            targets: Decoded targets, by id.
            generation_prompt: Whether the assistant's next turn is opened.
            written: Index of a turn -> the ids that stand there instead of its content.
        """
        markup = self.text.markup([message.role for message in messages], generation_prompt)
        turns = zip(messages, markup.pieces, markup.learned, strict=False)
        for index, (message, piece, learned) in enumerate(turns):
            self._markup(piece, learned)
            self.turn, self.made = [], {}
            if index in written:
                self._append(written[index], learned=message.role == "assistant")
                continue
            for part in message.content:
                self._part(part, message.role == "assistant", targets)
        self._markup(markup.pieces[-1], markup.learned[-1])
        if self.plan.with_instructions:
            self.out.instruction = list(self.text.encode(QUOTED.format(instruction_of(messages))))
        return self.out

    def _markup(self, ids: Sequence[int], learned: int) -> None:
        self._append(ids[:learned], learned=True)
        self._append(ids[learned:], learned=False)

    def _append(self, ids: Sequence[int], learned: bool) -> None:
        self.out.input_ids.extend(ids)
        self.out.labels.extend(ids if learned else [IGNORED] * len(ids))

    def _part(self, part: Part, is_assistant: bool, targets: Mapping[str, Any]) -> None:
        if part.type == "text":
            if part.text:
                self._append(self.text.encode(part.text), learned=is_assistant)
        elif part.type == "call":
            self._call(part, targets)
        else:
            self._media(part)

    def _media(self, part: Part) -> None:
        declared, layouts = self.layouts[part.media]
        if declared != part.type:
            raise ValueError(f"media '{part.media}': expected {part.type}, got {declared}")
        kind = taken_by(declared)
        before, after = self.plan.media_marks.get(kind, ("", ""))
        self._append(self.text.mark(before), learned=False)
        for frame, layout in enumerate(layouts):
            start, count = len(self.out.input_ids), self.plan.token_rules[kind].num_tokens(layout)
            self._append([self.plan.vocabulary.media_ids[kind]] * count, learned=False)
            places = list(range(start, start + count))
            self.out.media.append(RenderedMedia(kind, part.media, {}, layout, places, frame))
        self._append(self.text.mark(after), learned=False)

    def _call(self, part: Part, targets: Mapping[str, Any]) -> None:
        if part.task not in self.plan.tasks:
            raise ValueError(f"unknown task '{part.task}': expected one of {[task.name for task in self.plan.tasks]}")
        task = self.plan.tasks[part.task]
        seen = [item for item in self.out.media if not item.made]
        kinds = [item.kind for item in seen]
        refers = any(item["type"] == "result" for item in part.groundings)
        if not task.is_met(kinds) and not refers:
            raise ValueError(f"task '{task.name}': expected the media {list(task.needs)} before it, got {kinds}")
        groundings = [grounding_of(item, seen, len(self.turn)) for item in part.groundings]
        original = Call(part.task, part.prompt, tuple(item for item, _ in groundings))
        call = replace(original, groundings=tuple(item for _, item in groundings))
        written = render_call(call, self.plan.vocabulary, self.plan.tokenizer)
        start = len(self.out.input_ids)
        self.out.input_ids.extend(written.ids)
        self.out.labels.extend(
            token if learned else IGNORED for token, learned in zip(written.ids, written.learned, strict=True)
        )
        call = replace(
            call,
            token_span=(start, len(self.out.input_ids)),
            state_positions=tuple(start + position for position in written.state_positions),
        )
        made = self._made(original)
        pictures = [self.out.media[place].layout for place in made if self.out.media[place].kind == "image"]
        call = carried_over(call, original, [item.layout for item in seen if item.kind == "image"], pictures)
        media = [place for place, item in enumerate(self.out.media) if not item.made] + made
        value = None if part.target is None else targets.get(part.target)
        target: HeadTarget = {}
        if value is not None and task.head in self.plan.target_processors:
            processor: Any = self.plan.target_processors[task.head]
            processor = processor.for_call(call) if hasattr(processor, "for_call") else processor
            kind = getattr(processor, "media_kind", "image")
            items = [self.out.media[place] for place in media]
            target = processor(value, [item.layout for item in items if item.kind == kind])
        self.out.calls.append(RenderedSampleCall(task.head, call, media, target, self._earlier_results(call)))
        self.turn.append((original, value))

    def _made(self, call: Call) -> list[int]:
        """Places among the media of those that earlier calls made and this one is about, by the record's targets."""
        places: list[int] = []
        if not any(isinstance(item, ResultRef) for item in call.groundings):
            return places
        results = [reference_result(*earlier) for earlier in self.turn]
        for index in made_by(call, results):
            if index not in self.made:
                self.made[index] = self._see(results[index], f"result of call {index}")
            places += self.made[index]
        return places

    def _see(self, result: Result, name: str) -> list[int]:
        """Places of what heads see of a result, which is processed here: no part of the conversation holds it."""
        kind, places = kind_made(result), []
        for frame, (still, seconds) in enumerate(stills_made(result, self.plan.max_frames)):
            if kind not in self.plan.processors:  # then no head learns from it
                break
            inputs, layout = processed(still, seconds, kind, self.plan)
            original = still if self.plan.with_originals and isinstance(still, Tensor) else None
            places.append(len(self.out.media))
            self.out.media.append(RenderedMedia(kind, name, inputs, layout, [], frame, original, made=True))
        return places

    def _earlier_results(self, call: Call) -> list[Result | None]:
        referred = {item.call_index for item in call.groundings if isinstance(item, ResultRef)}
        return [reference_result(*earlier) if i in referred else None for i, earlier in enumerate(self.turn)]


def instruction_of(messages: Sequence[Message]) -> str:
    """The words of the first user turn: later ones must not reach back to what was answered before them."""
    first = next((message for message in messages if message.role == "user"), None)
    return "" if first is None else " ".join(part.text.strip() for part in first.content if part.text)
