"""What a model calls its cache: `cache` since transformers 5.24, `past_key_values` before."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

CACHE_NAMES = ("cache", "past_key_values")
"""The newest first."""


def cache_among(names: Iterable[str]) -> str | None:
    """The name that the cache has among the names of a forward's parameters."""
    present = set(names)
    return next((name for name in CACHE_NAMES if name in present), None)


def cache_name(forward: Callable[..., Any]) -> str:
    """The name of a forward's cache argument, by its signature.

    Raises: TypeError if it has none.
    """
    found = cache_among(inspect.signature(inspect.unwrap(forward)).parameters)
    if found is None:
        raise TypeError(f"{forward.__qualname__} has none of the arguments {CACHE_NAMES}.")
    return found


def cache_in(output: Any) -> Any:
    """The cache that a model returned, or None."""
    name = cache_among(output.keys()) if hasattr(output, "keys") else None
    return None if name is None else output[name]
