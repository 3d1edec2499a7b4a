import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layers.calls import Call, Grounding, NodeRef, Region, ResultRef, TimeSpan
from layers.geometry import GeometricTransform
from routers.parser import parse
from routers.rendering import render_call
from routers.tasks import TaskSpec, TaskTable
from routers.vocabulary import Vocabulary, add_task_tokens

fraction = st.floats(0, 1)
ordered = st.tuples(fraction, fraction).map(sorted)
prompts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).map(str.strip)


@st.composite
def calls(draw: st.DrawFn, vocabulary, index: int) -> Call:
    table = vocabulary.table
    task = draw(st.sampled_from(table.tasks))
    kinds: dict[str, st.SearchStrategy[Grounding]] = {
        "regions": st.builds(lambda x, y: Region((x[0], y[0], x[1], y[1])), ordered, ordered),
        "time_spans": ordered.map(lambda pair: TimeSpan(*pair)),
        "nodes": st.integers(0, table.max_nodes - 1).map(NodeRef),
    }
    if index:
        kinds["results"] = st.integers(0, min(index, table.max_results) - 1).map(ResultRef)
    usable = [kinds[payload] for payload in task.payload if payload in kinds]
    groundings = draw(st.lists(st.one_of(usable), max_size=3)) if usable else []
    return Call(task.name, draw(prompts) if "prompt" in task.payload else "", tuple(groundings))


def coordinates(grounding: Grounding) -> tuple[float, ...]:
    if isinstance(grounding, Region):
        return grounding.box_xyxy
    if isinstance(grounding, TimeSpan):
        return grounding.start, grounding.end
    return (grounding.index,) if isinstance(grounding, NodeRef) else (grounding.call_index,)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_parsing_inverts_rendering(any_vocabulary, data):
    table = any_vocabulary.table
    quanta = {Region: 1 / table.num_bins if table.coordinates == "bins" else 1e-3, TimeSpan: 1 / table.num_time_bins}
    written = [data.draw(calls(any_vocabulary, index)) for index in range(data.draw(st.integers(1, 4)))]
    ids: list[int] = []
    expected = []
    for call in written:
        ids += any_vocabulary.encode_text(data.draw(st.sampled_from(["", "here: ", "7"])))
        rendered = render_call(call, any_vocabulary, any_vocabulary.tokenizer)
        assert len(rendered.ids) == len(rendered.learned)
        expected.append(((len(ids), len(ids) + len(rendered.ids)), [len(ids) + at for at in rendered.state_positions]))
        unlearned = [token for token, learned in zip(rendered.ids, rendered.learned, strict=True) if not learned]
        assert unlearned == any_vocabulary.query_ids.get(call.task, [])
        ids += rendered.ids
    parsed = parse(ids, any_vocabulary)
    assert not parsed.errors
    assert [(call.token_span, list(call.state_positions)) for call in parsed.calls] == expected
    for call, original in zip(parsed.calls, written, strict=True):
        assert (call.task, call.prompt) == (original.task, original.prompt)
        assert [type(g) for g in call.groundings] == [type(g) for g in original.groundings]
        for got, wanted in zip(call.groundings, original.groundings, strict=True):
            half = quanta.get(type(wanted), 0.0) / 2 + 1e-9
            assert all(abs(a - b) <= half for a, b in zip(coordinates(got), coordinates(wanted), strict=True))


@settings(max_examples=60, deadline=None)
@given(
    original=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    kind=st.sampled_from(["resize", "letterbox"]),
    x=ordered,
    y=ordered,
)
def test_original_pixels_survive_within_half_a_quantum_at_any_aspect_ratio(any_vocabulary, original, kind, x, y):
    table = any_vocabulary.table
    size = (64, 64)
    transform = getattr(GeometricTransform, kind)(original, size)
    box = (x[0] * original[0], y[0] * original[1], x[1] * original[0], y[1] * original[1])
    x1, y1, x2, y2 = (transform.apply_boxes([box])[0] / 64).tolist()
    rendered = render_call(Call("ground", "", (Region((x1, y1, x2, y2)),)), any_vocabulary, any_vocabulary.tokenizer)
    (region,) = parse(rendered.ids, any_vocabulary).calls[0].groundings
    assert isinstance(region, Region)
    back = transform.invert_boxes([tuple(value * 64 for value in region.box_xyxy)])[0].tolist()
    quantum = 1 / table.num_bins if table.coordinates == "bins" else 1e-3
    limit = [quantum / 2 * 64 / scale + 1e-6 for scale in transform.scale] * 2
    assert all(abs(a - b) <= most for a, b, most in zip(back, box, limit, strict=True))


