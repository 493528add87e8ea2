"""The parts of a model that a config describes, for errors about a layer that was not found."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rope_export.checkpoints.config import select, spec_of
from rope_export.checkpoints.families.known import towers_of
from rope_export.checkpoints.stacks import StacksError
from rope_export.errors import CheckpointError, SpecError


@contextmanager
def named_parts(config: Mapping[str, Any], part: str | None, layer: int) -> Iterator[None]:
    """Errors about what the layer is end with the parts of the config that have such a layer, where
    the caller named none."""
    try:
        yield
    except (SpecError, StacksError) as error:
        parts = [] if part is not None else _readable(config, layer)
        if not parts:
            raise
        error_type = CheckpointError if isinstance(error, CheckpointError) else SpecError
        listed = ", ".join(f"`part`={name}" for name in parts)
        raise error_type(f"{error} Parts of this model that can be exported: {listed}.") from error


def _readable(config: Mapping[str, Any], layer: int) -> list[str]:
    """Dotted keys of the inner configs that describe a layer that is supported."""
    readable = []
    for part in (*_inner(config), *towers_of(config.get("model_type"))):
        try:
            spec_of(select(config, part), layer)
        except SpecError:
            continue
        readable.append(part)
    return readable


def _inner(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, Mapping) and (key.endswith("_config") or "model_type" in value):
            yield prefix + key
            yield from _inner(value, f"{prefix}{key}.")
