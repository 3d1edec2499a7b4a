"""Paper 23: a ground resolution that is added to the timestep's embedding decides the scale of what is drawn.

Terrain of four kinds is made procedurally, one metre to the pixel, and seen at 8, 3 and 1 metres per pixel
(https://arxiv.org/abs/2501.00895). A denoiser of pixels draws it from a vector of its kind and from its level, which a
prompt names in metres. A classifier that was trained on other terrain says what kind and what level a drawing shows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from demonstrations.demonstration import Claim, Demonstration, Metrics
from heads.generation.denoising_head import Drawing, Tokens
from heads.generation.resolution import Resolution, ResolutionImageHead, level_of_metres
from layers.calls import Call, HeadContext, ImageResult
from training.muon import muon_adamw
from training.optimizer import parameter_groups, warmup_cosine

KINDS = ("forest", "fields", "town", "lakes")
METRES = (8, 3, 1)
"""Per pixel, at each level."""
SIDE, WORLD = 32, 256
"""Pixels of an image, and metres of a world that joins onto itself."""
WORLDS, STEPS, BATCH = 16, 500, 32
CLASSIFIER_STEPS, WARMUP = 300, 50
LEARNING_RATE, MUON = 2e-3, 0.02
STATE = 16
EACH = 4
"""Drawings per kind and level in a measurement."""


def world(kind: str, rng: np.random.Generator) -> Tensor:
    """Terrain (3, WORLD, WORLD) uint8, one metre to the pixel."""
    grain = _smooth(rng, 2.0)
    if kind == "forest":
        colour = np.array([40, 90, 40])[:, None, None] * (1 + 0.5 * grain + 0.2 * _smooth(rng, 10.0))
    elif kind == "fields":
        colour = _parcels(rng)
    elif kind == "town":
        colour = _houses(rng)
    else:
        height = _smooth(rng, 14.0)
        shore = np.array([190, 175, 130])[:, None, None] * (1 + 0.08 * grain)
        water = np.array([40, 80, 150])[:, None, None] * (1 + 0.15 * _smooth(rng, 1.2))
        colour = np.where(height > 0.3, shore, water)
    return torch.from_numpy(colour.clip(0, 255).astype(np.uint8))


def view(land: Tensor, metres: int, rng: np.random.Generator) -> Tensor:
    """An image (3, SIDE, SIDE) uint8 of a random place, turned at random."""
    rows, columns = ((torch.arange(SIDE * metres) + int(rng.integers(WORLD))) % WORLD for _ in range(2))
    window = land[:, rows][:, :, columns].float()
    image = F.avg_pool2d(window, metres).round().to(torch.uint8)
    turned = torch.rot90(image, int(rng.integers(4)), dims=(1, 2))
    return turned.flip(2) if rng.integers(2) else turned


class Data:
    """Views of some worlds of every kind."""

    def __init__(self, seed: int, part: int) -> None:
        self.rng = np.random.default_rng([seed, part])
        self.worlds = [[world(kind, self.rng) for _ in range(WORLDS)] for kind in KINDS]

    def batch(self, count: int) -> tuple[Tensor, list[int], list[int]]:
        """Images (count, 3, SIDE, SIDE) uint8, and the places of their kinds and levels."""
        kinds = self.rng.integers(len(KINDS), size=count).tolist()
        levels = self.rng.integers(len(METRES), size=count).tolist()
        lands = [self.worlds[kind][self.rng.integers(WORLDS)] for kind in kinds]
        images = [view(land, METRES[level], self.rng) for land, level in zip(lands, levels, strict=True)]
        return torch.stack(images), kinds, levels


def classifier(seed: int, file: Path) -> tuple[nn.Module, Metrics]:
    """A network that tells kinds and levels, trained on worlds of its own, and its accuracy on further ones.

    Args:
        seed: Of its worlds and weights.
        file: Where it is kept for the other arms.
    """
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(24, 32, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Conv2d(32, 48, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Conv2d(48, 64, 3, stride=2, padding=1),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, len(KINDS) + len(METRES)),
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    data = Data(seed, 1)
    if file.exists():
        network.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(0 if file.exists() else CLASSIFIER_STEPS):
        images, kinds, levels = data.batch(48)
        logits = network(images.float() / 127.5 - 1)
        loss = F.cross_entropy(logits[:, : len(KINDS)], torch.tensor(kinds))
        loss = loss + F.cross_entropy(logits[:, len(KINDS) :], torch.tensor(levels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), file)
    images, kinds, levels = Data(seed, 2).batch(400)
    seen = judge(network.eval(), images)
    right = [(np.array(one) == np.array(two)).mean() for one, two in zip(seen, (kinds, levels), strict=True)]
    return network, {"classifier_kind": float(right[0]), "classifier_level": float(right[1])}


@torch.no_grad()
def judge(network: nn.Module, images: Tensor) -> tuple[list[int], list[int]]:
    """Which kind and which level each image shows."""
    logits = network(images.float() / 127.5 - 1)
    return logits[:, : len(KINDS)].argmax(1).tolist(), logits[:, len(KINDS) :].argmax(1).tolist()


class Painter:
    """The head, and states that stand for a language model's: one vector per kind."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.words = torch.randn(len(KINDS), STATE)
        self.head = ResolutionImageHead(
            STATE,
            STATE,
            unet={
                "sample_size": SIDE // 2,
                "in_channels": 12,
                "out_channels": 12,
                "block_out_channels": [24, 48],
                "layers_per_block": 1,
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
                "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
                "norm_num_groups": 8,
                "attention_head_dim": 16,
                "resnet_time_scale_shift": "scale_shift",
            },
            noise={
                "prediction_type": "v_prediction",
                "beta_schedule": "squaredcos_cap_v2",
                "timestep_spacing": "trailing",
            },
            patch_size=2,
            tokens=Tokens(count=2, width=32, num_layers=1, num_heads=2),
            drawing=Drawing(canvas_size=(SIDE, SIDE), num_steps=12, guidance=2.0, overlap=SIDE // 2, batch_size=64),
            resolution=Resolution(level_of_metres(METRES[0]), level_of_metres(METRES[-1]), dropout=0.1, scale=50.0),
        )

    def asked(
        self, kinds: list[int], levels: list[int | None], **parameters: float
    ) -> tuple[Tensor, list[HeadContext]]:
        """States and calls; a level of None is not named."""
        prompts = [
            KINDS[kind] if level is None else f"{KINDS[kind]} at {METRES[level]} m/pixel"
            for kind, level in zip(kinds, levels, strict=True)
        ]
        contexts = [
            HeadContext(Call("draw", prompt), [], [], {"seed": float(seed), **parameters})
            for seed, prompt in enumerate(prompts)
        ]
        return self.words[kinds], contexts

    def train(self, data: Data, named: bool) -> None:
        """Train it on a world's views, whose levels are named or not."""
        blocks = {r"^unet\.(down_blocks|mid_block|up_blocks)\.": MUON}
        groups = parameter_groups(self.head, LEARNING_RATE, {}, 0.0, blocks)
        optimizer = muon_adamw(groups, (0.9, 0.98), "32-true")
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, WARMUP, STEPS))
        self.head.train()
        for _ in range(STEPS):
            images, kinds, levels = data.batch(BATCH)
            states, contexts = self.asked(kinds, [level if named else None for level in levels])
            targets = [self.head.target_processor(image, []) for image in images]
            term = self.head.loss(self.head(states, [1] * BATCH, contexts), targets)
            optimizer.zero_grad()
            (term.total / term.count).backward()
            nn.utils.clip_grad_norm_(self.head.parameters(), 1.0)
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def draw(self, kinds: list[int], levels: list[int | None], **parameters: float) -> Tensor:
        """Images (n, 3, H, W) uint8."""
        self.head.eval()
        states, contexts = self.asked(kinds, levels, **parameters)
        results = self.head.decode(self.head(states, [1] * len(kinds), contexts), contexts)
        return torch.stack([result.image for result in results if isinstance(result, ImageResult)])


