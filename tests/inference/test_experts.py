"""Frozen experts behind a session: one feeds the next, and failures cost their call alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data.render import render_prompt
from heads.boxes import DetectorHead
from heads.experts.pool import ExpertPool
from heads.generation.editing import InpaintHead
from heads.generation.images import TextToImageHead
from heads.generation.layout import LayoutImageHead
from heads.generation.sound import SoundHead
from heads.generation.sources import region_mask
from inference.conversation import Conversation
from layers.calls import (
    AudioResult,
    BoxesResult,
    Call,
    HeadContext,
    ImageResult,
    MediaFeatures,
    Region,
    ResultRef,
)
from layers.geometry import GeometricTransform
from layers.layout import ItemLayout
from models.generalist import Generalist
from models.language import LanguageModel
from models.projectors import MLPProjector
from models.tokenizer import save_tokenizer, train_tokenizer
from routers.tasks import TaskSpec, TaskTable
from tests.heads.generation.tiny_experts import save_pipeline
from tests.heads.test_detector import owl
from tests.inference.conftest import TEXTS, WIDTH, PatchEncoder
from tests.inference.test_session import IMAGE, scripted, written

TABLE = TaskTable(
    tasks=(
        TaskSpec("imagine", "imagine", "text"),
        TaskSpec("compose", "compose", "boxes", payload=("prompt", "regions")),
        TaskSpec("fill", "fill", "boxes", payload=("prompt", "regions", "results")),
        TaskSpec("sound", "sound", "text"),
        TaskSpec("find", "find", "text", ("image",), ("prompt", "results")),
        TaskSpec("gone", "gone", "text"),
    ),
    num_bins=32,
    max_results=3,
)
NAMES = {
    "imagine": "StableDiffusionPipeline",
    "compose": "StableDiffusionGLIGENPipeline",
    "fill": "StableDiffusionInpaintPipeline",
    "sound": "AudioLDMPipeline",
}


@pytest.fixture
def generalist(model: Generalist) -> Iterator[Generalist]:
    yield model
    model.__dict__.pop("step")  # the script of its replies


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Generalist:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("experts")
    paths = {head: str(save_pipeline(root / name, name)) for head, name in NAMES.items()}
    save_tokenizer(train_tokenizer(TEXTS * 4, 300, TABLE), root / "tokenizer")
    (root / "owl").mkdir()
    owl(root / "owl")
    sizes = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = Generalist(
        str(root / "tokenizer"),
        TABLE,
        LanguageModel("llama", {"vocab_size": 448, "num_key_value_heads": 2, **sizes}),
        encoders={"image": PatchEncoder()},
        projectors={"image": MLPProjector(3, WIDTH)},
        heads={
            "imagine": TextToImageHead(paths["imagine"], num_steps=1),
            "compose": LayoutImageHead(paths["compose"], num_steps=1),
            "fill": InpaintHead(paths["fill"], num_steps=2),
            "sound": SoundHead(paths["sound"], num_steps=1, seconds=0.016),
            "find": DetectorHead(str(root / "owl"), threshold=0.0),
            "gone": TextToImageHead(str(Path("no") / "such" / "expert")),
        },
        experts=ExpertPool("1 GiB"),
    )
    return model.eval()


def test_one_experts_result_feeds_the_next_and_a_missing_expert_costs_its_call(generalist: Generalist) -> None:
    box = Region((0.25, 0.25, 0.75, 0.75))
    asked = [Conversation.ask("draw a blue 4"), Conversation.ask("it")]
    first = written(
        generalist,
        "there",
        Call("imagine", "a 4"),
        Call("gone", "a 7"),
        Call("fill", "a 9", (ResultRef(0), box)),
        " done",
    )
    second = written(generalist, Call("compose", "a 4; a 7", (box, box)), Call("sound", "a dog barks"))
    one, two = scripted(generalist, asked, first, second).generate(asked)
    assert one.text == "there done" and not two.errors
    (error,) = one.errors
    assert (error.call_index, error.cause) == (1, "not_loaded") and "expected a directory" in error.message
    drawn, _, filled = one.results
    assert isinstance(drawn, ImageResult) and isinstance(filled, ImageResult) and one.results[1] is None
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[4:12, 4:12] = True
    assert torch.equal(filled.image[:, ~inside], drawn.image[:, ~inside])
    assert not torch.equal(filled.image[:, inside], drawn.image[:, inside])
    assert [type(result) for result in two.results] == [ImageResult, AudioResult]
    pool = generalist.heads["imagine"].experts
    assert all(head.experts is pool for head in generalist.heads.values()) and len(pool.loaded) >= 4


def test_what_was_drawn_is_looked_at_and_what_was_found_in_it_is_filled(generalist: Generalist) -> None:
    """Generate, detect, inpaint, with no image in the conversation: each expert is asked about what the last made."""
    asked = [Conversation.ask("draw a blue 4")]
    calls = (Call("imagine", "a 4"), Call("find", "cat", (ResultRef(0),)), Call("fill", "a 9", (ResultRef(1),)))
    (reply,) = scripted(generalist, asked, written(generalist, "there", *calls, " done")).generate(asked)
    assert reply.text == "there done" and not reply.errors
    drawn, found, filled = reply.results
    assert isinstance(drawn, ImageResult) and isinstance(found, BoxesResult) and isinstance(filled, ImageResult)
    size = (16, 16)
    media = MediaFeatures("image", torch.zeros(0, 0), ItemLayout((0,), size, GeometricTransform.identity(size)))
    media.load_original = lambda: drawn.image
    (alone,) = generalist.heads["find"].find([HeadContext(Call("find", "cat"), [media])])
    assert found.boxes_xyxy == alone.boxes_xyxy and len(found.boxes_xyxy) > 0
    inside = region_mask(HeadContext(Call("fill", "", (ResultRef(0),)), [media], [found]), size)
    assert inside is not None and torch.equal(filled.image[:, ~inside], drawn.image[:, ~inside])
    assert not torch.equal(filled.image[:, inside], drawn.image[:, inside])


def test_regions_of_a_drawing_are_on_an_empty_canvas_and_come_back_as_they_were(generalist: Generalist) -> None:
    """A follow-up reads them again; on an image they are pixels, and a head that needs one refuses the canvas."""
    box = Region((0.25, 0.25, 0.75, 0.75))
    asked = [Conversation.ask("draw it"), Conversation.ask("the 9", images=[IMAGE])]
    ids = written(generalist, Call("compose", "a 4", (box,)))
    session = scripted(generalist, asked, ids, ids)
    on_canvas, on_image = session.generate(asked)
    (region,) = on_canvas.calls[0].groundings
    assert isinstance(region, Region) and region.canvas == (1.0, 1.0)
    assert region.box_xyxy == pytest.approx(box.box_xyxy, abs=1 / 32)
    (pixels,) = on_image.calls[0].groundings
    assert isinstance(pixels, Region) and pixels.canvas is None and pixels.box_xyxy[2] > 1
    (turn,) = asked[0].then(on_canvas, "and it").messages[1:2]
    assert turn.content[0].groundings[0]["canvas"] == [1.0, 1.0]
    rendered = render_prompt([*asked[0].messages, turn, *asked[0].messages], {}, session.plan)
    (call,) = (item.call for item in rendered.calls)
    assert call.boxes_xyxy[0] == pytest.approx(region.box_xyxy)
    lone = [Conversation.ask("it")]
    (refused,) = scripted(generalist, lone, written(generalist, Call("fill", "a 9", (box,)))).generate(lone)
    assert "task 'fill' needs an image" in refused.errors[0].message


def test_an_expert_that_breaks_in_the_middle_of_a_reply(
    generalist: Generalist, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [Conversation.ask("draw a blue 4")]
    ids = written(generalist, "one", Call("imagine", "a 4"), Call("sound", "a dog"), " end")
    session = scripted(generalist, asked, ids)
    assert not session.generate(asked)[0].errors
    head = generalist.heads["imagine"]
    with head.experts.borrow(head.expert, torch.device("cpu")) as pipeline:
        monkeypatch.setattr(pipeline.unet, "forward", lambda *_, **__: torch.zeros(1) @ torch.zeros(2))
    (reply,) = session.generate(asked)
    assert reply.text == "one end" and isinstance(reply.results[1], AudioResult)
    assert reply.errors[0].cause == "raised" and reply.errors[0].message.startswith("RuntimeError")

    def starved(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    monkeypatch.setattr(pipeline.unet, "forward", starved)
    (reply,) = session.generate(asked)
    assert reply.errors[0].cause == "out_of_memory" and isinstance(reply.results[1], AudioResult)
