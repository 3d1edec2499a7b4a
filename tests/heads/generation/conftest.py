"""Directories of tiny experts, written once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.heads.generation.tiny_experts import save_pipeline

Saved = Callable[..., Path]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Gives the directory of a pipeline class's tiny expert."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = save_pipeline(tmp_path_factory.mktemp("experts") / name, name)
        return made[name]

    return of
