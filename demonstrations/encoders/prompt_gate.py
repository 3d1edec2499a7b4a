"""Paper 25: a gate that reads the instruction weighs low-rank updates, for instructions that combine tasks.

WavLLM (https://arxiv.org/abs/2404.00656) learns single tasks on speech in a first stage; in a second one low-rank
updates learn instructions that ask for several at once, and a gate that reads the instruction alone weighs every output
of the updates. Here a small model learns to transcribe, to translate, to count and to tell the voice of spoken digits.
It is then frozen, and low-rank updates learn to do two of these in the order asked for: plain ones, or ones of half the
rank with a gate of as many parameters as the other half. A third of the pairs is never asked for in training; voices,
digit strings and phrasings of the test are new. ``shuffled`` weighs the updates by the gates of other instructions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from data.drafts import Draft, Origin
from data.media import encode_flac
from data.quickstart.record_parts import SOURCES, bucket
from data.quickstart.speech import VARIANTS, clip, random_voice
from data.quickstart.synthesis import espeak
from data.quickstart.synthesis.utterances import DIGITS
from data.shards import ShardWriter
from demonstrations.demonstration import Claim, Demonstration, Metrics
from demonstrations.text_model import Block, TextModel, fit, make_tokenizer, train
from eval.controls import zeroed
from inference.conversation import Conversation
from inference.session import Session
from layers.media import Audio
from models.adapters.prompt_gate import Gates
from models.checkpoint import MANIFEST
from models.language import LanguageModel
from training.towers.recipe import TOWER_FILE

CLIPS, VALIDATION_CLIPS, TEST_CLIPS = 2400, 80, 120
TOWER_STEPS, SINGLE_STEPS, COMBINED_STEPS = 500, 700, 300
WIDTH = 128
WHISPER: dict[str, Any] = {
    "d_model": WIDTH,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 384,
    "num_mel_bins": 80,
    "max_source_positions": 500,
}
ENCODER = {"class_path": "encoders.speech.SpeechEncoder", "init_args": {"whisper": WHISPER}}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
# One rank of the updates of four layers has 4,096 parameters, a gate of 31 hidden units 8,224.
RANK, GATE = 4, 31
UPDATES: dict[str, dict[str, Any]] = {
    "plain": {"lora": {"rank": RANK, "alpha": RANK, "targets": TARGETS}},
    "half": {"lora": {"rank": RANK // 2, "alpha": RANK // 2, "targets": TARGETS}},
    "gate": {
        "lora": {"rank": RANK // 2, "alpha": RANK // 2, "targets": TARGETS},
        "prompt_gate": {"hidden_size": GATE},
    },
}
LEARNING_RATE = 5e-3
KINDS = ("transcribe", "translate", "count", "voice")
# In training and in the test; the words of the test occur in training, its sentences do not.
PHRASES: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "transcribe": (
        ("transcribe the clip", "write down the words", "write the words that you hear"),
        ("write down the words that you hear", "transcribe the words"),
    ),
    "translate": (
        ("translate the clip", "write it in german", "say the words in german"),
        ("write the words in german", "say it in german"),
    ),
    "count": (
        ("count the words", "tell me how many words you hear", "say how many words it has"),
        ("say how many words you hear", "tell me how many words it has"),
    ),
    "voice": (
        ("name the voice", "tell me which voice you hear", "say which voice it is"),
        ("tell me which voice it is", "say which voice you hear"),
    ),
}
JOINS = (("{} , then {}", "first {} , then {}", "{} and after that {}"), ("first {} and after that {}",))
PAIRS = tuple(permutations(KINDS, 2))
UNSEEN = tuple(zip(KINDS, (*KINDS[1:], KINDS[0]), strict=True))  # every task once first and once second
SEEN = tuple(pair for pair in PAIRS if pair not in UNSEEN)
SEPARATOR = " ; "
_LANGUAGES = (("transcribe", "en"), ("translate", "de"))


@dataclass(frozen=True)
class Clip:
    """One to three digits, said by a voice.

    Args:
        waveform: (samples,) at 16 kHz.
        digits: What is said.
        register: "low" or "high".
        variant: The voice.
    """

    waveform: np.ndarray
    digits: tuple[int, ...]
    register: str
    variant: str

    def answer(self, kinds: Sequence[str]) -> str:
        """What is to be said to an instruction of these tasks, in their order."""
        words = {name: " ".join(DIGITS[language][digit] for digit in self.digits) for name, language in _LANGUAGES}
        known = {**words, "count": str(len(self.digits)), "voice": self.register}
        return SEPARATOR.join(known[kind] for kind in kinds)


@dataclass(frozen=True)
class Asked:
    """A clip, the tasks that an instruction asks for, and the instruction."""

    clip: Clip
    kinds: tuple[str, ...]
    instruction: str


@dataclass(frozen=True)
class SpeechReader(TextModel):
    """The language model, with a speech encoder before it."""

    max_tokens: int = 2048
    by_muon: tuple[str, ...] = (r"^projectors\.",)
    block: Block = "gemma3_text"

    def config(self, tokenizer: Path, vocab_size: int) -> dict[str, Any]:
        """Arguments of the Generalist."""
        projector = {"input_size": WIDTH, "output_size": self.hidden_size, "factor": 4, "num_layers": 2}
        return {
            **super().config(tokenizer, vocab_size),
            "encoders": {"audio": ENCODER},
            "projectors": {"audio": {"class_path": "models.projectors.FrameStackProjector", "init_args": projector}},
        }


def clips(split: str, count: int, seed: int) -> Iterator[Clip]:
    """Clips of a split's voices and digit strings, low and high voices in turn."""
    rng = np.random.default_rng([seed, 1, len(split)])
    espeak.restart()
    for number in range(count):
        register = ("low", "high")[number % 2]
        voice = random_voice("en", split, rng, register)
        while True:
            digits = tuple(rng.integers(0, 10, int(rng.integers(1, 4))).tolist())
            words = [DIGITS["en"][digit] for digit in digits]
            if bucket(" ".join(words)) == split:
                break
        yield Clip(clip([(", ".join(words), voice)], 0, rng), digits, register, voice.variant)


