"""Plants faults in exported files and verifies them, sound artifacts as well:
`python -m scripts.plant_faults`; with --write it writes docs/faults.md and docs/located.md."""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rope_export.bench.markdown import table_lines
from rope_export.lowerings import lowerings
from tests.conformance import runner
from tests.conformance.faults import decoders
from tests.conformance.faults.faults import FAULTS
from tests.conformance.faults.run import Verdict, numbered, title, unable, work

PAGE = Path(__file__).parents[3] / "docs" / "faults.md"
LOCATED = PAGE.with_name("located.md")


def page(verdicts: list[Verdict]) -> Iterator[str]:
    faults = [x for x in verdicts if x.fault]
    controls = [x for x in verdicts if not x.fault]
    missed = [x for x in faults if x.status == "passed"]
    alarms = [x for x in controls if x.status != "passed"]
    found = [x for x in faults if x.status != "passed"]
    names = {(x.layer, x.fault) for x in faults}
    yield "# Planted faults"
    yield ""
    yield (
        "Written by `python -m scripts.plant_faults --write`: in tiny layers with drawn weights "
        "one fault at a time is planted in the ONNX file, while the manifest describes the sound "
        "layer and the file holds its weights; then `verify` runs in onnxruntime. The file of "
        "the `tensorrt` lowering runs there too. In a decoder of twelve layers, which transformers "
        "saved, the fault is in one of them, or in embedding, last norm or head. A fault of the "
        "module is in eager PyTorch too while the file is verified."
    )
    yield ""
    yield (
        f"{len(names)} faults in {len(faults)} artifacts: {len(faults) - len(missed)} found, "
        f"{len(missed)} below rounding. {len(controls)} sound artifacts: {len(alarms)} alarms."
    )
    every = len(work()) + len(list(decoders.work()))
    if every > len(verdicts):
        yield ""
        yield f"Judged in this run: {len(verdicts)} of {every} artifacts that the command makes."
    yield ""
    yield "Faults found of those planted, each counted once for a lowering:"
    yield ""
    yield from _by_kind(faults)
    yield ""
    yield "## Found"
    yield ""
    heads: tuple[str, ...] = (*WHERE, "rows that failed", *WORST)
    yield from table_lines(heads, ((*_where(x), x.failed, *_worst(x)) for x in found))
    yield ""
    yield "## Below rounding"
    yield ""
    yield "The largest error of any row, as a share of what rounding alone may do."
    yield ""
    heads = (*WHERE, *WORST)
    yield from table_lines(heads, ((*_where(x), *_worst(x)) for x in missed))
    yield ""
    yield "## Not visible in the sound artifacts"
    yield ""
    lines = list(dict.fromkeys((x.layer, x.dtype, text) for x in controls for text in x.hidden))
    for x in alarms:
        lines.append((x.layer, x.dtype, f"ALARM: {x.lowering}, {x.case}: {x.error:.1e}"))
    yield from table_lines(("layer", "dtype", "feature and reason"), lines)
    yield ""
    yield "## What a lowering cannot have"
    yield ""
    yield from table_lines(("layer", "fault", "lowering", "reason"), cannot_have())


def _by_kind(faults: Sequence[Verdict]) -> Iterator[str]:
    """For each kind of fault and each lowering, how many different faults were found."""
    planted, found = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for kind, lowering, *_ in {(x.kind, x.lowering, x.layer, x.fault) for x in faults}:
        planted[kind, lowering] += 1
    seen = {(x.kind, x.lowering, x.layer, x.fault) for x in faults if x.status == "failed"}
    for kind, lowering, *_ in seen:
        found[kind, lowering] += 1
    kinds = list(dict.fromkeys(x.kind for x in faults))
    ways = sorted({x.lowering for x in faults})
    yield f"| kind of fault | {' | '.join(ways)} |"
    yield f"|---|{'---|' * len(ways)}"
    for kind in kinds:
        cells = (f"{found[kind, way]} of {planted[kind, way]}" for way in ways)
        yield f"| {kind} | {' | '.join(cells)} |"
    totals = (
        f"{sum(found[kind, way] for kind in kinds)} of {sum(planted[kind, way] for kind in kinds)}"
        for way in ways
    )
    yield f"| all | {' | '.join(totals)} |"


def cannot_have() -> Iterator[tuple[str, str, str, str]]:
    """Faults that some lowering cannot have, and why."""
    for name, fault in FAULTS:
        for way in lowerings():
            why = unable(name, fault, way)
            if why is not None:
                yield name, fault.name, way, why.partition(";")[0]
    for model, faults in decoders.FAULTS.items():
        for one in faults:
            for way in decoders.WAYS:
                if way not in one.lowerings:
                    yield f"decoder, {model}", one.name, way, one.why


