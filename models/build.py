"""From a configuration tree to a Generalist: checked as text first, then type-checked, then built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from models.class_paths import check_class_paths
from models.generalist import Generalist


def validate_config(config: Mapping[str, Any], extra_classes: Iterable[str] = ()) -> Namespace:
    """Check a configuration of :class:`models.generalist.Generalist` without building anything.

    Args:
        config: The constructor's arguments; nested parts are ``{class_path, init_args}``.
        extra_classes: Class paths of the caller's own parts, allowed beside Switchyard's.

    Returns:
        The typed configuration.

    Raises:
        ValueError: For a class path that is not allowed (checked before anything is imported), a misspelt argument or a
            wrong type; the message names the key path.
    """
    plain = plain_config(config)  # a deep copy: the parser writes its own objects into what it is given
    check_class_paths(plain, extra=extra_classes)
    try:
        return _parser().parse_object({"generalist": plain})
    except Exception as error:  # jsonargparse raises its own and the types' errors alike
        raise ValueError(f"configuration of the Generalist: {error}") from error


def build_generalist(config: Mapping[str, Any], extra_classes: Iterable[str] = ()) -> Generalist:
    """Build a Generalist from its configuration; arguments and errors as in :func:`validate_config`."""
    typed = validate_config(config, extra_classes)
    generalist = _parser().instantiate(typed)["generalist"]
    assert isinstance(generalist, Generalist)
    return generalist


def plain_config(config: Any) -> Any:
    """The configuration as plain mappings and lists, whatever a parser made of it."""
    if isinstance(config, Namespace):
        return plain_config(vars(config))
    if isinstance(config, Mapping):
        return {name: plain_config(value) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return [plain_config(value) for value in config]
    return config


def merge_config(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` over it, mapping by mapping; lists and plain values are replaced."""
    merged = dict(base)
    for name, value in changes.items():
        before = merged.get(name)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        merged[name] = merge_config(before, value) if both else value  # type: ignore[arg-type]
    return merged


def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Generalist, "generalist")
    return parser
