import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layers.calls import NodeRef, Region, ResultRef, TimeSpan
from routers.parser import CallParser, Parsed, parse


def ids_of(vocabulary, text: str) -> list[int]:
    return vocabulary.tokenizer(text, add_special_tokens=False)["input_ids"]


def text_of(vocabulary, ids: list[int]) -> str:
    return vocabulary.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def check_partition(parsed: Parsed, ids: list[int]) -> None:
    position = 0
    for piece in parsed.pieces:
        assert piece.token_span[0] == position < piece.token_span[1]
        position = piece.token_span[1]
    assert position == len(ids)
    assert [piece.call for piece in parsed.pieces if piece.kind == "call"] == parsed.calls
    assert [piece.error for piece in parsed.pieces if piece.kind == "malformed"] == parsed.errors
    kept = [i for piece in parsed.pieces if piece.kind != "call" for i in ids[slice(*piece.token_span)]]
    assert kept == parsed.text_ids
    for piece in parsed.pieces:
        value = piece.call or piece.error
        assert value is None or value.token_span == piece.token_span
    for call in parsed.calls:
        assert all(call.token_span[0] < position < call.token_span[1] - 1 for position in call.state_positions)
        earlier = parsed.calls.index(call)
        assert all(g.call_index < earlier for g in call.groundings if isinstance(g, ResultRef))
    for error in parsed.errors:
        assert error.token_span[0] <= error.position <= error.token_span[1]


def test_text_alone(vocabulary):
    ids = ids_of(vocabulary, "the red 7 is on the left")
    assert parse(ids, vocabulary).text_ids == ids
    assert parse([], vocabulary) == Parsed()


def test_two_calls_between_text(vocabulary):
    text = "here<ground>red 7<region><loc_0><loc_4><loc_8><loc_15><anchor></ground> and <seg> blue 4 <anchor></seg>."
    ids = ids_of(vocabulary, text)
    parsed = parse(ids, vocabulary)
    check_partition(parsed, ids)
    ground, seg = parsed.calls
    assert not parsed.errors
    assert (ground.task, ground.prompt, seg.task, seg.prompt) == ("ground", "red 7", "seg", "blue 4")
    assert ground.groundings == (Region((0.5 / 16, 4.5 / 16, 8.5 / 16, 15.5 / 16)),)
    assert [ids[position] for call in parsed.calls for position in call.state_positions] == [vocabulary.anchor_id] * 2
    assert text_of(vocabulary, parsed.text_ids) == "here and ."
    assert text_of(vocabulary, ids[slice(*seg.token_span)]) == "<seg> blue 4 <anchor></seg>"


def test_queries_follow_the_anchor(vocabulary):
    ids = ids_of(vocabulary, "<draw>blue 4<anchor><query_draw_0><query_draw_1><query_draw_2></draw>")
    (call,) = parse(ids, vocabulary).calls
    assert [ids[position] for position in call.state_positions] == vocabulary.query_ids["draw"]


def test_the_decode_loop_learns_which_queries_to_place(vocabulary):
    parser = CallParser(vocabulary)
    forced = []
    for token_id in ids_of(vocabulary, "<draw>blue<anchor>"):
        assert parser.forced_id is None
        parser.feed(token_id)
    while parser.forced_id is not None:
        forced.append(parser.forced_id)
        assert parser.feed(parser.forced_id) is None
    assert forced == vocabulary.query_ids["draw"]
    call = parser.feed(vocabulary.close_ids["draw"])
    assert call is not None and call.task == "draw"


def test_mixed_grounding_keeps_its_order(vocabulary):
    box = "<region><loc_1><loc_2><loc_1><loc_2>"
    ids = ids_of(vocabulary, f"<layout><node><node_4>{box}<span><time_0><time_6>{box}</layout>")
    (call,) = parse(ids, vocabulary).calls
    region = Region((1.5 / 16, 2.5 / 16, 1.5 / 16, 2.5 / 16))
    assert call.groundings == (NodeRef(4), region, TimeSpan(0.5 / 7, 6.5 / 7), region)


