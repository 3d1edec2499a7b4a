"""The one renderer: a record or a conversation becomes token ids, labels, media inputs and head targets.

Training and inference share it, so a model never meets a prompt that it was not trained on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data.chat import chat_text
from data.media import RawMedia, Video, resample, resampled_length
from data.records import Media, Message, Part, Record
from layers.calls import Call, Grounding, NodeRef, Region, ResultRef, TimeSpan
from layers.encoder import Processor
from layers.geometry import Box
from layers.head import HeadTarget
from layers.layout import ItemLayout
from layers.media import Audio, Graph
from models.adapters.prompt_gate import QUOTED
from models.plan import BatchPlan
from routers.rendering import render_call

IGNORED = -100
Layouts = tuple[str, list[ItemLayout]]
"""A medium's kind, and the encoder's output for it or for each of its frames."""
Still = Tensor | Audio | Graph


class RenderError(ValueError):
    """A record that a plan cannot render; names the record, what was expected and what was given."""


@dataclass
class RenderedMedia:
    """One use of a media item, or of one frame of a video.

    Args:
        kind: "image", "audio" or "graph".
        name: Its name in the record.
        frame: Which of a video's frames that are shown; 0 for other media.
        inputs: The processor's tensors; empty where nothing was decoded.
        layout: The encoder's output for it.
        positions: Positions of its placeholders in the sample's ``input_ids``.
    """

    kind: str
    name: str
    inputs: dict[str, Tensor]
    layout: ItemLayout
    positions: list[int]
    frame: int = 0


@dataclass
class RenderedSampleCall:
    """A call of an assistant turn.

    Args:
        head: The head that answers.
        call: With normalised regions; ``token_span`` and ``state_positions`` index the sample's ``input_ids``.
        media: Indices into the sample's media of all that stand before it.
        target: What the head learns; empty where there is nothing.
    """

    head: str
    call: Call
    media: list[int]
    target: HeadTarget


@dataclass
class Rendered:
    """One sample, ready to be packed.

    Args:
        key: Key of the record, "" for a prompt.
        input_ids: T ids.
        labels: T labels; -100 where nothing is learned.
        media: Media in order of their placeholders.
        calls: Calls in order.
        instruction: Ids of the first user turn's words in quotes, where the plan asks for them.
    """

    key: str
    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    media: list[RenderedMedia] = field(default_factory=list)
    calls: list[RenderedSampleCall] = field(default_factory=list)
    instruction: list[int] = field(default_factory=list)


def render(record: Record, raw_media: Mapping[str, RawMedia], plan: BatchPlan, targets: Mapping[str, Any]) -> Rendered:
    """Render a record for training: every assistant turn is learned, its closing token included.

    Args:
        record: The record.
        raw_media: Its decoded media, by name.
        plan: The model's plan.
        targets: Its decoded targets, by id; a call whose target is missing here has nothing to learn.

    Returns:
        The sample.

    Raises:
        RenderError: Naming the record and what does not fit the plan.
    """
    try:
        return _render(record.key, record.messages, raw_media, plan, targets, generation_prompt=False)
    except ValueError as error:
        raise RenderError(f"record '{record.key}': {error}") from error


def render_prompt(messages: Sequence[Message], raw_media: Mapping[str, RawMedia], plan: BatchPlan) -> Rendered:
    """Render a conversation up to the opening of the assistant's next turn.

    Args:
        messages: The turns so far.
        raw_media: Their decoded media, by name.
        plan: The model's plan.

    Returns:
        The prompt; earlier assistant turns carry labels as in training.

    Raises:
        ValueError: Naming what does not fit the plan.
    """
    return _render("", messages, raw_media, plan, {}, generation_prompt=True)


class RenderedSize(NamedTuple):
    """What a rendered sample costs.

    Args:
        tokens: Positions of the language model.
        cost: What the encoders' work costs, in such positions (``BatchPlan.feature_costs``).
    """

    tokens: int
    cost: int


def rendered_size(record: Record, plan: BatchPlan) -> RenderedSize:
    """The size of ``render(...)``, from the sizes that the record declares; nothing is decoded.

    Raises:
        RenderError: As :func:`render`, as far as it can be told without decoding.
    """
    try:
        shown = {part.media for message in record.messages for part in message.content if part.media}
        declared = {name: item for name, item in record.media.items() if name in shown}
        counts: Counter[str] = Counter()
        for item in declared.values():
            counts[_taken_by(item.type)] += _declared_uses(item, plan)
        layouts = {name: _declared_layouts(item, plan, counts) for name, item in declared.items()}
        written = _Writer(record.key, plan, layouts).write(record.messages, {}, False)
    except ValueError as error:
        raise RenderError(f"record '{record.key}': {error}") from error
    costs = (item.layout.num_features * plan.feature_costs.get(item.kind, 1.0) for item in written.media)
    return RenderedSize(len(written.input_ids), round(sum(costs)))


def _render(
    key: str,
    messages: Sequence[Message],
    raw_media: Mapping[str, RawMedia],
    plan: BatchPlan,
    targets: Mapping[str, Any],
    generation_prompt: bool,
) -> Rendered:
    names = [part.media for message in messages for part in message.content if part.media]
    missing = [name for name in names if name not in raw_media]
    if missing:
        raise ValueError(f"media '{missing[0]}': expected one of {sorted(raw_media)}")
    shown = {name: _shown(raw_media[name], plan) for name in dict.fromkeys(names)}
    counts: Counter[str] = Counter()
    for kind, stills in shown.values():
        counts[_taken_by(kind)] += len(stills)
    inputs: dict[str, list[dict[str, Tensor]]] = {}
    layouts: dict[str, Layouts] = {}
    for name, (kind, stills) in shown.items():
        made = [_process(name, *still, _processor(plan, _taken_by(kind), counts)) for still in stills]
        inputs[name], layouts[name] = [own for own, _ in made], (kind, [layout for _, layout in made])
    rendered = _Writer(key, plan, layouts).write(messages, targets, generation_prompt)
    for item in rendered.media:
        item.inputs = inputs[item.name][item.frame]
    return rendered


class _Writer:
    """Writes one conversation; ``layouts`` maps a media name to its kind and its encoder layouts."""

    def __init__(self, key: str, plan: BatchPlan, layouts: Mapping[str, Layouts]) -> None:
        self.plan, self.layouts = plan, layouts
        self.text = chat_text(plan.tokenizer)
        self.out = Rendered(key)
        self.calls_in_turn = 0

    def write(self, messages: Sequence[Message], targets: Mapping[str, Any], generation_prompt: bool) -> Rendered:
        markup = self.text.markup([message.role for message in messages], generation_prompt)
        for message, piece, learned in zip(messages, markup.pieces, markup.learned, strict=False):
            self._markup(piece, learned)
            self.calls_in_turn = 0
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
        kind = _taken_by(declared)
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
        kinds = [item.kind for item in self.out.media]
        if task.name not in self.plan.tasks.available(kinds):
            raise ValueError(f"task '{task.name}': expected the media {list(task.needs)} before it, got {kinds}")
        call = Call(part.task, part.prompt, tuple(self._grounding(item) for item in part.groundings))
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
        target: HeadTarget = {}
        if part.target is not None and part.target in targets and task.head in self.plan.target_processors:
            images = [item.layout for item in self.out.media if item.kind == "image"]
            target = self.plan.target_processors[task.head](targets[part.target], images)
        self.out.calls.append(RenderedSampleCall(task.head, call, list(range(len(self.out.media))), target))
        self.calls_in_turn += 1

    def _grounding(self, value: Mapping[str, Any]) -> Grounding:
        kind = value["type"]
        if kind == "region":
            return Region(_normalised(_numbers(value, "box_xyxy", 4), self._latest("image", "region")))
        if kind == "time_span":
            seconds = self._latest("audio", "time span").seconds
            assert seconds is not None
            start, end = (*_numbers(value, "start", 1), *_numbers(value, "end", 1))
            if not 0 <= start <= end <= seconds:
                raise ValueError(f"time span: expected 0 <= start <= end <= {seconds} seconds, got {start} to {end}")
            return TimeSpan(start / seconds, end / seconds)
        if kind == "node":
            nodes = self._latest("graph", "node").original_size[0]
            return NodeRef(_index(value, "index", nodes, "node"))
        return ResultRef(_index(value, "call_index", self.calls_in_turn, "earlier call of the turn"))

    def _latest(self, kind: str, what: str) -> ItemLayout:
        layouts = [item.layout for item in self.out.media if item.kind == kind]
        if not layouts:
            raise ValueError(f"{what}: expected {kind} before it, got {[item.kind for item in self.out.media]}")
        return layouts[-1]


def instruction_of(messages: Sequence[Message]) -> str:
    """The words of the first user turn: later ones must not reach back to what was answered before them."""
    first = next((message for message in messages if message.role == "user"), None)
    return "" if first is None else " ".join(part.text.strip() for part in first.content if part.text)


def _normalised(box: tuple[float, ...], layout: ItemLayout) -> Box:
    transform = layout.transform
    if transform is None:
        raise ValueError("region: expected an image with a geometric transform, its layout has none")
    width, height = transform.original_size
    x1, y1, x2, y2 = box
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        raise ValueError(f"region: expected x1 < x2 <= {width} and y1 < y2 <= {height} from 0 on, got {list(box)}")
    seen = transform.normalise_box(box)
    if seen[0] >= seen[2] or seen[1] >= seen[3]:
        raise ValueError(
            f"region: expected one that the model sees, the crop {transform.crop_xyxy} removes {list(box)}"
        )
    return seen


def _numbers(value: Mapping[str, Any], name: str, count: int) -> tuple[float, ...]:
    given: Any = value.get(name)
    items: Sequence[Any] = given if isinstance(given, list | tuple) else [given]
    good = len(items) == count and all(
        isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item) for item in items
    )
    if not good:
        raise ValueError(f"grounding '{value['type']}' {name}: expected {count} finite number(s), got {given!r}")
    return tuple(float(item) for item in items)


def _index(value: Mapping[str, Any], name: str, limit: int, what: str) -> int:
    given = value.get(name)
    if type(given) is not int or not 0 <= given < limit:
        raise ValueError(
            f"grounding '{value['type']}' {name}: expected one of {limit} {what}(s) from 0 on, got {given!r}"
        )
    return given


def _processor(plan: BatchPlan, kind: str, counts: Mapping[str, int]) -> Processor:
    if kind not in plan.processors:
        raise ValueError(f"{kind}: expected media that the model takes, one of {sorted(plan.processors)}")
    processor: Any = plan.processors[kind]
    return processor.among(counts[kind]) if hasattr(processor, "among") else processor


def _taken_by(kind: str) -> str:
    """The modality whose encoder reads a kind of media: the frames of a video are images."""
    return "image" if kind == "video" else kind


def _shown(raw: RawMedia, plan: BatchPlan) -> tuple[str, list[tuple[Still, float | None]]]:
    """A medium's kind, and what of it is shown, with the seconds at which a frame stands."""
    if isinstance(raw, Video):
        return "video", list(zip(*raw.sample(plan.max_frames), strict=True))
    kind = "audio" if isinstance(raw, Audio) else "graph" if isinstance(raw, Graph) else "image"
    return kind, [(raw, None)]


