"""A call as token ids: the inverse of the parser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from layers.calls import Call, Grounding, NodeRef, Region, ResultRef, TimeSpan
from layers.geometry import coordinate_to_bin
from routers.decimals import format_decimal_box
from routers.plain_text import plain_ids
from routers.tasks import Payload, TaskSpec
from routers.vocabulary import Vocabulary


@dataclass(frozen=True)
class RenderedCall:
    """A call's token ids.

    Args:
        ids: Opening token, prompt, grounding, anchor and queries where the link has them, closing token.
        state_positions: Positions in ``ids`` whose hidden states the head reads: the prompt where the task says so,
            then the anchor, or the k queries.
        learned: Per id, whether the language model learns to write it; query tokens are placed for it.
    """

    ids: list[int]
    state_positions: list[int]
    learned: list[bool]


def render_call(call: Call, vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase) -> RenderedCall:
    """Write a call as ``<task> prompt grounding* [<anchor> [queries]] </task>``.

    Args:
        call: Regions normalised to the input frame, time spans to the clip, 0 to 1; what lies outside is clipped.
        vocabulary: The control tokens.
        tokenizer: Writes the prompt, and boxes in decimals.

    Raises:
        ValueError: If the task is unknown or does not take what the call holds, or a grounding cannot be written.
    """
    if call.task not in vocabulary.table:
        known = [task.name for task in vocabulary.table]
        raise ValueError(f"call: expected a task of {known}, got '{call.task}'")
    task = vocabulary.table[call.task]
    prompt = call.prompt.strip()
    if prompt:
        _check_payload(task, "prompt")
    ids = [vocabulary.open_ids[task.name], *plain_ids(tokenizer, prompt)]
    num_prompt_ids = len(ids) - 1
    for grounding in call.groundings:
        ids += _render_grounding(grounding, task, vocabulary, tokenizer)
    queries = vocabulary.query_ids.get(task.name, [])
    if task.has_anchor:
        assert vocabulary.anchor_id is not None
        ids.append(vocabulary.anchor_id)
    anchor = [len(ids) - 1 + task.state_offset] if task.link == "hidden" else []
    positions = [*range(len(ids), len(ids) + len(queries))] or anchor
    if task.reads_prompt:
        positions = [*range(1, 1 + num_prompt_ids), *positions]
    learned = [True] * len(ids) + [False] * len(queries) + [True]
    return RenderedCall([*ids, *queries, vocabulary.close_ids[task.name]], positions, learned)


def _render_grounding(
    grounding: Grounding, task: TaskSpec, vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    table = vocabulary.table
    if isinstance(grounding, Region):
        _check_payload(task, "regions")
        x1, y1, x2, y2 = grounding.box_xyxy
        if not (x1 <= x2 and y1 <= y2 and all(map(math.isfinite, grounding.box_xyxy))):
            raise ValueError(f"region of task '{task.name}': expected x1 <= x2 and y1 <= y2, got {grounding.box_xyxy}")
        assert vocabulary.region_id is not None
        if table.coordinates == "bins":
            bins = [coordinate_to_bin(value, 1.0, table.num_bins) for value in grounding.box_xyxy]
            return [vocabulary.region_id, *(vocabulary.loc_ids[index] for index in bins)]
        assert vocabulary.end_region_id is not None
        return [
            vocabulary.region_id,
            *plain_ids(tokenizer, format_decimal_box(grounding.box_xyxy)),
            vocabulary.end_region_id,
        ]
    if isinstance(grounding, TimeSpan):
        _check_payload(task, "time_spans")
        if not (grounding.start <= grounding.end and math.isfinite(grounding.start) and math.isfinite(grounding.end)):
            raise ValueError(f"time span of task '{task.name}': expected start <= end, got {grounding}")
        assert vocabulary.span_id is not None
        bins = [coordinate_to_bin(value, 1.0, table.num_time_bins) for value in (grounding.start, grounding.end)]
        return [vocabulary.span_id, *(vocabulary.time_ids[index] for index in bins)]
    if isinstance(grounding, NodeRef):
        _check_payload(task, "nodes")
        assert vocabulary.node_marker_id is not None
        return [vocabulary.node_marker_id, _indexed(vocabulary.node_ids, grounding.index, "node", task)]
    assert isinstance(grounding, ResultRef)
    _check_payload(task, "results")
    assert vocabulary.result_id is not None
    return [vocabulary.result_id, _indexed(vocabulary.ref_ids, grounding.call_index, "earlier result", task)]


def _check_payload(task: TaskSpec, payload: Payload) -> None:
    if payload not in task.payload:
        raise ValueError(f"call of task '{task.name}': expected a payload of {list(task.payload)}, got {payload}")


def _indexed(ids: Sequence[int], index: int, what: str, task: TaskSpec) -> int:
    if not 0 <= index < len(ids):
        raise ValueError(f"{what} of task '{task.name}': expected an index from 0 to {len(ids) - 1}, got {index}")
    return ids[index]
