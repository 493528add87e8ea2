"""Export a whole model and its layer 0 from a checkpoint, show the proof, and let it write."""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rope_export import export, export_decoder, verify
from rope_export.artifacts.folder import Folder
from rope_export.cli import run
from rope_export.cli.output import out, progress
from rope_export.parity import Report
from rope_export.parity.report.tables import summary

LAYERS = (("portable", "float32"), ("standard", "float32"), ("standard", "float16"))
"""Lowering and dtype of each artifact of layer 0."""
PROMPT = "The capital of France is"


def main(source: str, folder: str) -> int:
    exports: list[tuple[Folder, Report]] = []
    with progress() as step:
        step("the whole model", None)
        decoder = export_decoder(source, out=Path(folder) / "model")
        exports.append((decoder, verify(decoder, source=source, progress=step)))
        for lowering, dtype in LAYERS:
            step(f"layer 0, {lowering}, {dtype}", None)
            artifact = export(
                source,
                out=Path(folder) / f"layer0-{lowering}-{dtype}",
                lowering=lowering,
                dtype=dtype,  # type: ignore[arg-type]
                padding=True,
            )
            exports.append((artifact, verify(artifact, source=source, progress=step)))
    console = out()
    for opened, report in exports:
        if not report.passed:
            console.print(summary(report, str(opened.path)))
    console.print(overview(exports, f"{Path(source).name} against PyTorch"))
    console.print(f"rope-export verify {decoder.path} --all shows every case.")
    console.print(f"rope-export generate {decoder.path} --prompt {PROMPT!r} --max-tokens 24:")
    console.print(PROMPT, end="")
    status = run(["generate", str(decoder.path), "--prompt", PROMPT, "--max-tokens", "24"])
    return status if all(report.passed for _, report in exports) else 1


def overview(exports: list[tuple[Folder, Report]], title: str) -> Table:
    """The artifacts with their verdicts, and the largest share of its tolerance that each used."""
    grid = Table(title=title, title_justify="left")
    heads = ("artifact", "verdict", "weights", "reading", "comparisons", "failed", "tolerance used")
    for name in heads:
        grid.add_column(name)
    for opened, report in exports:
        ran = [row.used for row in report.rows if row.runtime not in ("eager", "file")]
        grid.add_row(
            str(opened.path),
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