def test_a_reference_points_to_an_earlier_call(vocabulary):
    draw = "<draw>4<anchor><query_draw_0><query_draw_1><query_draw_2></draw>"
    edit = "<edit>red<result><ref_{}><anchor><query_edit_0></edit>"
    ids = ids_of(vocabulary, draw + edit.format(0) + edit.format(1))
    assert [call.groundings for call in parse(ids, vocabulary).calls] == [(), (ResultRef(0),), (ResultRef(1),)]
    for text in (draw + edit.format(1), edit.format(0)):
        assert [error.kind for error in parse(ids_of(vocabulary, text), vocabulary).errors] == ["reference"]


def test_a_malformed_call_does_not_redirect_references(vocabulary):
    speak = "<speak>hi<result><ref_{}></speak>"
    text = "<seg>no anchor</seg><seg>red<anchor></seg>" + speak.format(1) + speak.format(0)
    parsed = parse(ids_of(vocabulary, text), vocabulary)
    assert [error.kind for error in parsed.errors] == ["incomplete", "reference"]
    assert [call.task for call in parsed.calls] == ["seg", "speak"]
    assert parsed.calls[1].groundings == (ResultRef(0),)  # number 1 of the reply is number 0 of the calls


def test_an_unavailable_task_is_an_error_and_nothing_refers_to_it(vocabulary):
    text = "<seg>red<anchor></seg><speak>a</speak><speak>b<result><ref_0></speak><speak>c<result><ref_1></speak>"
    parsed = parse(ids_of(vocabulary, text), vocabulary, available=("speak",))
    assert [error.kind for error in parsed.errors] == ["unavailable", "reference"]
    assert parsed.errors[0].position == 0
    assert [(call.prompt, call.groundings) for call in parsed.calls] == [("a", ()), ("c", (ResultRef(0),))]


def test_what_an_earlier_call_made_may_be_what_a_task_needs(vocabulary):
    """Its head says whether it is; a call that refers to nothing is of a task that the sample cannot have."""
    text = "<speak>a</speak><edit>b<result><ref_0><anchor><query_edit_0></edit><edit>c<anchor><query_edit_0></edit>"
    parsed = parse(ids_of(vocabulary, text), vocabulary, available=("speak",))
    assert [call.prompt for call in parsed.calls] == ["a", "b"]
    assert [error.kind for error in parsed.errors] == ["unavailable"]


LOC = "<loc_1><loc_2><loc_3><loc_4>"
MALFORMED = [
    # what comes before the first bad token, the rest, kind, malformed part (all if None), number of good calls
    ("red", "<anchor>", "stray", "<anchor>", 0),
    ("red", "<loc_1><loc_2></seg>7", "stray", "<loc_1><loc_2></seg>", 0),
    ("", "<image>", "stray", None, 0),
    ("", "<query_draw_0>", "stray", None, 0),
    ("<classify>", "red<anchor></classify>7", "payload", "<classify>red<anchor></classify>", 0),
    ("<seg>red", f"<region>{LOC}<anchor></seg>", "payload", None, 0),
    ("<ground>red<region><loc_1><loc_2>", "<loc_0>", "region", None, 0),
    ("<ground>red<region><loc_1><loc_2><loc_3>", "<loc_0><anchor></ground>", "region", None, 0),
    ("<ground>red<region><loc_1><loc_2>", "<anchor></ground>", "region", None, 0),
    ("<speak>hi<span><time_3>", "<time_2></speak>", "time_span", None, 0),
    ("<rank><node>", "<loc_1><anchor></rank>", "node", None, 0),
    ("<speak>hi", "<result></speak>", "reference", None, 0),
    (f"<ground><region>{LOC}", "<loc_5><anchor></ground>", "unexpected", None, 0),
    (f"<ground><region>{LOC}", "red<anchor></ground>", "unexpected", None, 0),
    ("<seg>red<anchor>", "<anchor></seg>", "unexpected", None, 0),
    ("<draw>4<anchor>", "<query_draw_1></draw>", "unexpected", None, 0),
    ("<seg>red", "</seg>", "incomplete", None, 0),
    ("<draw>4<anchor><query_draw_0>", "</draw>", "incomplete", None, 0),
    ("<seg>red<anchor>", "</ground> x", "mismatched", "<seg>red<anchor></ground>", 0),
    ("<seg>red", "<seg>4<anchor></seg>", "unclosed", "<seg>red", 1),
    ("<seg>red", "<eos>", "unfinished", "<seg>red", 0),
    ("<seg>red", "<|user|><anchor></seg>", "unexpected", None, 0),
    ("<seg>red<anchor>", "", "unfinished", None, 0),
    ("<seg>", "<image></seg><seg>4<anchor></seg>", "unexpected", "<seg><image></seg>", 1),
]


