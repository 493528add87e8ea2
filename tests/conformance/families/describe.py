"""Shows what is captured of the families that are named, with --all a line of each:
`python -m scripts.show_captures llama gemma3`."""

import argparse
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.conformance import runner
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


def row(family: str, limit: int) -> Row:
    """The family's captures in short; `limit`: seconds that it may take."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    every: list[Capture] = []
    expected: set[str] = set()
    try:
        with runner.time_limit(limit):
            every, problems = family_captures(family)
            expected = rotary_attention_classes(family)
    except Exception as error:
        problems = [first_line(error)]
    classes = {x.module_class for x in every}
    inner = {x for y in every for x in y.inner_classes}
    calls = [x for y in every for x in y.calls]
    return Row(
        family=family,
        captures=len(every),
        classes=tuple(sorted(classes)),
        missing=tuple(sorted(expected - classes - inner)),
        variants=len({x.variant for x in every}),
        kinds=tuple(sorted({x.kind for x in calls})),
        worst=max((float((x.output - x.output64).abs().max()) for x in calls), default=0.0),
        seconds=time.perf_counter() - started,
        problems=tuple(problems),
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.show_captures", description=__doc__)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--all", action="store_true", help="a table of all families")
    parser.add_argument("--limit", type=int, default=60, help="seconds for each family")
    runner.add_options(parser)
    options = parser.parse_args(arguments)
    if options.all:
        items = {x: {"family": x, "limit": options.limit} for x in rotary_families()}
        finished = runner.run(
            row, items, Row, jobs=options.jobs, fresh=options.fresh, line=in_one_line
        )
        missing = sum(not x.captures for x in finished.results.values())
        print(f"{len(finished.results) - missing} families capture, {missing} do not")
        return int(bool(finished.errors))
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for family in options.families:
        every, problems = family_captures(family)
        print(f"== {family}: {len(every)} captures", *map(_describe, every), sep="\n")
        print(*(f"    not: {x}" for x in problems), sep="\n")
    return 0


def in_one_line(row: Row) -> str:
    missing = f" MISSING {','.join(row.missing)}" if row.missing else ""
    problems = "".join(f"\n    not: {x[:200]}" for x in row.problems)
    return (
        f"{row.family:28} {row.captures:4} captures {row.variants:2} variants "
        f"{row.seconds:5.1f} s {row.worst:.0e} {','.join(row.kinds)} {','.join(row.classes)}"
        f"{missing}{problems}"
    )
