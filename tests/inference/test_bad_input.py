"""What goes wrong in a reply costs what is wrong with it: the text survives, errors are typed, the rest goes on."""

from __future__ import annotations

import time

import pytest
import torch

from inference.calling import HeadCaller, PendingReply, _refusal
from inference.conversation import Conversation, HeadError
from inference.encoding import PromptReader
from inference.events import CallAnswered
from layers.calls import BoxesResult, Call, ImageResult, MediaFeatures, NodeRef, Region, ResultRef, ScoreResult
from layers.layout import ItemLayout
from routers.parser import parse
from routers.rendering import render_call
from tests.inference.test_session import IMAGE, scripted, written

FINE = Call("judge", "it")


def replied(generalist, *pieces, image=IMAGE, **options):
    """The reply to a question about an image, as it is written here: text, calls, and ids of tokens."""
    asked = [Conversation.ask("where is the red 7?", images=[image])]
    ids = []
    for piece in pieces:
        ids += [piece] if isinstance(piece, int) else written(generalist, piece)
    (reply,) = scripted(generalist, asked, ids, **options).generate(asked)
    return reply


@pytest.mark.parametrize("closed", [False, True])
def test_an_endless_repetition_of_task_tokens(generalist, closed):
    vocabulary = generalist.vocabulary
    again = [vocabulary.open_ids["ground"], *([vocabulary.close_ids["ground"]] if closed else [])]
    reply = replied(generalist, "there", FINE, "it is", *again * 120, max_new_tokens=100)
    assert reply.finish_reason == "length" and len(reply.token_ids) == 100
    assert reply.text.startswith("thereit is") and isinstance(reply.results[0], ScoreResult)
    assert {error.kind for error in reply.errors} == ({"incomplete"} if closed else {"unclosed", "unfinished"})
    assert reply.raw_text.count("<ground>") == reply.text.count("<ground>") > 30