def located_page(verdicts: list[Verdict]) -> Iterator[str]:
    """Which tensor was named first in every artifact whose fault was found."""
    found = [x for x in verdicts if x.fault and x.status != "passed"]
    planted = sum(one[1] is not None for one in work())
    planted += sum(one["fault"] != "" for one in decoders.work())
    yield "# The first wrong tensor of planted faults"
    yield ""
    yield (
        "Written by `python -m scripts.plant_faults --write`, which plants the faults of "
        "`docs/faults.md`, and looks at those that were found. The right tensor is written down "
        "with each fault; in the artifacts of a lowering whose operators do not give it, the first "
        "one after it is the right one."
    )
    yield ""
    names = {(x.layer, x.fault) for x in found}
    yield (
        f"{len(names)} faults in {len(found)} artifacts of {planted}: "
        f"the right first tensor is named in {_share(found)}."
    )
    yield ""
    for head in ("lowering", "kind"):
        yield f"| {head} | artifacts | right first tensor |"
        yield "|---|---|---|"
        for value in dict.fromkeys(getattr(x, head) for x in found):
            own = [x for x in found if getattr(x, head) == value]
            yield f"| {value} | {len(own)} | {_share(own)} |"
        yield ""
    rows = ((*_where(x), _tensor(x), _why(x)) for x in found)
    yield from table_lines((*WHERE, "first wrong tensor", "what fits"), rows)


WHERE = ("layer", "fault", "lowering", "dtype")
WORST = ("worst case", "error", "tolerance")


def _share(verdicts: list[Verdict]) -> str:
    named = sum(x.named for x in verdicts)
    return f"{named} of {len(verdicts)} ({100 * named / max(len(verdicts), 1):.0f} %)"


def _tensor(verdict: Verdict) -> str:
    """The tensor, and the right one if that is another."""
    wrong = "" if verdict.named else f", not {verdict.expected or 'one of its own'}"
    return f"{verdict.tensor or 'none'}{wrong}"


def _why(verdict: Verdict) -> str:
    """What fits, or nothing."""
    fits = "It fits: "
    return verdict.diagnosis.removeprefix(fits) if verdict.diagnosis.startswith(fits) else ""


def _where(verdict: Verdict) -> tuple[str, ...]:
    return verdict.layer, verdict.fault, verdict.lowering, verdict.dtype


def _worst(verdict: Verdict) -> tuple[str, ...]:
    return verdict.case, f"{verdict.error:.1e}", f"{verdict.tolerance:.1e}"


def main() -> int:
    """Exit status 0 if every sound artifact passed and every other row held, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m scripts.plant_faults", description=__doc__)
    parser.add_argument("names", nargs="*", help="layers, or decoders; all else")
    parser.add_argument(
        "--write", action="store_true", help="write docs/faults.md and docs/located.md"
    )
    runner.add_options(parser)
    options = parser.parse_args()
    of_layers = {
        title(*one): {"at": at}
        for at, one in enumerate(work())
        if not options.names or one[0] in options.names
    }
    of_decoders = {
        decoders.title(one): one
        for one in decoders.work()
        if not options.names or one["model"] in options.names
    }
    errors, verdicts = 0, list[Verdict]()
    for function, items in ((decoders.judged, of_decoders), (numbered, of_layers)):
        finished = runner.run(
            function, items, Verdict, jobs=options.jobs, fresh=options.fresh, line=in_one_line
        )
        errors += len(finished.errors)
        verdicts += finished.results.values()
    if options.write:
        for place, lines in ((PAGE, page(verdicts)), (LOCATED, located_page(verdicts))):
            place.write_text("\n".join(lines) + "\n", encoding="utf-8")
    alarms = any(x.status != "passed" for x in verdicts if not x.fault)
    return int(alarms or errors > 0 or any(x.status == "unsound" for x in verdicts))


def in_one_line(verdict: Verdict) -> str:
    return (
        f"{verdict.layer}: {verdict.fault or 'sound'}, {verdict.lowering}, {verdict.dtype}: "
        f"{verdict.status}, {verdict.failed} rows, {verdict.error:.1e} of "
        f"{verdict.tolerance:.1e} in {verdict.case}"
        + (f"; first wrong: {_tensor(verdict)}: {verdict.diagnosis}" if verdict.fault else "")
    )
