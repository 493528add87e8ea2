"""Shows what is captured of the families that are named, with --all a table of all:
`python -m tests.conformance.families.describe llama gemma3`."""

import argparse
import multiprocessing
import signal
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import torch

from tests.conformance.families.capture import Capture, captures, first_line
from tests.conformance.families.rotary_classes import rotary_attention_classes, rotary_families
from tests.conformance.families.tiny import PROBLEMS, tiny_models


def family_captures(family: str) -> tuple[list[Capture], list[str]]:
    """Captures of every tiny model of the family, and why the others have none."""
    found: list[Capture] = []
    problems: list[str] = []
    for tiny in tiny_models(family):
        with tempfile.TemporaryDirectory() as folder:
            try:
                found += captures(tiny, Path(folder))
            except Exception as error:
                problems.append(f"{tiny.name}: {first_line(error)}")
    if not rotary_attention_classes(family):
        problems.append("no attention module of its file applies the rotation that it defines")
    return found, [*problems, *PROBLEMS.get(family, [])]


def _describe(capture: Capture) -> str:
    kinds = " ".join(f"{x.kind}{tuple(x.output.shape)}" for x in capture.calls)
    call = capture.calls[0]
    apart = max(float((x.output - x.output64).abs().max()) for x in capture.calls)
    head = f"{capture.model_class} [{capture.variant}] {capture.module_class} {capture.module_path}"
    return (
        f"{head} layer={capture.layer_idx} {capture.layer_type or ''}\n"
        f"    {kinds}\n    given {', '.join(call.given)}; float32 inside moves {apart:.1e}\n"
        f"    weights { {x: tuple(y.shape) for x, y in capture.weights.items()} }"
    )


@dataclass(frozen=True)
class Row:
    """One line of the table of all families."""

    family: str
    captures: int
    classes: tuple[str, ...]
    missing: tuple[str, ...]
    variants: int
    kinds: tuple[str, ...]
    worst: float
    seconds: float
    problems: tuple[str, ...]


def _row(family: str, limit: int) -> Row:
    """The family's captures in short, made in a worker process under a time limit."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    started = time.perf_counter()

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {limit} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit)
    found: list[Capture] = []
    try:
        found, problems = family_captures(family)
        wanted = rotary_attention_classes(family)
    except BaseException as error:
        problems, wanted = [first_line(error)], set()
    finally:
        signal.alarm(0)
    classes = {x.module_class for x in found}
    inner = {x for y in found for x in y.inner_classes}
    calls = [x for y in found for x in y.calls]
    return Row(
        family=family,
        captures=len(found),
        classes=tuple(sorted(classes)),
        missing=tuple(sorted(wanted - classes - inner)),
        variants=len({x.variant for x in found}),
        kinds=tuple(sorted({x.kind for x in calls})),
        worst=max((float((x.output - x.output64).abs().max()) for x in calls), default=0.0),
        seconds=time.perf_counter() - started,
        problems=tuple(problems),
    )


def table(families: Iterable[str], limit: int = 60, workers: int = 2) -> Iterator[Row]:
    """A row for every family, in the order in which they are asked for."""
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, context) as pool:
        yield from pool.map(_row, families, repeat(limit))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--all", action="store_true", help="a table of all families")
    parser.add_argument("--limit", type=int, default=60, help="seconds for each family")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    if options.all:
        return _print_table(options.families or rotary_families(), options.limit)
    torch.set_num_threads(1)
    for family in options.families:
        found, problems = family_captures(family)
        print(f"== {family}: {len(found)} captures", *map(_describe, found), sep="\n")
        print(*(f"    not: {x}" for x in problems), sep="\n")
    return 0


def _print_table(families: Iterable[str], limit: int) -> int:
    done = missing = 0
    for row in table(families, limit):
        done += row.captures > 0
        missing += row.captures == 0
        print(
            f"{row.family:28} {row.captures:4} captures {row.variants:2} variants "
            f"{row.seconds:5.1f} s {row.worst:.0e} {','.join(row.kinds)} "
            f"{','.join(row.classes)}" + (f" MISSING {','.join(row.missing)}" * bool(row.missing)),
            *(f"    not: {x[:200]}" for x in row.problems),
            sep="\n",
            flush=True,
        )
    print(f"{done} families capture, {missing} do not")
    return 0
