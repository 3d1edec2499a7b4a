"""One fit of a tower within this process, and what it measures on validation data at its end."""

from __future__ import annotations

from pathlib import Path

import lightning as L

from training.towers.data import TowerData
from training.towers.recipe import TowerRecipe


def fit_tower(
    recipe: TowerRecipe, data: TowerData, steps: int, folder: Path, precision: str = "32-true", measure: bool = True
) -> dict[str, float]:
    """Train without logs and progress bars, for runs of many small fits.

    Args:
        recipe: The tower, its objective and how it learns.
        data: Training and validation data.
        steps: Optimizer steps.
        folder: Where the tower is written.
        precision: Of the trainer.
        measure: Whether to validate at the end.

    Returns:
        Metric -> value; empty without validation.
    """
    trainer = L.Trainer(
        max_steps=steps,
        default_root_dir=folder,
        precision=precision,  # type: ignore[arg-type]
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=1.0 if measure else 0,
        num_sanity_val_steps=0,
        val_check_interval=steps,
        check_val_every_n_epoch=None,
    )
    trainer.fit(recipe, data)
    return {name.removeprefix("val/"): float(value) for name, value in trainer.callback_metrics.items()}
