"""The checkpoint directory: what a model is, what it learned, and proof that nothing changed since.

``config.yaml`` (class paths and arguments), ``tasks.yaml``, ``tokenizer/``, ``model.safetensors`` (every parameter and
buffer that is not bit-identical to a declared base), ``manifest.json`` (bases, shapes, dtypes, sha256 of every file,
git revision, data hashes). Loading executes nothing that the directory carries.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Collection, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.build import build_generalist
from models.generalist import Generalist
from models.on_meta import give, parameters_on_meta

FORMAT_VERSION = 1
WEIGHTS, MANIFEST, CONFIG, TASKS, TOKENIZER = (
    "model.safetensors",
    "manifest.json",
    "config.yaml",
    "tasks.yaml",
    "tokenizer",
)


class CheckpointError(ValueError):
    """A directory that is not a checkpoint, or not this one; names what was expected and what was given."""


def save_checkpoint(
    generalist: Generalist,
    config: Mapping[str, Any],
    directory: str | Path,
    data_hashes: Mapping[str, str] | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a checkpoint directory; an existing one is replaced only once the new one is complete.

    Args:
        generalist: The model.
        config: The configuration it was built from.
        directory: Where to write.
        data_hashes: Data set -> hash, for the manifest.
        state: The model's state, where the model itself holds only parts of it; tied tensors are the same object.

    Returns:
        The directory.
    """
    directory = Path(directory)
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    generalist.tokenizer.save_pretrained(partial / TOKENIZER)
    (partial / TASKS).write_text(yaml.safe_dump(generalist.tasks.to_dict(), sort_keys=False))
    stored = {name: value for name, value in config.items() if name not in ("tasks", "tokenizer")}
    (partial / CONFIG).write_text(yaml.safe_dump(stored, sort_keys=False))
    whole, aliases = _unique_tensors(generalist.state_dict() if state is None else state)
    bases = declared_bases(generalist)
    tensors = _without_base(whole, build_generalist(config).state_dict(), tuple(bases)) if bases else whole
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial / WEIGHTS)
    manifest = {
        "format": FORMAT_VERSION,
        "bases": {prefix: _describe_base(path) for prefix, path in bases.items()},
        "from_bases": sorted(set(whole) - set(tensors)),
        "tensors": {n: {"shape": list(t.shape), "dtype": str(t.dtype)} for n, t in tensors.items()},
        "aliases": aliases,
        "files": {name: file_sha256(partial / name) for name in _relative_files(partial)},
        "git_revision": _git_revision(),
        "data": dict(data_hashes or {}),
        "versions": {"torch": torch.__version__},
    }
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
    if directory.exists():
        old = directory.with_name(directory.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        directory.rename(old)
        partial.rename(directory)
        shutil.rmtree(old)
    else:
        partial.rename(directory)
    return directory


def load_checkpoint(
    directory: str | Path,
    device: str | torch.device = "cpu",
    extra_classes: Iterable[str] = (),
    verify: bool = True,
) -> Generalist:
    """Load a checkpoint directory, strictly, in eval mode.

    Weights are mapped from the file: on the CPU they take no memory beside the file's pages.

    Args:
        directory: The checkpoint.
        device: Where to put the model.
        extra_classes: Class paths of the caller's own parts that the checkpoint may name.
        verify: Whether to read every file once before, and compare its sha256 with the manifest's. Without it a
            changed file or base goes unnoticed.

    Raises:
        CheckpointError: If a file is missing or changed, a tensor is missing, unexpected or of another shape, or a
            base is not the one that the checkpoint was made from.
        ValueError: If the configuration names a class that is not allowed.
    """
    directory = Path(directory)
    manifest = _manifest(directory, verify)
    config = yaml.safe_load((directory / CONFIG).read_text())
    config["tasks"] = yaml.safe_load((directory / TASKS).read_text())
    config["tokenizer"] = str(directory / TOKENIZER)
    # Parts that load a base for themselves need parameters to load it into.
    with nullcontext() if manifest["bases"] else parameters_on_meta():
        generalist = build_generalist(config, extra_classes)
    if verify:
        check_bases(generalist, manifest["bases"])
    try:
        with safe_open(directory / WEIGHTS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise CheckpointError(f"'{directory / WEIGHTS}': the weights cannot be read: {error}") from None
    load_tensors(generalist, tensors, manifest["aliases"], manifest.get("from_bases", []), str(directory))
    return generalist.to(device).eval()


def load_tensors(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    aliases: Mapping[str, str],
    kept: Collection[str],
    origin: str,
) -> None:
    """Have a module use tensors as its own, exactly the declared ones.

    Args:
        module: The module.
        tensors: Name -> tensor.
        aliases: Name -> the name whose tensor it shares.
        kept: Names that stay as they were built, from a base.
        origin: What the tensors come from, for messages.

    Raises:
        CheckpointError: Naming the tensors that are missing, unexpected or of another shape.
    """
    state = module.state_dict()
    kept = frozenset(kept)
    missing = [name for name in state if name not in tensors and name not in aliases and name not in kept]
    unexpected = [name for name in tensors if name not in state]
    if missing or unexpected:
        found = f"missing {_abridged(missing)}, unexpected {_abridged(unexpected)}"
        raise CheckpointError(f"{origin} is a checkpoint of another model: {found}")
    for alias, name in aliases.items():
        if alias not in state or name not in state or state[alias].shape != state[name].shape:
            raise CheckpointError(f"{origin}: '{alias}' cannot share '{name}': expected tensors of one shape")
    for name, tensor in tensors.items():
        if state[name].shape != tensor.shape:
            expected, got = tuple(state[name].shape), tuple(tensor.shape)
            raise CheckpointError(f"{origin}: tensor '{name}': expected shape {expected}, got {got}")
        if state[name].dtype != tensor.dtype:
            raise CheckpointError(f"{origin}: tensor '{name}': expected {state[name].dtype}, got {tensor.dtype}")
    give(module, tensors, aliases)


def declared_bases(generalist: Generalist) -> dict[str, str]:
    """Parameter prefix -> where these weights come from, for parts that declare it."""
    parts: dict[str, Any] = {"language_model.": generalist.language_model}
    parts |= {f"encoders.{kind}.": encoder for kind, encoder in generalist.encoders.items()}
    parts |= {f"heads.{name}.": head for name, head in generalist.heads.items()}
    return {f"{prefix}{end}": str(Path(path)) for prefix, part in parts.items() for end, path in part.bases.items()}


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unique_tensors(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """State without aliases of tied weights, and alias -> the name that is stored."""
    first: dict[tuple[int, torch.Size], str] = {}
    tensors, aliases = {}, {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() and place in first:
            aliases[name] = first[place]
        else:
            first[place] = name
            tensors[name] = tensor
    return tensors, aliases


def _without_base(
    tensors: Mapping[str, Tensor], base: Mapping[str, Tensor], prefixes: tuple[str, ...]
) -> dict[str, Tensor]:
    def is_base(name: str, tensor: Tensor) -> bool:
        return name.startswith(prefixes) and name in base and torch.equal(tensor.cpu(), base[name])

    return {name: tensor for name, tensor in tensors.items() if not is_base(name, tensor)}


def _describe_base(path: str) -> dict[str, Any]:
    location = Path(path)
    if location.is_file():
        return {"id": location.name, "sha256": {location.name: file_sha256(location)}}
    files = sorted(location.glob("*.safetensors")) if location.is_dir() else []
    return {"id": location.name if files else path, "sha256": {file.name: file_sha256(file) for file in files}}


def check_bases(generalist: Generalist, declared: Mapping[str, Any], prefixes: Collection[str] | None = None) -> None:
    """Compare what a model's parts were loaded from with a manifest's ``bases``.

    Args:
        generalist: The model.
        declared: Parameter prefix -> base.
        prefixes: Only these parts; all of the model's by default.

    Raises:
        CheckpointError: If the files are not the same.
    """
    bases = declared_bases(generalist)
    for prefix in bases if prefixes is None else prefixes:
        path = bases.get(prefix, "nowhere")
        expected, got = declared.get(prefix, {}).get("sha256"), _describe_base(path)["sha256"]
        if expected != got:
            raise CheckpointError(f"base of '{prefix}' at '{path}': expected sha256 {expected}, got {got}")


def _manifest(directory: Path, verify: bool) -> dict[str, Any]:
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"expected a checkpoint directory with {MANIFEST}, got '{directory}'") from None
    except ValueError as error:
        raise CheckpointError(f"{directory / MANIFEST}: not JSON: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT_VERSION:
        raise CheckpointError(f"{directory / MANIFEST}: expected format {FORMAT_VERSION}, got another document")
    for name, expected in manifest["files"].items():
        path = directory / name
        if not path.resolve().is_relative_to(directory.resolve()):
            raise CheckpointError(f"{MANIFEST} names '{name}', which lies outside the checkpoint")
        if not path.is_file():
            raise CheckpointError(f"checkpoint '{directory}': file '{name}' is missing")
        if verify and (got := file_sha256(path)) != expected:
            raise CheckpointError(f"checkpoint file '{name}' was changed: expected sha256 {expected}, got {got}")
    needed = {WEIGHTS, CONFIG, TASKS, f"{TOKENIZER}/tokenizer.json"} - set(manifest["files"])
    if needed:
        raise CheckpointError(f"{directory / MANIFEST}: expected hashes of {sorted(needed)}, got none")
    return manifest


def _relative_files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def _git_revision() -> str | None:
    root = Path(__file__).resolve().parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _abridged(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{len(names)} tensors ({shown}{', ...' if len(names) > 3 else ''})" if names else "none"