def instruction(kinds: Sequence[str], test: bool, rng: np.random.Generator) -> str:
    """Words that ask for one task, or for two in this order."""

    def one(options: Sequence[str]) -> str:
        return options[int(rng.integers(len(options)))]

    asked = [one(PHRASES[kind][test]) for kind in kinds]
    return asked[0] if len(asked) == 1 else one(JOINS[test]).format(*asked)


def questions(made: Iterable[Clip], combined: bool, rng: np.random.Generator) -> Iterator[Asked]:
    """One of training's instructions about each clip: a single task, or a pair that training may know."""
    for item in made:
        kinds = SEEN[int(rng.integers(len(SEEN)))] if combined else (KINDS[int(rng.integers(len(KINDS)))],)
        yield Asked(item, kinds, instruction(kinds, False, rng))


def test_questions(seed: int) -> dict[str, list[Asked]]:
    """Of ``combined`` (pairs of training), ``unseen`` (the others) and ``single`` tasks, in turn about every clip."""
    rng = np.random.default_rng([seed, 3])
    made = list(clips("test", TEST_CLIPS, seed))
    options: dict[str, tuple[Sequence[tuple[str, ...]], int]] = {
        "combined": (SEEN, 4),
        "unseen": (UNSEEN, 2),
        "single": ([(kind,) for kind in KINDS], 2),
    }
    asked: dict[str, list[Asked]] = {name: [] for name in options}
    for name, (choices, per_clip) in options.items():
        for number, item in enumerate(made):
            for place in range(per_clip):
                kinds = choices[(number + place) % len(choices)]
                asked[name].append(Asked(item, kinds, instruction(kinds, True, rng)))
    return asked


def write_questions(directory: Path, prefix: str, split: str, asked: Iterable[Asked]) -> list[str]:
    """Write them as shards; returns their words."""
    source, terms = SOURCES["audio"]
    texts = []
    with ShardWriter(directory, prefix, 5000) as writer:
        for number, item in enumerate(asked):
            draft = Draft(f"{prefix}-{number:06d}", "spoken_digits", Origin(source, terms, split))
            draft.meta = {"transcript": item.clip.answer(["transcribe"]), "voices": [item.clip.variant]}
            draft.add_audio(encode_flac(torch.from_numpy(item.clip.waveform), espeak.SAMPLE_RATE))
            draft.user(draft.medium("audio"), item.instruction)
            draft.assistant(item.clip.answer(item.kinds))
            writer.write(*draft.finish())
            texts.append(f"{item.instruction} {item.clip.answer(item.kinds)}")
    return texts


