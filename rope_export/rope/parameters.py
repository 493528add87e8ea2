"""Numbers of a config's rope parameters, and the limits that several variants share."""

from collections.abc import Mapping
from typing import Any

from rope_export.errors import SpecError


def number(given: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A number of a config's rope parameters; null counts as not given.

    Raises: SpecError naming the key and its value.
    """
    value = given.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise SpecError(f"config key {key}={value!r}: this rope_type needs it to be a number.")
    return float(value)


def optional(given: Mapping[str, Any], key: str) -> float | None:
    """As `number`, or none where the key is missing or null."""
    return None if given.get(key) is None else number(given, key)


def at_least_one(rope_type: str, factor: float) -> None:
    """Raises: SpecError for a factor that would not stretch the context."""
    if not 1.0 <= factor < float("inf"):
        raise SpecError(
            f"{rope_type} rope factor={factor}: it stretches the context, so it must be finite "
            f"and at least 1."
        )


def context_length(rope_type: str, name: str, value: float) -> float:
    """The length, if it is one.

    Raises: SpecError for a length below 2, of which no logarithm or ratio can be taken.
    """
    if not 2 <= value < float("inf"):
        raise SpecError(f"{rope_type} rope {name}={value}: a context length must be at least 2.")
    return value


def positive_factor(rope_type: str, value: float | None) -> None:
    """Raises: SpecError for a factor on cos and sin that is not one."""
    if value is not None and not 0 < value < float("inf"):
        raise SpecError(
            f"{rope_type} rope attention_factor={value}: it must be finite and positive."
        )