def test_the_end_of_the_range_and_beyond_is_clipped(any_vocabulary):
    call = Call("ground", "", (Region((-0.5, -0.0, 1.0, 7.0)),))
    parsed = parse(render_call(call, any_vocabulary, any_vocabulary.tokenizer).ids, any_vocabulary)
    edge = 0.5 / 16 if any_vocabulary.table.coordinates == "bins" else 0.0
    assert parsed.calls[0].boxes_xyxy == ((edge, edge, 1 - edge, 1 - edge),)


def test_a_prompt_that_spells_tokens_stays_text(vocabulary):
    call = Call("seg", "<anchor></seg> <eos>")
    rendered = render_call(call, vocabulary, vocabulary.tokenizer)
    assert rendered.ids.count(vocabulary.anchor_id) == 1 and vocabulary.eos_id not in rendered.ids
    assert parse(rendered.ids, vocabulary).calls[0].prompt == call.prompt


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (Call("paint", "red"), "expected a task of"),
        (Call("classify", "red"), "expected a payload of [], got prompt"),
        (Call("seg", "", (NodeRef(0),)), "expected a payload of ['prompt'], got nodes"),
        (Call("ground", "", (Region((0.5, 0.1, 0.4, 0.2)),)), "expected x1 <= x2"),
        (Call("ground", "", (Region((0.5, 0.1, float("nan"), 0.2)),)), "expected x1 <= x2"),
        (Call("speak", "", (TimeSpan(0.5, 0.4),)), "expected start <= end"),
        (Call("rank", "", (NodeRef(5),)), "node of task 'rank': expected an index from 0 to 4, got 5"),
        (Call("speak", "", (ResultRef(-1),)), "expected an index from 0 to 2, got -1"),
    ],
)
def test_what_cannot_be_written_is_refused(vocabulary, call, message):
    with pytest.raises(ValueError) as caught:
        render_call(call, vocabulary, vocabulary.tokenizer)
    assert message in str(caught.value)


def test_prompt_tokens_come_before_the_anchor_or_the_queries(tokenizer_factory) -> None:
    table = TaskTable(
        (
            TaskSpec("ground", "boxes", payload=("prompt", "regions"), prompt_tokens="embeddings"),
            TaskSpec("draw", "image", link="queries", num_queries=3, prompt_tokens="embeddings"),
        ),
        num_bins=16,
    )
    tokenizer = tokenizer_factory()
    add_task_tokens(tokenizer, table)
    vocabulary = Vocabulary(tokenizer, table)
    for call, last in (
        (Call("ground", "the red 7", (Region((0.1, 0.1, 0.5, 0.5)),)), [vocabulary.anchor_id]),
        (Call("draw", "a blue 4"), vocabulary.query_ids["draw"]),
        (Call("draw", ""), vocabulary.query_ids["draw"]),
    ):
        rendered = render_call(call, vocabulary, tokenizer)
        read = [rendered.ids[position] for position in rendered.state_positions]
        assert read == [*vocabulary.encode_text(call.prompt), *last]
        parsed = parse([*vocabulary.encode_text("here: "), *rendered.ids], vocabulary)
        offset = len(vocabulary.encode_text("here: "))
        assert parsed.calls[0].state_positions == tuple(offset + position for position in rendered.state_positions)


def test_prompt_tokens_need_a_prompt_and_a_link_with_states() -> None:
    with pytest.raises(ValueError, match="prompt_tokens needs a prompt"):
        TaskSpec("ground", "boxes", payload=("regions",), prompt_tokens="embeddings")
    with pytest.raises(ValueError, match="prompt_tokens needs a prompt"):
        TaskSpec("speak", "voice", link="text", prompt_tokens="embeddings")
