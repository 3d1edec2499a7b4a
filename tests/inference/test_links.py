"""Every link of every head: what crosses in training is what crosses in mid-generation, and so do earlier results."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data.media.results import reference_result
from data.packing import pack
from data.records import Message, Part, Target
from data.render import render, render_prompt
from heads.boxes import BoxHead
from heads.frames import rasterise
from heads.prompted import PromptedHead
from inference.conversation import Conversation
from inference.session import Session
from layers.calls import BoxesResult, Call, HeadContext, ImageResult, LabelResult, MaskResult, Result, ScoreResult
from models.build import build_generalist
from models.generalist import Generalist
from models.tokenizer import save_tokenizer, train_tokenizer
from routers.tasks import TaskTable
from tests.inference.conftest import Script
from tests.tiny import CONFIG, TASKS, WORDS, raw_media, sample

SAMPLES = {"ground": "box", "seg": "mask", "draw": "draw", "edit": "edit", "node_class": "node", "link": "link"}
"""Task -> the kind of record that calls it."""
LINKS: dict[str, dict[str, Any]] = {
    "at": {"link": "hidden", "num_queries": 0},
    "before": {"link": "hidden", "num_queries": 0, "anchor_state": "before"},
    "queries": {"link": "queries", "num_queries": 3},
}


def linked(folder: Path, changes: dict[str, dict[str, Any]], prompted: bool = False) -> Generalist:
    """The tiny Generalist with some tasks changed, and only their heads."""
    tasks = [{**task, **changes[task["name"]]} for task in copy.deepcopy(TASKS["tasks"]) if task["name"] in changes]
    table = {**TASKS, "tasks": tasks}
    save_tokenizer(train_tokenizer([WORDS], 360, TaskTable.from_dict(table)), folder)
    heads = {task["head"]: copy.deepcopy(CONFIG["heads"][task["head"]]) for task in tasks}
    for task in tasks:
        if "num_queries" in changes[task["name"]]:
            heads[task["head"]]["init_args"]["num_queries"] = task["num_queries"]
    if prompted:
        wrapper = {"class_path": "heads.prompted.PromptedHead"}
        heads = {name: {**wrapper, "init_args": {"head": head, "state_size": 32}} for name, head in heads.items()}
    torch.manual_seed(0)
    return build_generalist({**CONFIG, "tokenizer": str(folder), "tasks": table, "heads": heads})


@contextmanager
def watched(head: torch.nn.Module) -> Iterator[list[tuple[torch.Tensor | None, list[int], list[HeadContext]]]]:
    """What a head is given meanwhile."""
    given: list[Any] = []
    handle = head.register_forward_pre_hook(lambda module, inputs: given.append(inputs))
    try:
        yield given
    finally:
        handle.remove()


def asked_again(record, targets, generalist: Generalist):
    """A session that replies to the record's question with the record's answer."""
    media = {key: value for key, value in raw_media().items() if key in record.media}
    whole = render(record, media, generalist.plan(), targets)
    conversation = Conversation.from_record(record, media)
    session = Session(generalist)
    length = len(render_prompt(conversation.messages, media, session.plan).input_ids)
    reply = whole.input_ids[length:]
    Script(generalist, {length: reply[: reply.index(generalist.tokenizer.eos_token_id)]})
    return whole, session, conversation


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("task", SAMPLES)
def test_a_head_gets_the_same_states_in_training_and_in_mid_generation(task, link, tmp_path):
    generalist = linked(tmp_path, {task: LINKS[link]}).eval()
    head = generalist.heads[generalist.tasks[task].head]
    whole, session, conversation = asked_again(*sample(SAMPLES[task]), generalist)
    batch = pack([whole], session.plan)
    with watched(head) as trained:
        losses = generalist(batch)
    losses[generalist.tasks[task].head].total.backward()
    gradient = generalist.language_model.model.base_model.layers[0].mlp.down_proj.weight.grad
    assert gradient is not None and gradient.abs().max() > 0, "the head's loss does not reach the language model"
    assert (head.queries is not None and head.queries.grad.abs().max() > 0) == (link == "queries")

    with watched(head) as asked:
        (reply,) = session.generate([conversation])
    (states, lengths, _), (expected, expected_lengths, _) = asked[0], trained[0]
    assert not reply.errors and reply.results[0] is not None
    assert lengths == expected_lengths and states is not None and expected is not None
    torch.testing.assert_close(states, expected.detach(), rtol=1e-4, atol=1e-4)
    ids = [whole.input_ids[position] for position in whole.calls[0].call.state_positions]
    anchor = generalist.vocabulary.anchor_id
    last = {"at": [anchor], "queries": generalist.vocabulary.query_ids.get(task)}.get(link)
    assert last is None or ids[-len(last) :] == last
    if link == "before":
        assert whole.input_ids[whole.calls[0].call.state_positions[-1] + 1] == anchor


@pytest.mark.parametrize("link", ["text", "boxes"])
@pytest.mark.parametrize("task", ["ground", "seg", "draw", "edit"])
def test_only_words_and_boxes_cross_to_a_prompted_head(task, link, tmp_path):
    """Its loss does not reach the language model, and a reply is answered as the record is."""
    change = {"link": link, "num_queries": 0, "prompt_tokens": "none"}
    payload = ["prompt", "regions"] if link == "boxes" or SAMPLES[task] in ("box", "edit") else ["prompt"]
    generalist = linked(tmp_path, {task: {**change, "payload": payload}}, prompted=True).eval()
    name = generalist.tasks[task].head
    head = generalist.heads[name]
    whole, session, conversation = asked_again(*sample(SAMPLES[task]), generalist)
    assert generalist.vocabulary.anchor_id is None and not whole.calls[0].call.state_positions
    batch = pack([whole], session.plan)
    torch.manual_seed(0)
    generalist(batch)[name].total.backward()
    gradient = generalist.language_model.model.base_model.layers[0].mlp.down_proj.weight.grad
    assert gradient is None and head.reader.prompts.words.weight.grad.abs().max() > 0
    with watched(head) as asked:
        (reply,) = session.generate([conversation])
    assert not reply.errors and reply.results[0] is not None and asked[0][0] is None
    (call,) = reply.calls
    assert call.prompt == whole.calls[0].call.prompt

    def read(*calls: Call) -> tuple[torch.Tensor, list[int]]:
        return head.reader(None, [0] * len(calls), [HeadContext(own) for own in calls], "PromptedHead")

    states, lengths = read(*(context.call for context in asked[0][2]))
    again, _ = read(replace(asked[0][2][0].call, prompt="something else"))
    assert states.shape == (sum(lengths), 32) and not torch.equal(states[-1], again[-1])
    padded, _ = read(asked[0][2][0].call, replace(asked[0][2][0].call, prompt="many words " * 9))
    torch.testing.assert_close(padded[: lengths[0]], states, rtol=1e-4, atol=1e-4)


def test_a_link_that_a_head_does_not_take_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"task 'seg' link: expected one of \['hidden', 'queries'\] for MaskHead"):
        linked(tmp_path, {"seg": {"link": "text", "prompt_tokens": "none"}})


def test_a_prompted_head_takes_no_states_and_no_queries(tmp_path):
    with pytest.raises(ValueError, match=r"task 'seg' link: expected one of \['boxes', 'text'\] for PromptedHead"):
        linked(tmp_path, {"seg": {"num_queries": 0}}, prompted=True)
    with pytest.raises(ValueError, match="expected one without queries, which nothing could place, got 2"):
        PromptedHead(BoxHead(32, 16, width=16, num_queries=2), 32)


def test_an_edit_gets_the_mask_that_an_earlier_call_cut_out(tmp_path):
    """Segment, then edit what was segmented: from the record's target in training, from the head in a reply."""
    edit = {"payload": ["prompt", "regions", "results"], "num_queries": 2}
    generalist = linked(tmp_path, {"seg": {}, "edit": edit}).eval()
    record, targets = sample("edit")
    _, masks = sample("mask")
    calls = (
        Part("call", task="seg", prompt="red 7", target="t1"),
        Part("call", task="edit", prompt="7 green", groundings=({"type": "result", "call_index": 0},), target="t0"),
    )
    record = replace(
        record,
        messages=(record.messages[0], Message("assistant", calls)),
        targets={**record.targets, "t1": Target("mask", value="given")},
    )
    whole, session, conversation = asked_again(record, {**targets, "t1": masks["t0"]}, generalist)
    head = generalist.heads["image"]
    batch = pack([whole], session.plan).to("cpu")
    with watched(head) as given:
        generalist(batch)
    (trained,) = given[0][2]
    (mask,) = trained.referred_results
    assert isinstance(mask, MaskResult) and torch.equal(mask.mask, masks["t0"])

    with watched(head) as given:
        (reply,) = session.generate([conversation])
    (context,) = given[0][2]
    assert not reply.errors and context.referred_results == [reply.results[0]]
    region = rasterise(trained, torch.zeros(3, 32, 32))
    assert torch.equal(region[0].bool(), masks["t0"])
    assert torch.equal(rasterise(context, torch.zeros(3, 32, 32))[0].bool(), reply.results[0].mask)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.ones(2, 3, dtype=torch.bool), MaskResult),
        (torch.zeros(3, 2, 2, dtype=torch.uint8), ImageResult),
        ([1.0, 2.0, 3.0, 4.0], BoxesResult),
        ([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 1.0, 1.0]], BoxesResult),
        ("json", LabelResult),
        (0.5, ScoreResult),
        (None, Result),
        ({"of": "another kind"}, Result),
    ],
)
def test_a_target_is_the_result_of_a_perfect_head(value, expected):
    result = reference_result(Call("seg", "red 7"), value)
    assert type(result) is expected and result.call.prompt == "red 7"
    if isinstance(result, BoxesResult):
        assert all(len(box) == 4 for box in result.boxes_xyxy) and len(result.scores) == len(result.boxes_xyxy)
