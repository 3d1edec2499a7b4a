"""Records over speech: training dialogues, and asr, translation, speakers, spoken_facts and spoken_image_qa."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from data.quickstart import images
from data.quickstart.phrasing import ask
from data.quickstart.record_parts import QuickstartDraft, record_rng
from data.quickstart.scene_turns import Turn, Turns
from data.quickstart.synthesis.espeak import SAMPLE_RATE, Voice, speak
from data.quickstart.synthesis.utterances import DIGITS, FACT_KINDS, fact, fact_answers, plain, utterance
from data.records import Part, Record

LONGEST = 5 * SAMPLE_RATE
ACCENTS = {"en": ("en-us", "en", "en-gb-x-rp", "en-us-nyc"), "de": ("de",)}
# espeak-ng's voice variants by split and register; those that differ only in a number stand in one split.
VARIANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "low": tuple(
            "m1 m2 m3 m5 m6 m7 Alex Andy Denis Gene Lee Mike Hugo boris ed edward ian john max pablo paul quincy "
            "robert sandro adam michel".split()
        ),
        "high": ("f1", "f2", "f4", "f5", "Andrea", "Annie", "aunty", "belinda", "shelby", "steph"),
    },
    "val": {"low": ("m8", "Michael", "rob", "benjamin"), "high": ("grandma", "anika")},
    "test": {"low": ("m4", "norbert", "victor", "travis", "Mario", "marcelo"), "high": ("f3", "linda", "Alicia")},
}
SPOKEN_IMAGE_KINDS = ("count", "colour", "digit_of_colour", "leftmost")
_OWN_SPEAKERS = 0.6  # of training voices: many speakers around each variant, so that a new one is no surprise
# Of a training clip, and of a training question about a picture, each with its weight.
_TRAIN_CLIPS = {"utterance": 0.52, "speakers": 0.32, "fact": 0.16}
_TRAIN_SPOKEN_IMAGE_KINDS = {"count": 0.15, "colour": 0.22, "digit_of_colour": 0.22, "leftmost": 0.15, "look_ups": 0.26}


def random_voice(
    language: str, split: str, rng: np.random.Generator, register: str | None = None, variant: int | None = None
) -> Voice:
    """A voice of the split; in training often a speaker of our own (:mod:`data.quickstart.synthesis.variants`).

    Args:
        language: "en" or "de".
        split: Whose variants to use.
        rng: Draws accent, rate and pitch, and what is not given.
        register: "low" or "high".
        variant: Number of the variant within the register, modulo their number.
    """
    register = register or ("low", "high")[int(rng.integers(2))]
    names = VARIANTS[split][register]
    accents = ACCENTS[language]
    return Voice(
        language=accents[int(rng.integers(len(accents)))],
        variant=names[(int(rng.integers(len(names))) if variant is None else variant) % len(names)],
        rate=int(rng.integers(175, 226)),
        pitch=int(rng.integers(38, 63)),
        pitch_range=int(rng.integers(35, 66)),
        speaker=int(rng.integers(1, 1 << 20)) if split == "train" and rng.random() < _OWN_SPEAKERS else 0,
    )


def clip(texts: Sequence[tuple[str, Voice]], pause: float, rng: np.random.Generator) -> np.ndarray:
    """Say the texts one after the other, at a random level, in at most five seconds.

    Args:
        texts: What to say, and who says it.
        pause: Seconds of silence between two.
        rng: Draws level and a faint hiss.

    Returns:
        (samples,) float32 at 16 kHz.
    """
    rate = 1.0
    while True:
        gap = np.zeros(int(pause * SAMPLE_RATE), np.float32)
        parts: list[np.ndarray] = []
        for text, voice in texts:
            faster = replace(voice, rate=int(voice.rate * rate))
            parts += [gap, speak(text, faster)] if parts else [speak(text, faster)]
        waveform = np.concatenate(parts)
        if len(waveform) <= LONGEST:
            break
        rate *= 1.15
    hiss = rng.standard_normal(len(waveform), dtype=np.float32) * np.float32(rng.uniform(0.0002, 0.002))
    return waveform * np.float32(rng.uniform(0.6, 1.3)) + hiss


def numbers_as_words(text: str) -> str:
    """The text with "seven" for "7"."""
    for value, name in enumerate(DIGITS["en"]):
        text = text.replace(f" {value}", f" {name}")
    return text


def _describe(draft: QuickstartDraft, voices: Sequence[Voice], language: str, transcript: str) -> None:
    draft.meta |= {
        "voice": "+".join((voices[0].language, voices[0].variant)),
        "voices": sorted({voice.variant for voice in voices}),
        "language": language,
        "transcript": transcript,
    }


def _text(answer: str) -> list[Part]:
    return [Part("text", text=answer)]


def _one_utterance(
    draft: QuickstartDraft, kind: str, language: str, rng: np.random.Generator, number: int | None = None
) -> str | None:
    """A clip of one utterance; returns its translation."""
    register = None if number is None else ("low", "high")[number % 2]
    voice = random_voice(language, draft.split, rng, register, None if number is None else number // 2)
    said = utterance(kind, language, draft.split, rng)
    draft.add_clip(clip([(said.spoken or said.text, voice)], 0, rng))
    _describe(draft, [voice], language, said.text)
    draft.meta["kind"] = kind
    return said.translation


def _some_speakers(draft: QuickstartDraft, number: int, rng: np.random.Generator) -> str:
    """A clip of two utterances by one voice, or by a low and a high one; returns "one" or "two"."""
    registers = ["low", "high"] if rng.random() < 0.5 else ["high", "low"]
    first = random_voice("en", draft.split, rng, registers[0])
    second = first if number == 1 else random_voice("en", draft.split, rng, registers[1])
    said = [utterance(kind, "en", draft.split, rng) for kind in rng.choice(["digits", "command"], 2)]
    texts = [(item.spoken or item.text, voice) for item, voice in zip(said, (first, second), strict=True)]
    draft.add_clip(clip(texts, rng.uniform(0.1, 0.3), rng))
    _describe(draft, [first, second], "en", " ".join(item.text for item in said))
    return ("one", "two")[number - 1]


def _some_fact(draft: QuickstartDraft, kind: str, answer: int, rng: np.random.Generator) -> str:
    """A clip of a fact and a question; returns the answer."""
    voice = random_voice("en", draft.split, rng)
    said = fact(kind, answer, rng, distractor=rng.random() < 0.3)
    draft.add_clip(clip([(said.statement, voice), (said.question, voice)], rng.uniform(0.15, 0.3), rng))
    _describe(draft, [voice], "en", said.transcript)
    draft.meta["kind"] = kind
    return said.answer


def _registers(draft: QuickstartDraft) -> str:
    """Whether the clip's voices are "low", "high" or "both": what tells the speakers apart."""
    low = {variant in VARIANTS[draft.split]["low"] for variant in draft.meta["voices"]}
    return "both" if len(low) == 2 else "low" if low == {True} else "high"


