"""The serving path: what is read once, conversations that go on, calls answered as they close, listeners."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from data.packing import pack
from data.records import Message, Record
from data.render import render, render_prompt
from inference.conversation import Conversation
from inference.encoding import PromptReader, media_keys
from inference.events import CallAnswered, CallWritten, ReplyEnded, TextWritten
from inference.session import Session
from layers.calls import Call, Region, ResultRef
from models.generalist import Generalist
from models.language import LanguageModel
from tests.inference.test_session import IMAGE, conversations, scripted, written

OTHER = 255 - IMAGE


@contextmanager
def counted(generalist: Generalist) -> Iterator[dict[str, int]]:
    """How many positions the language model reads, and how many images are encoded, meanwhile."""
    counts = {"positions": 0, "images": 0}
    step, encoder = generalist.step, generalist.encoders["image"]

    def counting(inputs_embeds, attention_mask, position_ids, cache, conditions=None):
        read = attention_mask[:, -inputs_embeds.shape[1] :]
        counts["positions"] += int(read.sum())
        return step(inputs_embeds, attention_mask, position_ids, cache, conditions)

    def images(module, inputs) -> None:
        counts["images"] += len(inputs[1].items)

    handle = encoder.register_forward_pre_hook(images)
    generalist.step = counting
    try:
        yield counts
    finally:
        handle.remove()
        generalist.step = step


def test_several_questions_about_one_image_read_it_once(generalist):
    """Images are equal by content, and the replies are those without sharing."""
    words = ["where is the red 7?", "is it right?", "the 9", "draw a blue 4"]
    asked = [Conversation.ask(word, images=[image.clone()]) for word in words for image in (IMAGE, OTHER)]
    asked.append(Conversation.ask("is the 3 left?"))
    options = {"max_new_tokens": 10, "batch_size": 9}
    with counted(generalist) as without:
        plain = Session(generalist, shared_prefix=0, **options).generate(asked)
    with counted(generalist) as sharing:
        shared = Session(generalist, shared_prefix=4, **options).generate(asked)
    assert [reply.token_ids for reply in shared] == [reply.token_ids for reply in plain]
    assert len({reply.token_ids for reply in plain}) > 4
    assert without["images"] == sharing["images"] == 2, "an image is encoded once in a batch in any case"
    saved = without["positions"] - sharing["positions"]
    assert saved >= 2 * 3 * 4, "at least the four positions of two images, three times each"


def test_different_questions_are_not_shared_where_the_instruction_conditions_the_model(generalist):
    """A model with a prompt gate reads every position in the light of the whole question."""
    asked = [Conversation.ask(word, images=[IMAGE]) for word in ("where?", "what?")]
    session = Session(generalist)
    rendered = [render_prompt(item.messages, item.media, session.plan) for item in asked]
    for item, instruction in zip(rendered, ([5], [6]), strict=True):
        item.instruction = instruction
    reader = PromptReader(generalist, 1)
    first, second = reader.read(rendered, [media_keys(item) for item in rendered], [item.media for item in asked])
    assert first.symbols[0] != second.symbols[0] and first.symbols[1] == second.symbols[1]


@pytest.mark.parametrize("memory", [0, 400])
def test_a_conversation_goes_on_without_being_read_again(generalist, memory):
    """Three turns: the replies are those of a session without memory; with it only new positions are read."""
    first = [Conversation.ask("where is the red 7?", images=[IMAGE]), Conversation.ask("the 9")]
    session = Session(generalist, max_new_tokens=9, memory=memory)
    fresh = Session(generalist, max_new_tokens=9)
    turn = first
    replies = session.generate(turn)
    for question, images in (("is it right?", []), ("and here?", [OTHER])):
        before = turn
        turn = [item.then(reply, question, images=images) for item, reply in zip(turn, replies, strict=True)]
        with counted(generalist) as counts:
            replies = session.generate(turn)
        expected = fresh.generate(turn)
        assert [reply.token_ids for reply in replies] == [reply.token_ids for reply in expected]
        prompts = [render_prompt(item.messages, item.media, session.plan, item.written) for item in turn]
        earlier = [render_prompt(item.messages, item.media, session.plan, item.written) for item in before]
        for now, then, item in zip(prompts, earlier, turn, strict=True):
            ids = [*then.input_ids, *item.written[max(item.written)]]
            assert now.input_ids[: len(ids)] == ids, "what the model wrote stands there as it wrote it"
        new = sum(len(reply.token_ids) for reply in replies)
        whole = sum(len(item.input_ids) for item in prompts)
        known = sum(len(item.input_ids) for item in earlier) + sum(
            len(item.written[max(item.written)]) for item in turn
        )
        assert abs(counts["positions"] - new - (whole - known if memory else whole)) <= 2
        assert counts["images"] == len(images) + (0 if memory else 1), "the second image is the same in both"


def test_a_reply_is_a_turn_of_a_record(generalist):
    """What a session answers can be written to a shard, and is rendered as the tokens that it was."""
    asked = [Conversation.ask("draw a blue 4", images=[IMAGE])]
    ids = written(
        generalist,
        "there it is:",
        Call("draw", "a blue 4"),
        Call("judge", "is it right?", (ResultRef(0),)),
        Call("ground", "red 7", (Region((0.25, 0.25, 0.5, 0.75)),)),
        "done",
    )
    (reply,) = scripted(generalist, asked, ids).generate(asked)
    (message,) = [reply.message]
    assert [part.type for part in message.content] == ["text", "call", "call", "call", "text"]
    record = Record(
        "chat", "chat", "tests", "CC0-1.0", "train", (*asked[0].messages, Message("assistant", message.content))
    )
    rendered = render(record, asked[0].media, generalist.plan(), {})
    start = len(render_prompt(asked[0].messages, asked[0].media, generalist.plan()).input_ids)
    assert rendered.input_ids[start : start + len(ids)] == ids
    assert pack([rendered], generalist.plan()).counts["token"] > 0


def test_calls_are_answered_as_they_close_or_together_with_the_same_results(generalist):
    asked = [Conversation.ask("draw a blue 4", images=[IMAGE]), Conversation.ask("is it right?")]
    first = written(generalist, "so", Call("draw", "a 4"), Call("judge", "it", (ResultRef(0),)), "done now")
    second = written(generalist, Call("draw", "a red 7"), "there")
    events = []
    eager = scripted(generalist, asked, first, second)
    one = eager.generate(asked, listener=events.append)
    script = generalist.step
    together = Session(generalist, eager_calls=False)
    assert generalist.step is script
    told = []
    two = together.generate(asked, listener=told.append)
    for a, b in zip(one, two, strict=True):
        assert (a.text, a.calls, a.errors, a.token_ids) == (b.text, b.calls, b.errors, b.token_ids)
        assert [type(result) for result in a.results] == [type(result) for result in b.results]
    assert len(one[0].results) == 2 and one[0].results[1].score == 1.0

    kinds = [type(event).__name__ for event in events if event.index == 0]
    answered = kinds.index("CallAnswered")
    assert kinds.index("CallWritten") < answered < len(kinds) - 1 - kinds[::-1].index("TextWritten"), kinds
    assert kinds[-1] == "ReplyEnded"
    late = [type(event).__name__ for event in told if event.index == 0]
    assert late.count("CallAnswered") == 2
    assert late.index("CallWritten") > len(late) - 1 - late[::-1].index("TextWritten"), "all text comes before"


def test_a_listener_hears_the_whole_text_and_nothing_of_a_call(generalist):
    asked = [Conversation.ask("draw a blue 4"), Conversation.ask("it")]
    broken = [*written(generalist, "oh "), generalist.vocabulary.open_ids["draw"], *written(generalist, "red é 7")]
    ids = written(generalist, "there é it is:", Call("draw", "a secret"), "dône")
    session = scripted(generalist, asked, ids, broken)
    events = []
    replies = session.generate(asked, listener=events.append)
    for index, reply in enumerate(replies):
        own = [event for event in events if event.index == index]
        heard = [event.text for event in own if isinstance(event, TextWritten)]
        assert "".join(heard).strip() == reply.text and len(heard) > 1
        assert own[-1] == ReplyEnded(index, reply)
    assert "secret" not in "".join(event.text for event in events if isinstance(event, TextWritten))
    (closed,) = [event for event in events if isinstance(event, CallWritten)]
    (answer,) = [event for event in events if isinstance(event, CallAnswered)]
    assert closed.call == replies[0].calls[0] and answer.result is replies[0].results[0] and answer.error is None


def test_listening_changes_nothing(generalist):
    asked = conversations()
    quiet = Session(generalist, max_new_tokens=12).generate(asked)
    heard = Session(generalist, max_new_tokens=12, eager_calls=False).generate(asked, listener=lambda event: None)
    assert [reply.token_ids for reply in quiet] == [reply.token_ids for reply in heard]


def test_prompts_that_the_language_model_cannot_read_are_refused_and_replies_end_where_it_ends(generalist):
    generalist.language_model.config.max_position_embeddings = 60
    long = Conversation.ask("where is the red 7? " * 500)
    assert len(long.messages[0].content[0].text) >= 9_999
    with pytest.raises(ValueError, match=r"conversation 1: expected fewer than 60 tokens.*got \d{4}"):
        Session(generalist).generate([Conversation.ask("where?"), long])
    asked = [Conversation.ask("where is the red 7? " * count) for count in (1, 4)]
    session = Session(generalist)
    lengths = [len(render_prompt(item.messages, {}, session.plan).input_ids) for item in asked]
    session = scripted(generalist, asked, *[written(generalist, "red " * 90)] * 2)
    for reply, length in zip(session.generate(asked), lengths, strict=True):
        assert reply.finish_reason == "length" and len(reply.token_ids) == 60 - length


@pytest.mark.parametrize(
    ("model_type", "config", "windows"),
    [
        ("llama", {}, False),
        ("qwen2", {"use_sliding_window": False}, False),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, True),
        ("mistral", {"sliding_window": 8}, True),
        ("mistral", {"sliding_window": None}, False),
    ],
)
def test_nothing_is_read_on_where_layers_forget(generalist, model_type, config, windows):
    """A sliding window counts columns, and a joined cache has padding between a past and what comes next."""
    sizes = {"vocab_size": 448, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    generalist.language_model = LanguageModel(model_type, {**sizes, **heads, **config}).eval()
    assert generalist.language_model.has_windows == windows
    session = Session(generalist, shared_prefix=4, memory=400, max_new_tokens=6)
    asked = [Conversation.ask(word, images=[IMAGE]) for word in ("where is the red 7?", "is it right?")]
    replies = session.generate(asked)
    plain = Session(generalist, shared_prefix=0, max_new_tokens=6)
    assert [reply.token_ids for reply in replies] == [reply.token_ids for reply in plain.generate(asked)]
    turn = [asked[0].then(replies[0], "and the 4?")]
    assert session.generate(turn)[0].token_ids == plain.generate(turn)[0].token_ids
