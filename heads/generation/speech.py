"""Speech from text: SpeechT5 with its vocoder, or VITS, of transformers."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from heads.experts.expert_head import ExpertHead, Request
from heads.experts.files import (
    ExpertError,
    local_directory,
    model_type,
    required_package,
    weight_bytes,
    weight_files,
)
from heads.experts.pipelines import bars
from heads.experts.pool import Expert, ExpertPool
from heads.generation.arguments import required_prompt, whole
from layers.calls import AudioResult, HeadContext, Result

KINDS = ("speecht5", "vits")
VOCODERS = ("speecht5_hifigan", "hifigan")
_SENTENCE = re.compile(r"(?<=[.!?:;…])\s+")
_CLAUSE = re.compile(r"(?<=,)\s+")
_WORD = re.compile(r"\s+")


@dataclass
class Speaker:
    """A loaded model of speech.

    Args:
        model: ``SpeechT5ForTextToSpeech`` or ``VitsModel``.
        tokenizer: Of its text.
        vocoder: ``SpeechT5HifiGan``, for SpeechT5.
    """

    model: Any
    tokenizer: Any
    vocoder: Any = None

    @property
    def sample_rate(self) -> int:
        """In hertz."""
        return int((self.vocoder or self.model).config.sampling_rate)

    def unspoken(self, text: str) -> str:
        """Letters and digits that the tokenizer has no token for, once each."""
        if self.vocoder is None:
            if self.tokenizer.phonemize or self.tokenizer.is_uroman:
                return ""
            known = self.tokenizer.get_vocab()
            return "".join(dict.fromkeys(c for c in text.lower() if c.isalnum() and c not in known))
        unknown = self.tokenizer.unk_token_id
        characters = dict.fromkeys(c for c in text if c.isalnum())
        return "".join(c for c in characters if unknown in self.tokenizer(c, add_special_tokens=False).input_ids)


class SpeechExpert(Expert):
    """Directories of a SpeechT5 and its vocoder, or of a VITS; always in float32, which their vocoders need.

    Args:
        name: The directory, or a repository of the Hugging Face hub.
        vocoder: That of SpeechT5's HiFi-GAN.
        revision: Revision of ``name`` on the hub.
    """

    def __init__(self, name: str, vocoder: str | None = None, revision: str | None = None) -> None:
        self.name, self.vocoder, self.revision = name, vocoder, revision

    @property
    def key(self) -> Hashable:
        """The directories."""
        return (self.name, self.vocoder, self.revision)

    @cached_property
    def directories(self) -> tuple[Path, Path | None]:
        """The model's and the vocoder's, checked.

        Raises:
            ExpertError: If the model is of another kind, or there is a vocoder too many or too few.
        """
        directory = local_directory(self.name, self.revision)
        kind = model_type(directory)
        if kind not in KINDS:
            raise ExpertError(f"{directory}: expected a model of type {' or '.join(KINDS)}, got {kind!r}")
        if (kind == "speecht5") != (self.vocoder is not None):
            expected, got = ("a vocoder", "none") if kind == "speecht5" else ("no vocoder", self.vocoder)
            raise ExpertError(f"{directory} of type {kind}: expected {expected}, got {got}")
        if self.vocoder is None:
            return directory, None
        vocoder = local_directory(self.vocoder)
        if (own := model_type(vocoder)) not in VOCODERS:
            raise ExpertError(f"{vocoder}: expected a vocoder of type {VOCODERS[0]}, got {own!r}")
        return directory, vocoder

    def num_bytes(self, dtype: torch.dtype) -> int:
        """See :meth:`heads.experts.pool.Expert.num_bytes`."""
        folders = [folder for folder in self.directories if folder is not None]
        return sum(weight_bytes(weight_files(folder), torch.float32) for folder in folders)

    def load(self, device: torch.device, dtype: torch.dtype, progress: bool) -> Speaker:
        """See :meth:`heads.experts.pool.Expert.load`."""
        import transformers

        directory, vocoder = self.directories
        options: dict[str, Any] = {
            "use_safetensors": True,
            "dtype": torch.float32,
            "local_files_only": True,
            "trust_remote_code": False,
        }
        with bars(progress):
            if vocoder is None:
                model: Any = transformers.VitsModel.from_pretrained(directory, **options)
                speaker = Speaker(model, transformers.VitsTokenizer.from_pretrained(directory))
            else:
                required_package("sentencepiece", "speech")
                model = transformers.SpeechT5ForTextToSpeech.from_pretrained(directory, **options)
                own = transformers.SpeechT5HifiGan.from_pretrained(vocoder, **options)
                speaker = Speaker(model, transformers.SpeechT5Tokenizer.from_pretrained(directory), own)
        for part in (speaker.model, speaker.vocoder):
            if part is not None:
                part.to(device).eval().requires_grad_(False)
        return speaker


class SpeechHead(ExpertHead):
    """Says the call's prompt with a frozen SpeechT5 and its vocoder, or a VITS.

    SpeechT5 (https://arxiv.org/abs/2110.07205) makes a spectrogram in the voice of a speaker's vector, which a HiFi-GAN
    turns into a waveform; VITS (https://arxiv.org/abs/2106.06103) makes the waveform itself. A text of any length is
    said sentence by sentence, and longer sentences clause by clause.

    Args:
        expert: Directory as transformers saves it, or a repository of the Hugging Face hub.
        vocoder: That of SpeechT5's HiFi-GAN.
        voices: For SpeechT5, a safetensors file with a vector (512,) of a speaker per name.
        voice: A name of ``voices``, or the number of a VITS's speaker; the first by default (the session's parameter
            ``voice`` overrides it by number, from 0).
        pause: Seconds of silence between sentences.
        most_characters: Text that is said at once.
        experts: The pool that loads it.
        seed: Of what differs each time a voice says something (parameter ``seed``).
        revision: Revision on the hub.
    """

    def __init__(
        self,
        expert: str,
        vocoder: str | None = None,
        voices: str | None = None,
        voice: str | int = 0,
        pause: float = 0.25,
        most_characters: int = 300,
        experts: ExpertPool | None = None,
        seed: int = 0,
        revision: str | None = None,
    ) -> None:
        super().__init__(SpeechExpert(expert, vocoder, revision), experts, batch_size=1)
        if most_characters < 1 or pause < 0:
            raise ValueError(f"expected most_characters from 1 and pause from 0 on, got {most_characters} and {pause}")
        self.voices, self.voice, self.pause = voices, voice, pause
        self.most_characters, self.seed = most_characters, seed

    def request(self, context: HeadContext) -> Request:
        """The text; see :meth:`heads.experts.expert_head.ExpertHead.request`."""
        voice: str | int = self.voice
        if "voice" in context.parameters:
            voice = whole(context, "voice", 0, least=0)
        seed = whole(context, "seed", self.seed, least=0)
        return Request(context, required_prompt(context), seed, own={"voice": voice})

    def answer(self, expert: Any, requests: Sequence[Request]) -> list[Result]:
        """One waveform; see :meth:`heads.experts.expert_head.ExpertHead.answer`.

        Raises:
            ValueError: If there is nothing in the text that the expert can pronounce, or no such voice.
        """
        (request,) = requests
        assert isinstance(expert, Speaker)
        missing = expert.unspoken(request.prompt)
        if not any(c.isalnum() and c not in missing and c.lower() not in missing for c in request.prompt):
            raise ValueError(f"expected a text that the expert can pronounce, got '{request.prompt}'")
        pieces = list(split_text(request.prompt, self.most_characters))
        say = self._sayer(expert, request.own["voice"])
        device = expert.model.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(request.seed)
            said = [say(piece).float().cpu() for piece in pieces]
        silence = torch.zeros(round(self.pause * expert.sample_rate))
        parts = [part for waveform in said for part in (waveform, silence)][:-1]
        notes = (f"the expert cannot pronounce '{missing}'",) if missing else ()
        waveform = torch.cat(parts).clamp(-1, 1)[None]
        return [AudioResult(request.context.call, waveform, expert.sample_rate, notes=notes)]

    def _sayer(self, speaker: Speaker, voice: str | int) -> Any:
        device = speaker.model.device
        if speaker.vocoder is None:
            count = speaker.model.config.num_speakers
            if not isinstance(voice, int) or not 0 <= voice < count:
                raise ValueError(f"voice: expected a number from 0 to {count - 1}, got {voice!r}")
            number = voice if count > 1 else None

            def say_vits(text: str) -> Tensor:
                inputs = speaker.tokenizer(text, return_tensors="pt").to(device)
                if inputs.input_ids.shape[1] == 0:
                    return torch.zeros(0)
                output = speaker.model(**inputs, speaker_id=number)
                return output.waveform[0, : int(output.sequence_lengths[0])]

            return say_vits
        vector = self._voice_vector(voice, speaker.model.config.speaker_embedding_dim).to(device)

        def say_speecht5(text: str) -> Tensor:
            ids = speaker.tokenizer(text, return_tensors="pt").input_ids.to(device)
            return speaker.model.generate_speech(ids, vector[None], vocoder=speaker.vocoder)

        return say_speecht5

    def _voice_vector(self, voice: str | int, size: int) -> Tensor:
        if self.voices is None:
            raise ValueError("SpeechT5 needs voices: expected a safetensors file of speakers' vectors, got none")
        try:
            vectors = load_file(self.voices)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"voices '{self.voices}': expected safetensors, got {error}") from None
        names = sorted(vectors)
        name = names[voice] if isinstance(voice, int) and voice < len(names) else voice
        if name not in vectors:
            raise ValueError(f"voice: expected one of {names} or its number, got {voice!r}")
        vector = vectors[str(name)].float().flatten()
        if vector.shape != (size,):
            raise ValueError(f"voice '{name}' of '{self.voices}': expected {size} numbers, got {vector.shape[0]}")
        return vector


def split_text(text: str, most: int) -> Iterator[str]:
    """Pieces of a text to be said one after the other: sentences, or clauses or words of those longer than ``most``."""
    yield from _pieces(text.strip(), most, (_SENTENCE, _CLAUSE, _WORD))


def _pieces(text: str, most: int, breaks: Sequence[re.Pattern[str]]) -> Iterator[str]:
    if not breaks:
        yield from (text[start : start + most] for start in range(0, len(text), most))
        return
    whole_sentences = breaks[0] is _SENTENCE
    line = ""
    for part in breaks[0].split(text):
        joined = f"{line} {part}" if line else part
        if line and (whole_sentences or len(joined) > most):
            yield line
            joined = part
        line = joined
        if len(line) > most:
            *before, line = _pieces(line, most, breaks[1:])
            yield from before
    if line:
        yield line