def speech(split: str, index: int, seed: int) -> tuple[Record, dict[str, bytes]]:
    """A training dialogue about one clip: transcribe it, and what else can be asked about it, in random order."""
    rng = record_rng(seed, split, "speech", index)
    draft = QuickstartDraft("speech", split, index)
    kind = str(rng.choice(list(_TRAIN_CLIPS), p=list(_TRAIN_CLIPS.values())))
    asked: list[tuple[str, str]] = []
    if kind == "utterance":
        language = "en" if rng.random() < 0.68 else "de"
        translation = _one_utterance(draft, ("digits", "command")[int(rng.random() < 0.55)], language, rng)
        asked += [("translate", translation)] if translation else []
        asked += [("speakers", "one")] if rng.random() < 0.1 else []
        asked += [("voices", _registers(draft))] if rng.random() < 0.25 else []
    elif kind == "speakers":
        asked.append(("speakers", _some_speakers(draft, int(rng.integers(1, 3)), rng)))
        asked += [("voices", _registers(draft))] if rng.random() < 0.8 else []
    else:
        fact_kind = FACT_KINDS[int(rng.integers(len(FACT_KINDS)))]
        asked.append(("spoken_question", _some_fact(draft, fact_kind, int(rng.integers(24)), rng)))
    asked.append(("transcribe", str(draft.meta["transcript"])))
    asked = [asked[number] for number in rng.permutation(len(asked))]
    for place, (question, answer) in enumerate(asked):
        draft.ask(ask(question, split, rng), _text(answer), [] if place else ["audio"])
    draft.meta["question_types"] = [question for question, _ in asked]
    return draft.finish()


def _finish(draft: QuickstartDraft, question: str, answer: str, rng: np.random.Generator, media: Sequence[str]) -> None:
    draft.ask(ask(question, draft.split, rng), _text(answer), media)
    draft.meta["answer"] = answer