def _process(
    name: str, raw: Still, seconds: float | None, processor: Processor
) -> tuple[dict[str, Tensor], ItemLayout]:
    if isinstance(raw, Audio):
        raw = resample(raw, _sample_rate(processor))
        size: tuple[int, ...] = (raw.waveform.shape[0],)
    elif isinstance(raw, Graph):
        size = (raw.num_nodes,)
    else:
        if raw.dtype != torch.uint8 or raw.ndim != 3 or raw.shape[0] != 3 or 0 in raw.shape:
            raise ValueError(f"image '{name}': expected uint8 (3, H, W), got {raw.dtype} {tuple(raw.shape)}")
        size = (raw.shape[2], raw.shape[1])
    try:
        inputs, layout = processor(raw)
    except ValueError as error:
        raise ValueError(f"media '{name}': {error}") from error
    predicted = processor.layout(size)
    assert layout == predicted, f"media '{name}': the processor predicts {predicted} and gives {layout}"
    return inputs, layout if seconds is None else replace(layout, seconds=seconds)


def _declared_uses(media: Media, plan: BatchPlan) -> int:
    return min(media.size[2], plan.max_frames) if media.type == "video" else 1


def _declared_layouts(media: Media, plan: BatchPlan, counts: Mapping[str, int]) -> Layouts:
    processor = _processor(plan, _taken_by(media.type), counts)
    if media.type == "video":
        return media.type, [processor.layout(media.size[:2])] * _declared_uses(media, plan)
    if media.type != "audio":
        return media.type, [processor.layout(media.size)]
    if media.sample_rate is None:
        raise ValueError(f"'{media.file}': expected the sample rate of its {media.size[0]} samples, got none")
    samples = resampled_length(media.size[0], media.sample_rate, _sample_rate(processor))
    return media.type, [processor.layout((samples,))]


def _sample_rate(processor: Processor) -> int:
    rate = getattr(processor, "sample_rate", None)
    if not isinstance(rate, int):
        raise ValueError(f"audio processor {type(processor).__name__}: expected an integer sample_rate, got {rate!r}")
    return rate
