"""Planted attacks: none may pass, and none may be imported on the way to the refusal."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.class_paths import ALLOWED_CLASSES, check_class_paths

ROOT = Path(__file__).parents[2]
GOOD = {
    "class_path": "models.generalist.Generalist",
    "init_args": {
        "encoders": {
            "image": {
                "class_path": "encoders.vision.TimmEncoder",
                "init_args": {
                    "name": "vit_tiny_patch16_224.augreg_in21k",
                    "size": 64,
                    "mean": [0.5, 0.5],
                    "crop": None,
                },
            }
        },
        "base": "model.safetensors",
    },
}


def planted(value: Any) -> dict[str, Any]:
    return {"class_path": "models.generalist.Generalist", "init_args": {"heads": {"ground": value}}}


@pytest.fixture
def attacker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module on the path that leaves a file behind when anybody imports it."""
    package = tmp_path / "attacker"
    package.mkdir()
    trace = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).write_text('x')\nclass Head: pass\n"
    (package / "__init__.py").write_text(trace)
    (package / "heads.py").write_text(trace)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "attacker.heads.Head"


def test_a_configuration_of_the_rooms_classes_passes() -> None:
    check_class_paths(GOOD)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "eval",
        "heads.boxes.BoxHead.__init__",
        "heads.boxes",
        "heads.boxes.BoxHead ",
        "",
        None,
        3,
        ["heads.boxes.BoxHead"],
        {"class_path": "heads.boxes.BoxHead"},
    ],
)
def test_other_classes_are_refused_by_key_and_name(name: Any) -> None:
    with pytest.raises(ValueError, match=r"init_args\.heads\.ground\.class_path") as error:
        check_class_paths(planted({"class_path": name}))
    assert repr(name) in str(error.value)
    assert "heads.boxes.BoxHead" in str(error.value)


def test_an_attackers_module_is_refused_and_not_imported(attacker: str, tmp_path: Path) -> None:
    for value in ({"class_path": attacker}, attacker, [attacker], {"note": attacker}, {"init.class_path": attacker}):
        with pytest.raises(ValueError, match=r"attacker\.heads\.Head"):
            check_class_paths(planted(value))
    assert "attacker" not in sys.modules
    assert not (tmp_path / "ran").exists()


def test_a_users_own_class_needs_the_callers_code(attacker: str, tmp_path: Path) -> None:
    check_class_paths(planted({"class_path": attacker}), extra=[attacker])
    check_class_paths({"class_path": attacker}, allowed=[attacker])
    with pytest.raises(ValueError, match="not allowed"):
        check_class_paths({**planted({"class_path": attacker}), "extra": ["x"], "allowed": ["x"]})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", ["os.system", "builtins.eval", "__main__.main", "torch.hub.load"])
def test_a_bare_dotted_string_is_refused_where_it_would_import(value: str) -> None:
    with pytest.raises(ValueError, match=r"ground\[1\]"):
        check_class_paths(planted(["fine", value]))


@pytest.mark.parametrize(
    "key", ["callable", "fn", "function", "_target_", "__class__", "__reduce__", "init.__globals__"]
)
def test_keys_of_callables_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="holds no callables"):
        check_class_paths(planted({key: "print"}))


@pytest.mark.parametrize("value", [print, b"bytes", {1: "x"}, {"a": {"b": object()}}, {None: 1}])
def test_only_plain_data_passes(value: Any) -> None:
    with pytest.raises(ValueError, match=r"expected plain data|expected names as keys"):
        check_class_paths(planted(value))


def test_a_list_that_contains_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="contains itself"):
        check_class_paths(planted(yaml.safe_load("&a [1, *a]")))


def test_every_allowed_name_is_a_class_of_a_room() -> None:
    for name in sorted(ALLOWED_CLASSES):
        module, _, class_name = name.rpartition(".")
        path = ROOT / (module.replace(".", "/") + ".py")
        if not path.exists():
            path = ROOT / module.replace(".", "/") / "__init__.py"
        names = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.ImportFrom):
                names |= {alias.asname or alias.name for alias in node.names}
        assert class_name in names, name


def test_no_part_of_a_room_is_forgotten() -> None:
    contracts = {"Encoder", "ImageEncoder", "VisionTower", "Head", "VectorHead", "LinkedHead"}
    contracts |= {"Projector", "Router", "NodeEncoder"}
    found = set()
    for path in (path for room in ("encoders", "heads", "models", "routers") for path in (ROOT / room).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.ClassDef) or not contracts & {ast.unparse(base) for base in node.bases}:
                continue
            if "@abstractmethod" not in ast.unparse(node) and node.name not in contracts:
                found.add(
                    (f"{module}.{node.name}", f"{module.rpartition('.')[0]}.{node.name}")
                )  # as its package gives it
    assert len(found) > 5
    assert [names for names in found if not ALLOWED_CLASSES & set(names)] == []
