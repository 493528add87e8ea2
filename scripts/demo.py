"""Export layer 0 of a checkpoint in both lowerings, float32 and float16, and show the proof."""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rope_export import Artifact, export, verify
from rope_export.cli.output import out, progress
from rope_export.parity import Report
from rope_export.parity.report.tables import summary

LOWERINGS = ("portable", "standard")
DTYPES = ("float32", "float16")


def main(source: str, folder: str) -> int:
    exports: list[tuple[Artifact, Report]] = []
    with progress() as step:
        for lowering in LOWERINGS:
            for dtype in DTYPES:
                step(f"{lowering}, {dtype}", None)
                path = Path(folder) / f"layer0-{lowering}-{dtype}"
                artifact = export(
                    source,
                    out=path,
                    lowering=lowering,
                    dtype=dtype,  # type: ignore[arg-type]
                    padding=True,
                )
                report = verify(artifact, source=source, progress=step)
                exports.append((artifact, report))
    console = out()
    for artifact, report in exports:
        if not report.passed:
            console.print(summary(report, str(artifact.path)))
    console.print(overview(exports, f"layer 0 of {Path(source).name} against eager PyTorch"))
    console.print(f"rope-export verify {exports[-1][0].path} --all shows every case.")
    return 0 if all(report.passed for _, report in exports) else 1


def overview(exports: list[tuple[Artifact, Report]], title: str) -> Table:
    """The artifacts with their verdicts, and the largest share of its tolerance that each used."""
    grid = Table(title=title, title_justify="left")
    heads = ("artifact", "verdict", "weights", "reading", "comparisons", "failed", "tolerance used")
    for name in heads:
        grid.add_column(name)
    for artifact, report in exports:
        ran = [row.used for row in report.rows if row.runtime not in ("eager", "file")]
        grid.add_row(
            str(artifact.path),
            report.status,
            report.weights,
            report.reading.status,
            str(len(report.rows)),
            str(sum(row.status == "failed" for row in report.rows)),
            f"{100 * max(ran, default=0):.0f} %",
        )
    return grid


if __name__ == "__main__":
    if len(sys.argv) != 3:
        Console(stderr=True).print("usage: demo.py CHECKPOINT FOLDER", markup=False)
        sys.exit(2)
    sys.exit(main(*sys.argv[1:]))
