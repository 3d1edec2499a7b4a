"""Grids of towers, each trained and measured alike."""
