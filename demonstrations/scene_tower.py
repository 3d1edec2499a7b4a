"""A small tower that proposes the digits of scenes, and names what its cells and its regions show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.ops import box_iou

from data.quickstart.images import random_scene
from data.quickstart.record_parts import QuickstartDraft, record_rng
from data.quickstart.scene_turns import caption_of, listed
from data.quickstart.scenes import COLOURS, SCENE_SIZE
from data.records import Part, Record
from data.shards import ShardWriter, expand
from encoders.vision import RegionEncoder
from layers.head import LossTerm
from layers.layout import ItemLayout
from training.towers import TOWER_FILE, TowerRecipe, load_tower
from training.towers.data import TowerData, TowerItem, TowerPlan, load_items
from training.towers.fit import fit_tower
from training.towers.objectives import Encode, Outcome, TowerBatch
from training.towers.regions import RegionObjective, RegionRule
from training.towers.scenes import UNDECIDED, SceneRule

COUNTS = {"train": 3000, "val": 64, "test": 300}
STEPS, BATCH = 700, 16
WIDTH, SIDE, REGIONS = 96, 8, 8
CONFIG: dict[str, Any] = {
    "backbone_config": {
        "model_type": "convnext",
        "hidden_sizes": [32, 64, 96, 128],
        "depths": [1, 1, 2, 1],
        "layer_scale_init_value": 1.0,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
    "feature_size": WIDTH,
    "mask_feature_size": WIDTH,
    "hidden_dim": WIDTH,
    "encoder_feedforward_dim": 2 * WIDTH,
    "dim_feedforward": 2 * WIDTH,
    "encoder_layers": 1,
    "decoder_layers": 4,
    "num_attention_heads": 4,
    "num_queries": REGIONS,
}
NAMES = tuple(f"{colour} {digit}" for colour in COLOURS for digit in range(10))
NOTHING = len(NAMES)
IGNORED = -100


@dataclass(frozen=True)
class NamedRule:
    """Masks, boxes and names of the objects, and which cell shows which."""

    def __call__(self, record: Record, layout: ItemLayout) -> dict[str, Tensor] | None:
        """Targets of :class:`training.towers.scenes.SceneRule` and of :class:`training.towers.regions.RegionRule`."""
        regions, scene = RegionRule()(record, layout), SceneRule(tuple(COLOURS))(record, layout)
        return None if regions is None or scene is None else {**scene, **regions}


class NamedRegions(RegionObjective):
    """Proposals, and the digit and the colour that every cell and every region shows, by one linear layer."""

    def __init__(self) -> None:
        super().__init__(WIDTH, num_points=256)
        self.target_rule = NamedRule()
        self.loss_weights |= {"cells": 2.0, "regions": 2.0}
        self.read = nn.Linear(WIDTH, 11 + len(COLOURS) + 1)

    def forward(self, encode: Encode, batch: TowerBatch) -> Outcome:
        """The losses of both."""
        outcome, found = self.compare(encode, batch)
        order = found.proposals.best(REGIONS)
        shown = torch.full(order.shape, NOTHING)
        for row, (queries, objects) in enumerate(found.pairs):
            places = (order[row] == queries[:, None]).nonzero()[:, 1]
            shown[row, places] = names_of(batch.targets[row])[objects]
        cells = torch.stack([names_of_cells(target) for target in batch.targets])
        regions = found.encoder.region_tokens(found.proposals)
        outcome.losses |= {"cells": self._named(found.cells, cells), "regions": self._named(regions, shown)}
        return outcome

    def _named(self, tokens: Tensor, names: Tensor) -> LossTerm:
        """Cross-entropies of digit and colour; nothing counts a tenth."""
        digits, colours = self.read(tokens).float().flatten(0, 1).split([11, len(COLOURS) + 1], dim=-1)
        names = names.flatten()
        total = torch.zeros(())
        for logits, classes in ((digits, names % 10), (colours, names // 10)):
            nothing = logits.shape[-1] - 1
            weight = torch.ones(nothing + 1)
            weight[nothing] = 0.1
            wanted = torch.where(names == NOTHING, nothing, classes).masked_fill(names == IGNORED, IGNORED)
            total = total + F.cross_entropy(logits, wanted, weight, ignore_index=IGNORED)
        count = int((names != IGNORED).sum())
        return LossTerm(total * count, count)


def names_of(target: dict[str, Tensor]) -> Tensor:
    """(K,) indices into :data:`NAMES` of a scene's objects."""
    return target["colours"] * 10 + target["digits"]


