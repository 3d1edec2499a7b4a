"""The command on a real checkpoint directory with every modality and head; only the reply's tokens are scripted."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from rich.console import Console

from demos.ask import Told, main
from demos.results import ResultWriter
from inference.conversation import Conversation, HeadError, Reply
from inference.events import CallAnswered, CallWritten, TextWritten
from layers.calls import AudioResult, Call, ImageResult, MaskResult, Region, ResultRef, VideoResult
from models.build import build_generalist
from models.checkpoint import save_checkpoint
from models.generalist import Generalist
from models.tokenizer import save_tokenizer, train_tokenizer
from routers.rendering import render_call
from routers.tasks import TaskTable
from tests.inference.conftest import Script

TASKS = {
    "num_bins": 16,
    "tasks": [
        {"name": "ground", "head": "boxes", "link": "hidden", "needs": ["image"], "payload": ["prompt", "regions"]},
        {"name": "seg", "head": "masks", "link": "hidden", "needs": ["image"], "payload": ["prompt"]},
        {"name": "draw", "head": "image", "link": "queries", "num_queries": 2, "payload": ["prompt"]},
        {"name": "node_class", "head": "families", "link": "hidden", "needs": ["graph"], "payload": []},
    ],
}
WIDTH = 32


def part(path, **arguments):
    return {"class_path": path, "init_args": arguments}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(["where is the red 7?", "there it is"] * 3, 280, TaskTable.from_dict(TASKS))
    save_tokenizer(tokenizer, root / "tokenizer")
    language_model = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    whisper = {
        "d_model": 16,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "num_mel_bins": 16,
        "max_source_positions": 100,
    }
    sizes = {"state_size": WIDTH, "feature_size": 16}
    config = {
        "tokenizer": str(root / "tokenizer"),
        "tasks": TASKS,
        "language_model": {"model_type": "llama", "config": language_model},
        "encoders": {
            "image": part(
                "encoders.vision.TimmEncoder", model_name="resnet10t", image_size=32, stride=8, hidden_size=16
            ),
            "audio": part("encoders.speech.SpeechEncoder", whisper=whisper),
            "graph": part("encoders.graph.GraphTransformerEncoder", hidden_size=16, num_layers=1, text_width=32),
        },
        "projectors": {
            kind: part("models.projectors.MLPProjector", input_size=16, output_size=WIDTH)
            for kind in ("image", "audio", "graph")
        },
        "heads": {
            "boxes": part("heads.boxes.BoxHead", **sizes, width=16),
            "masks": part("heads.masks.MaskHead", **sizes, width=16, channels=[8, 8, 8]),
            "image": part("heads.image.FlowImageHead", **sizes, num_queries=2, canvas_size=[16, 16], channels=[8, 32]),
            "families": part("heads.graph.NodeClassHead", **sizes, classes=["text", "net"], width=16),
        },
    }
    return str(save_checkpoint(build_generalist(config), config, root / "checkpoint"))


@pytest.fixture
def scripted(monkeypatch):
    """Make whatever checkpoint is loaded write these calls."""
    load = Generalist.from_pretrained

    def script(*calls):
        def from_pretrained(directory, device="cpu", extra=()):
            generalist = load(directory, device, extra=extra)
            ids = generalist.vocabulary.encode_text("there it is")
            for call in calls:
                ids += render_call(call, generalist.vocabulary, generalist.tokenizer).ids
            Script(generalist, defaultdict(lambda: ids))
            return generalist

        monkeypatch.setattr(Generalist, "from_pretrained", from_pretrained)

    return script


@pytest.fixture
def picture(tmp_path) -> Path:
    Image.effect_noise((50, 30), 90).save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


def test_boxes_masks_and_drawings_are_printed_and_written(checkpoint, scripted, picture, tmp_path, capsys):
    scripted(Call("ground", "red 7", (Region((0.1, 0.1, 0.6, 0.6)),)), Call("seg", "red 7"), Call("draw", "a blue 4"))
    out = tmp_path / "answer"
    status = main(["--checkpoint", checkpoint, "--image", str(picture), "where is the red 7?", "--out", str(out)])
    printed = capsys.readouterr().out
    assert status == 0 and "there it is" in printed and "ground" in printed and "draw" in printed
    names = {path.name for path in out.iterdir()}
    assert names == {
        "call0_ground_boxes.png",
        "call1_seg_mask.png",
        "call1_seg_overlay.png",
        "call2_draw_image.png",
        "reply.json",
    }
    assert Image.open(out / "call1_seg_mask.png").size == (50, 30)
    assert Image.open(out / "call2_draw_image.png").size == (16, 16)
    assert Image.open(out / "call0_ground_boxes.png").size[0] % 50 == 0
    reply = json.loads((out / "reply.json").read_text())
    assert reply["text"] == "there it is" and [call["task"] for call in reply["calls"]] == ["ground", "seg", "draw"]
    x1, y1, x2, y2 = reply["calls"][0]["result"]["boxes_xyxy"][0]
    assert 0 <= x1 <= x2 <= 50 and 0 <= y1 <= y2 <= 30
    assert reply["calls"][0]["files"] == ["call0_ground_boxes.png"] and not reply["errors"]


def test_a_graph_and_a_missing_graph(checkpoint, scripted, tmp_path, capsys):
    scripted(Call("node_class", ""))
    path = tmp_path / "graph.json"
    path.write_text(json.dumps({"node_texts": ["json", "re"], "edge_index": [[1], [0]]}))
    command = ["--checkpoint", checkpoint, "--out", str(tmp_path / "out"), "which family?"]
    assert main([*command, "--graph", str(path)]) == 0
    result = json.loads((tmp_path / "out" / "reply.json").read_text())["calls"][0]["result"]
    assert result["label"] in ("text", "net") and sum(result["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert main(command) == 0
    reply = json.loads((tmp_path / "out" / "reply.json").read_text())
    assert [error["kind"] for error in reply["errors"]] == ["unavailable"] and not reply["calls"]
    assert "unavailable" in capsys.readouterr().out


def test_audio_alone_is_a_question(checkpoint, picture, tmp_path):
    path = tmp_path / "question.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.1, 0.1, (22050, 2)), 22050)
    command = [
        "--checkpoint",
        checkpoint,
        "--audio",
        str(path),
        "--max-new-tokens",
        "4",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(command) == 0
    assert main([*command, "--image", str(picture), "--image", str(picture), "--constrained"]) == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--image", "nowhere.png", "what?"], "nowhere.png"),
        (["--image", __file__, "what?"], "expected an image"),
        (["--audio", __file__], "expected audio"),
        (["--graph", __file__, "what?"], "node_texts"),
        ([], "question"),
        (["what?", "--max-new-tokens", "0"], "max_new_tokens"),
    ],
)
def test_bad_input_is_one_clear_line(checkpoint, capsys, arguments, message):
    assert main(["--checkpoint", checkpoint, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("ask: ") and captured.err.count("\n") == 1 and message in captured.err
    assert not captured.out


@pytest.mark.parametrize("what", ["missing", "empty", "changed"])
def test_what_is_not_a_checkpoint_is_one_clear_line(checkpoint, tmp_path, capsys, what):
    directory = tmp_path / "other"
    if what != "missing":
        directory.mkdir()
    if what == "changed":
        for path in Path(checkpoint).rglob("*"):
            target = directory / path.relative_to(checkpoint)
            target.mkdir(parents=True) if path.is_dir() else target.write_bytes(path.read_bytes())
        weights = bytearray((directory / "model.safetensors").read_bytes())
        weights[-1] ^= 1
        (directory / "model.safetensors").write_bytes(weights)
    assert main(["--checkpoint", str(directory), "what?"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ask: ") and error.count("\n") == 1 and (what == "changed" or "other" in error)


def test_help_shows_every_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    printed = capsys.readouterr().out
    assert stopped.value.code == 0
    for word in ("--checkpoint", "--image", "--audio", "--graph", "--constrained", "--out", "node_texts"):
        assert word in printed


def test_sounds_and_videos_are_written_and_notes_are_told(tmp_path, capsys):
    sound = AudioResult(Call("sound", "a dog barks"), torch.rand(1, 800), 8000, notes=("it did not read 'loudly'",))
    film = VideoResult(Call("film", "a dog runs"), torch.zeros(3, 3, 16, 16, dtype=torch.uint8), 5.0)
    region = Region((0.1, 0.1, 0.5, 0.5), (1.0, 1.0))
    calls = (sound.call, replace(film.call, groundings=(region,)))
    reply = Reply("there", calls, (sound, film), (), (), "there", "stop", {})
    told = Told(Console(width=200), ResultWriter(Conversation.ask("?"), tmp_path, 8))
    for index, (called, result) in enumerate(zip(calls, reply.results, strict=True)):
        told(CallWritten(0, index, called))
        told(CallAnswered(0, index, result, None))
    told.end(reply)
    assert {path.name for path in tmp_path.iterdir()} == {"call0_sound.wav", "call1_film.mp4", "reply.json"}
    written = json.loads((tmp_path / "reply.json").read_text())["calls"]
    assert written[0]["result"] == {
        "type": "audio",
        "seconds": 0.1,
        "sample_rate": 8000,
        "notes": list(sound.notes),
    }
    assert written[1]["result"] == {"type": "video", "frames": 3, "size": [16, 16], "fps": 5.0}
    assert written[1]["groundings"] == [{"type": "region", "box_xyxy": [0.1, 0.1, 0.5, 0.5], "canvas": [1.0, 1.0]}]
    printed = capsys.readouterr().out
    assert "0.10 s of sound at 8000 Hz" in printed and "3 frames of 16x16 pixels, 5 a second" in printed
    assert "it did not read 'loudly'" in printed and "of a canvas of 1x1" in printed


def test_a_reply_is_told_while_it_is_written(tmp_path, capsys):
    """Text as it comes, a call when it closes, its result and files when its head has answered, then more text."""
    picture = ImageResult(Call("draw", "a 4"), torch.zeros(3, 8, 8, dtype=torch.uint8))
    cut = MaskResult(Call("seg", "4", (ResultRef(0),)), torch.ones(8, 8, dtype=torch.bool))
    failed = HeadError(2, "edit", "no memory to answer it", cause="out_of_memory")
    told = Told(Console(width=200), ResultWriter(Conversation.ask("?"), tmp_path, 8))
    heard = []

    def tell(event):
        told(event)
        heard.append(capsys.readouterr().out)

    for text in ("there ", "it is:"):
        tell(TextWritten(0, text))
    for index, result in enumerate((picture, cut)):
        tell(CallWritten(0, index, result.call))
        tell(CallAnswered(0, index, result, None))
    assert (tmp_path / "call0_draw_image.png").exists(), "before the reply has ended"
    tell(CallAnswered(0, 2, None, failed))
    tell(TextWritten(0, "done"))
    assert heard[:2] == ["there ", "it is:"] and heard[2] == "\n[0] draw: a 4\n"
    assert heard[3].startswith("    image of 8x8 pixels") and "call0_draw_image.png" in heard[3]
    assert heard[4] == "[1] seg: 4; result of call 0\n" and "mask of 64 pixels" in heard[5]
    assert heard[6] == "    out of memory: no memory to answer it\n" and heard[7] == "done"
    overlay = Image.open(tmp_path / "call1_seg_overlay.png")
    assert overlay.size[0] % 8 == 0, "drawn on what the first call made: the conversation has no image"


def test_replies_are_told_as_the_session_writes_them(checkpoint, scripted, picture, tmp_path, capsys, monkeypatch):
    scripted(Call("ground", "red 7", (Region((0.1, 0.1, 0.6, 0.6)),)))
    order = []
    for name in ("add", "finish"):
        own = getattr(ResultWriter, name)
        monkeypatch.setattr(
            ResultWriter, name, lambda self, item, own=own, name=name: order.append(name) or own(self, item)
        )
    assert main(["--checkpoint", checkpoint, "--image", str(picture), "where?", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert order == ["add", "finish"]
    assert printed.index("there it is") < printed.index("[0] ground: red 7; box") < printed.index("call0_ground_boxes")
