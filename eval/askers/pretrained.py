"""A vision-language, audio or language model of transformers, asked as its own processor and template have it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

from data.media import RawMedia, Video, resample
from eval.askers.asker import Question
from eval.askers.directory import DirectoryAsker
from eval.askers.session import DTYPES, Decoding
from eval.benchmarks.benchmark import Benchmark
from eval.prediction import Prediction, predicted
from inference.conversation import Conversation, Reply
from layers.media import Audio, Graph

FRAMES = 8


@dataclass(frozen=True)
class _Prompt:
    """A conversation as the processor takes it."""

    text: str
    images: list[Image.Image]
    audio: list[Any]

    @property
    def kinds(self) -> tuple[int, int]:
        """Prompts of one batch have equally many media of each kind."""
        return len(self.images), len(self.audio)


class TransformersAsker(DirectoryAsker):
    """Asks a model from a directory that transformers wrote; no code in it is run.

    A video is shown as :data:`FRAMES` frames, evenly spaced. Questions about graphs are refused.

    Args:
        directory: With ``config.json``, safetensors and the processor's or the tokenizer's files.
        decoding: How; it is always greedy and free-running.
        control: "random_weights" asks a model of the same configuration that was never trained.
        boxes: How the model writes boxes, for the parsers of box benchmarks; see :mod:`eval.metrics.boxes`.

    Raises:
        ValueError: If there is no such directory, or constrained decoding is asked for.
    """

    def __init__(
        self, directory: str | Path, decoding: Decoding, control: str | None = None, boxes: str | None = None
    ) -> None:
        super().__init__(directory, decoding, control)
        self.boxes = boxes
        if decoding.constrained or decoding.confidence:
            raise ValueError("constrained decoding and confidence need a checkpoint of ours")

    def refuses(self, benchmark: Benchmark) -> str:
        """Where a benchmark measures what a head answers to a given call."""
        return f"expected a head that answers '{benchmark.call}', got a model that writes" if benchmark.given else ""

    def settings(self, benchmark: Benchmark) -> Mapping[str, Any]:
        """Greedy decoding up to a limit, and how boxes are written."""
        boxes = {} if self.boxes is None else {"boxes": self.boxes}
        return {"decoding": "greedy", "max_new_tokens": self.decoding.tokens_for(benchmark), **boxes}

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """The model and its processor (of a language model: its tokenizer)."""
        config = AutoConfig.from_pretrained(self.directory, trust_remote_code=False)
        sees = config.model_type in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
        model_class, processor_class = (
            (AutoModelForMultimodalLM, AutoProcessor) if sees else (AutoModelForCausalLM, AutoTokenizer)
        )
        dtype = DTYPES[self.decoding.dtype]
        if self.control == "random_weights":
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = model_class.from_config(config, dtype=dtype, trust_remote_code=False)
        else:
            model = model_class.from_pretrained(
                self.directory, dtype=dtype, trust_remote_code=False, use_safetensors=True, weights_only=True
            )
        processor = processor_class.from_pretrained(self.directory, trust_remote_code=False)
        tokenizer = getattr(processor, "tokenizer", processor)
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return model.eval().to(self.decoding.place), processor

    def ask(self, benchmark: Benchmark, questions: Sequence[Question]) -> list[Prediction | str]:
        """Replies as rows, batched by length among prompts with equally many media."""
        answers: dict[int, Reply | str] = {}
        prompts: dict[int, _Prompt] = {}
        for place, item in enumerate(questions):
            try:
                prompts[place] = self._prompt(item.conversation)
            except ValueError as error:
                answers[place] = str(error)
        order = sorted(prompts, key=lambda place: (prompts[place].kinds, len(prompts[place].text), place))
        limit, start = self.decoding.tokens_for(benchmark), 0
        while start < len(order):
            batch = [
                place
                for place in order[start : start + self.decoding.batch_size]
                if prompts[place].kinds == prompts[order[start]].kinds
            ]
            replies = self._replies([prompts[place] for place in batch], limit)
            answers.update(zip(batch, replies, strict=True))
            start += len(batch)
        rows: list[Prediction | str] = []
        for place, item in enumerate(questions):
            reply = answers[place]
            if isinstance(reply, str):
                rows.append(reply)
                continue
            row = predicted(benchmark.name, item.sample, item.conversation, item.media, reply)
            rows.append(replace(row, rendered=prompts[place].text))
        return rows

    def _prompt(self, conversation: Conversation) -> _Prompt:
        _, processor = self.loaded
        images: list[Image.Image] = []
        audio: list[Any] = []
        turns: list[dict[str, Any]] = []
        for message in conversation.messages:
            parts: list[dict[str, str]] = []
            for part in message.content:
                if part.type == "text":
                    parts.append({"type": "text", "text": part.text})
                elif part.type == "call":
                    raise ValueError("a model of transformers knows no task calls, got one in an earlier turn")
                else:
                    parts += self._shown(conversation.media[part.media], images, audio)
            turns.append({"role": message.role, "content": parts})
        if getattr(processor, "chat_template", None):
            if not hasattr(processor, "tokenizer"):  # a tokenizer's template takes texts
                turns = [{**turn, "content": "\n".join(part["text"] for part in turn["content"])} for turn in turns]
            text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        else:
            marks = {kind: getattr(processor, f"{kind}_token", "") for kind in ("image", "audio")}
            pieces = [part.get("text", marks.get(part["type"], "")) for turn in turns for part in turn["content"]]
            text = "\n".join(piece for piece in pieces if piece)
        return _Prompt(str(text), images, audio)

    def _shown(self, raw: RawMedia, images: list[Image.Image], audio: list[Any]) -> list[dict[str, str]]:
        _, processor = self.loaded
        if isinstance(raw, Graph) or not hasattr(processor, "tokenizer"):
            raise ValueError(f"expected words or media that the model takes, got {type(raw).__name__.lower()}")
        if isinstance(raw, Audio):
            extractor = getattr(processor, "feature_extractor", None)
            if extractor is None:
                raise ValueError("expected media that the model takes, got audio")
            audio.append(resample(raw, extractor.sampling_rate).waveform.numpy())
            return [{"type": "audio"}]
        if getattr(processor, "image_processor", None) is None:
            raise ValueError("expected media that the model takes, got an image")
        frames = raw.sample(FRAMES)[0] if isinstance(raw, Video) else [raw]
        images += [Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()) for frame in frames]
        return [{"type": "image"}] * len(frames)

    def _replies(self, prompts: Sequence[_Prompt], limit: int) -> list[Reply | str]:
        try:
            return [*self._generate(prompts, limit)]
        except (ValueError, torch.OutOfMemoryError) as error:
            if len(prompts) == 1:
                return [str(error)]
        half = (len(prompts) + 1) // 2
        return self._replies(prompts[:half], limit) + self._replies(prompts[half:], limit)

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[_Prompt], limit: int) -> list[Reply]:
        model, processor = self.loaded
        tokenizer = getattr(processor, "tokenizer", processor)
        started = time.perf_counter()
        media: dict[str, Any] = {}
        if prompts[0].images:
            media["images"] = [prompt.images for prompt in prompts]
        if prompts[0].audio:
            media["audio"] = [clip for prompt in prompts for clip in prompt.audio]
            media["sampling_rate"] = processor.feature_extractor.sampling_rate
        bos = tokenizer.bos_token
        inputs = processor(
            text=[prompt.text for prompt in prompts],
            **media,
            padding=True,
            return_tensors="pt",
            add_special_tokens=not (bos and prompts[0].text.startswith(bos)),  # once, not twice
        ).to(model.device)
        for name, value in inputs.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                inputs[name] = value.to(model.dtype)
        rendered = time.perf_counter()
        out = model.generate(
            **inputs, max_new_tokens=limit, do_sample=False, num_beams=1, pad_token_id=tokenizer.pad_token_id
        )
        width = inputs["input_ids"].shape[1]
        if out.shape[1] >= width and torch.equal(out[:, :width], inputs["input_ids"]):
            out = out[:, width:]
        stops = model.generation_config.eos_token_id
        ends = set(stops if isinstance(stops, list) else [stops])
        now = time.perf_counter()
        timings = {"render": (rendered - started) / len(prompts), "decode": (now - rendered) / len(prompts)}
        return [_reply(row.tolist(), ends, tokenizer, timings) for row in out.cpu()]


def _reply(ids: list[int], ends: set[int], tokenizer: Any, timings: Mapping[str, float]) -> Reply:
    end = next((place for place, token in enumerate(ids) if token in ends), None)
    kept = ids if end is None else ids[:end]
    return Reply(
        text=tokenizer.decode(kept, skip_special_tokens=True).strip(),
        calls=(),
        results=(),
        errors=(),
        token_ids=tuple(kept),
        raw_text=tokenizer.decode(kept, skip_special_tokens=False),
        finish_reason="length" if end is None else "stop",
        timings=timings,
    )
