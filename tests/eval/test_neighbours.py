"""A checkpoint in lmms-eval: its model class asks a process of our environment; lmms-eval itself is stood in for."""

from __future__ import annotations

import base64
import importlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval.neighbours.answering import answer_lines
from inference.conversation import Conversation
from inference.session import Session
from models.checkpoint import save_checkpoint
from tests.eval.conftest import picture
from tests.tiny import tiny_config, tiny_generalist

MODULE = "eval.neighbours.lmms_eval_model"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    return save_checkpoint(tiny_generalist(folder), tiny_config(folder), folder / "checkpoint")


@dataclass(frozen=True)
class Manifest:
    model_id: str
    chat_class_path: str


@pytest.fixture
def lmms_eval(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As much of it as a model class meets."""

    class Base:
        is_simple = True

        def __init__(self) -> None:
            self.task_dict: dict[str, Any] = {}

    for name, content in (
        ("lmms_eval", {}),
        ("lmms_eval.api", {}),
        ("lmms_eval.api.model", {"lmms": Base}),
        ("lmms_eval.models", {}),
        ("lmms_eval.models.registry_v2", {"ModelManifest": Manifest}),
    ):
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    module = importlib.import_module(MODULE)
    module._model_class.cache_clear()
    yield
    module._model_class.cache_clear()


def test_importing_the_module_needs_neither_lmms_eval_nor_torch() -> None:
    code = f"import sys, {MODULE} as m; assert 'torch' not in sys.modules and 'lmms_eval' not in sys.modules; m.NAME"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_lines_are_answered_like_conversations(checkpoint: Path) -> None:
    session = Session.from_pretrained(str(checkpoint), "cpu", max_new_tokens=5)
    image = picture(0)
    png = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(png, "PNG")

    shown = {"type": "image", "data": base64.b64encode(png.getvalue()).decode(), "file": "image.png"}
    heard = {"type": "audio", "samples": np.sin(np.arange(4000) / 9).tolist(), "sample_rate": 16000}
    questions = [
        {"messages": [{"role": "user", "content": [shown, {"type": "text", "text": "where is the red 7"}]}]},
        {"messages": [{"role": "user", "content": [heard]}], "max_new_tokens": 2},
        {"messages": [{"role": "user", "content": [{"type": "smell"}]}]},
    ]
    lines = io.StringIO("".join(json.dumps(item) + "\n" for item in questions) + "\n" + json.dumps(questions[0]) + "\n")
    out = io.StringIO()
    answer_lines(session, lines, out)
    answers = [json.loads(line) for line in out.getvalue().splitlines()]
    assert len(answers) == 4 and answers[0] == answers[3]
    session = Session.from_pretrained(str(checkpoint), "cpu", max_new_tokens=5)
    (reply,) = session.generate([Conversation.ask("where is the red 7", images=[image])])
    assert (answers[0]["text"], answers[0]["finish_reason"]) == (reply.text, reply.finish_reason)
    assert "text" in answers[1] and answers[2]["error"].startswith("ValueError: part: expected text or one of")


def test_the_model_class_asks_a_process(lmms_eval: None, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(MODULE)
    manifest = module.manifest()
    path, _, name = manifest.chat_class_path.rpartition(".")
    assert (manifest.model_id, path) == ("switchyard", MODULE)
    model_class = getattr(module, name)
    assert model_class.is_simple is False
    answered = io.StringIO()
    session = Session.from_pretrained(str(checkpoint), "cpu", max_new_tokens=96)

    class Process:
        """Answers within this process, for speed."""

        def __init__(self, command: list[str], **_: Any) -> None:
            assert command[1:5] == ["-m", "eval", "answer", "--checkpoint"] and "--batch-size" in command
            self.stdin, self.stdout = SimpleNamespace(write=answered.write, flush=self.answer), io.StringIO()

        def answer(self) -> None:
            out = io.StringIO()
            answer_lines(session, io.StringIO(answered.getvalue()), out)
            answered.truncate(0)
            answered.seek(0)
            self.stdout = io.StringIO(out.getvalue())

        def wait(self) -> int:
            return 3

    monkeypatch.setattr(module.subprocess, "Popen", Process)
    model = model_class(str(checkpoint), batch_size=2)
    photo = Image.fromarray(picture(1).permute(1, 2, 0).numpy())
    docs = [{"question": "what is it"}, {"question": "say hello"}]
    model.task_dict = {"t": {"test": docs}}

    def messages(doc: dict[str, str]) -> list[dict[str, Any]]:
        content = [{"type": "image", "url": photo}, {"type": "text", "text": doc["question"]}]
        return [{"role": "user", "content": content}]

    settings = {"max_new_tokens": 4, "temperature": 0, "until": ["zzz"]}
    requests = [SimpleNamespace(args=("", messages, settings, place, "t", "test")) for place in range(2)]
    texts = model.generate_until(requests)
    session.options = type(session.options)(4)
    asked = [Conversation.ask(doc["question"], images=[picture(1)]) for doc in docs]
    assert texts == [reply.text for reply in session.generate(asked)]
    with pytest.raises(ValueError, match="expected greedy decoding"):
        model.generate_until([SimpleNamespace(args=("", messages, {"temperature": 1.0}, 0, "t", "test"))])
    with pytest.raises(NotImplementedError, match="loglikelihood"):
        model.loglikelihood([])
    model.process._process.stdout = io.StringIO("")
    with pytest.raises(RuntimeError, match="ended with status 3"):
        model.process._text("")
    assert module._before("yes. zzz no", ["zzz", ""]) == "yes."
    with pytest.raises(AttributeError, match="Nothing"):
        _ = module.Nothing