@pytest.mark.parametrize(("before", "rest", "kind", "malformed", "good"), MALFORMED)
def test_malformed_calls(vocabulary, before, rest, kind, malformed, good):
    ids = ids_of(vocabulary, before + rest)
    parsed = parse(ids, vocabulary)
    check_partition(parsed, ids)
    (error,) = parsed.errors
    assert error.kind == kind
    assert error.position == len(ids_of(vocabulary, before))
    assert text_of(vocabulary, ids[slice(*error.token_span)]) == (malformed or before + rest)
    assert len(parsed.calls) == good


def test_a_long_list_of_errors_resynchronises_on_the_next_call(vocabulary):
    text = f"<ground>red<region><loc_9><loc_9>oops{LOC}<anchor><ground>4<region>{LOC}<anchor></ground>done"
    parsed = parse(ids_of(vocabulary, text), vocabulary)
    assert [error.kind for error in parsed.errors] == ["region"]
    assert [call.prompt for call in parsed.calls] == ["4"]
    assert text_of(vocabulary, parsed.text_ids) == text[: text.index("<ground>4")] + "done"


def test_after_the_end_of_the_turn_all_is_text(vocabulary):
    ids = ids_of(vocabulary, "red<eos><pad><seg>red<anchor></seg>")
    parsed = parse(ids, vocabulary)
    assert (parsed.calls, parsed.errors, parsed.text_ids) == ([], [], ids)


def test_finish_may_be_asked_at_any_time(vocabulary):
    ids = ids_of(vocabulary, "a<seg>red<anchor></seg>b<loc_1><draw>4")
    parser = CallParser(vocabulary)
    for count, token_id in enumerate(ids):
        assert parser.finish() == parse(ids[:count], vocabulary)
        parser.feed(token_id)
    assert [error.kind for error in parser.finish().errors] == ["stray", "unfinished"]


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        ("0.100,0.200,0.300,1.000", None),
        ("0.100,0.200,0.100,0.200", None),
        ("0.300,0.200,0.299,0.900", "region"),
        ("0.100,0.200,0.300,0.199", "region"),
        ("0.1,0.200,0.300,0.400", "region"),
        ("1.001,0.200,0.300,0.400", "region"),
        ("0.100,0.200,0.300", "region"),
        ("0.100,0.200,0.300,0.400,0.500", "region"),
        ("0.100, 0.200, 0.300, 0.400", "region"),
        ("a box", "region"),
        ("", "region"),
    ],
)
def test_decimals(decimal_vocabulary, written, kind):
    ids = ids_of(decimal_vocabulary, f"<ground>red<region>{written}</region><anchor></ground>")
    parsed = parse(ids, decimal_vocabulary)
    check_partition(parsed, ids)
    assert [error.kind for error in parsed.errors] == ([kind] if kind else [])
    if kind is None:
        x1, y1, x2, y2 = (float(number) for number in written.split(","))
        assert parsed.calls[0].boxes_xyxy == ((x1, y1, x2, y2),)


