"""Numbers of a config's rope parameters, and the limits that several variants share."""

from collections.abc import Mapping
from typing import Any

from rope_export.errors import SpecError


def number(parameters: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A number of a config's rope parameters; null counts as missing.

    Raises: SpecError naming the key and its value.
    """
    value = parameters.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise SpecError(f"config key {key}={value!r}: this rope_type needs it to be a number.")
    return float(value)


def whole(parameters: Mapping[str, Any], key: str) -> int:
    """A whole number of a config's rope parameters.

    Raises: SpecError naming the key and its value.
    """
    value = number(parameters, key)
    if not value.is_integer():
        raise SpecError(f"config key {key}={value:g}: this rope_type needs it to be whole.")
    return int(value)


def optional(parameters: Mapping[str, Any], key: str) -> float | None:
    """A number of a config's rope parameters, or None where the key is missing or null."""
    return None if parameters.get(key) is None else number(parameters, key)


def at_least_one(rope_type: str, factor: float) -> None:
    """Checks a factor that stretches the context.

    Raises: SpecError unless it is finite and at least 1.
    """
    if not 1.0 <= factor < float("inf"):
        raise SpecError(
            f"{rope_type} rope factor={factor}: it stretches the context, so it must be finite "
            f"and at least 1."
        )


def context_length(rope_type: str, name: str, value: float) -> float:
    """Checks a context length, and returns it.

    Raises: SpecError for a length below 2, of which no logarithm or ratio can be taken.
    """
    if not 2 <= value < float("inf"):
        raise SpecError(f"{rope_type} rope {name}={value}: a context length must be at least 2.")
    return value


def positive_factor(rope_type: str, value: float | None) -> None:
    """Checks a factor on cos and sin.

    Raises: SpecError unless it is finite and positive, or None.
    """
    if value is not None and not 0 < value < float("inf"):
        raise SpecError(
            f"{rope_type} rope attention_factor={value}: it must be finite and positive."
        )
