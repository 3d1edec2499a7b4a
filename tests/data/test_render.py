from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.chat import chat_text
from data.index import ShardReader, ensure_index
from data.media import decode_media, decode_target
from data.records import Message, Part, Record
from data.render import IGNORED, Rendered, RenderedSize, RenderError, render, render_prompt, rendered_size
from data.render.groundings import grounding_of
from data.shards import expand
from data.stream import render_sample
from layers.calls import Region, ResultRef, TimeSpan
from layers.media import Audio, Graph
from models.plan import BatchPlan
from routers.vocabulary import task_tokens
from tests.data.conftest import (
    FEATURE_COSTS,
    assistant,
    audio_sample,
    damaged,
    graph_sample,
    image_sample,
    text,
    text_record,
    user,
)

SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>", "<|pad|>", "<image>", "<ground>", "</ground>", "<anchor>", "<loc_3>"]
RAW: dict[str, Any] = {
    "i": torch.zeros(3, 30, 50, dtype=torch.uint8),
    "j": torch.zeros(3, 64, 16, dtype=torch.uint8),
    "a": Audio(torch.zeros(24_000), 16_000),
    "g": Graph(("x", "y", "z"), torch.tensor([[0], [1]])),
}
KINDS = {"i": "image", "j": "image", "a": "audio", "g": "graph"}


def _render(sample: tuple[Record, dict[str, bytes]], plan: BatchPlan) -> Rendered:
    record, members = sample
    media = {name: decode_media(item, members[item.file]) for name, item in record.media.items()}
    return render(record, media, plan, {name: decode_target(item) for name, item in record.targets.items()})


def _size_of(rendered: Rendered) -> RenderedSize:
    costs = (item.layout.num_features * FEATURE_COSTS[item.kind] for item in rendered.media)
    return RenderedSize(len(rendered.input_ids), round(sum(costs)))


def _decoded(plan: BatchPlan, ids: list[int]) -> str:
    return str(plan.tokenizer.decode(ids))


def _learned(plan: BatchPlan, rendered: Rendered) -> list[str]:
    """The text of each unbroken run of labels."""
    runs = itertools.groupby(rendered.labels, key=lambda label: label != IGNORED)
    return [_decoded(plan, list(run)) for learned, run in runs if learned]


def test_the_whole_text_and_what_is_learned(plan: BatchPlan) -> None:
    record = replace(
        text_record("a"),
        messages=(
            Message("system", (text("Be brief."),)),
            user(text("How many?")),
            assistant(text("three")),
            user(text("Sure?")),
            assistant(text("yes")),
        ),
    )
    rendered = render(record, {}, plan, {})
    assert _decoded(plan, rendered.input_ids) == (
        "<|system|>Be brief.<|end|><|user|>How many?<|end|><|assistant|>three<|end|>"
        "<|user|>Sure?<|end|><|assistant|>yes<|end|>"
    )
    assert _learned(plan, rendered) == ["three<|end|>", "yes<|end|>"]
    assert all(label in (IGNORED, token) for token, label in zip(rendered.input_ids, rendered.labels, strict=True))


def test_calls_media_and_targets(plan: BatchPlan) -> None:
    rendered = _render(image_sample("image-0", size=(40, 24)), plan)
    assert _learned(plan, rendered) == [
        "Here:<ground>red 7<region><loc_3><loc_7><loc_8><loc_13><anchor></ground><|end|>",
        "<seg>red 7<anchor></seg><fix>7 blue<result><ref_0><anchor>",
        "</fix><|end|>",
    ]
    (image,) = rendered.media
    assert [rendered.input_ids[p] for p in image.positions] == [plan.vocabulary.media_ids["image"]] * 4
    assert image.inputs["pixel_values"].shape == (3, 32, 32) and image.layout.grid == (4, 4)
    assert [call.head for call in rendered.calls] == ["boxes", "masks", "image"]
    assert [call.media for call in rendered.calls] == [[0], [0], [0]]
    ground, seg, fix = (item.call for item in rendered.calls)
    assert torch.allclose(  # letterboxed: 40x24 to 32x19 below 6 rows of padding, then divided by 32
        torch.tensor(ground.boxes_xyxy[0]),
        torch.tensor([4 * 0.8, 2 * 19 / 24 + 6, 11 * 0.8, 9 * 19 / 24 + 6]) / 32,
    )
    assert torch.allclose(rendered.calls[0].target["boxes_xyxy"], torch.tensor(ground.boxes_xyxy[0]))
    assert rendered.calls[1].target["mask"].shape == (32, 32) and rendered.calls[2].target == {}
    assert fix.groundings == (ResultRef(0),)
    names = [plan.tokenizer.convert_ids_to_tokens(rendered.input_ids[p]) for p in fix.state_positions]
    assert names == ["<query_fix_0>", "<query_fix_1>"]
    for call in (ground, seg):
        assert [rendered.input_ids[p] for p in call.state_positions] == [plan.vocabulary.anchor_id]
    for call in (ground, seg, fix):
        start, end = call.token_span
        assert rendered.input_ids[start] == plan.vocabulary.open_ids[call.task]
        assert rendered.input_ids[end - 1] == plan.vocabulary.close_ids[call.task]