def well_formed(names: list[str], vocabulary, earlier: int) -> bool:
    """An oracle that shares nothing with the automaton: a regular expression per task over the tokens' names."""
    box = r"<region> <loc_\d+> <loc_\d+> <loc_\d+> <loc_\d+> "
    if vocabulary.end_region_id is not None:
        box = r"<region> (?:[\d.,]+ )+</region> "
    spelt = {
        "regions": box,
        "time_spans": r"<span> <time_\d+> <time_\d+> ",
        "nodes": r"<node> <node_\d+> ",
        "results": r"<result> <ref_\d+> ",
    }
    tails = {"hidden": "<anchor> ", "queries": "<anchor> {}", "text": "", "boxes": ""}
    sentence = "".join(f"{name} " for name in names)
    for task in vocabulary.table:
        prompt = r"(?:[^<> ]+ )*" if "prompt" in task.payload else ""
        grounding = "|".join(spelt[payload] for payload in task.payload if payload != "prompt") or "(?!)"
        queries = "".join(f"<query_{task.name}_{i}> " for i in range(task.num_queries))
        tail = tails[task.link].format(queries)
        if re.fullmatch(f"<{task.name}> {prompt}(?:{grounding})*{tail}</{task.name}> ", sentence):
            break
    else:
        return False
    for begin, ordered in (("<span>", 1), ("<region>", 2)):
        for at in (i for i, name in enumerate(names) if name == begin):
            if begin == "<region>" and vocabulary.end_region_id is not None:
                text = "".join(names[at + 1 : names.index("</region>", at)])
                if not re.fullmatch(r"((0\.\d{3}|1\.000),){3}(0\.\d{3}|1\.000)", text):
                    return False
                numbers = [float(number) for number in text.split(",")]
            else:
                numbers = [int(re.sub(r"\D", "", name)) for name in names[at + 1 : at + 1 + 2 * ordered]]
            if any(numbers[i] > numbers[i + ordered] for i in range(ordered)):
                return False
    return all(int(name[5:-1]) < earlier for name in names if name.startswith("<ref_"))


def replies(vocabulary) -> st.SearchStrategy[list[int]]:
    tokenizer = vocabulary.tokenizer
    controls = sorted(vocabulary.control_ids)
    digits = [index for token, index in tokenizer.get_vocab().items() if not token.strip("0123456789.,")]
    digits = digits or [5]
    box = "<region><loc_2><loc_3><loc_5><loc_7>"
    if vocabulary.end_region_id is not None:
        box = "<region>0.123,0.456,0.789,1.000</region>"
    good = [
        f"<ground>red 7{box}<anchor></ground>",
        f"<ground>{box}{box}<anchor></ground>",
        "<draw>4<anchor><query_draw_0><query_draw_1><query_draw_2></draw>",
        f"<edit>red{box}<result><ref_0><anchor><query_edit_0></edit>",
        "<speak>hi<span><time_1><time_4><result><ref_1></speak>",
        "<rank><node><node_1><node><node_0><anchor></rank>",
        "<classify><anchor></classify>",
    ]
    structure = [vocabulary.anchor_id, *vocabulary.open_ids.values(), *vocabulary.close_ids.values()]
    token = st.one_of(
        st.sampled_from(structure),
        st.sampled_from(controls),
        st.sampled_from(digits),
        st.integers(0, len(tokenizer) - 1),
        st.sampled_from([-1, len(tokenizer), 10**9, vocabulary.eos_id, tokenizer.pad_token_id]),
    )
    noise = st.lists(token, max_size=3)
    call = st.sampled_from([ids_of(vocabulary, text) for text in good])
    broken = st.builds(
        lambda ids, at, drop, extra: ids[: at % len(ids)] + extra + ids[at % len(ids) + drop :],
        call,
        st.integers(0, 40),
        st.integers(0, 2),
        st.lists(token, max_size=1),
    )
    chunks = st.lists(st.one_of(call, broken, noise), max_size=6)
    return st.one_of(chunks.map(lambda parts: [i for part in parts for i in part]), st.lists(token, max_size=40))


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_no_reply_raises_or_loses_a_token(any_vocabulary, data):
    ids = data.draw(replies(any_vocabulary))
    size = len(any_vocabulary.tokenizer)
    names = [any_vocabulary.tokenizer.convert_ids_to_tokens(i) if 0 <= i < size else "<unknown>" for i in ids]
    available = data.draw(st.one_of(st.none(), st.sets(st.sampled_from(sorted(any_vocabulary.open_ids)))))
    parsed = parse(ids, any_vocabulary, available)
    check_partition(parsed, ids)
    begun = 0
    for piece in parsed.pieces:
        part = names[slice(*piece.token_span)]
        if piece.call is not None:
            assert well_formed(part, any_vocabulary, begun)
            refers = any(isinstance(item, ResultRef) for item in piece.call.groundings)
            assert available is None or piece.call.task in available or refers
        elif piece.error is not None and piece.error.kind not in ("unavailable", "reference"):
            assert not well_formed(part, any_vocabulary, begun)
        elif piece.error is None and "<eos>" not in part:
            assert not any_vocabulary.control_ids & set(ids[slice(*piece.token_span)])
        begun += bool(part) and ids[piece.token_span[0]] in any_vocabulary.open_ids.values()
