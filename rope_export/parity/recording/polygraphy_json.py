"""Inputs and outputs as Polygraphy saves them, read by its own library.

`polygraphy run --save-inputs` writes a list of calls, each with its inputs by name;
`--save-outputs` the outputs of each runner, call by call.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rope_export.errors import InputError, extra


def arrays(path: Path, shown: str) -> dict[str, np.ndarray]:
    """Every array of a file, named as in a recording of ours: CASE/inputs/NAME, or
    CASE/outputs/RUNNER/NAME; calls are numbered from 1.

    Raises: InputError for what Polygraphy did not write; UnavailableError where it is missing.
    """
    with extra("polygraphy", "reading Polygraphy's JSON"):
        from polygraphy import json as polygraphy
        from polygraphy.comparator import RunResults
    try:
        loaded = polygraphy.load_json(str(path))
        results = isinstance(loaded, RunResults)
        named = dict(_outputs(loaded) if results else _inputs(loaded))
    except Exception as error:  # its own kinds, and whatever its decoders meet
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{shown}: is not JSON that Polygraphy saved ({line}).") from error
    return {name: np.asarray(value) for name, value in named.items()}


def _inputs(loaded: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(loaded, list) or not all(isinstance(x, Mapping) for x in loaded):
        raise ValueError(f"it holds {type(loaded).__name__}, not a list of calls")
    for at, call in enumerate(loaded, 1):
        for name, value in call.items():
            yield f"call {at}/inputs/{name}", _plain(value)


def _outputs(results: Any) -> Iterator[tuple[str, Any]]:
    for runner, calls in results:
        for at, call in enumerate(calls, 1):
            for name, value in call.items():
                yield f"call {at}/outputs/{_without_date(str(runner))}/{name}", _plain(value)


def _without_date(runner: str) -> str:
    """A runner's name, to which Polygraphy adds when it ran, without a slash."""
    return re.sub(r"-\d\d/\d\d/\d\d-\d\d:\d\d:\d\d$", "", runner).replace("/", "-")


def _plain(value: Any) -> np.ndarray:
    """An array, of a tensor as well."""
    return value if isinstance(value, np.ndarray) else np.asarray(value)