def test_a_long_repetition_is_parsed_in_linear_time(generalist):
    vocabulary = generalist.vocabulary
    seconds = []
    for length in (2_000, 16_000):
        ids = [vocabulary.open_ids["ground"], vocabulary.region_id] * (length // 2)
        best = float("inf")
        for _ in range(3):
            started = time.process_time()
            parsed = parse(ids, vocabulary)
            best = min(best, time.process_time() - started)
        assert len(parsed.errors) == length // 2 and parsed.text_ids == ids
        seconds.append(best)
    assert seconds[1] < 32 * seconds[0], "eight times the tokens took more than thirty-two times as long"


def test_a_call_without_its_close(generalist):
    vocabulary = generalist.vocabulary
    reply = replied(generalist, "there", vocabulary.open_ids["draw"], "a blue 4")
    assert [error.kind for error in reply.errors] == ["unfinished"] and not reply.calls
    assert "there" in reply.text and "a blue 4" in reply.text
    reply = replied(generalist, vocabulary.open_ids["draw"], "a blue 4", Call("ground", "red 7"), "done")
    assert [error.kind for error in reply.errors] == ["unclosed"] and reply.text.endswith("done")
    assert [call.task for call in reply.calls] == ["ground"] and isinstance(reply.results[0], BoxesResult)


def test_a_box_with_its_corners_in_the_wrong_order(generalist):
    vocabulary = generalist.vocabulary
    right = render_call(Call("ground", "red 7", (Region((0.2, 0.2, 0.6, 0.6)),)), vocabulary, generalist.tokenizer).ids
    marker = right.index(vocabulary.region_id)
    swapped = [*right[: marker + 1], right[marker + 3], right[marker + 2], right[marker + 1], *right[marker + 4 :]]
    reply = replied(generalist, "there", *swapped, "and", FINE, "done")
    (error,) = reply.errors
    assert error.kind == "region" and "expected x1 <= x2" in error.message
    assert reply.token_ids[error.position] in vocabulary.loc_ids
    assert isinstance(reply.results[0], ScoreResult) and reply.text.endswith("anddone")


def test_a_box_outside_of_the_image_is_refused_before_the_head_sees_it(generalist):
    """The image is twice as wide as high, and lies between bars of padding; a box may be within a bar."""
    beside, across = (Region((0.1, 0.02, 0.9, 0.1)),), (Region((0.1, 0.02, 0.9, 0.5)),)
    reply = replied(generalist, "there", Call("ground", "a", beside), Call("ground", "b", across), FINE)
    (error,) = reply.errors
    assert isinstance(error, HeadError) and (error.call_index, error.cause) == (0, "refused")
    assert "expected one that meets the image" in error.message
    assert [type(result) for result in reply.results] == [type(None), BoxesResult, ScoreResult]
    assert [context.call.prompt for _, _, [context] in generalist.heads["boxes"].rounds] == ["b"]


def test_a_call_for_an_expert_that_is_not_loaded(generalist):
    del generalist.heads["pictures"]
    events = []
    asked = [Conversation.ask("draw a blue 4")]
    ids = written(generalist, "here", Call("judge", "it"), Call("judge", "", (ResultRef(1),)), "done")
    draw = [generalist.vocabulary.open_ids["draw"], *written(generalist, "a 4"), generalist.vocabulary.anchor_id]
    draw += [*generalist.vocabulary.query_ids["draw"], generalist.vocabulary.close_ids["draw"]]
    generalist._query_slots = {}  # nothing embeds the queries of a head that is not there
    (reply,) = scripted(generalist, asked, [*draw, *ids]).generate(asked, listener=events.append)
    (error,) = reply.errors
    assert (error.call_index, error.task, error.cause) == (0, "draw", "not_loaded")
    assert "needs head 'pictures', loaded are ['boxes', 'judge', 'pairs']" in error.message
    assert [type(result) for result in reply.results] == [type(None), ScoreResult, ScoreResult]
    answered = [event for event in events if isinstance(event, CallAnswered)]
    assert answered[0].error == error and answered[0].result is None and answered[1].error is None


def test_an_expert_that_cannot_be_loaded_when_it_is_called(generalist, monkeypatch):
    def missing(self, context):
        raise ImportError("drawing needs the package diffusers; install the extra 'images'")

    monkeypatch.setattr(type(generalist.heads["pictures"]), "answer", missing)
    reply = replied(generalist, "so", Call("draw", "a 4"), FINE, "done")
    (error,) = reply.errors
    assert error.cause == "not_loaded" and "install the extra" in error.message
    assert reply.text == "sodone" and isinstance(reply.results[1], ScoreResult)


def test_a_call_for_an_expert_that_lacks_its_input(generalist):
    reply = replied(generalist, "so", Call("link", ""), FINE, "done")
    assert [error.kind for error in reply.errors] == ["unavailable"] and isinstance(reply.results[0], ScoreResult)
    assert "<link>" in reply.text and reply.text.endswith("done")


def test_a_call_whose_prompt_has_ten_thousand_characters(generalist):
    prompt = "the red 7 " * 1000
    ids = written(generalist, "so", Call("draw", prompt), FINE, "done")
    parsed = parse(ids, generalist.vocabulary)
    assert not parsed.errors and parsed.calls[0].prompt == prompt.strip()
    pending = PendingReply([], parsed.calls, ids, [torch.zeros(32)] * len(ids))
    heads, tasks = generalist.heads, generalist.tasks
    HeadCaller(heads, tasks, {}, generalist.head_states, PromptReader(generalist, 1).see).answer([pending])
    assert not pending.errors and [type(result) for result in pending.results] == [ImageResult, ScoreResult]
    reply = replied(generalist, "so", Call("draw", prompt), max_new_tokens=50)
    assert reply.finish_reason == "length" and [error.kind for error in reply.errors] == ["unfinished"]


def test_a_result_of_a_failed_head_is_no_answer(generalist, monkeypatch):
    """A head that answers another number of calls than it was asked is at fault, and says which."""
    monkeypatch.setattr(type(generalist.heads["pictures"]), "decode", lambda self, predictions, contexts: [])
    reply = replied(generalist, Call("draw", "a 4"), FINE)
    (error,) = reply.errors
    assert error.cause == "raised" and "head 'pictures': expected 1 results, got 0" in error.message
    monkeypatch.setattr(type(generalist.heads["pictures"]), "decode", lambda self, predictions, contexts: [None])
    generalist.__dict__.pop("step")
    reply = replied(generalist, "so", Call("draw", "a 4"), FINE, "done")
    (error,) = reply.errors
    assert error.cause == "raised" and "expected a result for each call, got a NoneType" in error.message
    assert reply.text == "sodone" and isinstance(reply.results[1], ScoreResult)


def test_a_node_that_the_graph_does_not_have(generalist):
    head = generalist.heads["judge"]
    pending = PendingReply([MediaFeatures("graph", torch.zeros(3, 4), ItemLayout((3,), (3,)))])
    assert _refusal(Call("rank", "", (NodeRef(2),)), pending, head) is None
    assert "node 3: expected one of the 3 nodes" in str(_refusal(Call("rank", "", (NodeRef(3),)), pending, head))
    assert "expected one of the 0 nodes" in str(_refusal(Call("rank", "", (NodeRef(0),)), PendingReply([]), head))
