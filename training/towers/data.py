"""Data of a tower's pretraining: all records of one modality, decoded once and kept in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from data.media import MediaError, decode_media
from data.shards import Sample, expand, read_samples
from layers.encoder import Processor
from layers.layout import ItemLayout, Layout
from training.towers.objectives import TargetRule, TowerBatch

POOL = 8
"""Batches whose items are sorted by length together, so that a batch pads little and the order stays random."""


@dataclass(frozen=True)
class TowerPlan:
    """What the data module needs of a tower: its processor and its objective's target rule; no weights."""

    processor: Processor
    target_rule: TargetRule


@dataclass
class TowerItem:
    """One processed medium with its targets."""

    key: str
    inputs: dict[str, Tensor]
    layout: ItemLayout
    target: dict[str, Tensor]


class TowerLoader:
    """Batches in an order that depends on seed and epoch only, and that can be resumed between any two batches.

    Args:
        items: What to batch.
        batch_size: Items per batch.
        seed: Seed of the order; None keeps the items sorted by length and the last short batch.
        rank: Process that this loader feeds.
        world_size: Number of processes; each gets every ``world_size``-th batch.
    """

    def __init__(
        self, items: Sequence[TowerItem], batch_size: int, seed: int | None, rank: int = 0, world_size: int = 1
    ) -> None:
        self.items, self.batch_size, self.seed = items, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = self.position = 0

    def __len__(self) -> int:
        if self.seed is None:
            return -(-len(self.items) // self.batch_size)
        return len(self.items) // self.batch_size // self.world_size

    def __iter__(self) -> Iterator[TowerBatch]:
        if self.position >= len(self):
            self.epoch, self.position = self.epoch + 1, 0
        batches = self._order()
        while self.position < len(self):
            indices = batches[self.position if self.seed is None else self.position * self.world_size + self.rank]
            self.position += 1
            rows = [self.items[index] for index in indices]
            yield TowerBatch(
                [row.inputs for row in rows],
                Layout([row.layout for row in rows]),
                [row.target for row in rows],
                [row.key for row in rows],
            )

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from there."""
        self.epoch, self.position = state["epoch"], state["position"]

    def _order(self) -> list[list[int]]:
        size, lengths = self.batch_size, [item.layout.num_features for item in self.items]
        if self.seed is None:
            order = sorted(range(len(self.items)), key=lambda index: lengths[index])
            return [order[start : start + size] for start in range(0, len(order), size)]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.items), generator=generator).tolist()
        order = order[: len(order) // size * size]
        batches: list[list[int]] = []
        for start in range(0, len(order), size * POOL):
            pool = sorted(order[start : start + size * POOL], key=lambda index: lengths[index])
            batches += [pool[first : first + size] for first in range(0, len(pool), size)]
        return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]


class TowerData(L.LightningDataModule):
    """Every medium of one modality in some shards, for data that fit into memory.

    Args:
        plan: The tower's processor and target rule; ``train.py`` links it from the recipe.
        train: Shards: a directory, a glob, a brace pattern, or a list of these.
        val: Likewise.
        batch_size: Items per batch.
        max_items: Use no more than so many items of each split.
        seed: Seed of the order.
    """

    def __init__(
        self,
        train: str | list[str],
        val: str | list[str],
        batch_size: int = 64,
        max_items: int | None = None,
        seed: int = 0,
        plan: Any = None,
    ) -> None:
        super().__init__()
        if not isinstance(plan, TowerPlan):
            raise ValueError(f"expected the plan of a TowerRecipe, got {type(plan).__name__}")
        self.plan = plan
        self.sources = {"train": train, "val": val}
        self.batch_size, self.max_items, self.seed = batch_size, max_items, seed
        self.items: dict[str, list[TowerItem]] = {}

    def setup(self, stage: str) -> None:
        """Read and process both splits, once.

        Raises:
            ValueError: If a split has no usable record, or less than one batch to train on.
        """
        for split, source in self.sources.items():
            if split in self.items:
                continue
            self.items[split], bad = load_items(expand(source), self.plan, self.max_items)
            rank_zero_info(f"{split}: {len(self.items[split])} items, {bad} quarantined")
            needed = self.batch_size if split == "train" else 1
            if len(self.items[split]) < needed:
                kind = self.plan.processor.kind
                raise ValueError(
                    f"{split}: expected {needed} items of {kind} in {source}, got {len(self.items[split])}"
                )

    def train_dataloader(self) -> TowerLoader:
        """Shuffled batches, of similar length each."""
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        return TowerLoader(self.items["train"], self.batch_size, self.seed, rank, world)

    def val_dataloader(self) -> TowerLoader:
        """All of the validation split, in a fixed order."""
        return TowerLoader(self.items["val"], self.batch_size, None)


def load_items(paths: Sequence[str], plan: TowerPlan, max_items: int | None) -> tuple[list[TowerItem], int]:
    """Decode and process the media of a kind in some shards; what does not decode is named, counted and left out.

    Returns:
        The items, and the number left out.
    """
    items: list[TowerItem] = []
    errors: list[str] = []
    for sample in read_samples(paths, on_error=lambda path, key, error: errors.append(str(error))):
        try:
            items += list(_items_of(sample, plan))
        except MediaError as error:
            errors.append(f"record '{sample.key}': {error}")
        if max_items is not None and len(items) >= max_items:
            break
    for message in errors[:5]:
        rank_zero_info(f"left out: {message}")
    return items[:max_items], len(errors)


def _items_of(sample: Sample, plan: TowerPlan) -> Iterator[TowerItem]:
    for media in sample.record.media.values():
        if media.type != plan.processor.kind:
            continue
        inputs, layout = plan.processor(decode_media(media, sample.members[media.file]))
        target = plan.target_rule(sample.record, layout)
        if target is not None:
            yield TowerItem(sample.key, inputs, layout, target)
