"""What one call made is what the next is about: images, masks on them, frames of videos, in training as in a reply."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.media.results import made_by
from data.packing import pack
from data.records import Message, Part, Record, Target
from heads.frames import rasterise
from heads.image import FlowImageHead
from heads.originals import original_image
from inference.conversation import Conversation, HeadError
from layers.calls import (
    AudioResult,
    BoxesResult,
    Call,
    HeadContext,
    ImageResult,
    LabelResult,
    MaskResult,
    Region,
    Result,
    ResultRef,
    ScoreResult,
    VideoResult,
)
from layers.media import Graph
from models.generalist import Generalist
from models.language import LanguageModel
from models.token_loss import routing_places
from models.tokenizer import save_tokenizer, train_tokenizer
from routers.tasks import TaskSpec, TaskTable
from tests.inference.conftest import TEXTS, WIDTH, JudgeHead, PicturesHead, RecordingHead
from tests.inference.test_links import asked_again, linked, watched
from tests.inference.test_session import IMAGE, scripted, written
from tests.tiny import sample

REFERS = {"payload": ["prompt", "regions", "results"]}
BOX = [4.0, 6.0, 20.0, 25.0]


def said(generalist, asked, *pieces, **options):
    """The reply to a conversation, as it is written here."""
    generalist.__dict__.pop("step", None)
    session = scripted(generalist, [asked], written(generalist, *pieces), max_new_tokens=200, **options)
    (reply,) = session.generate([asked])
    return reply


def refer(*calls: int) -> tuple[dict[str, object], ...]:
    return tuple({"type": "result", "call_index": index} for index in calls)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


@pytest.fixture(scope="module")
def model(folder: Path) -> Generalist:
    changes = {"ground": REFERS, "seg": REFERS, "draw": {}, "edit": REFERS, "node_class": {}}
    return linked(folder, changes).eval()


@pytest.fixture
def generalist(model: Generalist):
    yield model
    model.__dict__.pop("step", None)  # the script of its replies


def chain() -> tuple[Record, dict[str, torch.Tensor]]:
    """Edit and segment what came out; draw, cut the drawing out, find it, and edit where it was cut out."""
    generator = torch.Generator().manual_seed(3)
    edited, drawn, redrawn = (
        torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=generator) for side in (32, 16, 16)
    )
    ink, small = torch.zeros(32, 32, dtype=torch.bool), torch.zeros(16, 16, dtype=torch.bool)
    ink[6:25, 4:20], small[3:12, 2:10] = True, True
    region = {"type": "region", "box_xyxy": BOX}
    calls = (
        Part("call", task="edit", prompt="7 green", target="edited"),
        Part("call", task="seg", prompt="7", groundings=refer(0), target="ink"),
        Part("call", task="draw", prompt="blue 4", target="drawn"),
        Part("call", task="seg", prompt="4", groundings=refer(2), target="small"),
        Part("call", task="ground", prompt="4", groundings=(*refer(2), region), target="box"),
        Part("call", task="edit", prompt="4 red", groundings=refer(3), target="redrawn"),
    )
    targets = {"edited": edited, "ink": ink, "drawn": drawn, "small": small, "redrawn": redrawn}
    kinds = {"edited": "image", "drawn": "image", "redrawn": "image", "ink": "mask", "small": "mask", "box": "box"}
    record, _ = sample("edit")
    record = replace(
        record,
        messages=(record.messages[0], Message("assistant", calls)),
        targets={name: Target(kind, value="given") for name, kind in kinds.items()},
    )
    return record, {**targets, "box": [2.0, 3.0, 10.0, 12.0]}


def test_a_head_sees_what_an_earlier_call_made_in_training_as_in_a_reply(generalist, monkeypatch):
    record, targets = chain()
    whole, session, conversation = asked_again(record, targets, generalist)
    session.options = replace(session.options, max_new_tokens=300)
    batch = pack([whole, whole], session.plan)
    media = batch.media["image"]
    assert media.token_lengths.count(0) == 4, "an edit and a drawing of each sample, which heads alone see"
    assert sum(media.token_lengths) == len(media.positions)
    heads = generalist.heads
    with (
        watched(heads["masks"]) as masks,
        watched(heads["boxes"]) as boxes,
        watched(heads["image"]) as images,
    ):
        losses = generalist(batch)
    assert {name: losses[name].count for name in ("masks", "boxes", "image")} == {"masks": 4, "boxes": 2, "image": 6}
    assert all(term.total.isfinite() for term in losses.values())
    trained = {"masks": masks[0][2], "boxes": boxes[0][2], "image": images[0][2]}

    made = {"7 green": targets["edited"], "blue 4": targets["drawn"], "4 red": targets["redrawn"]}

    def decode(self, predictions, contexts):
        return [ImageResult(context.call, made[context.call.prompt]) for context in contexts]

    monkeypatch.setattr(FlowImageHead, "decode", decode)
    cut = {"7": targets["ink"], "4": targets["small"]}

    def cut_out(self, predictions, contexts):
        return [MaskResult(context.call, cut[context.call.prompt]) for context in contexts]

    monkeypatch.setattr(type(heads["masks"]), "decode", cut_out)
    with (
        watched(heads["masks"]) as masks,
        watched(heads["boxes"]) as boxes,
        watched(heads["image"]) as images,
    ):
        (reply,) = session.generate([conversation])
    assert not reply.errors and [type(result) for result in reply.results] == [
        ImageResult,
        MaskResult,
        ImageResult,
        MaskResult,
        BoxesResult,
        ImageResult,
    ]
    assert all(0 <= edge <= 16 for edge in reply.results[4].boxes_xyxy[0]), "in pixels of the drawing"
    asked = {
        name: [context for _, _, contexts in given for context in contexts]
        for name, given in (("masks", masks), ("boxes", boxes), ("image", images))
    }
    for name, contexts in asked.items():
        for now, then in zip(contexts, trained[name][: len(contexts)], strict=True):
            assert now.call.prompt == then.call.prompt and now.call.task == then.call.task
            same_context(now, then)
    assert asked["masks"][0].image.layout.original_size == (32, 32)
    assert asked["masks"][1].image.layout.original_size == asked["image"][2].image.layout.original_size == (16, 16)
    region = asked["boxes"][0].call.boxes_xyxy[0]
    assert region == pytest.approx([edge / 32 for edge in BOX], abs=1 / 64), "the same place of the drawing"
    assert reply.calls[4].boxes_xyxy[0] == pytest.approx(BOX, abs=0.5), "as it was written, on what the model saw"
    where = rasterise(asked["image"][2], torch.zeros(3, 32, 32))[0].bool()
    assert torch.equal(where, asked["image"][2].image.layout.transform.apply_mask(targets["small"]))


def same_context(now: HeadContext, then: HeadContext) -> None:
    assert len(now.media) == len(then.media)
    for mine, theirs in zip(now.call.boxes_xyxy, then.call.boxes_xyxy, strict=True):
        assert mine == pytest.approx(theirs, abs=1 / 64), "to within the bins in which it was written"
    for mine, theirs in zip(now.media, then.media, strict=True):
        assert mine.kind == theirs.kind and mine.layout == theirs.layout
        assert torch.equal(mine.inputs["pixel_values"], theirs.inputs["pixel_values"])
        torch.testing.assert_close(mine.features, theirs.features.detach(), rtol=1e-4, atol=1e-4)


def test_a_conversation_without_an_image_goes_on_with_what_it_drew(generalist):
    asked = Conversation.ask("draw a blue 4")
    pieces = (
        "there",
        Call("draw", "blue 4"),
        Call("ground", "4", (ResultRef(0),)),
        Call("seg", "4", (ResultRef(0),)),
        Call("edit", "4 red", (ResultRef(2),)),
        Call("seg", "4"),
        "done",
    )
    with watched(generalist.heads["image"]) as given:
        reply = said(generalist, asked, *pieces)
    assert [type(result) for result in reply.results] == [ImageResult, BoxesResult, MaskResult, ImageResult]
    assert [error.kind for error in reply.errors] == ["unavailable"], "the last call refers to nothing"
    assert reply.text.startswith("there") and reply.text.endswith("done")
    assert reply.results[2].mask.shape == (16, 16) and reply.results[3].image.shape == (3, 16, 16)
    (context,) = given[1][2]
    assert torch.equal(context.image.load_original(), reply.results[0].image), "the mask is on the drawing"
    again = said(generalist, asked, *pieces, constrained=True)
    assert [call.task for call in again.calls][:4] == [call.task for call in reply.calls]


def test_what_is_referred_to_must_be_what_the_task_needs(generalist, monkeypatch):
    asked = Conversation.ask("what family?", graphs=[Graph(("json", "re"), torch.tensor([[1], [0]]))])
    pieces = (Call("node_class", ""), Call("seg", "4", (ResultRef(0),)), Call("draw", "blue 4"), "done")
    reply = said(generalist, asked, *pieces)
    (error,) = reply.errors
    assert isinstance(error, HeadError) and (error.call_index, error.cause) == (1, "refused")
    assert "needs the media ['image'], the conversation and what it refers to are ['graph']" in error.message
    assert [type(item) for item in reply.results] == [LabelResult, type(None), ImageResult] and reply.text == "done"

    def broken(self, predictions, contexts):
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    monkeypatch.setattr(FlowImageHead, "decode", broken)
    pieces = ("so", Call("draw", "blue 4"), Call("seg", "4", (ResultRef(0),)), "done")
    reply = said(generalist, Conversation.ask("draw a blue 4"), *pieces)
    assert [error.cause for error in reply.errors] == ["out_of_memory", "refused"]
    assert reply.text == "sodone" and "call 0, which failed" in reply.errors[1].message


def test_a_router_may_begin_a_task_after_what_it_needs_was_made(generalist):
    record, targets = chain()
    lone = replace(record, messages=(Message("user", (Part("text", text="draw"),)), record.messages[1]), media={})
    calls = [replace(part, groundings=refer(0) if part.groundings else ()) for part in record.messages[1].content[2:5]]
    lone = replace(lone, messages=(lone.messages[0], Message("assistant", tuple(calls))))
    whole, session, _ = asked_again(lone, targets, generalist)
    batch = pack([whole], session.plan)
    _, tokens, available = routing_places(torch.zeros(batch.input_ids.shape[1], 4), batch, generalist.tasks)
    opens = {index: task for task, index in generalist.vocabulary.open_ids.items()}
    places = zip(tokens.tolist(), available, strict=True)
    begun = [(opens[token], set(names)) for token, names in places if token in opens]
    assert [task for task, _ in begun] == ["draw", "seg", "ground"]
    assert begun[0][1] == {"draw"} and begun[1][1] >= {"draw", "ground", "seg", "edit"}


class FilmHead(RecordingHead):
    """Three frames that tell themselves apart."""

    def answer(self, context: HeadContext) -> Result:
        frames = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 6, 4)
        return VideoResult(context.call, frames.contiguous(), 2.0)


class SayHead(RecordingHead):
    """A tenth of a second."""

    def answer(self, context: HeadContext) -> Result:
        return AudioResult(context.call, torch.zeros(1, 800), 8000)


class LookHead(RecordingHead):
    """The mean of the image that the call is about."""

    def answer(self, context: HeadContext) -> Result:
        return ScoreResult(context.call, float(original_image(context).float().mean()))


def test_experts_see_what_was_made_where_the_model_has_no_encoder(tmp_path):
    """Images and the last shown frame of a video as they are; a sound is an earlier result and no more."""
    both: tuple = ("prompt", "results")
    table = TaskTable(
        tasks=(
            TaskSpec("draw", "pictures", "text"),
            TaskSpec("film", "film", "text"),
            TaskSpec("say", "say", "text"),
            TaskSpec("look", "look", "text", (), both),
            TaskSpec("judge", "judge", "text", (), both),
        ),
        max_results=8,
    )
    save_tokenizer(train_tokenizer(TEXTS * 4, 300, table), tmp_path)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    heads = {"pictures": PicturesHead(), "film": FilmHead(), "say": SayHead(), "look": LookHead(), "judge": JudgeHead()}
    language_model = LanguageModel("llama", {"vocab_size": 448, "num_key_value_heads": 2, **sizes})
    model = Generalist(str(tmp_path), table, language_model, encoders={}, projectors={}, heads=heads).eval()
    reply = said(
        model,
        Conversation.ask("where is it?"),
        Call("draw", "a 4"),
        Call("film", "a 7"),
        Call("look", "it", (ResultRef(0),)),
        Call("look", "it", (ResultRef(1),)),
        Call("say", "it"),
        Call("judge", "it", (ResultRef(4), ResultRef(0))),
        Call("look", "it", (ResultRef(4),)),
        Call("look", "it", (ResultRef(1), ResultRef(0))),
    )
    scores = [result.score for result in reply.results if isinstance(result, ScoreResult)]
    assert scores == [0.0, 2.0, 1.0, 0.0], "the drawing is black, the film's last frame is 2; the last reference counts"
    (error,) = reply.errors
    assert error.call_index == 6 and "needs an image" in error.message
    judged = heads["judge"].rounds[0][2][0]
    assert [type(item) for item in judged.referred_results] == [AudioResult, ImageResult] and len(judged.media) == 1


def test_what_a_call_is_about():
    image, other = (ImageResult(Call("draw", name)) for name in ("one", "other"))
    on_image = MaskResult(Call("seg", "", (ResultRef(0),)))
    on_nothing = BoxesResult(Call("ground", ""))
    results = [image, other, on_image, on_nothing, AudioResult(Call("say", "")), None, ScoreResult(Call("judge", ""))]

    def about(*calls: int) -> list[int]:
        return made_by(Call("edit", "", tuple(ResultRef(index) for index in calls)), results)

    assert about(0) == [0] and about(2) == [0] and about(3) == about(6) == []
    assert about(2, 1) == [0, 1] and about(1, 2) == [1, 0] and about(0, 2) == [0] and about(4, 2) == [4, 0]
    deep = [*results, MaskResult(Call("seg", "", (ResultRef(2), ResultRef(1))))]
    assert made_by(Call("edit", "", (ResultRef(7),)), deep) == [1], "a mask is on the last of them"


def test_an_image_of_the_conversation_stays_what_other_calls_are_about(generalist):
    asked = Conversation.ask("draw a blue 4", images=[IMAGE])
    reply = said(generalist, asked, Call("draw", "blue 4"), Call("seg", "4", (ResultRef(0),)), Call("seg", "7"))
    assert [result.mask.shape for result in reply.results[1:]] == [(16, 16), (20, 40)] and not reply.errors
    box = (Region((0.25, 0.25, 0.75, 0.75)), ResultRef(0))
    with watched(generalist.heads["boxes"]) as given:
        reply = said(generalist, asked, Call("draw", "blue 4"), Call("ground", "4", box))
    assert not reply.errors
    (context,) = given[0][2]
    x1, _, x2, _ = context.call.boxes_xyxy[0]
    seen = reply.calls[1].boxes_xyxy[0]
    assert (x1, x2) == pytest.approx((seen[0] / 40, seen[2] / 40), abs=1e-6), "fractions of the image, on the drawing"
