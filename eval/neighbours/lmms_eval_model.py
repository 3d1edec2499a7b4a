"""A checkpoint of ours as a model of lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval, its registry of 0.7).

Its pins differ from ours, so each lives in its own environment, and this module needs neither torch nor anything else
of ours: it starts ``python -m eval answer`` of our environment and talks to it in lines. In lmms-eval's environment::

    pip install --no-deps -e SWITCHYARD      # registers the model by its entry point, installs nothing
    lmms-eval --model switchyard --model_args checkpoint=DIR,python=SWITCHYARD/.venv/bin/python --tasks mme

The class is built when lmms-eval asks for it; importing this module imports nothing of lmms-eval.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NAME = "switchyard"


def manifest() -> Any:
    """What the entry point ``lmms_eval.models`` hands over."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=NAME, chat_class_path=f"{__name__}.Switchyard")


def __getattr__(name: str) -> Any:
    if name == "Switchyard":
        return _model_class()
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


@cache
def _model_class() -> type:
    from lmms_eval.api.model import lmms

    class Switchyard(lmms):
        """Answers chat messages through a process of our environment.

        Args:
            checkpoint: Its directory.
            python: Our environment's interpreter; the present one by default.
            batch_size: Questions decoded together.
            device: Such as cuda:0.
            dtype: "float32" or "bfloat16".
            max_new_tokens: Where a task does not say.
        """

        is_simple = False

        def __init__(
            self,
            checkpoint: str,
            python: str = sys.executable,
            batch_size: int | str = 16,
            device: str | None = None,
            dtype: str = "float32",
            max_new_tokens: int = 96,
            **unused: Any,
        ) -> None:
            super().__init__()
            self.max_new_tokens = int(max_new_tokens)
            options = ["--batch-size", str(batch_size), "--dtype", dtype, *(["--device", device] if device else [])]
            self.process = Answering([python, "-m", "eval", "answer", "--checkpoint", checkpoint, *options])

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            """Replies to chat messages, greedily; a task's stop texts end a reply."""
            asked, ends = [], []
            for request in requests:
                _, doc_to_messages, settings, doc_id, task, split = request.args
                if settings.get("temperature") or settings.get("do_sample"):
                    raise ValueError(f"task '{task}': expected greedy decoding, got {settings}")
                asked.append(
                    {
                        "messages": [_message(item) for item in doc_to_messages(self.task_dict[task][split][doc_id])],
                        "max_new_tokens": int(settings.get("max_new_tokens") or self.max_new_tokens),
                    }
                )
                until = settings.get("until") or []
                ends.append([until] if isinstance(until, str) else list(until))
            return [_before(text, stops) for text, stops in zip(self.process.ask(asked), ends, strict=True)]

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            """Not answered: our benchmarks are free-running."""
            raise NotImplementedError("switchyard answers generate_until tasks; loglikelihood tasks are not supported")

        def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
            """Not answered."""
            raise NotImplementedError("switchyard answers generate_until tasks; multi-round tasks are not supported")

    Switchyard.__module__, Switchyard.__qualname__ = __name__, "Switchyard"
    return Switchyard


class Answering:
    """A process that answers lines with lines.

    Args:
        command: Reads questions as JSON lines, an empty line after the last, and writes as many answers.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self._process: subprocess.Popen[str] | None = None

    def ask(self, questions: Sequence[Mapping[str, Any]]) -> list[str]:
        """Texts of the replies, in order.

        Raises:
            RuntimeError: If the process ends, or could not ask a question.
        """
        if self._process is None:
            self._process = subprocess.Popen(
                self.command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        for question in questions:
            self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return [self._text(self._process.stdout.readline()) for _ in questions]

    def _text(self, line: str) -> str:
        if not line:
            assert self._process is not None
            raise RuntimeError(f"'{' '.join(self.command)}' ended with status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"a question could not be asked: {answer['error']}")
        return str(answer["text"])


def _message(message: Any) -> dict[str, Any]:
    """A chat message, a dictionary or an object, with media as base64."""
    role, content = _get(message, "role"), _get(message, "content")
    if isinstance(content, str):
        return {"role": role, "content": [{"type": "text", "text": content}]}
    return {"role": role, "content": list(_parts(content))}


def _parts(content: Sequence[Any]) -> Iterator[dict[str, Any]]:
    for part in content:
        kind = _get(part, "type")
        if kind == "text":
            yield {"type": "text", "text": _get(part, "text")}
            continue
        value = _get(part, "url")
        if hasattr(value, "save"):  # a PIL image
            stream = io.BytesIO()
            value.convert("RGB").save(stream, "PNG")
            yield {"type": kind, "data": base64.b64encode(stream.getvalue()).decode(), "file": "image.png"}
        elif isinstance(value, Mapping) and "array" in value:  # audio as the datasets library decodes it
            yield {"type": kind, "samples": [float(x) for x in value["array"]], "sample_rate": value["sampling_rate"]}
        elif isinstance(value, str) and Path(value).is_file():
            data = Path(value).read_bytes()
            yield {"type": kind, "data": base64.b64encode(data).decode(), "file": Path(value).name}
        else:
            raise ValueError(
                f"expected an image, audio or a file for a part of type {kind}, got {type(value).__name__}"
            )


def _get(item: Any, name: str) -> Any:
    return item[name] if isinstance(item, Mapping) else getattr(item, name)


def _before(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stop texts."""
    ends = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    return text[: min(ends)].strip() if ends else text
