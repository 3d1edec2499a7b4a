"""The learned router: what it is trained on, what it decides, and that it is one router with the other."""

from __future__ import annotations

import copy

import pytest
import torch
import yaml

from data.packing import pack
from inference.conversation import Conversation
from inference.session import Session
from models.build import build_generalist
from models.checkpoint import load_checkpoint
from routers.learned import LearnedRouter
from routers.router import ROUTER_LOSS, MarkerRouter, Router
from tests.tiny import TASKS, raw_media, rendered, tiny_config, training_arguments, write_shard
from train import main

NAMES = [task["name"] for task in TASKS["tasks"]]
CONFIG = {"class_path": "routers.learned.LearnedRouter", "init_args": {"state_size": 32, "tasks": NAMES}}


def routed(folder, **arguments):
    config = copy.deepcopy(CONFIG)
    config["init_args"] |= arguments
    torch.manual_seed(0)
    return build_generalist({**tiny_config(folder), "router": config})


def test_it_steers_where_a_call_could_begin(vocabulary):
    router = LearnedRouter(8, list(vocabulary.open_ids))
    router.bind(vocabulary)
    assert isinstance(router, Router) and router.steers and not MarkerRouter(vocabulary).steers
    opens = list(vocabulary.open_ids.values())
    with torch.no_grad():
        router.classify[-1].weight.zero_()
        router.classify[-1].bias.copy_(torch.arange(9.0))  # the last task of the table is the likeliest
    logits, states = torch.randn(4, len(vocabulary.tokenizer)), torch.randn(4, 8)
    steered = router.steer(logits, states, [list(vocabulary.open_ids), ["seg"], None, []])
    assert steered[0].isfinite().nonzero().tolist() == [[opens[-1]]]
    assert steered[1].isfinite().nonzero().tolist() == [[vocabulary.open_ids["seg"]]]
    assert torch.equal(steered[2], logits[2]), "within a call the language model writes"
    assert steered[3].isinf().nonzero()[:, 0].tolist() == sorted(opens), "no task is available, so text it is"
    assert router.steer(logits, states, [None] * 4) is logits
    scores = router(states[:2], [["seg"], ["draw", "edit"]])
    assert scores.exp().sum(-1).allclose(torch.ones(2)) and scores.isfinite().sum(-1).tolist() == [2, 3]


def test_its_tasks_are_those_of_the_table(vocabulary):
    with pytest.raises(ValueError, match=r"router tasks: expected those of the table, \['ground'.*got \['seg'\]"):
        LearnedRouter(8, ["seg"]).bind(vocabulary)


def test_it_learns_from_every_place_where_a_call_could_begin(tmp_path):
    generalist = routed(tmp_path)
    plan = generalist.plan()
    samples = [rendered(name, plan) for name in ("two", "text", "edit", "link")]
    batch = pack(samples, plan)
    term = generalist(batch)[ROUTER_LOSS]
    assert term.count == batch.counts[ROUTER_LOSS]
    outside = 0
    for sample in samples:
        spans = [call.call.token_span for call in sample.calls]
        for place, label in enumerate(sample.labels):
            within = any(start < place < end for start, end in spans)
            outside += place > 0 and label != -100 and not within
    assert term.count == outside and outside < batch.counts["token"]
    assert "router" not in pack(samples, routed_by_markers(tmp_path).plan()).counts
    term.total.backward()
    gradient = generalist.language_model.model.base_model.layers[0].mlp.down_proj.weight.grad
    assert gradient.abs().max() > 0 and generalist.router.classify[1].weight.grad.abs().max() > 0

    apart = routed(tmp_path, detach=True)
    apart(batch)[ROUTER_LOSS].total.backward()
    gradient = apart.language_model.model.base_model.layers[0].mlp.down_proj.weight.grad
    assert gradient is None or not gradient.any()


def routed_by_markers(folder):
    return build_generalist(tiny_config(folder))


def test_a_replys_calls_begin_where_the_router_says(tmp_path):
    """One call of a task that the media allow, then text: batched as alone, and whatever the model would prefer."""
    generalist = routed(tmp_path).eval()
    media = raw_media()
    asked = [
        Conversation.ask("where is the red 7?", images=[media["scene"]]),
        Conversation.ask("what family?", graphs=[media["first"]]),
        Conversation.ask("say hello"),
    ]
    with torch.no_grad():
        generalist.router.classify[-1].weight.zero_()
        generalist.router.classify[-1].bias.copy_(torch.tensor([0.0, 1, 2, 5, 3, 6, 4]))
    options = {"max_new_tokens": 4}
    replies = Session(generalist, **options).generate(asked)
    first = [generalist.tokenizer.convert_ids_to_tokens(reply.token_ids[0]) for reply in replies]
    assert first == ["<draw>", "<node_class>", "<draw>"], "the likeliest of those that the media allow"
    alone = [Session(generalist, batch_size=1, **options).generate([item])[0] for item in asked]
    assert [reply.token_ids for reply in alone] == [reply.token_ids for reply in replies]
    with torch.no_grad():
        generalist.router.classify[-1].bias[0] = 9.0
    replies = Session(generalist, max_new_tokens=24, temperature=2.0).generate(asked)
    opens = set(generalist.vocabulary.open_ids.values())
    assert all(not opens & set(reply.token_ids) for reply in replies)


def test_it_is_trained_with_the_recipe_and_saved(tmp_path):
    arguments = training_arguments(tmp_path / "run", write_shard(tmp_path), steps=2, loss_weights={"router": 0.5})
    path = tmp_path / "run" / "run.yaml"
    config = yaml.safe_load(path.read_text())
    config["model"]["init_args"]["generalist"]["router"] = CONFIG
    path.write_text(yaml.safe_dump(config))
    cli = main(arguments)
    assert cli.trainer.logged_metrics["train/loss_router"] > 0
    router = load_checkpoint(tmp_path / "run" / "checkpoint").router
    assert isinstance(router, LearnedRouter)
    trained = cli.model.generalist.router.classify[1].weight
    assert torch.equal(router.classify[1].weight, trained) and router.tasks == tuple(NAMES)