def test_a_calls_media_are_those_before_it(plan: BatchPlan) -> None:
    box = {"type": "region", "box_xyxy": [0, 0, 8, 16]}
    call = Part("call", task="ground", prompt="it", groundings=(box,))
    messages = (
        user(Part("image", media="i"), text("?")),
        assistant(call),
        user(Part("audio", media="a"), Part("image", media="j")),
        assistant(call),
    )
    rendered = render_prompt(messages, RAW, plan)
    assert [item.name for item in rendered.media] == ["i", "a", "j"]
    assert [item.media for item in rendered.calls] == [[0], [0, 1, 2]]
    # the second box lies on the second image, 16x64 letterboxed to 8x32 right of 12 columns of padding
    assert rendered.calls[1].call.groundings == (Region((12 / 32, 0.0, 16 / 32, 8 / 32)),)


def test_regions_of_a_drawing_are_fractions_of_their_canvas(plan: BatchPlan) -> None:
    box = {"type": "region", "box_xyxy": [16, 0, 64, 32], "canvas": [64, 64]}
    call = Part("call", task="ground", prompt="it", groundings=(box,))
    with pytest.raises(ValueError, match="expected one on the latest image, got one on an empty canvas"):
        render_prompt((user(Part("image", media="i"), text("?")), assistant(call)), RAW, plan)
    written, model = grounding_of(box, [], 0)
    assert written == Region((16, 0, 64, 32), (64, 64)) and model == Region((0.25, 0.0, 1.0, 0.5))
    with pytest.raises(ValueError, match=r"x2 <= 64.0 and y1 < y2 <= 64.0"):
        grounding_of({**box, "box_xyxy": [16, 0, 65, 32]}, [], 0)


def test_time_spans_are_fractions_of_the_latest_clip(plan: BatchPlan) -> None:
    span = {"type": "time_span", "start": 0.3, "end": 1.5}
    messages = (
        user(Part("audio", media="a")),
        assistant(Part("call", task="when", prompt="one", groundings=(span,))),
    )
    rendered = render_prompt(messages, RAW, plan)
    assert rendered.calls[0].call.groundings == (TimeSpan(0.3 / 1.5, 1.0),)


_texts = st.lists(st.one_of(st.sampled_from([*SPECIAL, " ", "red 7"]), st.text(max_size=6)), max_size=6).map("".join)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(question=_texts, answer=_texts, prompt=_texts)
def test_text_never_becomes_a_control_token(plan: BatchPlan, question: str, answer: str, prompt: str) -> None:
    call = Part("call", task="draw", prompt=prompt)
    record = replace(text_record("a"), messages=(user(text(question)), assistant(text(answer), call)))
    harmless = replace(text_record("a"), messages=(user(text("x")), assistant(text("x"), replace(call, prompt="x"))))
    special = {*plan.tokenizer.all_special_ids, *plan.vocabulary.control_ids}

    def control(item: Record) -> list[int]:
        return [token for token in render(item, {}, plan, {}).input_ids if token in special]

    assert control(record) == control(harmless)
    decoded = _decoded(plan, render(record, {}, plan, {}).input_ids)
    assert decoded.startswith(f"<|user|>{question}<|end|><|assistant|>{answer}<draw>")


def test_every_control_token_is_ordinary_in_text(plan: BatchPlan) -> None:
    encode = chat_text(plan.tokenizer).encode
    for token in [*task_tokens(plan.tasks), *plan.tokenizer.all_special_tokens]:
        assert len(encode(token)) > 1 and _decoded(plan, list(encode(token))) == token


