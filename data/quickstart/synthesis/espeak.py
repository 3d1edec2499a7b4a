"""Speech synthesis with espeak-ng through ctypes.

espeak-ng is licensed under the GPL, version 3 or later. It is loaded from the ``espeakng-loader`` wheel, an optional
extra (``synthesis``) that only makes data: nothing that trains, evaluates or serves a model imports this module.
"""

from __future__ import annotations

import _ctypes
import atexit
import ctypes
import importlib
import shutil
from dataclasses import dataclass
from functools import cache
from math import gcd
from pathlib import Path

import numpy as np
from scipy.signal import firwin, resample_poly

from data.quickstart.synthesis.variants import VARIANTS, another_speaker, linked_data

SAMPLE_RATE = 16_000
_SYNCHRONOUS = 2
_UTF8 = 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Voice:
    """A way of speaking.

    Args:
        language: espeak-ng's name of the language and accent, such as "en-us" or "de".
        variant: espeak-ng's voice variant, such as "f3": what makes the speaker.
        rate: Words per minute.
        pitch: 0 to 99.
        pitch_range: 0 (monotone) to 99.
        speaker: 0 for the variant as it is; another number is a speaker of its own, whose pitch and formants are drawn
            around the variant's.
    """

    language: str
    variant: str
    rate: int = 190
    pitch: int = 50
    pitch_range: int = 50
    speaker: int = 0


class SynthesisError(RuntimeError):
    """espeak-ng is missing, does not start, or does not know a voice."""


class _Engine:
    """The library, loaded and started."""

    def __init__(self) -> None:
        try:
            loader = importlib.import_module("espeakng_loader")
        except ImportError:
            raise SynthesisError("espeak-ng is missing: install the extra 'synthesis' (espeakng-loader)") from None
        self.library = ctypes.CDLL(str(loader.get_library_path()))
        data_path = _data(str(loader.get_data_path()))
        self.rate = int(self.library.espeak_Initialize(_SYNCHRONOUS, 0, str(data_path).encode(), 1 << 15))
        if self.rate <= 0:
            raise SynthesisError(f"espeak-ng does not start with its data in '{data_path}'")
        self.variants = data_path / VARIANTS
        self.chunks: list[np.ndarray] = []
        self.callback = _CALLBACK(self._collect)  # kept here: the library holds only the address
        self.library.espeak_SetSynthCallback(self.callback)

    def _collect(self, samples: ctypes._Pointer[ctypes.c_short], count: int, events: int | None) -> int:
        if samples and count > 0:
            self.chunks.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0

    def speak(self, text: str, voice: Voice) -> np.ndarray:
        """The text in int16 at the library's own rate."""
        variant = self._variant(voice)
        name = f"{voice.language}+{variant.name}"
        # the library takes an unknown variant for none, silently
        if not variant.is_file() or self.library.espeak_SetVoiceByName(name.encode()) != 0:
            raise SynthesisError(f"espeak-ng does not know the voice '{name}'")
        if voice.speaker:
            variant.unlink()  # it has been read, and the library's list of voices has an end
        for parameter, value in ((_RATE, voice.rate), (_PITCH, voice.pitch), (_RANGE, voice.pitch_range)):
            self.library.espeak_SetParameter(parameter, int(value), 0)
        self.chunks = []
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # seeded by the clock otherwise: breath would differ
        data = text.encode() + b"\0"
        if self.library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 1, 0, _UTF8, None, None) != 0:
            raise SynthesisError(f"espeak-ng failed to speak {text!r} as '{name}'")
        self.library.espeak_Synchronize()
        if not self.chunks:
            raise SynthesisError(f"espeak-ng was silent for {text!r} as '{name}'")
        return np.concatenate(self.chunks)

    def _variant(self, voice: Voice) -> Path:
        """The file of the voice's variant; that of a speaker of our own is written now."""
        file = self.variants / voice.variant
        if not voice.speaker or not file.is_file():
            return file
        own = self.variants / f"{voice.variant}-{voice.speaker}"
        own.write_text(another_speaker(file.read_text(encoding="utf-8", errors="replace"), voice.speaker))
        return own

    def close(self) -> None:
        """Stop and unload the library."""
        self.library.espeak_Terminate()
        _ctypes.dlclose(self.library._handle)


@cache
def _data(installed: str) -> Path:
    """A copy of espeak-ng's data in which variants can be added, while this process lives."""
    root = linked_data(Path(installed))
    atexit.register(shutil.rmtree, root.parent, ignore_errors=True)
    return root


@cache
def _engine() -> _Engine:
    return _Engine()


def restart() -> None:
    """Unload espeak-ng, so that what is spoken next depends on nothing that was spoken before.

    The library goes on with the flutter of the last utterance, which moves the next one by some samples, and starting
    it again does not reset that.
    """
    if _engine.cache_info().currsize:
        _engine().close()
        _engine.cache_clear()


@cache
def _kernel(up: int, down: int) -> np.ndarray:
    """A short low-pass for :func:`resample`."""
    widest = max(up, down)
    return firwin(2 * 8 * widest + 1, 0.95 / widest, window=("kaiser", 5.0)).astype(np.float32)


def resample(waveform: np.ndarray, rate: int, target_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Polyphase resampling of a float waveform (samples,)."""
    if rate == target_rate:
        return waveform
    divisor = gcd(rate, target_rate)
    up, down = target_rate // divisor, rate // divisor
    return resample_poly(waveform, up, down, window=_kernel(up, down)).astype(np.float32)


def trim(waveform: np.ndarray, margin: int = SAMPLE_RATE // 50, threshold: float = 0.01) -> np.ndarray:
    """Cut silence from both ends, down to ``margin`` samples before and after what is louder than ``threshold``."""
    loud = np.flatnonzero(np.abs(waveform) > threshold * max(float(np.abs(waveform).max()), 1e-9))
    return waveform[max(int(loud[0]) - margin, 0) : int(loud[-1]) + 1 + margin]


def speak(text: str, voice: Voice) -> np.ndarray:
    """Synthesise a text.

    Args:
        text: What to say, in the voice's language.
        voice: Who says it, and how.

    Returns:
        (samples,) float32 at 16 kHz, silence trimmed, peak 0.7.

    Raises:
        SynthesisError: Where espeak-ng is missing or refuses the voice.
    """
    engine = _engine()
    waveform = engine.speak(text, voice).astype(np.float32) / 32768.0
    waveform = trim(resample(waveform, engine.rate))
    return waveform * np.float32(0.7 / max(float(np.abs(waveform).max()), 1e-6))
