"""An expert's directory, read as text and headers: nothing in it is executed, and nothing is loaded to be counted."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

INDEX = "model_index.json"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+\Z")
_NAME = re.compile(r"[A-Za-z_]\w*\Z")
_STEM = r"(?:diffusion_pytorch_model|model)"
_SHARD = r"(?:-\d{5}-of-\d{5})?"
_FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
_REFUSED_BASES = frozenset({"DiffusionPipeline", "OnnxRuntimeModel", "BaseGuidance"})
_READ = ("*.json", "*.txt", "*.model", "*.safetensors")


class ExpertError(ValueError):
    """An expert that cannot be used; names its directory, what was expected and what was given."""


@dataclass(frozen=True)
class PipelineFiles:
    """A pipeline of diffusers on disk, checked.

    Args:
        directory: Where it lies.
        pipeline: Its class.
        models: Components that have weights.
    """

    directory: Path
    pipeline: type
    models: tuple[str, ...]


def required_package(package: str, extra: str) -> ModuleType:
    """Import a package that an optional extra brings.

    Raises:
        ModuleNotFoundError: With the line that installs it.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        message = f"this expert needs {package}, which is not installed: pip install -e '.[{extra}]'"
        raise ModuleNotFoundError(message, name=package) from None


def local_directory(name: str, revision: str | None = None) -> Path:
    """A directory by its path, or the snapshot of a repository of the Hugging Face hub.

    Of a repository only JSON, text, sentencepiece models and safetensors are fetched.

    Raises:
        ExpertError: If there is no such directory, and no such repository can be reached.
    """
    if Path(name).is_dir():
        return Path(name)
    if not _REPOSITORY.match(name):
        raise ExpertError(f"expert '{name}': expected a directory, or a repository of the hub, got neither")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_READ)))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExpertError(
            f"expert '{name}': neither a directory nor a repository that can be reached: {reason}"
        ) from None


def check_pipeline(directory: Path, variant: str | None = None) -> PipelineFiles:
    """Check a pipeline's directory before anything in it is loaded.

    The pipeline and its components must be classes that diffusers itself would load, of diffusers or transformers;
    components with weights must have them as safetensors.

    Args:
        directory: With a ``model_index.json``.
        variant: Of the weights' files, such as ``fp16``.

    Raises:
        ExpertError: Naming the file and what stands there.
    """
    diffusers = required_package("diffusers", "diffusion")
    index = _read_json(directory / INDEX)
    pipeline = index.get("_class_name")
    kind = getattr(diffusers, pipeline, None) if isinstance(pipeline, str) and _NAME.match(pipeline) else None
    if not (inspect.isclass(kind) and issubclass(kind, diffusers.DiffusionPipeline)):
        raise ExpertError(f"{directory / INDEX}: '_class_name': expected a pipeline of diffusers, got {pipeline!r}")
    models = []
    for name, value in index.items():
        if name.startswith("_") or not (isinstance(value, list) and len(value) == 2) or value == [None, None]:
            continue
        component = _component_class(directory, name, value)
        if issubclass(component, nn.Module):
            models.append(name)
            weight_files(directory / name, variant)
    return PipelineFiles(directory, kind, tuple(models))


def check_call(files: PipelineFiles, takes: Collection[str], without: Collection[str] = ()) -> None:
    """Check that a pipeline is of the kind that a head calls.

    Args:
        files: The pipeline.
        takes: Arguments that its call must have.
        without: Arguments that mark another kind.

    Raises:
        ExpertError: Naming the pipeline and the arguments.
    """
    arguments = inspect.signature(files.pipeline.__call__).parameters
    missing = [name for name in takes if name not in arguments]
    foreign = [name for name in without if name in arguments]
    if missing or foreign:
        found = f"without {missing}" if missing else f"that takes {foreign}"
        raise ExpertError(
            f"{files.directory}: expected a pipeline that takes {sorted(takes)}, got {files.pipeline.__name__} {found}"
        )


