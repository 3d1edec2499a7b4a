"""The one renderer: a record or a conversation becomes token ids, labels, media inputs and head targets.

Training and inference share it, so a model never meets a prompt that it was not trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from data.media import RawMedia
from data.records import Message, Record
from data.render.rendered import Rendered, RenderedSize, RenderError
from data.render.shown import Layouts, declared_layouts, declared_uses, process, processor_among, shown, taken_by
from data.render.writer import Writer
from models.plan import BatchPlan


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
        first, *others = [
            _render(record.key, turns, raw_media, plan, targets, generation_prompt=False)
            for turns in record.conversations
        ]
    except ValueError as error:
        raise RenderError(f"record '{record.key}': {error}") from error
    first.companions = others
    return first


def render_prompt(
    messages: Sequence[Message],
    raw_media: Mapping[str, RawMedia],
    plan: BatchPlan,
    written: Mapping[int, Sequence[int]] | None = None,
) -> Rendered:
    """Render a conversation up to the opening of the assistant's next turn.

    Args:
        messages: The turns so far.
        raw_media: Their decoded media, by name.
        plan: The model's plan.
        written: Index of an assistant turn -> the ids that the model wrote there, which stand instead of its content.

    Returns:
        The prompt; earlier assistant turns carry labels as in training.

    Raises:
        ValueError: Naming what does not fit the plan.
    """
    return _render("", messages, raw_media, plan, {}, generation_prompt=True, written=written)


def rendered_size(record: Record, plan: BatchPlan) -> RenderedSize:
    """The size of ``render(...)``, from the sizes that the record declares; nothing is decoded.

    Raises:
        RenderError: As :func:`render`, as far as it can be told without decoding.
    """
    try:
        sizes = [_declared_size(record, turns, plan) for turns in record.conversations]
    except ValueError as error:
        raise RenderError(f"record '{record.key}': {error}") from error
    return RenderedSize(sum(size.tokens for size in sizes), sum(size.cost for size in sizes))


def _declared_size(record: Record, messages: Sequence[Message], plan: BatchPlan) -> RenderedSize:
    used = {part.media for message in messages for part in message.content if part.media}
    declared = {name: item for name, item in record.media.items() if name in used}
    counts: Counter[str] = Counter()
    for item in declared.values():
        counts[taken_by(item.type)] += declared_uses(item, plan)
    layouts = {name: declared_layouts(item, plan, counts) for name, item in declared.items()}
    written = Writer(record.key, plan, layouts).write(messages, {}, False, {})
    costs = (item.layout.num_features * plan.feature_costs.get(item.kind, 1.0) for item in written.media)
    return RenderedSize(len(written.input_ids), round(sum(costs)))


def _render(
    key: str,
    messages: Sequence[Message],
    raw_media: Mapping[str, RawMedia],
    plan: BatchPlan,
    targets: Mapping[str, Any],
    generation_prompt: bool,
    written: Mapping[int, Sequence[int]] | None = None,
) -> Rendered:
    names = [part.media for message in messages for part in message.content if part.media]
    missing = [name for name in names if name not in raw_media]
    if missing:
        raise ValueError(f"media '{missing[0]}': expected one of {sorted(raw_media)}")
    stills_of = {name: shown(raw_media[name], plan) for name in dict.fromkeys(names)}
    counts: Counter[str] = Counter()
    for kind, stills in stills_of.values():
        counts[taken_by(kind)] += len(stills)
    inputs: dict[str, list[dict[str, Tensor]]] = {}
    layouts: dict[str, Layouts] = {}
    for name, (kind, stills) in stills_of.items():
        made = [process(name, *still, processor_among(plan, taken_by(kind), counts)) for still in stills]
        inputs[name], layouts[name] = [own for own, _ in made], (kind, [layout for _, layout in made])
    rendered = Writer(key, plan, layouts).write(messages, targets, generation_prompt, written or {})
    keep = plan.with_originals and not generation_prompt  # a session has them anyway
    for item in (item for item in rendered.media if not item.made):
        item.inputs, still = inputs[item.name][item.frame], stills_of[item.name][1][item.frame][0]
        item.original = still if keep and isinstance(still, Tensor) else None
    return rendered
