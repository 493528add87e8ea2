"""Runs the items of a proof as `rope_export.jobs` does: an item is a name and its options.

Its result is written to build/conformance/ as soon as it is there, under a key made of the
function, the options, the code and the versions of what it uses. A later run with the same key
takes the result from there.
"""

import argparse
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from rope_export.jobs import Call, Finished, Store, digest, files_digest
from rope_export.jobs import run as run_calls
from rope_export.jobs.local import Processes

__all__ = ["RESULTS", "ROOT", "Finished", "Store", "digest", "files_digest", "run"]

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "build" / "conformance"

T = TypeVar("T")


@cache
def code_digest() -> str:
    """Changes with the code of the package and of the proofs, and with the versions they run on."""
    proofs = (path for path in Path(__file__).parent.rglob("*.py") if path.name[:5] != "test_")
    package = (x for x in (ROOT / "rope_export").rglob("*") if x.suffix in (".py", ".json"))
    return files_digest([*proofs, *package])


def run(
    function: Callable[..., T],
    items: Mapping[str, Mapping[str, Any]],
    kind: type[T],
    *,
    jobs: int,
    fresh: bool = False,
    line: Callable[[T], str] = str,
    store: Path = RESULTS,
) -> Finished[T]:
    """Calls the function with the options of each item, in `jobs` processes.

    function: of a module, not nested, so that a process can import it. items: options by name,
    plain JSON. kind: the type of a result, a dataclass or what else msgspec converts. fresh: also
    calls it for items with a result in the store. line: a result in one line, for the progress.
    store: the folder of results. An item that raises has an error instead of a result, and is tried
    again by the next run.
    """
    return run_calls(
        [
            Call(
                name=name,
                function=_alone,
                options={"function": function, "name": name, "options": dict(options)},
                keys={name: _key(function, name, options)},
            )
            for name, options in items.items()
        ],
        kind,
        pool=Processes(jobs),
        store=Store(store),
        fresh=fresh,
        tracebacks=True,
        line=lambda answer: line(answer.values[answer.name]),
    )


def _alone(function: Callable[..., T], name: str, options: Mapping[str, Any]) -> dict[str, T]:
    """The value of a call that answers one item."""
    return {name: function(**options)}


def _key(function: Callable[..., Any], name: str, options: Mapping[str, Any]) -> str:
    called = f"{function.__module__}.{function.__qualname__}"
    return digest(code_digest(), called, name, json.dumps(options, sort_keys=True))


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that every proof has."""
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument(
        "--fresh", action="store_true", help="repeat what build/conformance has results of"
    )


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in the block once the seconds are over; of one process's main thread."""

    def late(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
