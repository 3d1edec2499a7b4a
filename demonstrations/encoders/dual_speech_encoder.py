"""Paper 25: two speech encoders, one that knows what is said and one that knows who speaks, serve both tasks.

WavLLM (https://arxiv.org/abs/2404.00656) reads speech through Whisper, trained to transcribe, and WavLM, whose layers
keep the speaker. Here both are pretrained small: a Whisper-type encoder on characters, a WavLM-type one on voices.
They are then frozen, and one linear layer on the features of either, or of both side by side, transcribes and tells
low voices from high ones. Validation clips are of other voices and sentences than those of training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from data.quickstart.modules import read_module_graph
from data.quickstart.plan import SAMPLES_PER_SHARD, Job, write_shard
from data.quickstart.speech import VARIANTS
from demonstrations.demonstration import Claim, Demonstration, Metrics
from encoders.speech import SpeechEncoder
from training.towers import TowerRecipe
from training.towers.data import TowerData
from training.towers.fit import fit_tower
from training.towers.recipe import TOWER_FILE
from training.towers.speech import SpeechObjective

CLIPS, VALIDATION_CLIPS = 2400, 240
WORDS_STEPS, VOICES_STEPS, PROBE_STEPS = 700, 150, 300
WHISPER: dict[str, Any] = {
    "d_model": 128,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 384,
    "num_mel_bins": 80,
    "max_source_positions": 500,
}
WAVLM: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "conv_dim": [32, 32, 32, 64, 64, 64, 64],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}
CONSTANT = 0.25  # no word, and "a low and a high voice", which half of the clips have
REGISTERS = {
    register: sorted({name for split in VARIANTS.values() for name in split[register]}) for register in ("low", "high")
}
BRANCHES = {
    "words": (WHISPER, None),
    "voices": (None, WAVLM),
    "both": (WHISPER, WAVLM),
    "random_weights": (WHISPER, WAVLM),
}


def measure(arm: str, seed: int, folder: Path) -> Metrics:
    """Pretrain the branches, unless that was done; then what a linear layer reads from those of the arm."""
    shared = folder.parent / f"shared-{seed}"
    _write_clips(shared / "clips", seed)
    for branch, weights, steps in (("words", (1.0, 0.0), WORDS_STEPS), ("voices", (0.0, 1.0), VOICES_STEPS)):
        if not (shared / branch / TOWER_FILE).is_file():
            torch.manual_seed(seed)
            _fit(_encoder(branch), weights, steps, seed, shared / branch, shared / "clips")
    torch.manual_seed(seed)
    encoder = _encoder(arm)
    for branch in {"both": ("words", "voices"), "random_weights": ()}.get(arm, (arm,)):
        encoder.load_state_dict(load_file(shared / branch / TOWER_FILE), strict=False)  # the other branch is not in it
    metrics = _fit(encoder, (1.0, 1.0), PROBE_STEPS, seed, folder, shared / "clips", probe=True)
    words, voices = 1 - min(metrics["wer"], 1.0), metrics["voices_right"]
    return {"words_right": words, "voices_right": voices, "both": (words + voices) / 2, "constant": CONSTANT}


def _encoder(arm: str) -> SpeechEncoder:
    whisper, wavlm = BRANCHES[arm]
    return SpeechEncoder(whisper, wavlm, fusion="concat")


def _write_clips(directory: Path, seed: int) -> None:
    modules = read_module_graph()
    for split, prefix, count in (("train", "speech", CLIPS), ("val", "speakers", VALIDATION_CLIPS)):
        (directory / split).mkdir(parents=True, exist_ok=True)
        for shard, start in enumerate(range(0, count, SAMPLES_PER_SHARD)):
            job = Job(split, prefix, shard, start, min(start + SAMPLES_PER_SHARD, count))
            if not (directory / job.name).is_file():
                write_shard(job, seed, modules, str(directory))


def _fit(
    encoder: SpeechEncoder,
    weights: tuple[float, float],
    steps: int,
    seed: int,
    folder: Path,
    clips: Path,
    probe: bool = False,
) -> Metrics:
    """One fit, and what it measures on validation clips; of the encoder too, or of a linear layer alone."""
    torch.manual_seed(seed)
    objective = SpeechObjective(
        encoder.hidden_size, voices=REGISTERS, character_weight=weights[0], voice_weight=weights[1]
    )
    recipe = TowerRecipe(
        encoder,
        objective,
        learning_rate=1e-2 if probe else 2e-3,
        muon=None if probe or encoder.whisper is None else {r"^encoder\.whisper\.": 0.02},
        warmup_steps=50,
        seed=seed,
        probe=probe,
    )
    data = TowerData(str(clips / "train/*.tar"), str(clips / "val/*.tar"), 16, seed=seed, plan=recipe.plan())
    return fit_tower(recipe, data, steps, folder)


DEMONSTRATION = Demonstration(
    paper=25,
    address="https://arxiv.org/abs/2404.00656",
    shows="transcripts and voices read by one linear layer from a frozen encoder of words, one of voices, or both",
    arms={
        "words": f"a Whisper-type encoder, pretrained on characters for {WORDS_STEPS} steps",
        "voices": f"a WavLM-type encoder, pretrained on low and high voices for {VOICES_STEPS} steps",
        "both": "the two side by side",
        "random_weights": "the two side by side, without pretraining",
    },
    measure=measure,
    claims=[
        Claim(
            "both encoders exceed either alone over the two tasks together by .05",
            lambda mean: mean("both", "both") >= max(mean("words", "both"), mean("voices", "both")) + 0.05,
        ),
        Claim(
            "both lose at most .03 of what each does best alone",
            lambda mean: (
                mean("both", "words_right") >= mean("words", "words_right") - 0.03
                and mean("both", "voices_right") >= mean("voices", "voices_right") - 0.03
            ),
        ),
    ],
    controls={"random_weights": ("random_weights", "both"), "constant": ("both", "constant")},
    controls_na={"blind": "without the clip there is no task"},
)
