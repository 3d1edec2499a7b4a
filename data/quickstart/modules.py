"""The import graph of the running interpreter's standard library, over a frozen list of modules.

Nodes are modules, with masked text; edges are imports, found with ``ast``. Nothing is imported to look at it.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

MODULE_LIST = Path(__file__).parent / "modules.txt"
FAMILIES: dict[str, tuple[str, ...]] = {
    "asyncio": ("asyncio",),
    "email": ("email",),
    "encodings": ("encodings",),
    "importlib": ("importlib",),
    "multiprocessing": ("multiprocessing",),
    "unittest": ("unittest",),
    "web": ("http", "urllib", "html", "xmlrpc", "wsgiref"),
    "xml": ("xml",),
}
NODE_WORDS = 24
_MASK = re.compile(
    r"\w*(?:asyncio|email|encoding|importlib|multiprocessing|unittest|http|urllib|html|xmlrpc|wsgi|xml)\w*",
    re.IGNORECASE,
)
_WORD = re.compile(r"[A-Za-z0-9_]+")
_HUMP = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_SHARES = {"train": 0.60, "val": 0.12, "test": 0.28}


class ModuleListError(RuntimeError):
    """The interpreter lacks modules of the frozen list."""


@dataclass(frozen=True)
class ModuleGraph:
    """The import graph.

    Args:
        names: Module names, sorted.
        texts: Masked text of each.
        edges: (importer, imported), sorted.
        list_hash: sha256 of the frozen list.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    list_hash: str

    @cached_property
    def edge_set(self) -> frozenset[tuple[int, int]]:
        """The edges, for look-up."""
        return frozenset(self.edges)

    @cached_property
    def neighbours(self) -> tuple[tuple[int, ...], ...]:
        """Of each module, those that it imports or that import it."""
        found: list[set[int]] = [set() for _ in self.names]
        for importer, imported in self.edges:
            found[importer].add(imported)
            found[imported].add(importer)
        return tuple(tuple(sorted(item)) for item in found)

    @cached_property
    def in_degrees(self) -> np.ndarray:
        """(N,) how many modules import each."""
        return np.bincount([imported for _, imported in self.edges], minlength=len(self.names))

    @cached_property
    def families(self) -> tuple[str | None, ...]:
        """The family of each module, if it has one."""
        return tuple(family_of(name) for name in self.names)

    def split(self, seed: int) -> dict[str, tuple[int, ...]]:
        """Modules that may be targets or endpoints, by split: drawn within each family."""
        rng = np.random.default_rng([seed, 2])
        parts: dict[str, list[int]] = {name: [] for name in _SHARES}
        for family in (*FAMILIES, None):
            members = [i for i, name in enumerate(self.families) if name == family and self.neighbours[i]]
            order = rng.permutation(members).tolist()
            first = round(len(order) * _SHARES["train"])
            second = first + max(round(len(order) * _SHARES["val"]), 1)
            for name, part in (("train", order[:first]), ("val", order[first:second]), ("test", order[second:])):
                parts[name] += part
        return {name: tuple(sorted(part)) for name, part in parts.items()}


def family_of(name: str) -> str | None:
    """The family that a module belongs to by its package, or None."""
    package = name.split(".")[0]
    return next((family for family, packages in FAMILIES.items() if package in packages), None)


def read_module_graph() -> ModuleGraph:
    """Read the frozen list's modules from the running interpreter.

    Raises:
        ModuleListError: Naming the modules that it lacks.
    """
    data = MODULE_LIST.read_bytes()
    names = tuple(sorted(data.decode().split()))
    root = Path(sysconfig.get_paths()["stdlib"])
    files = {name: _source(root, name) for name in names}
    missing = [name for name, file in files.items() if file is None]
    if missing:
        raise ModuleListError(
            f"the standard library in '{root}' lacks {len(missing)} of {len(names)} modules: "
            f"{', '.join(missing[:10])}; expected a complete CPython 3.11, 3.12 or 3.13 with its sources"
        )
    index = {name: i for i, name in enumerate(names)}
    texts, edges = [], set()
    for name, file in files.items():
        assert file is not None
        tree = ast.parse(file.read_bytes())
        texts.append(_text(name, tree))
        for imported in _imports(name, tree, file.name == "__init__.py"):
            target = _longest(imported, index)
            if target is not None and target != index[name]:
                edges.add((index[name], target))
    return ModuleGraph(names, tuple(texts), tuple(sorted(edges)), hashlib.sha256(data).hexdigest())


def mask(text: str, name: str) -> str:
    """Lower-case words of a text; family names and the module's own name become "_"."""
    text = _MASK.sub("_", re.sub(rf"\b{re.escape(name)}\b", "_", text))
    own = name.rsplit(".", 1)[-1].strip("_").lower()
    words = [word.lower() for word in _WORD.findall(text)]
    return " ".join("_" if not word.strip("_") or own in (word, word.strip("_")) else word.strip("_") for word in words)


def _source(root: Path, name: str) -> Path | None:
    path = root.joinpath(*name.split("."))
    candidates = (path.with_name(path.name + ".py"), path / "__init__.py")
    return next((item for item in candidates if item.is_file()), None)


def _text(name: str, tree: ast.Module) -> str:
    paragraph = (ast.get_docstring(tree) or "").split("\n\n")[0]
    words = mask(paragraph, name).split()
    if len(words) < NODE_WORDS // 2:
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                masked = _MASK.sub("_", node.name)
                split = " ".join(" ".join(_HUMP.findall(part)) or "_" for part in masked.split("_") if part)
                words += mask(split or "_", name).split()
    kept = [word for place, word in enumerate(words) if place == 0 or word != "_" or words[place - 1] != "_"]
    return " ".join(kept[:NODE_WORDS]) or "_"


def _imports(name: str, tree: ast.Module, is_package: bool) -> Iterator[str]:
    """Dotted names that a module imports, anywhere in it; for ``from a import b`` both "a.b" and, failing that, "a"."""
    package = name.split(".") if is_package else name.split(".")[:-1]
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Every statement below a node; far fewer than ``ast.walk``, which visits expressions too."""
    for name in ("body", "handlers", "orelse", "finalbody", "cases"):
        for child in getattr(node, name, ()):
            yield child
            yield from _statements(child)


def _longest(dotted: str, index: dict[str, int]) -> int | None:
    """The module that a dotted name lies in."""
    while dotted:
        if dotted in index:
            return index[dotted]
        dotted = dotted.rpartition(".")[0]
    return None
