"""Numbers that official implementations gave, with a note of which; made once, outside the repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "goldens"


def golden(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert value.pop("produced_by")
    return value
