"""Stage 0: one encoder alone, with an objective of its own."""

from training.towers.recipe import TOWER_FILE, TowerRecipe, load_tower, save_tower

__all__ = ["TOWER_FILE", "TowerRecipe", "load_tower", "save_tower"]
