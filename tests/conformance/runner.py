"""Runs the items of a proof in processes, with progress, and goes on where a killed run stopped.

An item is a name and its options; its result is written to build/conformance/ as soon as it is
there, under a key made of the function, the options, the code and the versions of what it uses. A
later run with the same key takes the result from there.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import joblib
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "build" / "conformance"
VERSIONS = (
    "huggingface_hub",
    "ml_dtypes",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxscript",
    "torch",
    "transformers",
)
"""Distributions whose version a result depends on."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Finished(Generic[T]):
    """The results by the items' names, in their order, and the errors of the items without one."""

    results: dict[str, T]
    errors: dict[str, str]


@dataclass(frozen=True)
class Store:
    """JSON files in a folder, each written whole or not at all."""

    folder: Path

    def get(self, key: str, kind: type[T]) -> T | None:
        """The value of that key; None where there is none, or none of that type."""
        try:
            text = (self.folder / f"{key}.json").read_text(encoding="utf-8")
            return msgspec.convert(json.loads(text), kind)
        except (OSError, ValueError):
            return None

    def put(self, key: str, value: Any) -> None:
        """Keeps a value that `msgspec.to_builtins` can express; infinities and NaN stay."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(msgspec.to_builtins(value))
        with tempfile.NamedTemporaryFile(
            "w", dir=self.folder, suffix=".tmp", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
        Path(file.name).replace(self.folder / f"{key}.json")


def digest(*parts: object) -> str:
    """A name for what `repr` shows of the parts."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@cache
def code_digest() -> str:
    """Changes with the code of the package and of the proofs, and with the versions they run on."""
    proofs = (path for path in Path(__file__).parent.rglob("*.py") if path.name[:5] != "test_")
    package = (x for x in (ROOT / "rope_export").rglob("*") if x.suffix in (".py", ".json"))
    return files_digest([*proofs, *package])


def files_digest(paths: list[Path]) -> str:
    """Changes with the files, and with the versions of what they run on."""
    versions = [platform.python_version(), *(_version(name) for name in VERSIONS)]
    files = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in sorted(paths)]
    return digest(versions, files)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


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
    results: dict[str, T] = {}
    errors: dict[str, str] = {}
    kept = Store(store)
    keys = {name: _key(function, name, options) for name, options in items.items()}
    for name, key in keys.items():
        value = None if fresh else kept.get(key, kind)
        if value is not None:
            results[name] = value
    open_items = [name for name in items if name not in results]
    if results:
        Console(stderr=True).print(f"{len(results)} of {len(items)} are in {store}", markup=False)
    calls = (
        joblib.delayed(_call)(function, name, dict(items[name]), store, keys[name])
        for name in open_items
    )
    processes = min(jobs, len(open_items)) or 1
    with (
        warnings.catch_warnings(action="ignore"),  # a process that grew too large is replaced
        joblib.parallel_config("loky", inner_max_num_threads=1),
    ):
        parallel = joblib.Parallel(processes, batch_size=1, return_as="generator_unordered")
        for name, value, error in _shown(parallel(calls), len(open_items), line):
            if error is None:
                results[name] = value
            else:
                errors[name] = error
    finished = {name: results[name] for name in items if name in results}
    return Finished(results=finished, errors=errors)


def _key(function: Callable[..., Any], name: str, options: Mapping[str, Any]) -> str:
    called = f"{function.__module__}.{function.__qualname__}"
    return digest(code_digest(), called, name, json.dumps(options, sort_keys=True))


def _call(
    function: Callable[..., T],
    name: str,
    options: dict[str, Any],
    store: Path,
    key: str,
) -> tuple[str, T | None, str | None]:
    """One item in its process, which writes the result itself: nothing done is lost with the
    process that waits for it."""
    try:
        with warnings.catch_warnings(action="ignore"):
            value = function(**options)
    except Exception as error:
        traceback.print_exc()
        return name, None, f"{type(error).__name__}: {error}"
    Store(store).put(key, value)
    return name, value, None


def _shown(
    arriving: Iterator[tuple[str, Any, str | None]], total: int, line: Callable[[Any], str]
) -> Iterator[tuple[str, Any, str | None]]:
    """Passes results on and shows them: a bar in a terminal, a line each elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", total=total)
        for name, value, error in arriving:
            text = line(value) if error is None else f"{name}: {error}"
            if not console.is_terminal or error is not None:
                console.print(text, markup=False, highlight=False, soft_wrap=True)
            progress.update(task, advance=1, description=text)
            yield name, value, error


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