def measure(arm: str, seed: int, folder: Path) -> Metrics:
    """Train one arm; how often a drawing shows the kind and level that were asked for, and how visible seams are."""
    network, metrics = classifier(seed, folder.parent / f"classifier-{seed}.pt")
    painter = Painter(seed)
    if arm != "untrained":
        painter.train(Data(seed, 0), named=arm == "resolution")
    kinds = [kind for kind in range(len(KINDS)) for _ in range(len(METRES) * EACH)]
    levels = [level for _ in KINDS for level in range(len(METRES)) for _ in range(EACH)]
    seen_kinds, seen_levels = judge(network, painter.draw(kinds, list(levels)))
    metrics["level"] = _share(seen_levels, levels)
    metrics["kind"] = _share(seen_kinds, kinds)
    shuffled = np.random.default_rng(seed).permutation(levels).tolist()
    metrics["level_shuffled"] = _share(seen_levels, shuffled)
    unknown_kinds, unknown_levels = judge(network, painter.draw(kinds, [None] * len(kinds)))
    metrics["kind_without_level"] = _share(unknown_kinds, kinds)
    metrics["level_zeroed"] = _share(unknown_levels, levels)
    plain_kinds, plain_levels = judge(network, painter.draw(kinds, list(levels), guidance=1.0))
    metrics["level_unguided"] = _share(plain_levels, levels)
    metrics["kind_unguided"] = _share(plain_kinds, kinds)
    metrics["seam"], metrics["seam_of_separate_tiles"] = _seams(painter, [0, 1, 2, 3] * 4)
    return metrics


