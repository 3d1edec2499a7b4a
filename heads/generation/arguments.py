"""Scalar arguments of a call: the session's parameters, or else the head's defaults."""

from __future__ import annotations

import math

from layers.calls import HeadContext


def whole(context: HeadContext, name: str, default: int, least: int = 1) -> int:
    """A whole number.

    Raises:
        ValueError: If the session gives something else, or less than ``least``.
    """
    value = context.parameters.get(name, default)
    if not math.isfinite(value) or value != int(value) or value < least:
        raise ValueError(f"parameter '{name}': expected a whole number from {least} on, got {value}")
    return int(value)


def number(context: HeadContext, name: str, default: float, least: float = 0.0) -> float:
    """A number.

    Raises:
        ValueError: If it is not finite, or less than ``least``.
    """
    value = float(context.parameters.get(name, default))
    if not math.isfinite(value) or value < least:
        raise ValueError(f"parameter '{name}': expected a number from {least:g} on, got {value}")
    return value


def positive(context: HeadContext, name: str, default: float) -> float:
    """A number above 0.

    Raises:
        ValueError: If it is not finite, or 0 or less.
    """
    value = number(context, name, default)
    if value == 0:
        raise ValueError(f"parameter '{name}': expected more than 0, got 0")
    return value


def required_prompt(context: HeadContext) -> str:
    """The call's prompt.

    Raises:
        ValueError: If it is empty.
    """
    prompt = context.call.prompt.strip()
    if not prompt:
        raise ValueError(f"task '{context.call.task}' needs a prompt, the call has none")
    return prompt
