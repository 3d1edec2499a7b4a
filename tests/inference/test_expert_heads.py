"""Experts within a Generalist: trained from records, asked in a session, saved beside their directories."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import SamConfig, SamModel

from data.packing import pack
from data.records import Message, Part, Record, Target
from data.render import render, render_prompt
from inference.conversation import Conversation, HeadError
from inference.session import Session
from layers.calls import BoxesResult, Call, MaskResult, MasksResult, Region
from models.build import build_generalist
from models.checkpoint import WEIGHTS, CheckpointError, load_checkpoint, save_checkpoint
from models.generalist import Generalist
from models.tokenizer import save_tokenizer, train_tokenizer
from routers.parser import ParseError
from routers.rendering import render_call
from routers.tasks import TaskTable
from tests.heads.experts import MASK2FORMER, SAM, awake
from tests.inference.conftest import Script
from tests.tiny import CONFIG, MEDIA, WORDS, raw_media
from training.optimizer import set_trainable

TASKS: dict[str, Any] = {
    "num_bins": 64,
    "tasks": [
        {"name": "seg", "head": "sam", "needs": ["image"]},
        {"name": "cut", "head": "boxed", "link": "boxes", "needs": ["image"], "payload": ["prompt", "regions"]},
        {"name": "detect", "head": "sets", "needs": ["image"]},
        {"name": "parts", "head": "parts", "link": "queries", "num_queries": 2, "needs": ["image"]},
        {"name": "find", "head": "finder", "link": "text", "needs": ["image"]},
    ],
}
BOX = [4.0, 6.0, 20.0, 25.0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, and a SAM as transformers saves it."""
    folder = tmp_path_factory.mktemp("experts")
    table = TaskTable.from_dict(copy.deepcopy(TASKS))
    save_tokenizer(train_tokenizer([WORDS], 360, table), folder / "tokenizer")
    torch.manual_seed(0)
    awake(SamModel(SamConfig(**SAM)), 0.05).save_pretrained(folder / "sam")
    return folder


def config(folder: Path) -> dict[str, Any]:
    state, sam = {"state_size": 32}, {"pretrained": str(folder / "sam")}
    heads: dict[str, tuple[str, dict[str, Any]]] = {
        "sam": ("masks.SamMaskHead", {**state, **sam}),
        "boxed": ("masks.SamMaskHead", {**state, **sam, "link": "boxes", "instances": True}),
        "sets": ("boxes.BoxSetHead", {**state, "feature_size": 16, "width": 16, "num_layers": 1, "threshold": 0.0}),
        "parts": (
            "masks.Mask2FormerHead",
            {**state, "config": MASK2FORMER, "image_size": [64, 64], "num_queries": 2, "threshold": 0.0},
        ),
        "finder": ("boxes.DetectorHead", {"pretrained": str(folder / "no_such_detector")}),
    }
    return {
        **copy.deepcopy(CONFIG),
        "tokenizer": str(folder / "tokenizer"),
        "tasks": copy.deepcopy(TASKS),
        "heads": {name: {"class_path": f"heads.{path}", "init_args": args} for name, (path, args) in heads.items()},
    }


@pytest.fixture
def generalist(folder: Path) -> Generalist:
    torch.manual_seed(0)
    return build_generalist(config(folder))


def record() -> tuple[Record, dict[str, Any]]:
    """One turn with a call of each task, on one picture."""
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[6:25, 4:20] = True
    both = [{"mask": mask, "label": "red"}, {"mask": ~mask, "label": "blue"}]
    boxes = [{"box_xyxy": BOX, "label": "red"}, {"box_xyxy": [0.0, 0.0, 4.0, 32.0], "label": "blue"}]
    values: dict[str, Any] = {"seg": mask, "cut": [{"mask": mask, "label": ""}], "detect": boxes, "parts": both}
    values["find"] = boxes
    kinds = {"seg": "mask", "cut": "masks", "detect": "boxes", "parts": "masks", "find": "boxes"}
    regions = {"cut": ({"type": "region", "box_xyxy": BOX},)}
    calls = tuple(
        Part("call", task=task, prompt="red; blue" if task in ("detect", "parts", "find") else "red 7", target=task)
        for task in values
    )
    calls = tuple(replace(call, groundings=regions.get(call.task, ())) for call in calls)
    user = Message("user", (Part("image", media="scene"), Part("text", text="where is the red 7?")))
    targets = {name: Target(kinds[name], value="given") for name in values}
    made = Record(
        "all-0",
        "all",
        "tests",
        "CC0-1.0",
        "train",
        (user, Message("assistant", calls)),
        {"scene": MEDIA["scene"]},
        targets,
    )
    return made, values


