"""Predicting with a tiny checkpoint: resume, controls, damaged media, refusals, the command line."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from data.records import Part
from eval.__main__ import main
from eval.askers.asker import question_of
from eval.askers.session import Decoding, SessionAsker
from eval.benchmarks.quickstart import quickstart_benchmarks
from eval.controls import blind, media_donors, random_generalist, shuffle_weights, swap_media, zeroed
from eval.log import LogError, read_log
from eval.predict import Asking, predict
from inference.conversation import Conversation
from inference.session import Session
from models.checkpoint import save_checkpoint
from models.generalist import Generalist
from models.media import EncodedMedia
from tests.eval.conftest import answer_sample, call_sample, picture, write_shards
from tests.tiny import tiny_config, tiny_generalist

SHORT = {"batch_size": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    return save_checkpoint(tiny_generalist(folder), tiny_config(folder), folder / "checkpoint")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    ground = Part("call", task="ground", prompt="red 7", groundings=({"type": "region", "box_xyxy": [1, 1, 5, 5]},))
    write_shards(tmp_path, "test", "image_qa", [answer_sample("image_qa", i, str(i)) for i in range(11)])
    write_shards(tmp_path, "test", "routing", [call_sample("routing", i, [ground]) for i in range(3)])
    return tmp_path


def ask(checkpoint: Path, data: Path, out: Path, names: tuple[str, ...] = ("image_qa",), **options: object) -> str:
    text = io.StringIO()
    control, limit = options.pop("control", None), options.pop("limit", None)
    asker = SessionAsker(checkpoint, Decoding(**{"max_new_tokens": 8, **SHORT, **options}), control)  # type: ignore[arg-type]
    asking = Asking(control, limit, chunk=8)  # type: ignore[arg-type]
    predict(asker, quickstart_benchmarks(data, "test", names), out, asking, Console(file=text, width=200))
    return text.getvalue()


def test_interrupted_equals_uninterrupted(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    ask(checkpoint, data, whole, batch_size=8)
    ask(checkpoint, data, parts, limit=5)
    parts.write_bytes(parts.read_bytes()[:-9])
    said = ask(checkpoint, data, parts)
    assert "unfinished last line" in said
    assert "7 to go" in said
    first, second = read_log(whole), read_log(parts)
    assert second.header.identity == first.header.identity
    assert len(second.predictions) == first.header.identity["n_expected"]["image_qa"] == 11

    def content(path: Path) -> list[str]:
        return sorted(json.dumps(replace(row, timings={}).to_json()) for row in read_log(path).predictions)

    assert content(whole) == content(parts)  # at other batch sizes, too


def test_a_row_says_what_was_asked_and_what_was_right(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    ask(checkpoint, data, tmp_path / "log.jsonl", ("routing",))
    log = read_log(tmp_path / "log.jsonl")
    row = log.predictions[0]
    assert row.prompt == "user: [image] what is it?"
    assert len(row.prompt_sha256) == len(row.media_sha256["image"]) == 64
    assert row.reference["calls"][0]["task"] == "ground"
    assert row.finish_reason in ("stop", "length")
    assert {"encode", "decode", "heads"} <= set(row.timings)
    assert log.header.identity["session"]["constrained"] is False


def test_another_model_or_other_options_do_not_continue_a_log(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "log.jsonl"
    ask(checkpoint, data, out, limit=2)
    with pytest.raises(LogError, match="session"):
        ask(checkpoint, data, out, constrained=True)
    write_shards(data, "test", "image_qa", [answer_sample("image_qa", i, "no") for i in range(4)])
    with pytest.raises(LogError, match="data_sha256"):
        ask(checkpoint, data, out)


def test_media_that_do_not_decode_cost_their_own_sample(checkpoint: Path, tmp_path: Path) -> None:
    samples = [answer_sample("image_qa", i, str(i)) for i in range(5)]
    samples[2].members["image.png"] = samples[2].members["image.png"][:60]
    write_shards(tmp_path, "test", "image_qa", samples)
    said = ask(checkpoint, tmp_path, tmp_path / "log.jsonl")
    assert "'image_qa_002': left out" in said
    assert "1 samples could not be asked" in said
    log = read_log(tmp_path / "log.jsonl")
    assert [row.key[-1] for row in log.predictions] == ["0", "1", "3", "4"]
    assert log.header.identity["n_expected"] == {"image_qa": 5}


def test_a_question_that_cannot_be_rendered_costs_only_itself(checkpoint: Path, data: Path) -> None:
    asker = SessionAsker(checkpoint, Decoding(**SHORT, max_new_tokens=4))  # type: ignore[arg-type]
    (benchmark,) = quickstart_benchmarks(data, "test", ["image_qa"]).values()
    good = question_of(next(iter(benchmark.records())), 0)
    missing = replace(good, conversation=replace(good.conversation, media={}))
    replies = asker.ask(benchmark, [good, missing, good, good, missing])
    assert [isinstance(reply, str) for reply in replies] == [False, True, False, False, True]


@pytest.mark.parametrize("control", ["blind", "shuffled", "zeroed", "random_weights"])
def test_controls_run_and_say_so(checkpoint: Path, data: Path, tmp_path: Path, control: str) -> None:
    out = tmp_path / "control.jsonl"
    said = ask(checkpoint, data, out, ("image_qa", "routing"), control=control)
    log = read_log(out)
    assert log.header.control == control
    names = {row.benchmark for row in log.predictions}
    assert names == ({"image_qa"} if control == "blind" else {"image_qa", "routing"})
    assert ("routing: no blind control" in said) == (control == "blind")
    row = log.predictions[0]
    assert row.prompt == ("user: what is it?" if control == "blind" else "user: [image] what is it?")
    assert bool(row.media_sha256) == (control != "blind")
    if control == "shuffled":
        ask(checkpoint, data, tmp_path / "own.jsonl", ("image_qa",))
        own = {item.key: item.media_sha256 for item in read_log(tmp_path / "own.jsonl").predictions}
        given = {item.key: item.media_sha256 for item in log.predictions if item.benchmark == "image_qa"}
        assert all(given[key] != own[key] for key in own)


def test_zeroed_replies_begin_with_the_call_that_answers(checkpoint: Path, tmp_path: Path) -> None:
    """Without its features a model may rightly make no call; that would say nothing about the features."""
    ground = Part("call", task="ground", prompt="red 7", groundings=({"type": "region", "box_xyxy": [1, 1, 5, 5]},))
    write_shards(tmp_path, "test", "box", [call_sample("box", i, [ground]) for i in range(3)])
    for control, share in (("zeroed", 1.0), (None, 0.0)):
        ask(checkpoint, tmp_path, tmp_path / f"{control}.jsonl", ("box",), control=control)
        log = read_log(tmp_path / f"{control}.jsonl")
        assert [row.raw.startswith("<ground>") for row in log.predictions] == [bool(share)] * 3
        assert log.header.identity["generation"]["box"].get("opened_with") == ("ground" if share else None)
        assert log.predictions[0].generation == {**log.header.identity["generation"]["box"], "loop": "fused"}


def test_zeroed_media_of_any_content_give_the_same_reply(checkpoint: Path) -> None:
    session = Session(Generalist.from_pretrained(checkpoint), max_new_tokens=6)
    asked = [Conversation.ask("what is it?", images=[picture(seed)]) for seed in range(3)]
    replies = session.generate(asked, zeroed)
    assert len({reply.token_ids for reply in replies}) == 1
    plain = EncodedMedia(torch.ones(2, 3), None, torch.ones(2, 4), None)  # type: ignore[arg-type]
    emptied = zeroed({"image": plain})["image"]
    assert not emptied.features.any() and not emptied.projected.any()


def test_donors_are_a_derangement_by_content() -> None:
    # Samples 0 and 1 hold the same picture; texts alone form a group of their own.
    samples = [answer_sample("image_qa", i, "x", image=picture(max(i, 1))) for i in range(6)]
    donors = media_donors(samples)
    assert donors == media_donors(samples)
    for index, donor in enumerate(donors):
        assert samples[donor].members["image.png"] != samples[index].members["image.png"]
    swapped = swap_media(samples[0], samples[donors[0]])
    assert swapped.members["image.png"] == samples[donors[0]].members["image.png"]
    assert (swapped.key, swapped.record.messages) == (samples[0].key, samples[0].record.messages)
    with pytest.raises(ValueError, match="another sample"):
        media_donors(samples[:2])


def test_samples_without_media_have_nothing_to_exchange() -> None:
    samples = [answer_sample("routing", i, "x", image=picture(i) if i < 3 else None) for i in range(5)]
    donors = media_donors(samples)
    assert donors[3:] == [3, 4] and sorted(donors[:3]) == [0, 1, 2]
    assert swap_media(samples[4], samples[donors[4]]) == samples[4]


def test_blind_removes_media_and_keeps_words() -> None:
    conversation = blind(Conversation.ask("how many?", images=[picture(0)]))
    assert [part.type for part in conversation.messages[0].content] == ["text"]
    assert conversation.media == {}


def test_all_controls_with_one_flag(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(data, "val", "image_qa", [answer_sample("image_qa", i, "1") for i in range(3)])
    command = ["predict", "--checkpoint", str(checkpoint), "--data", str(data), "--device", "cpu"]
    command += ["--benchmark", "image_qa", "--max-new-tokens", "3", "--limit", "4", "--control-limit", "2"]
    command += ["--out", str(tmp_path / "all")]
    assert main([*command, "--controls"]) == 0
    counts = {path.name: len(read_log(path).keys) for path in (tmp_path / "all").iterdir()}
    assert counts == {"model": 4, "blind": 2, "shuffled": 2, "zeroed": 2, "random_weights": 2}
    scores = tmp_path / "scores.json"
    assert main(["score", str(tmp_path / "all"), "--out", str(scores)]) == 0
    entry = json.loads(scores.read_text())["image_qa"]
    assert entry["controls_n"] == {"blind": 2, "shuffled": 2, "zeroed": 2, "random_weights": 2, "constant": 4}
    assert not entry["complete"] and entry["controls_na"] == {}
    assert main([*command, "--controls", "deaf"]) == 2
    assert "got ['deaf']" in capsys.readouterr().err


def test_of_pretrained_parts_the_values_are_put_in_random_order() -> None:
    module = torch.nn.ModuleDict({"base": torch.nn.Linear(6, 6), "own": torch.nn.Linear(6, 6)})
    before = {name: value.clone() for name, value in module.state_dict().items()}
    shuffle_weights(module, ("base.",))
    assert torch.equal(module["own"].weight, before["own.weight"])
    assert not torch.equal(module["base"].weight, before["base.weight"])
    assert torch.equal(module["base"].weight.flatten().sort().values, before["base.weight"].flatten().sort().values)


def test_random_weights_share_shapes_and_nothing_else(checkpoint: Path) -> None:
    trained, first, second = (
        Generalist.from_pretrained(checkpoint),
        random_generalist(checkpoint, 1),
        random_generalist(checkpoint, 1),
    )
    state, fresh, again = trained.state_dict(), first.state_dict(), second.state_dict()
    assert {name: value.shape for name, value in state.items()} == {name: value.shape for name, value in fresh.items()}
    assert all(torch.equal(fresh[name], again[name]) for name in fresh)
    table = "language_model.model.model.embed_tokens.weight"
    assert not torch.equal(state[table], fresh[table])


def test_the_command_line(checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = [
        "predict",
        "--checkpoint",
        str(checkpoint),
        "--data",
        str(data),
        "--device",
        "cpu",
        "--max-new-tokens",
        "4",
    ]
    out = ["--out", str(tmp_path / "log.jsonl")]
    assert main([*common, *out, "--benchmark", "routing", "--limit", "2"]) == 0
    assert len(read_log(tmp_path / "log.jsonl").predictions) == 2
    assert main([*common, *out, "--benchmark", "rooting"]) == 2
    assert "expected one of" in capsys.readouterr().err
    assert main([*common[:2], str(tmp_path), *common[3:], *out, "--benchmark", "routing"]) == 2
    assert "checkpoint" in capsys.readouterr().err