_parts = st.one_of(
    st.sampled_from([Part(kind, media=name) for name, kind in KINDS.items()]),
    st.text(max_size=12).map(text),
)
_calls = st.one_of(
    st.text(max_size=8).map(lambda prompt: Part("call", task="draw", prompt=prompt)),
    st.text(max_size=8).map(text),
)
_turns = st.lists(st.tuples(st.lists(_parts, max_size=4), st.lists(_calls, max_size=3)), min_size=1, max_size=3)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=_turns)
def test_a_prompt_is_the_beginning_of_the_whole(plan: BatchPlan, turns: list[tuple[list[Part], list[Part]]]) -> None:
    messages = [message for asked, said in turns for message in (user(*asked), assistant(*said))]
    whole = render_prompt(messages, RAW, plan)
    for end in range(1, len(messages), 2):
        prompt = render_prompt(messages[:end], RAW, plan)
        assert prompt.input_ids == whole.input_ids[: len(prompt.input_ids)]
        assert prompt.labels == whole.labels[: len(prompt.labels)]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    turns=_turns,
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    samples=st.integers(400, 30_000),
    rate=st.sampled_from([8_000, 16_000, 22_050]),
    nodes=st.integers(1, 20),
)
def test_the_length_is_known_without_decoding(
    plan: BatchPlan, turns: list[Any], width: int, height: int, samples: int, rate: int, nodes: int
) -> None:
    raw = {
        "i": torch.zeros(3, height, width, dtype=torch.uint8),
        "j": torch.zeros(3, width, height, dtype=torch.uint8),
        "a": Audio(torch.zeros(samples), rate),
        "g": Graph(("n",) * nodes, torch.zeros(2, 0, dtype=torch.int64)),
    }
    sizes = {"i": (width, height), "j": (height, width), "a": (samples,), "g": (nodes,)}
    media = {
        name: replace(image_sample("image-0")[0].media["scene"], type=kind, size=sizes[name], sample_rate=rate)
        for name, kind in KINDS.items()
    }
    messages = tuple(message for asked, said in turns for message in (user(*asked), assistant(*said)))
    record = damaged(text_record("a"), messages=messages, media=media)
    assert rendered_size(record, plan) == _size_of(render(record, raw, plan, {}))


def test_lengths_of_real_samples(plan: BatchPlan, shards: Path) -> None:
    reader = ShardReader()
    for path in expand(shards):
        index = ensure_index(path)
        for position in range(len(index)):
            sample = reader.read(index, position)
            assert rendered_size(sample.record, plan) == _size_of(render_sample(sample, plan))


def _with_call(**fields: Any) -> Record:
    record = image_sample("image-0")[0]
    call = replace(record.messages[1].content[1], **fields)
    return damaged(record, messages=(record.messages[0], assistant(call)))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (_with_call(task="groud"), "unknown task 'groud': expected one of"),
        (_with_call(task="when"), r"task 'when': expected the media \['audio'\] before it, got \['image'\]"),
        (_with_call(task="seg"), "payload"),
        (_with_call(groundings=({"type": "region", "box_xyxy": [0, 0, 50, 9]},)), r"region: expected.*40.*50"),
        (_with_call(groundings=({"type": "region", "box_xyxy": [0, 0, 9]},)), "4 finite"),
        (_with_call(groundings=({"type": "region", "box_xyxy": [0, 0, 9, "x"]},)), "4 finite"),
        (_with_call(groundings=({"type": "time_span", "start": 0, "end": 1},)), "expected audio before it"),
        (_with_call(groundings=({"type": "result", "call_index": 0},)), "one of 0 earlier call"),
        (damaged(graph_sample("g")[0], messages=(assistant(),)), None),
    ],
)
def test_what_does_not_fit_the_plan_is_named(plan: BatchPlan, record: Record, message: str | None) -> None:
    if message is None:  # an empty conversation without a user is the template's business
        assert rendered_size(record, plan).tokens > 0
        return
    with pytest.raises(RenderError, match=message) as caught:
        rendered_size(record, plan)
    assert record.key in str(caught.value)


def test_a_modality_that_the_model_lacks(plan: BatchPlan) -> None:
    deaf = replace(plan, processors={"image": plan.processors["image"]})
    with pytest.raises(RenderError, match=r"audio: expected media that the model takes, one of \['image'\]"):
        rendered_size(audio_sample("a")[0], deaf)


@pytest.fixture
def with_template(plan: BatchPlan) -> Any:
    tokenizer = plan.tokenizer
    original = tokenizer.chat_template

    def change(template: str) -> BatchPlan:
        tokenizer.chat_template = template
        return plan

    yield change
    tokenizer.chat_template = original


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}<|user|>{{ m.content }}<|end|>{{ loop.length }}{% endfor %}", "begin the whole"),
        (
            "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}"
            "{% if add_generation_prompt %}<|user|>{% endif %}",
            "closed by the end-of-turn token",
        ),
        ("{{ messages[-1].content }}<|end|>", "every content"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}<|end|>{% endfor %}", "every content"),
        ("{{ raise_exception('no such role') }}", "refuses the roles.*no such role"),
    ],
)
def test_templates_that_would_train_what_inference_never_shows(
    with_template: Callable[[str], BatchPlan], template: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        render(text_record("a"), {}, with_template(template), {})


def test_a_trailing_newline_of_the_template_is_not_learned(with_template: Callable[[str], BatchPlan]) -> None:
    plan = with_template(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}<|end|>\n\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n\n{% endif %}".replace("|>\n{{", "|>\n\n{{")
    )
    rendered = render(text_record("a"), {}, plan, {})
    assert _learned(plan, rendered) == ["three<|end|>"]