def model_type(directory: Path) -> Any:
    """What a directory says that its model is, such as ``vits``; None where it does not say.

    Raises:
        ExpertError: If it has no configuration of a model of transformers.
    """
    path = directory / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ExpertError(f"{path}: expected the configuration of a model of transformers, got none: {error}") from None


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The safetensors of one model, of the variant where it has files of it.

    Raises:
        ExpertError: If there are none; pickles are refused.
    """
    names = sorted(path.name for path in folder.glob("*")) if folder.is_dir() else []
    for infix in ([rf"\.{re.escape(variant)}"] if variant else []) + [""]:
        pattern = re.compile(rf"{_STEM}(?:{infix}{_SHARD}|{_SHARD}{infix})\.safetensors\Z")
        found = [folder / name for name in names if pattern.match(name)]
        if found:
            return found
    raise ExpertError(f"{folder}: expected weights as safetensors (pickles are refused), got {names or 'nothing'}")


def weight_bytes(files: Collection[Path], dtype: torch.dtype) -> int:
    """Memory that weights take once floats are of ``dtype``, from the headers alone.

    Raises:
        ExpertError: If a file is not safetensors.
    """
    return sum(_tensor_bytes(shape, kind, dtype) for path in files for shape, kind in _header(path))


def _header(path: Path) -> Iterator[tuple[list[int], str]]:
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                view = file.get_slice(name)
                yield view.get_shape(), view.get_dtype()
    except (OSError, SafetensorError) as error:
        raise ExpertError(f"{path}: expected safetensors, got a file that cannot be read: {error}") from None


def _tensor_bytes(shape: list[int], kind: str, dtype: torch.dtype) -> int:
    bits = 8 * dtype.itemsize if kind in _FLOATS else _BITS.get(kind, 8)
    return math.prod(shape) * bits // 8


def _component_class(directory: Path, name: str, value: list[Any]) -> type:
    where = f"{directory / INDEX}: component '{name}'"
    library, class_name = value
    if not all(isinstance(item, str) and _NAME.match(item) for item in (name, library, class_name)):
        raise ExpertError(f"{where}: expected the names of a library and a class, got {value!r}")
    if (directory / name / f"{library}.py").exists():
        raise ExpertError(f"{where}: brings code of its own, {name}/{library}.py, which is not run")
    kind = _exported(library, class_name)
    if kind is None or not issubclass(kind, _loadable_bases()):
        raise ExpertError(
            f"{where}: expected a class of diffusers or transformers that pipelines are made of, "
            f"got {library}.{class_name}"
        )
    return kind


def _exported(library: str, class_name: str) -> type | None:
    """The class of this name that diffusers, one of its pipelines or transformers exports; imports nothing else."""
    diffusers = required_package("diffusers", "diffusion")
    module: Any = None
    if library in ("diffusers", "transformers"):
        module = diffusers if library == "diffusers" else importlib.import_module("transformers")
    elif isinstance(own := getattr(diffusers.pipelines, library, None), ModuleType):
        module = own if own.__name__.startswith("diffusers.pipelines.") else None
    kind = getattr(module, class_name, None)
    if kind is None and library == "transformers":  # names of old directories
        from diffusers.pipelines import pipeline_loading_utils

        remap = getattr(pipeline_loading_utils, "_maybe_remap_transformers_class", lambda name: None)
        kind = getattr(module, remap(class_name) or "", None)
    return kind if inspect.isclass(kind) else None


def _loadable_bases() -> tuple[type, ...]:
    """The allow-list of diffusers itself, but for nested pipelines and what is not safetensors."""
    from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

    libraries = {name: importlib.import_module(name) for name in ("diffusers", "transformers")}
    bases = [
        getattr(libraries[library], name, None)
        for library in libraries
        for name in LOADABLE_CLASSES[library]
        if name not in _REFUSED_BASES
    ]
    return tuple(base for base in bases if inspect.isclass(base))


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExpertError(f"{path}: expected JSON that names a pipeline's parts, got none: {error}") from None
    if not isinstance(value, dict):
        raise ExpertError(f"{path}: expected a JSON object, got a {type(value).__name__}")
    return value
