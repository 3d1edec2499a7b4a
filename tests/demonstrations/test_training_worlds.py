"""The made worlds of the demonstrations of training recipes are what their words say, and their arms are fair."""

from __future__ import annotations

from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.mixtures import CurriculumStage, Mixture, PackSchedule, Source
from data.quickstart.modules import FAMILIES
from data.shards import expand, read_samples
from demonstrations import text_model
from demonstrations.heads import domain_experts
from demonstrations.text_model import Example, TextModel, make_tokenizer, write_examples
from demonstrations.training import balanced_gradients, graph_matching, lora_experts, two_stage_gate
from inference.conversation import Reply
from models.build import build_generalist, validate_config


def test_a_context_is_a_turn_of_the_system(tmp_path: Path) -> None:
    write_examples(tmp_path, "own", [Example("what", "that", {"a": 1}, "this"), Example("who", "me")])
    first, second = (sample.record for sample in read_samples(expand(str(tmp_path))))
    assert [turn.role for turn in first.messages] == ["system", "user", "assistant"] and first.meta == {"a": 1}
    assert [turn.role for turn in second.messages] == ["user", "assistant"]
    assert Example("what", "that", {}, "this").asked() == first.messages[:2]


def test_changes_and_adapters_reach_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(text_model, "fit", lambda config, *rest: given.update(config))
    model = TextModel(adapters={"lora": {"rank": 2}})
    text_model.train(model, tmp_path, 300, {"sources": []}, 3, 0, tmp_path, changes={"muon": {}, "learning_rate": 0.5})
    recipe = given["model"]["init_args"]
    assert recipe["muon"] == {} and recipe["learning_rate"] == 0.5 and recipe["warmup_steps"] == model.warmup_steps
    assert validate_config(recipe["generalist"]).generalist.language_model.init_args.lora.rank == 2


def test_experts_and_plain_updates_have_as_many_parameters() -> None:
    experts, plain = lora_experts.num_trained(lora_experts.EXPERTS), lora_experts.num_trained(lora_experts.PLAIN)
    assert 1 <= plain / experts <= 1.02
    scales = [values["alpha"] / values["rank"] for values in (lora_experts.EXPERTS["lora_experts"],)]
    assert scales[0] / lora_experts.EXPERTS["lora_experts"]["num_experts"] == 2  # each expert begins with such a share
    assert lora_experts.PLAIN["lora"]["alpha"] / lora_experts.PLAIN["lora"]["rank"] == 2


def test_facts_are_tested_in_words_that_training_never_had_for_them() -> None:
    world, rng = lora_experts.World(0), np.random.default_rng(0)
    asked = {item.question: item.answer for item in world.base(rng)}
    test = world.facts_of_test()
    assert len({item.question for item in test}) == len(test) == 3 * lora_experts.NAMES
    assert not {item.question for item in test} & set(asked)
    assert {item.answer for item in test} <= set(asked.values())


def test_a_family_is_an_order_in_an_alphabet_of_its_own() -> None:
    world, rng = lora_experts.World(0), np.random.default_rng(0)
    for number, (name, order) in enumerate(zip(lora_experts.FAMILIES, lora_experts.ORDERS.values(), strict=True)):
        item = world.family(number, rng)
        family, letters = item.question.split(" : ")
        back = {coded: letter for letter, coded in world.alphabets[number].items()}
        assert family == name == item.meta["family"] and len(back) == len(lora_experts.LETTERS)
        assert "".join(back[letter] for letter in item.answer.split()) == order(letters.replace(" ", ""))
    assert lora_experts.ORDERS["turn"]("abcd") == "bcda" and lora_experts.ORDERS["ends"]("abcd") == "dbca"


