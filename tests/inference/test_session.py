"""From conversations to replies: routing, head calls, units, errors, batching."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from data.render import render_prompt
from inference.conversation import Conversation, HeadError
from inference.session import Session
from layers.calls import BoxesResult, Call, ImageResult, Region, ResultRef, ScoreResult
from layers.media import Graph
from routers.rendering import render_call
from tests.inference.conftest import Script

IMAGE = torch.randint(0, 256, (3, 20, 40), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
GRAPH = Graph(("json decoder", "re", "os"), torch.tensor([[1, 2], [0, 0]]))


def conversations():
    questions = [
        "where is the red 7?",
        "is it right?",
        "draw a blue 4",
        "the 9",
        "is the 3 left?",
        "it",
        "a 4",
        "red red",
    ]
    media = [{"images": [IMAGE]}, {}, {"graphs": [GRAPH, GRAPH]}, {"images": [IMAGE, IMAGE[:, :, :7]]}] * 2
    return [Conversation.ask(question, **item) for question, item in zip(questions, media, strict=True)]


def written(generalist, *pieces):
    """Token ids of text and calls."""
    ids = []
    for piece in pieces:
        if isinstance(piece, str):
            ids += generalist.vocabulary.encode_text(piece)
        else:
            ids += render_call(piece, generalist.vocabulary, generalist.tokenizer).ids
    return ids


def scripted(generalist, asked, *replies, **options):
    """A session that gives these replies to these conversations, whose prompts must differ in length."""
    session = Session(generalist, **options)
    lengths = [len(render_prompt(item.messages, item.media, session.plan).input_ids) for item in asked]
    assert len(set(lengths)) == len(lengths)
    Script(generalist, dict(zip(lengths, replies, strict=True)))
    return session


def test_batch_of_one_equals_batch_of_eight_in_input_order(generalist):
    asked = conversations()
    together = Session(generalist, batch_size=8, max_new_tokens=20).generate(asked)
    alone = Session(generalist, batch_size=1, max_new_tokens=20).generate(asked)
    assert [reply.token_ids for reply in together] == [reply.token_ids for reply in alone]
    assert [reply.raw_text for reply in together] == [reply.raw_text for reply in alone]
    assert len({reply.token_ids for reply in alone}) == 8, "the prompts no longer lead to different replies"


def test_an_answer_of_plain_text(generalist):
    asked = [Conversation.ask("where is the red 7?")]
    session = scripted(generalist, asked, written(generalist, "the 9 is left of the 3"))
    (reply,) = session.generate(asked)
    assert (reply.text, reply.calls, reply.errors, reply.finish_reason) == ("the 9 is left of the 3", (), (), "stop")
    assert set(reply.timings) == {"render", "encode", "prefill", "decode", "heads"}


def test_calls_reach_their_heads_in_order_and_refer_to_each_other(generalist):
    asked = [Conversation.ask("draw a blue 4", images=[IMAGE]), Conversation.ask("is it right?")]
    draw, judge = Call("draw", "a blue 4"), Call("judge", "is it right?", (ResultRef(0),))
    ground = Call("ground", "red 7", (Region((0.25, 0.25, 0.5, 0.75)),))
    first = written(generalist, "there it is:", draw, judge, ground, "done")
    second = written(generalist, ground_free := Call("judge", "it"), draw, Call("judge", "", (ResultRef(1),)))
    session = scripted(generalist, asked, first, second)
    one, two = session.generate(asked)

    assert one.token_ids == tuple(first) and two.token_ids == tuple(second)
    assert [call.task for call in one.calls] == ["draw", "judge", "ground"] and not one.errors
    assert [type(result) for result in one.results] == [ImageResult, ScoreResult, BoxesResult]
    assert [type(result) for result in two.results] == [ScoreResult, ImageResult, ScoreResult]
    assert one.results[1].score == 1.0, "the drawing was there when it was judged"
    assert (two.results[0].score, two.results[2].score) == (0.0, 1.0)
    assert two.calls[0].prompt == ground_free.prompt
    assert one.text.startswith("there it is:") and one.text.endswith("done") and "<" not in one.text

    states, lengths, contexts = generalist.heads["pictures"].rounds[0]
    assert states.shape == (6, 32) and lengths == [3, 3], "both drawings close in one step, and are drawn together"
    assert [context.call.prompt for context in contexts] == ["a blue 4", "a blue 4"]
    assert all(states is None for states, _, _ in generalist.heads["judge"].rounds)


def test_heads_read_the_states_that_training_reads(generalist):
    """The states of a generated call equal those of a packed forward over prompt and reply, queries included."""
    asked = [Conversation.ask("draw a blue 4", images=[IMAGE]), Conversation.ask("it")]
    ids = written(generalist, "there", Call("draw", "a blue 4"), Call("draw", "a red 7"))
    session = scripted(generalist, asked, ids, written(generalist, "done"))
    reply = session.generate(asked)[0]
    states = torch.cat([states for states, _, _ in generalist.heads["pictures"].rounds])

    from data.packing import pack

    prompt = render_prompt(asked[0].messages, asked[0].media, session.plan)
    prompt_length = len(prompt.input_ids)
    prompt.input_ids += ids
    prompt.labels += [-100] * len(ids)
    batch = pack([prompt], session.plan)
    with torch.no_grad():
        encoded = generalist.encode_media(batch.media)
        embeds = generalist.place(
            generalist.embed(batch.input_ids[0]), batch.media["image"].positions, encoded["image"].projected
        )
        whole = generalist.language_model(embeds[None], batch.position_ids, batch.segment_lengths)
    positions = [prompt_length + position for call in reply.calls for position in call.state_positions]
    queries = [batch.input_ids[0, position].item() for position in positions]
    assert queries == generalist.vocabulary.query_ids["draw"] * 2
    torch.testing.assert_close(states, whole[positions], rtol=1e-4, atol=1e-4)


def test_queries_are_placed_whatever_the_model_would_write(generalist):
    asked = [Conversation.ask("draw a blue 4")]
    right = written(generalist, Call("draw", "a blue 4"))
    wanted = [token if token not in generalist.vocabulary.never_sampled_ids else right[1] for token in right]
    session = scripted(generalist, asked, wanted)
    (reply,) = session.generate(asked)
    assert reply.token_ids == tuple(right) and isinstance(reply.results[0], ImageResult)


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (33, 7), (640, 481)])
def test_regions_come_back_in_original_pixels(generalist, size):
    width, height = size
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    asked = [Conversation.ask("where?", images=[image])]
    box = (0.25 * width, 0.125 * height, 0.75 * width, 0.5 * height)
    session = Session(generalist)
    transform = session.plan.processors["image"].layout(size).transform
    seen = tuple((transform.apply_boxes([box])[0] / 16).tolist())
    session = scripted(generalist, asked, written(generalist, Call("ground", "red 7", (Region(seen),))))
    (reply,) = session.generate(asked)
    half_quantum = [0.5 / 32 * 16 / scale for scale in transform.scale] * 2
    for answer in (reply.calls[0].boxes_xyxy[0], reply.results[0].boxes_xyxy[0]):
        for got, expected, tolerance in zip(answer, box, half_quantum, strict=True):
            assert got == pytest.approx(expected, abs=tolerance + 1e-6)
    assert reply.results[0].call == reply.calls[0]


def test_a_task_whose_media_are_missing_is_an_error_of_its_reply(generalist):
    ground = Call("ground", "red 7")
    asked = [Conversation.ask("where?"), Conversation.ask("where is it?", images=[IMAGE])]
    ids = written(generalist, "there", ground)
    session = scripted(generalist, asked, ids, ids)
    without, with_image = session.generate(asked)
    assert [error.kind for error in without.errors] == ["unavailable"] and not without.calls
    assert not with_image.errors and len(with_image.calls) == 1


def test_a_call_that_its_head_refuses_costs_no_other(generalist):
    asked = [Conversation.ask("where?", images=[IMAGE]), Conversation.ask("where is it?", images=[IMAGE])]
    box = (Region((0.25, 0.25, 0.5, 0.5)),)
    refused = written(generalist, Call("ground", "nothing", box), Call("judge", "it"))
    fine = written(generalist, Call("ground", "red 7", box))
    session = scripted(generalist, asked, refused, fine)
    one, two = session.generate(asked)
    assert one.errors == (HeadError(0, "ground", "expected something, got nothing"),)
    assert one.results[0] is None and isinstance(one.results[1], ScoreResult)
    assert not two.errors and isinstance(two.results[0], BoxesResult)


@pytest.mark.parametrize(
    ("raised", "cause", "words"),
    [
        (RuntimeError("the scheduler is broken"), "raised", "RuntimeError: the scheduler is broken"),
        (torch.OutOfMemoryError("tried to allocate 20 GiB"), "out_of_memory", "no memory.*20 GiB"),
        (MemoryError(), "out_of_memory", "no memory"),
    ],
)
def test_an_expert_that_fails_costs_its_call_and_nothing_else(generalist, raised, cause, words, monkeypatch):
    """In the middle of a reply, in a batch with a reply whose call of the same head is fine."""
    asked = [Conversation.ask("draw a blue 4"), Conversation.ask("draw")]
    one = written(generalist, "first", Call("draw", "broken"), " then", Call("judge", "it"), Call("draw", "a 4"))
    session = scripted(generalist, asked, one, written(generalist, Call("draw", "a red 7")))
    answer = type(generalist.heads["pictures"]).answer

    def failing(self, context):
        if context.call.prompt == "broken":
            raise raised
        return answer(self, context)

    monkeypatch.setattr(type(generalist.heads["pictures"]), "answer", failing)
    first, second = session.generate(asked)
    assert first.text == "first then" and [type(item) for item in first.results] == [
        type(None),
        ScoreResult,
        ImageResult,
    ]
    (error,) = first.errors
    assert (error.call_index, error.task, error.kind, error.cause) == (0, "draw", "head", cause)
    assert re.search(words, error.message)
    assert not second.errors and isinstance(second.results[0], ImageResult)


def test_a_call_that_refers_to_a_failed_result_fails(generalist):
    asked = [Conversation.ask("where?", images=[IMAGE])]
    ids = written(generalist, Call("ground", "nothing"), Call("judge", "", (ResultRef(0),)))
    (reply,) = scripted(generalist, asked, ids).generate(asked)
    assert [type(error) for error in reply.errors] == [HeadError, HeadError]
    assert "call 0" in reply.errors[1].message and reply.results == (None, None)


def test_a_malformed_call_leaves_text_and_an_error(generalist):
    vocabulary = generalist.vocabulary
    asked = [Conversation.ask("where?", images=[IMAGE])]
    ids = [*written(generalist, "there"), vocabulary.open_ids["ground"], *written(generalist, "red 7")]
    (reply,) = scripted(generalist, asked, ids).generate(asked)
    assert len(reply.errors) == 1 and not reply.calls
    assert "there" in reply.text and "red 7" in reply.text


def test_a_reply_that_does_not_end_is_cut(generalist):
    asked = [Conversation.ask("where?")]
    session = scripted(generalist, asked, written(generalist, "red " * 50), max_new_tokens=7)
    (reply,) = session.generate(asked)
    assert reply.finish_reason == "length" and len(reply.token_ids) == 7


def test_constrained_random_weights_write_only_well_formed_calls(generalist):
    asked = conversations() * 3
    options = {"max_new_tokens": 40, "temperature": 1.5, "seed": 3, "batch_size": 8}
    free = Session(generalist, **options).generate(asked)
    constrained = Session(generalist, constrained=True, **options).generate(asked)
    broken = [error for reply in free for error in reply.errors]
    assert broken, "random weights are expected to write malformed calls"
    assert any(reply.calls for reply in constrained)
    for reply in constrained:
        kinds = {error.kind for error in reply.errors}
        assert not kinds or (kinds == {"unfinished"} and reply.finish_reason == "length")


def test_the_feature_transform_changes_what_the_model_sees(generalist):
    asked = conversations()[:1]

    def zeroed(encoded):
        for item in encoded.values():
            item.projected = torch.zeros_like(item.projected)
        return encoded

    seen = []

    def unchanged(encoded):
        seen.append({kind: len(item.layout) for kind, item in encoded.items()})
        return encoded

    session = Session(generalist, max_new_tokens=12)
    plain = session.generate(asked)[0].token_ids
    assert session.generate(asked, feature_transform=unchanged)[0].token_ids == plain
    assert session.generate(asked, feature_transform=zeroed)[0].token_ids != plain
    assert seen == [{"image": 1}]


def test_an_opening_makes_every_reply_begin_with_the_call(generalist):
    asked = conversations()[:3]
    vocabulary = generalist.plan().vocabulary
    session = Session(generalist, max_new_tokens=6)
    free = [reply.token_ids[:1] for reply in session.generate(asked)]
    for task in ("ground", "draw"):
        opened = session.generate(asked, opening=task)
        assert [reply.token_ids[0] for reply in opened] == [vocabulary.open_ids[task]] * 3
        assert {len(reply.token_ids) for reply in opened} != {1}  # the model writes the rest
    assert free == [reply.token_ids[:1] for reply in session.generate(asked)]
    with pytest.raises(ValueError, match=r"opening: expected one of \['draw'.*got 'dance'"):
        session.generate(asked, opening="dance")


def test_the_head_media_transform_changes_what_heads_see_and_nothing_else(generalist):
    asked = [Conversation.ask("where?", images=[IMAGE])]
    ids = written(generalist, Call("ground", "red 7", (Region((0.25, 0.25, 0.5, 0.75)),)))
    session = scripted(generalist, asked, ids)

    def black(media):
        return replace(media, inputs={name: torch.zeros_like(value) for name, value in media.inputs.items()})

    (plain,) = session.generate(asked)
    (dark,) = session.generate(asked, head_media_transform=black)
    (_, _, [before]), (_, _, [after]) = generalist.heads["boxes"].rounds
    assert before.image.inputs["pixel_values"].any() and not after.image.inputs["pixel_values"].any()
    assert torch.equal(before.image.features, after.image.features)
    assert torch.equal(before.image.load_original(), IMAGE) and plain.token_ids == dark.token_ids


def test_progress_counts_every_reply_and_the_mode_is_restored(generalist):
    done = []
    generalist.train()
    Session(generalist, batch_size=3, max_new_tokens=2).generate(conversations(), progress=done.append)
    assert sum(done) == 8 and generalist.training
    assert Session(generalist).generate([]) == []


def test_conversations_are_checked():
    with pytest.raises(ValueError, match="question"):
        Conversation.ask("  ", images=[IMAGE])


def test_a_medium_that_the_model_does_not_take_is_refused(generalist):
    from layers.media import Audio

    with pytest.raises(ValueError, match="audio"):
        Session(generalist).generate([Conversation.ask("what?", audio=[Audio(torch.zeros(160), 16000)])])