def measure(arm: str, seed: int, folder: Path) -> Metrics:
    """Train what all arms share, unless that was done, and the arm's updates; then ask what is new."""
    shared = folder.parent / f"shared-{seed}"
    checkpoint, vocab_size = _single_tasks(shared, seed)
    if arm in UPDATES:
        data = {"sources": [{"path": str(shared / "pairs*-*.tar")}, {"path": str(shared / "single0-*.tar")}]}
        recipe = {
            "changes": {"language_model": UPDATES[arm]},
            "muon": {},
            "learning_rate": LEARNING_RATE,
            "weight_decay": 0.0,
            "features": _features(shared),
        }
        gate = [r"^language_model\.gate\."] if arm == "gate" else []
        start = {"path": str(checkpoint), "allow_new": ["lora_", *gate]}
        trained = ["lora_", *gate]
        checkpoint = train(
            SpeechReader(),
            shared / "tokenizer",
            vocab_size,
            data,
            COMBINED_STEPS,
            seed,
            folder,
            [start],
            trained,
            recipe,
        )
    return _accuracies(checkpoint, seed)


def _features(shared: Path) -> dict[str, Any]:
    return {"folder": str(shared / "features"), "kinds": ["audio"]}


def _single_tasks(shared: Path, seed: int) -> tuple[Path, int]:
    """The model of single tasks, the tokenizer's number of ids, and all data, unless they are there."""
    if not (shared / "tokenizer" / "tokenizer.json").is_file():
        rng = np.random.default_rng([seed, 2])
        made, held_back = list(clips("train", CLIPS, seed)), clips("val", VALIDATION_CLIPS, seed)
        texts = []
        for prefix in ("single0", "single1", "pairs0", "pairs1"):
            texts += write_questions(shared, prefix, "train", questions(made, prefix.startswith("pairs"), rng))
        write_questions(shared / "val", "single", "val", questions(held_back, False, rng))
        make_tokenizer(shared / "tokenizer", texts)
    vocab_size = make_tokenizer(shared / "tokenizer", [])
    tower, checkpoint = shared / "tower" / TOWER_FILE, shared / "single" / "checkpoint"
    if not tower.is_file():
        _fit_tower(shared, seed, tower.parent)
    if not (checkpoint / MANIFEST).is_file():
        data = {"sources": [{"path": str(shared / "single*-*.tar")}]}
        start = {"path": str(tower), "prefix": "encoders.audio."}
        recipe = {"features": _features(shared)}
        trained = [r"^language_model\.", r"^projectors\."]
        model, tokenizer = SpeechReader(), shared / "tokenizer"
        train(model, tokenizer, vocab_size, data, SINGLE_STEPS, seed, checkpoint.parent, [start], trained, recipe)
    return checkpoint, vocab_size


def _fit_tower(shared: Path, seed: int, folder: Path) -> None:
    """Characters and voices, as the quickstart's stage 0 of the speech tower."""
    registers = {name: sorted({v for split in VARIANTS.values() for v in split[name]}) for name in ("low", "high")}
    objective = {"hidden_size": WIDTH, "voices": registers, "voice_weight": 0.3}
    recipe = {
        "encoder": ENCODER,
        "objective": {"class_path": "training.towers.speech.SpeechObjective", "init_args": objective},
        "learning_rate": 2e-3,
        "muon": {r"^encoder\.": 0.02},
        "warmup_steps": 50,
        "seed": seed,
    }
    data = {"train": str(shared / "single0-*.tar"), "val": str(shared / "val/single-*.tar"), "batch_size": 24}
    config = {
        "model": {"class_path": "training.towers.TowerRecipe", "init_args": recipe},
        "data": {"class_path": "training.towers.data.TowerData", "init_args": {**data, "seed": seed}},
    }
    fit(config, TOWER_STEPS, seed, folder)