def test_families_in_turn_have_equal_shares_of_the_steps() -> None:
    data = lora_experts.third_stage(Path("shards"), in_turn=True)
    stages = [CurriculumStage(**stage) for stage in data["mixture"]["curriculum"]]
    sources = [Source(**source) for source in data["sources"]]
    lengths = np.full(400, 8)
    schedule = PackSchedule(np.arange(400) % 4, lengths, sources, 64, 0, Mixture(curriculum=stages))
    order = [{sample % 4 for sample in schedule.pack(step).samples} for step in range(lora_experts.STEPS)]
    share = lora_experts.STEPS // 4
    assert order == [{step // share} for step in range(lora_experts.STEPS)]
    assert "mixture" not in lora_experts.third_stage(Path("shards"), in_turn=False)


def test_every_notion_of_similarity_has_a_head_whose_loss_counts_as_told(tmp_path: Path) -> None:
    spread = balanced_gradients.settings_of({"learning_rate": 0.1}, balanced_gradients.SCALES["spread"])
    weights = spread["loss_weights"]
    assert weights.pop("token") == 0 and list(weights) == list(domain_experts.DOMAINS)
    assert max(weights.values()) / min(weights.values()) == pytest.approx(100)
    model = balanced_gradients.model()
    size = make_tokenizer(tmp_path, ["a b c"], model.task_table(), 270)
    with torch.device("meta"):
        generalist = build_generalist(model.config(tmp_path, size))
    assert {task.head for task in generalist.tasks} == set(weights) == set(generalist.heads)
    world = domain_experts.World(0)
    (draw,) = balanced_gradients.asked(world, np.random.default_rng(0), 1)
    for domain, rows in enumerate(draw):
        assert all(world.words[domain, value] in first.split() for value, (first, _) in enumerate(rows))


def test_the_tasks_of_speech_are_told_apart_and_worded_anew() -> None:
    world, rng = two_stage_gate.World(0), np.random.default_rng(0)
    said = world.sentence(rng)
    for task in two_stage_gate.TASKS:
        assert world.kind(world.part(task, said)) == task
    assert world.kind("") == world.kind("nothing of it") == ""
    training = {item.question for item in world.singles(900, rng)}
    test = {item.question for item in world.singles(300, rng, test=True)}
    assert len(training) == 5 * 9 and len(test) == 5 * 3 and not training & test
    pairs = [tuple(pair) for pair in (*world.seen, *world.unseen)]
    assert len(set(pairs)) == 20 and len(world.unseen) == 20 - two_stage_gate.SEEN_PAIRS
    asked = {item.meta["tasks"] for item in world.combined(world.seen, 60, rng)}
    assert not asked & {" ".join(pair) for pair in world.unseen}
    assert all(len(item.answer.split(" ; ")) == 3 for item in world.triples(10, rng))


def test_voices_differ_in_vowels_and_the_slow_say_everything_twice() -> None:
    world = two_stage_gate.World(0)
    heard = {
        (voice, pace): world.heard(two_stage_gate.Said((1, 2), voice, pace)).split()[1:]
        for voice in two_stage_gate.VOICES
        for pace in two_stage_gate.PACES
    }
    quick = heard["low", "quick"]
    assert heard["low", "slow"] == [sound for sound in quick for _ in range(2)]
    assert [sound[0] for sound in quick] == [sound[0] for sound in heard["high", "quick"]]
    assert not set(quick) & set(heard["high", "quick"]) and len(set(world.spelling)) == two_stage_gate.WORDS
    assert world.heard(two_stage_gate.Said((1, 2))) == f": {' '.join(world.own[1:3])}"


def test_a_reply_that_does_what_was_asked_may_be_wrong() -> None:
    world, rng = two_stage_gate.World(0), np.random.default_rng(0)
    item = world.example(["voice", "write"], two_stage_gate.Said((1, 2), "low", "slow"), rng)
    assert item.answer == f"a low voice ; {world.own[1]} {world.own[2]}"
    assert two_stage_gate.followed(world, item.answer, item)
    assert two_stage_gate.followed(world, f"a high voice ; {world.own[5]}", item)
    assert not two_stage_gate.followed(world, f"{world.own[1]} ; a low voice", item)
    assert not two_stage_gate.followed(world, "a low voice", item)


@pytest.fixture(scope="module")
def graphs() -> graph_matching.World:
    return graph_matching.World(0)


def test_families_are_asked_of_modules_that_no_training_has_seen(graphs: graph_matching.World) -> None:
    rng = np.random.default_rng(0)
    assert sorted(graphs.seen + graphs.unseen) == sorted(FAMILIES) and len(graphs.unseen) == graph_matching.UNSEEN
    train = {item.nodes for item in graphs.families("train", graphs.seen, 200, rng)}
    test = list(graphs.families("test", graphs.unseen, 60, rng))
    assert not train & {item.nodes for item in test}
    assert all(graphs.modules.families[item.nodes[0]] == item.answer for item in test)


def test_a_link_is_in_neither_of_its_graphs(graphs: graph_matching.World) -> None:
    rng, modules = np.random.default_rng(0), graphs.modules
    for item in graphs.links("train", 40, rng):
        assert (item.nodes in modules.edge_set) == (item.answer == "yes")
        turn, drawn = graphs.as_turn(item, rng)
        assert [part.type for part in turn.content] == ["graph", "text", "graph", "text"]
        for node, other, graph in zip(item.nodes, item.nodes[::-1], drawn.values(), strict=True):
            assert graph.node_texts[0] == modules.texts[node]
            ends = {graph.node_texts[b if a == 0 else a] for a, b in graph.edge_index.T.tolist() if 0 in (a, b)}
            assert modules.texts[other] not in ends or modules.texts.count(modules.texts[other]) > 1


def test_one_of_the_listed_texts_is_the_modules(graphs: graph_matching.World) -> None:
    rng = np.random.default_rng(0)
    places = set()
    for item in graphs.matches("train", 60, rng):
        heads = item.texts[0].removeprefix(" which of ").split(" ; ")
        own = graphs.modules.texts[item.nodes[0]].split()
        assert len(set(heads)) == graph_matching.CANDIDATES and item.answer in heads
        assert item.answer.split() == own[: graph_matching.HEAD]
        places.add(heads.index(item.answer))
        words = graphs.as_example(item, rng).question.split(" which of ")[0].split()
        assert set(words) <= set(own) and len(words) <= graph_matching.WORDS
    assert places == {0, 1, 2}


def test_look_ups_share_words_with_one_text_alone(graphs: graph_matching.World) -> None:
    for item in graphs.look_ups(40, np.random.default_rng(0)):
        words, listed = item.question.split(" which of ")
        shared = {text: len(set(words.split()) & set(text.split())) for text in listed.split(" ; ")}
        assert len(words.split()) == graph_matching.WORDS and len(shared) == graph_matching.CANDIDATES
        assert 2 <= shared.pop(item.answer) <= 4 and set(shared.values()) == {0}


def test_a_link_is_as_likely_as_its_answer_or_as_what_is_left_of_it() -> None:
    def reply(text: str, probability: float) -> Reply:
        return Reply(text, (), (), (), (), text, "stop", {}, log_probability=log(probability))

    assert graph_matching.linked(reply("yes", 0.8)) == pytest.approx(0.8)
    assert graph_matching.linked(reply(" no", 0.9)) == pytest.approx(0.1)
    assert graph_matching.linked(reply("maybe", 0.9)) == 0.5
