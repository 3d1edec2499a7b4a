"""Corpus word error rate under named normalisers: the name is part of the protocol."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from eval.metrics.statistics import Estimate, bootstrap
from eval.metrics.text import word_errors

Normaliser = Callable[[str], str]
NORMALISERS = ("none", "lower", "lower-no-punctuation", "whisper-basic", "whisper-english")
_SPACE = re.compile(r"\s+")


def transcript_normaliser(name: str, spelling: str | Path | None = None) -> tuple[str, Normaliser]:
    """A normaliser and its name as a protocol states it.

    Args:
        name: One of :data:`NORMALISERS`. "lower-no-punctuation" keeps apostrophes within words; the two of Whisper
            (https://arxiv.org/abs/2212.04356) are those of transformers, one of them, never one after the other.
        spelling: ``normalizer.json`` of a Whisper checkpoint, British to American spelling, for "whisper-english".
            Without it that normaliser does everything else, and its name says so.

    Raises:
        ValueError: For an unknown name, a spelling file that does not hold words, or one that is not asked for.
    """
    if name not in NORMALISERS:
        raise ValueError(f"normaliser: expected one of {NORMALISERS}, got {name!r}")
    if spelling is not None and name != "whisper-english":
        raise ValueError(f"spelling: expected none for the normaliser '{name}', got {str(spelling)!r}")
    if name == "whisper-english":
        if spelling is None:
            return "whisper-english without spelling table", EnglishTextNormalizer({})
        data = Path(spelling).read_bytes()
        table = json.loads(data)
        if not isinstance(table, dict) or not all(isinstance(word, str) for pair in table.items() for word in pair):
            raise ValueError(f"spelling '{spelling}': expected a JSON object from word to word")
        digest = hashlib.sha256(data).hexdigest()[:12]
        return f"whisper-english (spelling table {digest})", EnglishTextNormalizer(table)
    plain: dict[str, Normaliser] = {
        "none": _collapse,
        "lower": lambda text: _collapse(text.lower()),
        "lower-no-punctuation": lambda text: _collapse(_drop_punctuation(text.lower())),
        "whisper-basic": BasicTextNormalizer(),
    }
    return name, plain[name]


def normalised_word_error_rate(
    predictions: Sequence[str], references: Sequence[str], normaliser: Normaliser, *, characters: bool = False
) -> Estimate:
    """Edits over reference words of the corpus, not the mean over utterances; its error is bootstrapped over them.

    Args:
        predictions: What was recognised.
        references: What was said.
        normaliser: Applied once to both.
        characters: Count characters, white space left out, instead of words: for languages written without it.

    Raises:
        ValueError: If a normalised reference is empty, naming its place.
    """
    pairs = [
        _errors(normaliser(prediction), normaliser(reference), place, characters)
        for place, (prediction, reference) in enumerate(zip(predictions, references, strict=True))
    ]
    edits, words = np.asarray(pairs, dtype=np.float64).reshape(-1, 2).T

    def rate(indices: np.ndarray) -> float:
        return float(edits[indices].sum() / words[indices].sum())

    return Estimate(float(edits.sum() / words.sum()), len(pairs), bootstrap(rate, len(pairs)))


def _errors(prediction: str, reference: str, place: int, characters: bool) -> tuple[int, int]:
    if characters:
        prediction, reference = (" ".join(_SPACE.sub("", text)) for text in (prediction, reference))
    if not reference.strip():
        raise ValueError(f"transcript {place}: expected words after normalisation, got none")
    return word_errors(prediction, reference)


def _collapse(text: str) -> str:
    return _SPACE.sub(" ", text).strip()


def _drop_punctuation(text: str) -> str:
    kept = re.sub(r"(?<=\w)['\u2019](?=\w)", "\0", text)
    spaced = "".join(" " if unicodedata.category(mark)[0] in "PS" else mark for mark in kept)
    return spaced.replace("\0", "'")
