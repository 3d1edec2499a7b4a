"""Towers through Switchyard beside their libraries' own forward, and checkpoints beside transformers' loading.

Encoding: both in one process, batch after batch in turn, the same uint8 images or clips; what Switchyard adds is the
normalisation on the device, the layout and the flattening, so the library's arm normalises too. Loading: a language
model of random weights, stored as a checkpoint of ours and as transformers does, each read by a process of its own.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.arms import Arm, Outcome, Round, Watch, parser, run_arms, show, write_result
from encoders.speech import SpeechEncoder
from encoders.vision import TimmTower, TransformersEncoder, VisionTower
from layers.layout import Layout
from layers.media import Audio
from models.build import build_generalist
from models.checkpoint import save_checkpoint
from models.generalist import Generalist
from models.tokenizer import save_tokenizer, train_tokenizer
from routers.tasks import TaskTable

CLIP = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6}
WHISPER = {"d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536}
WIDTHS = {"small": 64, ".": 1024}  # of the language models: one to warm up with, one to measure


@dataclass
class Pair:
    """One tower's two arms, each a function without arguments that encodes the same batch.

    Args:
        name: The tower.
        ours: To (ΣN, d).
        library: To whatever the library gives.
        rows: Its result as (ΣN, d).
    """

    name: str
    ours: Callable[[], Tensor]
    library: Callable[[], Tensor]
    rows: Callable[[Tensor], Tensor]


def vision(
    name: str,
    tower: VisionTower,
    library: Callable[[Tensor], Tensor],
    batch: int,
    rows: Callable[[Tensor], Tensor] = lambda maps: maps.permute(0, 2, 3, 1).flatten(0, 2),
) -> Pair:
    """A vision tower on random images of its own size."""
    tower.eval()
    transform = tower.processor.layout((64, 64)).transform
    assert transform is not None
    width, height = transform.input_size
    raster = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    items, layouts = zip(*[tower.processor(raster) for _ in range(batch)], strict=True)
    inputs, layout = tower.collate(items), Layout(list(layouts))
    return Pair(name, lambda: tower(inputs, layout), lambda: library(tower.normalise(inputs["pixel_values"])), rows)


def speech(batch: int) -> Pair:
    """Whisper's encoder on whole chunks of 30 seconds, as transformers takes them."""
    encoder = SpeechEncoder({**WHISPER, "max_source_positions": 1500}, full_chunks=True).eval()
    clips = [Audio(torch.randn(30 * 16_000) * 0.1, 16_000) for _ in range(batch)]
    items, layouts = zip(*[encoder.processor(clip) for clip in clips], strict=True)
    inputs, layout = encoder.collate(items), Layout(list(layouts))
    assert encoder.whisper is not None
    library: Any = encoder.whisper.encoder
    mels = inputs["input_features"]
    return Pair(
        "whisper",
        lambda: encoder(inputs, layout),
        lambda: library(mels).last_hidden_state,
        lambda out: out.flatten(0, 1),
    )


