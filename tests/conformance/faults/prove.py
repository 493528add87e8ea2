"""Plants faults in exported files and verifies them, sound artifacts as well:
`python -m scripts.plant_faults`; with --write it writes docs/faults.md."""

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from tests.conformance.faults.run import Found, numbered, read_operators_once, work

PAGE = Path(__file__).parents[3] / "docs" / "faults.md"


def page(faults: list[Found], controls: list[Found]) -> Iterator[str]:
    missed = [x for x in faults if x.status == "passed"]
    alarms = [x for x in controls if x.status != "passed"]
    names = {(x.layer, x.fault) for x in faults}
    yield "# Planted faults"
    yield ""
    yield (
        "Written by `python -m scripts.plant_faults --write`: in tiny layers with drawn weights "
        "one fault at a time is planted in the ONNX file, while the manifest says what the sound "
        "layer is and the file holds its weights; then `verify` runs in onnxruntime. The file of "
        "the `tensorrt` lowering runs there too."
    )
    yield ""
    yield (
        f"{len(names)} faults in {len(faults)} artifacts: {len(faults) - len(missed)} found, "
        f"{len(missed)} below rounding. {len(controls)} sound artifacts: {len(alarms)} alarms."
    )
    left = len(work()) - len(faults) - len(controls)
    if left:
        yield ""
        yield f"{left} more artifacts that the command makes were not judged in this run."
    yield ""
    yield "## Found"
    yield ""
    yield "| layer | fault | lowering | dtype | rows that failed | worst case | error | tolerance |"
    yield "|---|---|---|---|---|---|---|---|"
    for x in faults:
        if x.status != "passed":
            yield (
                f"| {x.layer} | {x.fault} | {x.lowering} | {x.dtype} | {x.failed} | {x.case} "
                f"| {x.error:.1e} | {x.tolerance:.1e} |"
            )
    yield ""
    yield "## Below rounding"
    yield ""
    yield "The largest error of any row, as a share of what rounding alone may do."
    yield ""
    yield "| layer | fault | lowering | dtype | worst case | error | tolerance |"
    yield "|---|---|---|---|---|---|---|"
    for x in missed:
        yield (
            f"| {x.layer} | {x.fault} | {x.lowering} | {x.dtype} | {x.case} | {x.error:.1e} "
            f"| {x.tolerance:.1e} |"
        )
    yield ""
    yield "## Not visible in the sound artifacts"
    yield ""
    yield "| layer | dtype | feature and reason |"
    yield "|---|---|---|"
    seen = dict.fromkeys((x.layer, x.dtype, text) for x in controls for text in x.hidden)
    for layer, dtype, text in seen:
        yield f"| {layer} | {dtype} | {text} |"
    for x in alarms:
        yield f"| {x.layer} | {x.dtype} | ALARM: {x.lowering}, {x.case}: {x.error:.1e} |"


def run(jobs: int, names: set[str]) -> tuple[list[Found], list[Found]]:
    """The verdicts on faults and on sound artifacts, told one by one on stderr."""
    wanted = [at for at, (name, *_) in enumerate(work()) if not names or name in names]
    found: dict[int, Found] = {}
    spawn = get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, initializer=read_operators_once) as pool:
        for at, one in zip(wanted, pool.map(numbered, wanted), strict=True):
            found[at] = one
            print(
                f"{one.layer}: {one.fault or 'sound'}, {one.lowering}, {one.dtype}: {one.status}, "
                f"{one.failed} rows, {one.error:.1e} of {one.tolerance:.1e} in {one.case}",
                file=sys.stderr,
                flush=True,
            )
    faults = [one for one in found.values() if one.fault]
    return faults, [one for one in found.values() if not one.fault]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.plant_faults", description=__doc__)
    parser.add_argument("names", nargs="*", help="layers; all else")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--write", action="store_true", help="write docs/faults.md")
    options = parser.parse_args()
    faults, controls = run(options.jobs, set(options.names))
    if options.write:
        PAGE.write_text("\n".join(page(faults, controls)) + "\n", encoding="utf-8")
    wrong = [x for x in faults if x.status == "unsound"]
    wrong += [x for x in controls if x.status != "passed"]
    return 1 if wrong else 0
