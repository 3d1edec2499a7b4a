"""Loading runs nobody's code: class paths of a configuration are checked as text before anything is imported.

jsonargparse imports the module of a ``class_path`` before it can refuse the class, and it takes a bare dotted string
for a class as well. A configuration that comes with a checkpoint is therefore walked here first, as plain data.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ALLOWED_CLASSES: frozenset[str] = frozenset(
    {
        "encoders.graph.GraphGPTEncoder",
        "encoders.graph.GraphTransformerEncoder",
        "encoders.graph.MessagePassingEncoder",
        "encoders.qwen_audio.Qwen2AudioTower",
        "encoders.speech.SpeechEncoder",
        "encoders.vision.OpenClipEncoder",
        "encoders.vision.RegionEncoder",
        "encoders.vision.TimmEncoder",
        "encoders.vision.TimmTower",
        "encoders.vision.TransformersEncoder",
        "heads.boxes.BoxHead",
        "heads.boxes.BoxSetHead",
        "heads.boxes.DetectorHead",
        "heads.experts.pool.ExpertPool",
        "heads.generation.editing.InpaintHead",
        "heads.generation.editing.InstructEditHead",
        "heads.generation.images.TextToImageHead",
        "heads.generation.layout.LayoutImageHead",
        "heads.generation.resolution.ResolutionImageHead",
        "heads.generation.sound.SoundHead",
        "heads.generation.speech.SpeechHead",
        "heads.generation.state_images.StateImageHead",
        "heads.generation.video.VideoHead",
        "heads.embedding.EmbeddingHead",
        "heads.embedding.PairScoreHead",
        "heads.entity_ranking.EntityRankingHead",
        "heads.graph.LinkHead",
        "heads.graph.NodeClassHead",
        "heads.image.FlowImageHead",
        "heads.masks.Mask2FormerHead",
        "heads.masks.MaskHead",
        "heads.masks.SamMaskHead",
        "heads.pointer.PointerHead",
        "heads.prompted.PromptedHead",
        "models.generalist.Generalist",
        "models.language.LanguageModel",
        "models.projectors.AnyresProjector",
        "models.projectors.ConvGLUProjector",
        "models.projectors.ConvProjector",
        "models.projectors.FrameStackProjector",
        "models.projectors.MLPProjector",
        "models.projectors.PerceiverResampler",
        "models.projectors.PixelShuffleProjector",
        "models.projectors.PoolProjector",
        "models.projectors.QFormerProjector",
        "models.projectors.RegionProjector",
        "models.projectors.TimedProjector",
        "routers.learned.LearnedRouter",
        "routers.router.MarkerRouter",
        "routers.tasks.TaskSpec",
        "routers.tasks.TaskTable",
    }
)
"""The contract classes of the rooms: the only ones that a checkpoint's configuration may name."""

_CALLABLE_KEYS = frozenset({"callable", "fn", "func", "function", "factory", "hook", "_target_", "_partial_", "_args_"})
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+\Z")


def check_class_paths(config: Any, allowed: Iterable[str] | None = None, *, extra: Iterable[str] = ()) -> None:
    """Refuse a configuration that names anything but the allowed classes; imports nothing.

    Checked are every ``class_path`` (also as the end of a dotted key), every other string that reads as a dotted path
    into an importable package, keys that stand for a callable or contain ``__``, and values that are not plain data.

    Args:
        config: What a safe YAML or JSON loader returned: mappings, lists, strings, numbers, booleans and None.
        allowed: Fully dotted names that may be named; :data:`ALLOWED_CLASSES` unless given.
        extra: A user's own classes, allowed on top. They come from the caller's code and never from a checkpoint.

    Raises:
        ValueError: Naming the path of keys, what stands there and, for a class, the allowed ones.
    """
    names = frozenset(ALLOWED_CLASSES if allowed is None else allowed) | frozenset(extra)
    _check_value(config, "", names, ())


def _check_value(value: Any, where: str, allowed: frozenset[str], parents: tuple[int, ...]) -> None:
    if isinstance(value, Mapping | list | tuple):
        if id(value) in parents:
            raise ValueError(f"config key '{where}': contains itself")
        parents = (*parents, id(value))
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_key(key, where)
            path = f"{where}.{key}" if where else key
            if key.rsplit(".", 1)[-1] == "class_path":
                _check_class(item, path, allowed)
            else:
                _check_value(item, path, allowed, parents)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_value(item, f"{where}[{index}]", allowed, parents)
    elif isinstance(value, str):
        if value not in allowed and _is_importable(value):
            raise ValueError(
                f"config key '{where}': '{value}' reads as a path to Python code, which a configuration may name only "
                f"as a class_path, one of {sorted(allowed)}"
            )
    elif not isinstance(value, bool | int | float | None):
        raise ValueError(f"config key '{where}': expected plain data, got a {type(value).__name__}")


def _check_key(key: Any, where: str) -> None:
    if not isinstance(key, str):
        raise ValueError(f"config key '{where}': expected names as keys, got {key!r}")
    if "__" in key or key.rsplit(".", 1)[-1].lower() in _CALLABLE_KEYS:
        path = f"{where}.{key}" if where else key
        raise ValueError(f"config key '{path}': a checkpoint's configuration holds no callables and no '__' names")


def _check_class(value: Any, where: str, allowed: frozenset[str]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(
            f"config key '{where}': class {value!r} is not allowed; expected one of {sorted(allowed)}. "
            "A class of your own is allowed in your code, with extra=[...]"
        )


def _is_importable(text: str) -> bool:
    """Whether the text is a dotted path whose first part is a package or module here; finds it without importing."""
    if not _DOTTED.match(text):
        return False
    first, second = text.split(".")[:2]
    if "__" in first:
        return True
    spec = importlib.util.find_spec(first)
    if spec is None or spec.loader is not None:
        return spec is not None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]  # a folder without __init__.py
    return any(item.name.split(".", 1)[0] == second for folder in folders for item in folder.iterdir())