def pairs(batch: int) -> list[Pair]:
    """The towers: a transformer of transformers, one and a convolutional network of timm, and Whisper."""
    torch.manual_seed(0)
    clip = TransformersEncoder(model_type="clip_vision_model", config={**CLIP, "image_size": 224, "patch_size": 16})
    vit, convnext = TimmTower("vit_small_patch16_224"), TimmTower("convnext_tiny", layers=(-1,))
    own: Any = clip.tower
    return [
        vision("clip (transformers)", clip, lambda pixels: own(pixel_values=pixels).last_hidden_state, batch, _patches),
        vision("vit (timm)", vit, lambda pixels: _intermediates(vit.tower, pixels), batch),
        vision("convnext (timm)", convnext, lambda pixels: _intermediates(convnext.tower, pixels), batch),
        speech(max(1, batch // 4)),
    ]


def _patches(states: Tensor) -> Tensor:
    """Without the class token."""
    return states[:, 1:].flatten(0, 1)


def _intermediates(tower: Any, pixels: Tensor) -> Tensor:
    found: Tensor = tower.forward_intermediates(pixels, indices=[-1], intermediates_only=True)[0]
    return found


@torch.inference_mode()
def measure_encoding(rounds: int, batch: int) -> Outcome:
    """Every tower by us and by its library, in turn: rounds of the arms "TOWER/ours" and "TOWER/library".

    Raises:
        AssertionError: If the two give other features.
    """
    outcome = Outcome()
    versions = {name: version(name) for name in ("torch", "timm", "transformers")}
    for pair in pairs(batch):
        arms: dict[str, Callable[[], Tensor]] = {"ours": pair.ours, "library": pair.library}
        for number in range(rounds + 1):
            order = list(arms.items())
            for name, run in order if number % 2 else reversed(order):
                watch = Watch()
                run()
                if number:  # the first warms up
                    values = {"seconds": time.perf_counter() - watch.started, "versions": versions}
                    outcome.rounds.append(Round(f"{pair.name}/{name}", number - 1, values, watch.foreign()))
        torch.testing.assert_close(pair.ours(), pair.rows(pair.library()), atol=1e-4, rtol=1e-4)
    return outcome


def encoding_costs(outcome: Outcome, console: Console) -> dict[str, float]:
    """Tower -> seconds of ours over the library's, medians; a table besides."""
    table, costs = Table("tower", "ours, ms", "library, ms", "ratio"), {}
    for tower in dict.fromkeys(arm.rpartition("/")[0] for arm in outcome.arms()):
        ours, library = (outcome.median(f"{tower}/{name}", "seconds") for name in ("ours", "library"))
        costs[tower] = ours / library
        table.add_row(tower, f"{1e3 * ours:,.1f}", f"{1e3 * library:,.1f}", f"{ours / library:.3f}")
    console.print(table)
    return costs


def write_models(folder: Path, layers: int) -> int:
    """A small and a large language model, each in both formats; returns the large one's bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    table = TaskTable.from_dict({"tasks": []})
    tokenizer = train_tokenizer(["a few words"] * 4, 300, table)
    for name, width in WIDTHS.items():
        root = folder / name
        save_tokenizer(tokenizer, root / "tokenizer")
        config = {
            "tokenizer": str(root / "tokenizer"),
            "tasks": table.to_dict(),
            "language_model": {"model_type": "llama", "config": _llama(width, layers)},
            "encoders": {},
            "projectors": {},
            "heads": {},
        }
        torch.manual_seed(0)
        generalist: Generalist = build_generalist(config)
        save_checkpoint(generalist, config, root / "ours")
        generalist.language_model.model.save_pretrained(root / "theirs")
    return (folder / "ours" / "model.safetensors").stat().st_size


def _llama(width: int, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": 32_000,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64,
        "tie_word_embeddings": False,
    }


def main() -> int:
    """Run everything; returns the exit status."""
    made = parser("encoders", __doc__)
    made.add_argument("--batch", type=int, default=8, help="images per batch (%(default)s)")
    made.add_argument("--layers", type=int, default=12, help="of the model that is loaded; 12 are 1.1 GB (%(default)s)")
    made.add_argument("--folder", type=Path, default=Path("runs/benchmarks/checkpoints"), help="(%(default)s)")
    args = made.parse_args()
    console = Console()
    encoding = measure_encoding(args.rounds, args.batch)
    costs = encoding_costs(encoding, console)
    with console.status("writing the models"):
        size = write_models(args.folder, args.layers)
    names = ("transformers", "ours", "ours-verified", "sha256")
    arms = [Arm(name, "checkpoints/reader.py", ("--folder", str(args.folder), "--way", name)) for name in names]
    outcome = run_arms(arms, args.rounds, console)
    show(outcome, ["seconds"], console)
    totals = [item.values["total"] for item in outcome.rounds if item.arm != "sha256"]
    if max(totals) - min(totals) > 1e-6 * abs(max(totals)):
        raise RuntimeError(f"expected the same weights by every way of loading, got the sums {totals}")
    seconds = {name: outcome.median(name, "seconds") for name in names}
    peaks = {name: outcome.median(name, "peak_bytes") / size for name in names}
    fractions = {
        **{f"encoding_cost/{tower}": cost for tower, cost in costs.items()},
        "encoding_cost": max(costs.values()),
        "peak_over_size": peaks["ours"],
        "peak_over_size_transformers": peaks["transformers"],
        "verification_over_sha256": (seconds["ours-verified"] - seconds["ours"]) / seconds["sha256"],
    }
    ratios = {"load/transformers": seconds["transformers"] / seconds["ours"]}
    for name, value in {**ratios, **fractions}.items():
        console.print(f"{name}: {value:.3f}")
    outcome.rounds = [*encoding.rounds, *outcome.rounds]
    write_result("encoders", outcome, ratios, fractions, args.json)
    shutil.rmtree(args.folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