def _accuracies(checkpoint: Path, seed: int) -> Metrics:
    """Replies that are right as a whole."""
    # No prefix is shared: what is read of it depends on the gates.
    session = Session.from_pretrained(str(checkpoint), max_new_tokens=24, batch_size=80, shared_prefix=0)
    asked = test_questions(seed)
    found = {name: _replies(session, items) for name, items in asked.items()}
    metrics = {name: _right(asked[name], replies) for name, replies in found.items()}
    pairs = [pair for name in ("combined", "unseen") for pair in zip(asked[name], found[name], strict=True)]
    metrics["followed"] = fmean(follows(reply, item.kinds) for item, reply in pairs)
    language_model = session.generalist.language_model
    metrics["shuffled"] = metrics["combined"]
    if language_model.gate is not None:
        rng = np.random.default_rng([seed, 4])

        def others(module: Any, inputs: Any, gates: Gates) -> Gates:
            count = len(next(iter(gates.values.values())))
            return gates.rows(torch.from_numpy(rng.permutation(count)))

        hook = language_model.gate.register_forward_hook(others)
        metrics["shuffled"] = _right(asked["combined"], _replies(session, asked["combined"]))
        hook.remove()
    silent = _replies(session, asked["combined"], feature_transform=zeroed)
    metrics["zeroed"] = _right(asked["combined"], silent)
    expected = Counter(item.clip.answer(item.kinds) for item in asked["combined"])
    metrics["constant"] = max(expected.values()) / expected.total()
    metrics["parameters"] = float(trained_parameters(language_model))
    return metrics


def trained_parameters(model: LanguageModel) -> int:
    """Those of updates and gate together."""
    return sum(p.numel() for name, p in model.named_parameters() if "lora_" in name or name.startswith("gate."))


def _replies(session: Session, asked: Sequence[Asked], **options: Any) -> list[str]:
    prompts = [
        Conversation.ask(item.instruction, audio=[Audio(torch.from_numpy(item.clip.waveform), espeak.SAMPLE_RATE)])
        for item in asked
    ]
    return [reply.text.strip() for reply in session.generate(prompts, **options)]


def _right(asked: Sequence[Asked], replies: Sequence[str]) -> float:
    return fmean(item.clip.answer(item.kinds) == reply for item, reply in zip(asked, replies, strict=True))


def follows(reply: str, kinds: Sequence[str]) -> bool:
    """Whether a reply has an answer of the asked kind, right or not, for every task in its order."""
    parts = reply.split(SEPARATOR)
    words: dict[str, Sequence[str]] = {name: DIGITS[language] for name, language in _LANGUAGES}
    words |= {"count": ("1", "2", "3"), "voice": ("low", "high")}
    return len(parts) == len(kinds) and all(
        bool(part) and set(part.split()) <= set(words[kind]) for part, kind in zip(parts, kinds, strict=True)
    )


def _pairs(mean: Callable[[str, str], float], arm: str) -> float:
    """Right among all pairs that were asked for, those of training and the others alike."""
    return (mean(arm, "combined") + mean(arm, "unseen")) / 2


DEMONSTRATION = Demonstration(
    paper=25,
    address="https://arxiv.org/abs/2404.00656",
    shows="two tasks on spoken digits in one instruction, by low-rank updates with a gate that reads it or without",
    arms={
        "single_tasks": f"the model of single tasks, {SINGLE_STEPS} steps, as it is",
        "plain": f"plain updates of rank {RANK}, {COMBINED_STEPS} steps",
        "half": f"control: plain updates of rank {RANK // 2}, which is the gate held at one",
        "gate": f"updates of rank {RANK // 2}, and a gate that has the other half's parameters",
    },
    measure=measure,
    claims=[
        Claim(
            "on combined instructions the gate exceeds plain updates of as many parameters by .02",
            lambda mean: _pairs(mean, "gate") >= _pairs(mean, "plain") + 0.02,
        ),
        Claim(
            "it exceeds the same updates without a gate by .02",
            lambda mean: _pairs(mean, "gate") >= _pairs(mean, "half") + 0.02,
        ),
        Claim(
            "what it reads counts: the gates of other instructions cost .10 at least",
            lambda mean: mean("gate", "combined") >= mean("gate", "shuffled") + 0.1,
        ),
        Claim(
            "combined instructions are learned in the second stage: .30 more are right than before",
            lambda mean: _pairs(mean, "gate") >= _pairs(mean, "single_tasks") + 0.3,
        ),
    ],
    controls={
        "shuffled": ("gate", "shuffled"),
        "zeroed": ("gate", "zeroed"),
        "constant": ("gate", "constant"),
    },
    controls_na={
        "blind": "without the clip nothing is asked; features of zeros measure it",
        "random_weights": "an untrained model writes no word",
    },
    seeds=2,
)