def names_of_cells(target: dict[str, Tensor]) -> Tensor:
    """(N,) what every cell shows; of undecided ones nothing is learned."""
    cells = target["cells"]
    shown = names_of(target)[(cells - 1).clamp(min=0)]
    return torch.where(cells > 0, shown, NOTHING).masked_fill(cells == UNDECIDED, IGNORED)


def caption(target: dict[str, Tensor]) -> str:
    """As :func:`data.quickstart.scene_turns.caption_of`: the objects from left to right."""
    order = (target["boxes"][:, 0] + target["boxes"][:, 2]).argsort().tolist()
    names = names_of(target).tolist()
    return listed([f"a {NAMES[names[place]]}" for place in order])


@dataclass
class Images:
    """What a frozen tower gives for n images, and what they show.

    Args:
        cells: (n, N, d).
        regions: (n, R, d), the likeliest objects first.
        boxes: (n, R, 4) of the regions, xyxy in fractions of the image.
        objectness: (n, R).
        targets: Of :class:`NamedRule`.
    """

    cells: Tensor
    regions: Tensor
    boxes: Tensor
    objectness: Tensor
    targets: list[dict[str, Tensor]]

    def captions(self) -> list[str]:
        """Of every image."""
        return [caption(target) for target in self.targets]

    def names(self) -> tuple[Tensor, Tensor]:
        """(n, N) and (n, R): what every cell shows, and every region: the object that it covers by half or more."""
        covered = []
        for own, target in zip(self.boxes, self.targets, strict=True):
            best, which = box_iou(own, target["boxes"]).max(dim=1)
            covered.append(torch.where(best >= 0.5, names_of(target)[which], NOTHING))
        return torch.stack([names_of_cells(target) for target in self.targets]), torch.stack(covered)


def write_scenes(directory: Path, seed: int) -> None:
    """Scenes of one to four digits with their captions, per split, unless they are there."""
    for split, count in COUNTS.items():
        if list((directory / split).glob("*.tar")):
            continue
        with ShardWriter(directory / split, "scenes", 5000) as writer:
            for index in range(count):
                scene = random_scene(split, seed, record_rng(seed, split, "regions", index))
                draft = QuickstartDraft("scenes", split, index)
                draft.add_scene(scene)
                draft.ask("", [Part("text", text=caption_of(scene))], ["image"])
                writer.write(*draft.finish())


def tower() -> RegionEncoder:
    """The tower, with random weights."""
    return RegionEncoder(config=CONFIG, image_size=SCENE_SIZE, num_regions=REGIONS, level=2, resize_mode="resize")


def trained_tower(scenes: Path, seed: int) -> RegionEncoder:
    """The tower after it has learned to propose and to name; trained once per folder of scenes."""
    folder = scenes / "tower"
    if not (folder / TOWER_FILE).is_file():
        recipe = TowerRecipe(
            tower(),
            NamedRegions(),
            learning_rate=1e-3,
            muon={r"^encoder\.detector\.pixel_level_module\.encoder\.": 0.02},
            warmup_steps=50,
            seed=seed,
        )
        train, val = (str(scenes / split / "*.tar") for split in ("train", "val"))
        data = TowerData(train, val, BATCH, seed=seed, plan=recipe.plan())
        fit_tower(recipe, data, STEPS, folder, measure=False)
    made = tower()
    load_tower(made, folder / TOWER_FILE)
    return made


def images_of(made: RegionEncoder, scenes: Path, split: str, name: str) -> Images:
    """What a tower gives for a split; kept in a file.

    Args:
        made: The tower.
        scenes: Where :func:`write_scenes` wrote.
        split: Of the scenes.
        name: Of the file of the features, which are computed unless it is there.
    """
    items, _ = load_items(expand(str(scenes / split / "*.tar")), TowerPlan(made.processor, NamedRule()), None)
    file = scenes / f"{name}.safetensors"
    if not file.is_file():
        save_file(_encode(made.eval(), items), file)
    found = load_file(file)
    targets = [item.target for item in items]
    return Images(found["cells"], found["regions"], found["boxes"], found["objectness"], targets)


@torch.no_grad()
def _encode(made: RegionEncoder, items: Sequence[TowerItem]) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {"cells": [], "regions": [], "boxes": [], "objectness": []}
    for start in range(0, len(items), 50):
        cells, proposals = made.propose(made.collate([item.inputs for item in items[start : start + 50]]))
        best = proposals.best(REGIONS)
        rows = torch.arange(len(best))[:, None]
        parts["cells"].append(cells)
        parts["regions"].append(made.region_tokens(proposals))
        parts["boxes"].append(proposals.boxes[rows, best])
        parts["objectness"].append(proposals.objectness[-1].softmax(-1)[rows, best, 0])
    return {name: torch.cat(values).contiguous() for name, values in parts.items()}