def _seams(painter: Painter, kinds: list[int]) -> tuple[float, float]:
    """How much more pixels change across the border of two tiles than elsewhere: drawn as one, and side by side."""
    levels: list[int | None] = [2] * len(kinds)
    wide = painter.draw(kinds, levels, width=float(2 * SIDE))
    first, second = painter.draw(kinds, levels), painter.draw(kinds[::-1], levels).flip(0)
    return _border(wide), _border(torch.cat([first, second], dim=3))


def _border(images: Tensor) -> float:
    change = images.float().diff(dim=3).abs().mean(dim=(0, 1, 2))
    border = images.shape[3] // 2 - 1
    return float(change[border] / torch.cat([change[:border], change[border + 1 :]]).mean())


def _share(seen: list[int], wanted: list[int]) -> float:
    return float(np.mean(np.array(seen) == np.array(wanted)))


def _smooth(rng: np.random.Generator, metres: float) -> np.ndarray:
    """Noise of unit variance that varies over so many metres, and joins onto itself."""
    noise = gaussian_filter(rng.standard_normal((WORLD, WORLD)), metres, mode="wrap")
    return noise / noise.std()


def _parcels(rng: np.random.Generator) -> np.ndarray:
    """Fields: cells about random places, each of a colour, with furrows."""
    places = rng.uniform(0, WORLD, (22, 2))
    grid = np.stack(np.meshgrid(np.arange(WORLD), np.arange(WORLD), indexing="ij"))
    apart = np.abs(grid[None] - places[:, :, None, None])
    apart = np.minimum(apart, WORLD - apart)
    nearest = np.sort((apart**2).sum(1), axis=0)[:2]
    owner = (apart**2).sum(1).argmin(0)
    palette = np.array([[205, 190, 90], [120, 150, 60], [150, 115, 75], [90, 130, 70]])
    colours = palette[rng.integers(len(palette), size=len(places))]
    angles = rng.integers(2, size=len(places))
    along = np.where(angles[owner] == 0, grid[0], grid[1])
    furrows = 1 + 0.15 * np.where(along % 4 < 2, 1, -1)
    edges = np.sqrt(nearest[1]) - np.sqrt(nearest[0]) < 2.5
    return np.where(edges, 60, colours[owner].transpose(2, 0, 1) * furrows)


def _houses(rng: np.random.Generator) -> np.ndarray:
    """A town: streets every 32 metres, four plots between them, a house on most."""
    image = np.full((3, WORLD, WORLD), 0.0)
    image[:] = np.array([95, 140, 80])[:, None, None]
    roofs = np.array([[170, 80, 60], [120, 100, 95], [200, 195, 190]])
    for top in range(0, WORLD, 16):
        for left in range(0, WORLD, 16):
            if rng.random() < 0.85:
                roof = roofs[rng.integers(len(roofs))]
                image[:, top + 5 : top + 13, left + 5 : left + 14] = roof[:, None, None]
    for street in range(0, WORLD, 32):
        image[:, street : street + 4] = 85
        image[:, :, street : street + 4] = 85
    return image * (1 + 0.05 * rng.standard_normal((1, WORLD, WORLD)))


DEMONSTRATION = Demonstration(
    paper=23,
    address="https://arxiv.org/abs/2501.00895",
    shows=f"drawings of terrain of {len(KINDS)} kinds at {len(METRES)} levels, judged by classifiers of other terrain",
    arms={
        "resolution": "the level is added to the embedding of the timestep; text and level are dropped independently",
        "no_resolution": "the same network and steps, no level named",
        "untrained": "the first arm before its first step",
    },
    measure=measure,
    claims=[
        Claim(
            "the level asked for is drawn: .40 more often than without the condition",
            lambda mean: mean("resolution", "level") >= mean("no_resolution", "level") + 0.4,
        ),
        Claim(
            "without a level the kind is drawn all the same: .70",
            lambda mean: mean("resolution", "kind_without_level") >= 0.7,
        ),
        Claim(
            "guidance over both helps: kind and level together are right more often than without",
            lambda mean: (
                mean("resolution", "level") + mean("resolution", "kind")
                >= mean("resolution", "level_unguided") + mean("resolution", "kind_unguided")
            ),
        ),
        Claim(
            "tiles drawn as one have no seam: at most 1.3 times the change elsewhere, separate ones at least 1.5",
            lambda mean: mean("resolution", "seam") <= 1.3 and mean("resolution", "seam_of_separate_tiles") >= 1.5,
        ),
    ],
    controls={
        "blind": ("no_resolution", "level"),
        "shuffled": ("resolution", "level_shuffled"),
        "zeroed": ("resolution", "level_zeroed"),
        "random_weights": ("untrained", "level"),
    },
    controls_na={"constant": f"one level for all orders is right in 1 of {len(METRES)} by construction"},
)