def test_every_expert_learns_from_a_record_with_the_original_image(generalist: Generalist) -> None:
    made, values = record()
    set_trainable(generalist, [r"^language_model\.", r"^heads\."])
    generalist.train()
    plan = generalist.plan()
    assert plan.with_originals
    whole = render(made, {"scene": raw_media()["scene"]}, plan, values)
    batch = pack([whole, whole], plan).to("cpu")
    assert [image.shape for image in batch.media["image"].originals] == [(3, 32, 32)] * 2
    losses = generalist(batch)
    assert {name: term.count for name, term in losses.items() if name != "token"} == {
        "sam": 2,
        "boxed": 2,
        "sets": 2,
        "parts": 2,
    }, "what is frozen as a whole is not even asked"
    assert batch.counts["sam"] == 2 and "finder" not in batch.counts
    torch.stack([term.total for term in losses.values()]).sum().backward()
    idle = {name for name, p in generalist.heads.named_parameters() if p.requires_grad and p.grad is None}
    assert idle == set()
    frozen = {name for name, p in generalist.heads.named_parameters() if not p.requires_grad}
    assert any("vision_encoder" in name for name in frozen) and any("pixel_level_module" in name for name in frozen)
    assert not any("mask_decoder" in name for name in frozen)
    assert generalist.heads["sam"].cache.misses == 1, "one picture, though it is in two samples"
    prompt = render_prompt(made.messages[:1], {"scene": raw_media()["scene"]}, plan)
    assert pack([prompt], plan).media["image"].originals == []


def scripted(session: Session, conversation: Conversation, calls: list[list[int]]) -> Any:
    length = len(render_prompt(conversation.messages, conversation.media, session.plan).input_ids)
    said = session.plan.tokenizer("there it is", add_special_tokens=False)["input_ids"]
    Script(session.generalist, {length: [*said, *(token for call in calls for token in call)]})
    (reply,) = session.generate([conversation])
    return reply


def test_one_bad_call_costs_itself_alone(generalist: Generalist) -> None:
    """Reversed edges, a region missing, an expert that is not there: one error each; everything else is answered."""
    session = Session(generalist.eval(), max_new_tokens=200)
    vocabulary, tokenizer = session.plan.vocabulary, session.plan.tokenizer

    def written(task: str, prompt: str = "red 7", *boxes: tuple[float, float, float, float]) -> list[int]:
        call = Call(task, prompt, tuple(Region(box) for box in boxes))
        return render_call(call, vocabulary, tokenizer).ids

    reversed_box = written("cut", "red 7", (0.1, 0.2, 0.6, 0.8))
    places = [place for place, token in enumerate(reversed_box) if token in vocabulary.loc_ids]
    reversed_box[places[0]], reversed_box[places[2]] = reversed_box[places[2]], reversed_box[places[0]]
    calls = [
        written("seg"),
        reversed_box,
        written("cut"),
        written("find", "red"),
        written("cut", "red 7", (0.1, 0.2, 0.6, 0.8), (0.5, 0.5, 1, 1)),
        written("detect", "red; blue"),
        written("parts", "red; blue"),
    ]
    conversation = Conversation.ask("where is the red 7?", images=[raw_media()["scene"]])
    reply = scripted(session, conversation, calls)
    assert reply.text.startswith("there it is") and reply.finish_reason == "stop"
    malformed, *failed = reply.errors
    assert isinstance(malformed, ParseError) and malformed.token_span[0] > 0, "the reversed region is no call"
    nothing = type(None)
    kinds = [type(result) for result in reply.results]
    assert kinds == [MaskResult, nothing, nothing, MasksResult, BoxesResult, MasksResult]
    messages = {error.call_index: error.message for error in failed if isinstance(error, HeadError)}
    causes = [error.cause for error in failed if isinstance(error, HeadError)]
    assert list(messages) == [1, 2] and causes == ["refused", "not_loaded"]
    assert messages[1] == "task 'cut': expected a region, which is what this head is prompted with"
    assert messages[2].startswith("expert '") and "no_such_detector': expected a directory" in messages[2]
    assert len(reply.results[3].masks) == 2 and set(reply.results[4].labels) <= {"red", "blue"}
    assert generalist.heads["boxed"].cache.misses == 1


def test_a_checkpoint_names_the_directory_of_a_head_and_stores_what_it_learned(
    generalist: Generalist, folder: Path, tmp_path: Path
) -> None:
    with torch.no_grad():
        generalist.heads["sam"].sam.model.mask_decoder.iou_token.weight.add_(1.0)
    saved = save_checkpoint(generalist.eval(), config(folder), tmp_path / "checkpoint")
    with safe_open(saved / WEIGHTS, framework="pt") as file:
        stored = {name for name in file.keys() if name.startswith("heads.sam.sam.")}
    assert stored == {"heads.sam.sam.model.mask_decoder.iou_token.weight"}
    again = load_checkpoint(saved)
    for name, value in generalist.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    file = folder / "sam" / "model.safetensors"
    original = file.read_bytes()
    try:
        awake(SamModel.from_pretrained(folder / "sam"), 0.05).save_pretrained(folder / "sam")
        with pytest.raises(CheckpointError, match=r"base of 'heads\.(sam|boxed)\.sam\.model\.'"):
            load_checkpoint(saved)
    finally:
        file.write_bytes(original)
