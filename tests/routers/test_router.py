import pickle

import pytest

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
