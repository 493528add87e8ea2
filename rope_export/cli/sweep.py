"""rope-export sweep: many artifacts, each verified on many runtimes, with one report."""

import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rope_export.cli import output
from rope_export.cli.reports import ReportFiles, machine_facts
from rope_export.environment import cores
from rope_export.errors import InputError, RopeExportError
from rope_export.runtimes import find_runtime

if TYPE_CHECKING:
    from rope_export.sweep import Matrix, Plan


def sweep_matrix(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(metavar="MATRIX.toml", help="Which cells there are; docs/sweep.md."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where results are kept: a sweep goes on from them."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the artifacts, in --out too.")] = False,
    jobs: Annotated[
        int | None, typer.Option(metavar="N", help="Processes; one for each core unless given.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Run on the Ray cluster at this address, or auto."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Repeat what --out has results of.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the cells, and what is refused; run nothing.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write a report with plots.")
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE.xml", help="Write every cell in JUnit's format.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="Write what a pull request shows.")
    ] = None,
    all_rows: Annotated[
        bool, typer.Option("--all", help="Show every artifact, not only the worst rows.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Export and verify every combination of a matrix: sources, layers, lowerings, caches, dtypes,
    weights and runtimes."""
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs {jobs}: there is one at least.")
    if jobs is not None and ray is not None:
        raise InputError(f"--jobs {jobs} and --ray {ray}: the cluster knows its processors.")
    if out is None and not dry_run:
        raise InputError("--out is missing: a sweep keeps its results there, to go on from them.")
    with output.progress() as step:
        step("loading PyTorch", None)
        from rope_export.sweep import planned, read_matrix

        files = ReportFiles({"report": report, "junit": junit, "markdown": markdown})
        matrix = read_matrix(path)
        step("opening the sources", None)
        plan = planned(matrix)
    output.notes(plan.notes)
    if out is None or dry_run:
        return _show(plan, as_json, context)
    from rope_export.jobs.cluster import Cluster
    from rope_export.jobs.local import Processes
    from rope_export.sweep import sweep

    pool: Any = Processes(jobs or cores()) if ray is None else Cluster(ray)
    swept = sweep(plan, out=out, pool=pool, keep=keep, fresh=fresh)
    found = swept.report
    if swept.earlier:
        output.notes([f"{swept.earlier} cells were done by an earlier run."])
    unwritten = None
    try:
        files.write(found, str(path), context, _commands(context, plan), lambda: _facts(matrix))
    except OSError as error:  # which costs a file, not the verdict
        unwritten = f"a report was not written: {error.strerror or error}."
    if as_json:
        output.print_json(output.report_json(found, context))
    else:
        output.print_report(found, f"{path} against eager PyTorch", context, every_row=all_rows)
    if unwritten is not None:
        output.error(unwritten)
        return RopeExportError.status
    return output.PASSED[found.status]


def _show(plan: "Plan", as_json: bool, context: typer.Context) -> int:
    """Print the cells, a line for each artifact. Returns: status 0."""
    from rope_export.parity.report.cells import Cells, JudgedCell

    reasons = {cell: output.speller(context)(reason) for cell, reason in plan.refused.items()}
    refused = Cells(
        every=tuple(
            JudgedCell(artifact=x.export.title, runtime=x.runtime, status="refused", reason=reason)
            for x, reason in reasons.items()
        )
    )
    if as_json:
        cells = [{"artifact": x.export.title, "runtime": x.runtime} for x in plan.cells]
        output.print_json({"cells": cells, "refused": refused.to_json()})
        return 0
    console = output.out()
    for export, runtimes in plan.exports.items():
        console.print(f"{export.title}: {', '.join(runtimes)}", soft_wrap=True)
    for line in refused.lines():
        console.print(line, soft_wrap=True)
    for name in dict.fromkeys(cell.runtime for cell in plan.cells):
        reason = find_runtime(name).unavailable()
        if reason is not None:
            console.print(f"skipped on this machine: {name}: {reason}.", soft_wrap=True)
    count = len(list(plan.cells))
    console.print(
        f"{count} cells of {len(plan.exports)} artifacts; {len(plan.refused)} cells refused."
    )
    return 0


def _facts(matrix: "Matrix") -> dict[str, str]:
    """What was swept, on which machine and with what, by name."""
    about = {"when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}
    for name in ("lowerings", "caches", "dtypes", "weights", "runtimes"):
        about[name] = ", ".join(getattr(matrix, name))
    about |= {"sources": str(len(matrix.sources)), **machine_facts()}
    return about | {"seed": str(matrix.seed)}


def _commands(context: typer.Context, plan: "Plan") -> Callable[[Any], str]:
    """The commands that compare again what a row is about, or the whole sweep where there is
    none."""
    from rope_export.engines.module import PACKAGES

    exports = {export.title: export for export in plan.exports}
    parameters = context.params
    words = ["rope-export", "sweep", str(parameters["path"]), "--out", str(parameters["out"])]
    words += ["--fresh"] + (["--ray", parameters["ray"]] if parameters["ray"] else [])

    def command(row: Any) -> str:
        if row is None:
            return shlex.join(words)
        export, folder = exports[row.artifact], "build/artifact"
        steps = [export.command(folder)]
        if row.runtime in PACKAGES:
            engine = "build/engine"
            build = ["rope-export", "build", folder, "--out", engine, "--engine", row.runtime]
            steps, folder = [*steps, shlex.join(build)], engine
        verify = ["rope-export", "verify", folder]
        verify += [] if row.runtime == "file" else ["--case", row.within]
        verify += ["--seed", str(export.seed)] if export.seed else []
        if row.runtime not in ("eager", "file"):
            verify += ["--runtime", row.runtime]
        return " && ".join([*steps, shlex.join(verify)])

    return command
