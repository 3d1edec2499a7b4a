"""Dual encoders and speaker models of transformers: vectors for benchmarks that give the call, nothing decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioXVector,
    AutoProcessor,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_XVECTOR_MAPPING_NAMES

from data.media import resample
from eval.askers.asker import Question
from eval.askers.directory import DirectoryAsker
from eval.askers.session import DTYPES
from eval.benchmarks.benchmark import Benchmark
from eval.prediction import Prediction, predicted
from inference.conversation import Conversation, Reply
from layers.calls import Call, EmbeddingResult
from layers.media import Audio

TASK = "embed"
_FIXED_LENGTH = ("siglip", "siglip2")  # their text towers were trained on texts padded to the full length


@dataclass(frozen=True)
class _Thing:
    """What is embedded: a text, an image or a clip."""

    kind: str
    value: Any


class EmbeddingAsker(DirectoryAsker):
    """Embeds with a model from a directory that transformers wrote; no code in it is run.

    It is a dual encoder with ``get_text_features`` and ``get_image_features`` or ``get_audio_features`` (CLIP, SigLIP,
    ALIGN, CLAP, ...), or a speaker model with an x-vector head (WavLM, wav2vec 2.0, UniSpeech-SAT). A text longer than
    the tower reads is cut, as its authors do, and the result says so. Clips are embedded one by one: padding changes
    the vectors of speaker models.

    Args:
        directory: With ``config.json``, safetensors and the processor's files.
        decoding: Batch size, device and dtype.
        control: "random_weights" asks a model of the same configuration that was never trained.

    Raises:
        ValueError: If there is no such directory.
    """

    decoded = "vectors"

    def refuses(self, benchmark: Benchmark) -> str:
        """What is not embedded."""
        return "" if benchmark.given and benchmark.call == TASK else f"a model of vectors answers '{TASK}' and no more"

    def settings(self, benchmark: Benchmark) -> Mapping[str, Any]:
        """There is nothing to set."""
        return {"decoding": "given call"}

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """The model and its processor (of a speaker model: its feature extractor).

        Raises:
            ValueError: If it is neither a dual encoder nor a speaker model.
        """
        config = AutoConfig.from_pretrained(self.directory, trust_remote_code=False)
        speaks = config.model_type in MODEL_FOR_AUDIO_XVECTOR_MAPPING_NAMES
        model_class, processor_class = (
            (AutoModelForAudioXVector, AutoFeatureExtractor) if speaks else (AutoModel, AutoProcessor)
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
        if not speaks and not hasattr(model, "get_text_features"):
            raise ValueError(f"'{self.directory}': expected a dual encoder or a speaker model, got {config.model_type}")
        return model.eval().to(self.decoding.place), processor_class.from_pretrained(
            self.directory, trust_remote_code=False
        )

    def ask(self, benchmark: Benchmark, questions: Sequence[Question]) -> list[Prediction | str]:
        """Vectors as rows, in batches of one kind."""
        rows: dict[int, Prediction | str] = {}
        things: dict[int, _Thing] = {}
        for place, item in enumerate(questions):
            try:
                things[place] = self._thing(item.conversation)
            except ValueError as error:
                rows[place] = str(error)
        for kind in ("text", "image", "audio"):
            own = [place for place, thing in things.items() if thing.kind == kind]
            size = 1 if kind == "audio" else self.decoding.batch_size
            for start in range(0, len(own), size):
                batch = own[start : start + size]
                found = self._embed(kind, [things[place].value for place in batch])
                for place, result in zip(batch, found, strict=True):
                    rows[place] = result if isinstance(result, str) else _row(benchmark, questions[place], result)
        return [rows[place] for place in range(len(questions))]

    def _thing(self, conversation: Conversation) -> _Thing:
        model, _ = self.loaded
        parts = [part for message in conversation.messages for part in message.content]
        if len(parts) != 1:
            raise ValueError(f"expected one text, image or clip to embed, got {len(parts)} parts")
        (part,) = parts
        if part.type == "text":
            thing = _Thing("text", part.text)
        elif part.type == "image":
            pixels = conversation.media[part.media].permute(1, 2, 0).contiguous().numpy()  # type: ignore[union-attr]
            thing = _Thing("image", Image.fromarray(pixels))
        else:
            thing = _Thing(part.type, conversation.media[part.media])
        if hasattr(model, f"get_{thing.kind}_features") or (thing.kind == "audio" and self._speaks):
            return thing
        raise ValueError(f"expected what the model embeds, got {thing.kind}")

    @property
    def _speaks(self) -> bool:
        return not hasattr(self.loaded[0], "get_text_features")

    def _embed(self, kind: str, values: Sequence[Any]) -> list[tuple[Tensor, tuple[str, ...]] | str]:
        """(vector, notes) of each; what does not go through gives its error, and too large a batch is halved."""
        try:
            return self._features(kind, values)
        except (ValueError, torch.OutOfMemoryError) as error:
            if len(values) == 1:
                return [str(error)]
        half = (len(values) + 1) // 2
        return self._embed(kind, values[:half]) + self._embed(kind, values[half:])

    @torch.inference_mode()
    def _features(self, kind: str, values: Sequence[Any]) -> list[tuple[Tensor, tuple[str, ...]] | str]:
        model, processor = self.loaded
        notes: list[tuple[str, ...]] = [()] * len(values)
        if kind == "text":
            inputs, notes = self._texts(values)
        elif kind == "image":
            inputs = processor(images=list(values), return_tensors="pt")
        else:
            extractor = processor if self._speaks else processor.feature_extractor
            waves = [_wave(value, extractor.sampling_rate) for value in values]
            inputs = extractor(waves, sampling_rate=extractor.sampling_rate, padding=True, return_tensors="pt")
        inputs = {name: value.to(model.device) for name, value in inputs.items()}
        inputs = {n: v.to(model.dtype) if v.is_floating_point() else v for n, v in inputs.items()}
        if self._speaks:
            out = model(**inputs).embeddings
        else:
            out = getattr(model, f"get_{kind}_features")(**inputs)
            out = getattr(out, "pooler_output", out)
        return list(zip(out.float().cpu(), notes, strict=True))

    def _texts(self, values: Sequence[str]) -> tuple[Any, list[tuple[str, ...]]]:
        model, processor = self.loaded
        tokenizer = processor.tokenizer
        text = getattr(model.config, "text_config", model.config)
        most = min(tokenizer.model_max_length, getattr(text, "max_position_embeddings", tokenizer.model_max_length))
        lengths = [len(ids) for ids in tokenizer(list(values))["input_ids"]]
        notes: list[tuple[str, ...]] = [
            (f"cut to {most} of {count} tokens",) if count > most else () for count in lengths
        ]
        padding = "max_length" if model.config.model_type in _FIXED_LENGTH else True
        inputs = tokenizer(list(values), padding=padding, truncation=True, max_length=most, return_tensors="pt")
        return inputs, notes


def _wave(clip: Audio, rate: int) -> Any:
    return resample(clip, rate).waveform.numpy()


def _row(benchmark: Benchmark, question: Question, found: tuple[Tensor, tuple[str, ...]]) -> Prediction:
    vector, notes = found
    call = Call(TASK, "")
    reply = Reply("", (call,), (EmbeddingResult(call, vector, notes=notes),), (), (), "", "stop", {})
    return predicted(benchmark.name, question.sample, question.conversation, question.media, reply)