def asr(split: str, index: int, seed: int) -> tuple[Record, dict[str, bytes]]:
    """Transcription; English and German, digit strings and commands, voices in turn."""
    rng = record_rng(seed, split, "asr", index)
    draft = QuickstartDraft("asr", split, index)
    language = ("en", "en", "en", "de")[index % 4]
    kind = ("digits", "command")[(index // 4) % 2]
    _one_utterance(draft, kind, language, rng, index // 8)
    draft.meta["question_type"] = f"{kind}_{language}"
    _finish(draft, "transcribe", str(draft.meta["transcript"]), rng, ["audio"])
    return draft.finish()


def translation(split: str, index: int, seed: int) -> tuple[Record, dict[str, bytes]]:
    """English speech into German text; two commands in three."""
    rng = record_rng(seed, split, "translation", index)
    draft = QuickstartDraft("translation", split, index)
    kind = ("command", "command", "digits")[index % 3]
    german = _one_utterance(draft, kind, "en", rng, index // 3)
    assert german is not None
    draft.meta["question_type"] = kind
    _finish(draft, "translate", german, rng, ["audio"])
    return draft.finish()


def speakers(split: str, index: int, seed: int) -> tuple[Record, dict[str, bytes]]:
    """One speaker or two, in turn."""
    rng = record_rng(seed, split, "speakers", index)
    draft = QuickstartDraft("speakers", split, index)
    answer = _some_speakers(draft, index % 2 + 1, rng)
    draft.meta["question_type"] = "speakers"
    _finish(draft, "speakers", answer, rng, ["audio"])
    return draft.finish()


def spoken_facts(split: str, index: int, seed: int) -> tuple[Record, dict[str, bytes]]:
    """A spoken question about a spoken fact; kinds in turn, and answers in turn within each."""
    rng = record_rng(seed, split, "spoken_facts", index)
    draft = QuickstartDraft("spoken_facts", split, index)
    kind = FACT_KINDS[index % len(FACT_KINDS)]
    answer = _some_fact(draft, kind, (index // len(FACT_KINDS)) % fact_answers(kind), rng)
    draft.meta["question_type"] = kind
    _finish(draft, "spoken_question", answer, rng, ["audio"])
    return draft.finish()


def spoken_images(split: str, index: int, seed: int) -> tuple[Record, dict[str, bytes]]:
    """A training dialogue about an image: a spoken question, its transcript, and a written question."""
    rng = record_rng(seed, split, "spoken_images", index)
    kind = str(rng.choice(list(_TRAIN_SPOKEN_IMAGE_KINDS), p=list(_TRAIN_SPOKEN_IMAGE_KINDS.values())))
    draft, turn, turns = _spoken_about_scene("spoken_images", kind, int(rng.integers(60)), split, index, seed, rng)
    assert turn.answer is not None
    draft.ask(ask("spoken_question", split, rng), _text(turn.answer), ["image", "audio"])
    draft.ask(ask("transcribe", split, rng), _text(str(draft.meta["transcript"])))
    extra = turns.make(str(rng.choice(["count", "colour", "digit_of_colour", "leftmost", "ground", "seg", "caption"])))
    if extra is not None:
        draft.add_turn(extra)
    draft.meta["question_types"] = ["spoken_question", "transcribe", *([extra.kind] if extra else [])]
    return draft.finish()


def spoken_image_qa(split: str, index: int, seed: int) -> tuple[Record, dict[str, bytes]]:
    """A spoken question about an image; types in turn, and answers in turn within each."""
    rng = record_rng(seed, split, "spoken_image_qa", index)
    kinds = len(SPOKEN_IMAGE_KINDS)
    kind, number = SPOKEN_IMAGE_KINDS[index % kinds], index // kinds
    draft, turn, _ = _spoken_about_scene("spoken_image_qa", kind, number, split, index, seed, rng)
    draft.meta["question_type"] = kind
    assert turn.answer is not None
    _finish(draft, "spoken_question", turn.answer, rng, ["image", "audio"])
    return draft.finish()


def _spoken_about_scene(
    prefix: str, kind: str, number: int, split: str, index: int, seed: int, rng: np.random.Generator
) -> tuple[QuickstartDraft, Turn, Turns]:
    """A scene and a clip that asks about it."""
    scene, turn = images.answered_scene(kind, number, split, seed, rng)
    draft = QuickstartDraft(prefix, split, index)
    draft.add_scene(scene)
    voice = random_voice("en", split, rng)
    words = numbers_as_words(turn.text)
    draft.add_clip(clip([(words, voice)], 0, rng))
    _describe(draft, [voice], "en", plain(words))
    return draft, turn, Turns(scene, split, seed, rng)
