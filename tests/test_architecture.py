"""The shape of the house, by ``ast``: imports go downward, one doorway per package, budgets, no machine paths."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the bottom to the top: a room may import the rooms of lower rows and itself, never a neighbour of its own row.
ROWS = (
    ("layers",),
    ("encoders", "heads", "routers", "weight_space"),
    ("models",),
    ("data",),
    ("inference",),
    ("training",),
    ("eval",),
    ("train", "demos", "benchmarks", "demonstrations"),
)
HEIGHT = {room: height for height, row in enumerate(ROWS) for room in row}

# Third-party package -> where it may be imported (a pattern over the path of the file).
_LIGHTNING = r"training/|data/|train\.py$|eval/callback\.py$"
DOORWAYS = {
    "lightning": _LIGHTNING,
    "lightning_fabric": _LIGHTNING,
    "pytorch_lightning": _LIGHTNING,
    "timm": r"encoders/vision(/|\w*\.py$)",
    "open_clip": r"encoders/vision(/|\w*\.py$)",
    "webdataset": r"data/",
    "diffusers": r"heads/",
}
BANNED_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}
MAX_LINES = 400
MAX_MODULES = 15
MAX_TRAIN_LINES = 39
MACHINE_PATH = re.compile(r"(?<![\w./:\-])/(?:work|home|root|Users|mnt|tmp)/[\w.\-]")


def tracked_files(root: Path) -> list[str]:
    """Paths below ``root`` that git tracks or would track; every file where there is no repository."""
    if not (root / ".git").exists():
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.splitlines()
    return sorted(path for path in set(listed) if (root / path).is_file())


def python_files(root: Path) -> list[str]:
    return [path for path in tracked_files(root) if path.endswith(".py")]


def imported_modules(root: Path, path: str) -> Iterator[tuple[int, str, bool]]:
    """(line, absolute module name, whether the name itself is bound by ``import module``) of every import in a file."""
    tree = ast.parse((root / path).read_text(encoding="utf-8"), filename=path)
    package = path.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, True
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module:
                yield node.lineno, module, False
            else:  # from the root of the repository: ``from . import heads``
                yield from ((node.lineno, alias.name, False) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value, False


def room_of(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


def upward_imports(root: Path) -> list[str]:
    found = []
    for path in python_files(root):
        room = room_of(path)
        if room not in HEIGHT:
            continue
        for line, module, _ in imported_modules(root, path):
            other = module.split(".")[0]
            if other == "tests" or (other in HEIGHT and other != room and HEIGHT[other] >= HEIGHT[room]):
                found.append(f"{path}:{line} imports {module}: '{room}' may import only rooms below it")
    return found


def unknown_rooms(root: Path) -> list[str]:
    return sorted({room_of(path) for path in python_files(root)} - set(HEIGHT) - {"tests"})


def wrong_doorways(root: Path) -> list[str]:
    found = []
    for path in python_files(root):
        if room_of(path) in ("tests", "benchmarks"):  # these measure the libraries themselves
            continue
        for line, module, _ in imported_modules(root, path):
            doorway = DOORWAYS.get(module.split(".")[0])
            if doorway and not re.match(doorway, path):
                found.append(f"{path}:{line} imports {module}: its doorway is {doorway}")
    return found


def shadowed_eval(root: Path) -> list[str]:
    return [
        f"{path}:{line} has 'import {module}': write 'from {module} import ...', which leaves the builtin alone"
        for path in python_files(root)
        for line, module, binds in imported_modules(root, path)
        if binds and module.split(".")[0] == "eval"
    ]


def oversized_files(root: Path) -> list[str]:
    found = []
    for path in python_files(root):
        lines = len((root / path).read_text(encoding="utf-8").splitlines())
        limit = MAX_TRAIN_LINES if path == "train.py" else MAX_LINES
        if lines > limit:
            found.append(f"{path}: {lines} lines, at most {limit}")
    return found


def crowded_folders(root: Path) -> list[str]:
    special = {"__init__.py", "__main__.py", "conftest.py"}
    modules = (Path(path) for path in python_files(root))
    counts = Counter(str(path.parent) for path in modules if path.name not in special)
    return [
        f"{folder}: {count} modules, at most {MAX_MODULES}" for folder, count in counts.items() if count > MAX_MODULES
    ]


def banned_names(root: Path) -> list[str]:
    return [
        path for path in python_files(root) if BANNED_NAMES & {part.removesuffix(".py") for part in path.split("/")}
    ]


def rooms_without_charter(root: Path) -> list[str]:
    """Rooms whose ``__init__.py`` is missing, has no docstring, or holds more than a docstring and re-exports."""
    found = []
    rooms = {room_of(path) for path in python_files(root) if "/" in path} & set(HEIGHT) - {
        "benchmarks",
        "demonstrations",
    }
    for room in sorted(rooms):
        init = root / room / "__init__.py"
        tree = ast.parse(init.read_text(encoding="utf-8")) if init.exists() else ast.Module(body=[], type_ignores=[])
        if not ast.get_docstring(tree):
            found.append(f"{room}/__init__.py: no docstring that says what the room is for")
        for node in tree.body[1:]:
            exports = isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
            if not exports and not isinstance(node, ast.Import | ast.ImportFrom):
                found.append(f"{room}/__init__.py:{node.lineno}: only re-exports belong here")
    return found


def machine_paths(root: Path) -> list[str]:
    found = []
    for path in tracked_files(root):
        content = (root / path).read_bytes()
        if b"\0" in content[:8192]:
            continue
        for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), start=1):
            if MACHINE_PATH.search(line):
                found.append(f"{path}:{number}: {line.strip()[:100]}")
    return found


CHECKS: tuple[Callable[[Path], list[str]], ...] = (
    upward_imports,
    unknown_rooms,
    wrong_doorways,
    shadowed_eval,
    oversized_files,
    crowded_folders,
    banned_names,
    rooms_without_charter,
    machine_paths,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_house_keeps_its_shape(check: Callable[[Path], list[str]]) -> None:
    assert python_files(ROOT), "nothing to check"
    assert check(ROOT) == []


_CHARTER = '"""A room."""\n'
_PLANTED: list[tuple[Callable[[Path], list[str]], dict[str, str]]] = [
    (upward_imports, {"layers/a.py": "import heads.boxes"}),
    (upward_imports, {"layers/a.py": "from heads.boxes import BoxHead"}),
    (upward_imports, {"encoders/a.py": "from heads import boxes"}),
    (upward_imports, {"routers/a.py": "from weight_space import merging"}),
    (upward_imports, {"heads/a.py": "def f():\n    if True:\n        from models.language import LanguageModel"}),
    (upward_imports, {"models/a.py": "from data.records import Record"}),
    (upward_imports, {"models/a/b.py": "from ...data import records"}),
    (upward_imports, {"data/a.py": "import importlib\nimportlib.import_module('inference.session')"}),
    (upward_imports, {"data/a.py": "__import__('training')"}),
    (
        upward_imports,
        {"inference/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import training.recipe"},
    ),
    (upward_imports, {"training/a.py": "from eval.metrics import wer"}),
    (upward_imports, {"eval/a.py": "from demos import ask"}),
    (upward_imports, {"demos/a.py": "import train"}),
    (upward_imports, {"layers/a.py": "from tests import test_architecture"}),
    (unknown_rooms, {"backbones/a.py": "x = 1"}),
    (wrong_doorways, {"models/a.py": "import lightning.pytorch as pl"}),
    (wrong_doorways, {"heads/a.py": "from pytorch_lightning import Trainer"}),
    (wrong_doorways, {"eval/predict.py": "import lightning"}),
    (wrong_doorways, {"encoders/speech.py": "import timm"}),
    (wrong_doorways, {"models/vision.py": "import open_clip"}),
    (wrong_doorways, {"training/a.py": "import webdataset as wds"}),
    (wrong_doorways, {"models/a.py": "from diffusers.models import UNet2DModel"}),
    (shadowed_eval, {"tests/a.py": "import eval"}),
    (shadowed_eval, {"demos/a.py": "import eval.predict"}),
    (oversized_files, {"heads/a.py": "x = 1\n" * 401}),
    (oversized_files, {"train.py": "x = 1\n" * 40}),
    (crowded_folders, {f"heads/a{i}.py": "" for i in range(16)}),
    (banned_names, {"layers/utils.py": ""}),
    (banned_names, {"data/helpers/a.py": ""}),
    (rooms_without_charter, {"heads/__init__.py": ""}),
    (rooms_without_charter, {"heads/__init__.py": '"""A room."""\nx = 1'}),
    (rooms_without_charter, {"heads/__init__.py": "from heads.boxes import BoxHead"}),
    (machine_paths, {"configs/a.yaml": "data: /" + "home/somebody/data"}),
    (machine_paths, {"docs/a.md": "see `/" + "tmp/log.txt`"}),
]


@pytest.mark.parametrize(
    ("check", "files"), _PLANTED, ids=[f"{check.__name__}-{i}" for i, (check, _) in enumerate(_PLANTED)]
)
def test_a_planted_violation_is_caught(
    check: Callable[[Path], list[str]], files: dict[str, str], tmp_path: Path
) -> None:
    for room in ("layers", "heads", "models"):
        plant(tmp_path, f"{room}/__init__.py", _CHARTER)
    assert check(tmp_path) == []
    for path, content in files.items():
        plant(tmp_path, path, content)
    assert len(check(tmp_path)) == 1


def test_what_is_allowed_is_not_reported(tmp_path: Path) -> None:
    allowed = {
        "layers/__init__.py": _CHARTER,
        "layers/a.py": "from layers.b import x\nimport torch",
        "heads/__init__.py": _CHARTER + "from heads.image import Head\n__all__ = ['Head']",
        "heads/image.py": "import diffusers\nfrom layers import a\n" + "x = 1\n" * 398,
        "encoders/__init__.py": _CHARTER,
        "encoders/vision/towers.py": "import timm",
        "encoders/vision_clip.py": "import open_clip",
        "data/__init__.py": _CHARTER,
        "data/shards.py": "import webdataset\nimport lightning",
        "training/__init__.py": _CHARTER,
        "training/recipe.py": "from lightning.pytorch import LightningModule\nfrom inference.session import Session",
        "eval/__init__.py": _CHARTER,
        "eval/callback.py": "import lightning\nfrom eval.metrics import wer",
        "train.py": "from eval.callback import Benchmark\n" + "x = 1\n" * 38,
        "docs/a.md": "https://example.org/home/x, runs/tmp/x, a/work/b",
        **{f"models/a{i}.py": "" for i in range(15)},
        "models/__init__.py": _CHARTER,
    }
    for path, content in allowed.items():
        plant(tmp_path, path, content)
    assert {check.__name__: check(tmp_path) for check in CHECKS if check(tmp_path)} == {}


def plant(root: Path, path: str, content: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(content)
