import pickle

import pytest

from routers.describe import call_syntax, describe_tasks
from routers.parser import parse
from routers.router import MarkerRouter, Router


def test_marker_router_routes_what_the_sample_can_have(vocabulary):
    router = MarkerRouter(vocabulary)
    assert isinstance(router, Router) and not list(router.parameters())
    ids = vocabulary.tokenizer("ok <seg>red<anchor></seg><speak>hi</speak>", add_special_tokens=False)["input_ids"]
    assert router.route(ids) == parse(ids, vocabulary)
    with pytest.raises(ValueError, match="MarkerRouter: expected a vocabulary"):
        MarkerRouter().route(ids)
    routed = router.route(ids, vocabulary.table.available(["audio"]))
    assert [call.task for call in routed.calls] == ["speak"]
    assert [error.kind for error in routed.errors] == ["unavailable"]
    assert routed.text_ids == ids[: routed.calls[0].token_span[0]]
    assert [call.task for call in pickle.loads(pickle.dumps(router)).route(ids).calls] == ["seg", "speak"]


def test_the_documentation_has_one_row_per_task(any_vocabulary):
    lines = describe_tasks(any_vocabulary.table).splitlines()
    assert len(lines) == 2 + len(any_vocabulary.table)
    assert len({line.count("|") for line in lines}) == 1
    for task, line in zip(any_vocabulary.table, lines[2:], strict=True):
        assert line.startswith(f"| `{task.name}` | `{task.open_token}") and f"| {task.head} |" in line


@pytest.mark.parametrize(
    ("task", "syntax"),
    [
        ("seg", "<seg> prompt <anchor> </seg>"),
        ("draw", "<draw> prompt <anchor> 3 queries </draw>"),
        ("classify", "<classify> <anchor> </classify>"),
        ("speak", "<speak> prompt (<span> start end or <result> earlier-call)* </speak>"),
    ],
)
def test_call_syntax(vocabulary, task, syntax):
    assert call_syntax(vocabulary.table[task], vocabulary.table) == syntax
