"""Everything that one `verify` finds."""

from dataclasses import dataclass, field
from typing import Any, Literal

from rope_export.parity.report.baseline import Growth
from rope_export.parity.report.cells import Cells
from rope_export.parity.report.located import Located
from rope_export.parity.report.spread import Spread
from rope_export.parity.rows import Row
from rope_export.reading.verdict import Reading


@dataclass(kw_only=True)
class Report:
    """What `verify` found.

    weights: "proven" if the file holds the weights of the source, "unproven" if the source is
        gone.
    reading: whether transformers reads the source as we do.
    rows: every comparison.
    skipped: runtimes that were asked for and could not run, with the reason.
    problems: one line for everything that went wrong beyond a figure.
    quantization_error: where weights are quantized, how far the output is from that of the source's
        own weights, by each metric; reported, not judged.
    numbers: of an engine, whether what its plan computes was compared on a GPU: "unverified", or
        "passed on" or "failed on" which.
    left_out: one line for what was not compared.
    not_visible: each fault that no case can show, by the "feature" that it concerns, with the
        "reason".
    overflow: whether float16 ended before the computation did, which a problem tells.
    located: of rows that failed, the first tensor on the way that is wrong.
    causes: of a file that others made, what explains the texts that failed: "runtime", "cause" (a
        feature), "fault" (what was done to it, in words), "texts".
    spread: how errors lie over positions and in tensors, where that was asked for.
    growth: the errors beside those of an earlier run, where one was given.
    cells: of a sweep, whose rows are the worst and the failed ones of each cell.
    artifact: what it is about, by name, where that is an artifact of ours.
    notes: warnings that are not about the artifact, such as evidence that could not be kept.
    """

    weights: Literal["proven", "unproven"]
    reading: Reading = field(default_factory=lambda: Reading(status="unproven"))
    rows: list[Row] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    quantization_error: dict[str, float] | None = None
    numbers: str | None = None
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    not_visible: list[dict[str, str]] = field(default_factory=list)
    overflow: bool = False
    located: tuple[Located, ...] = ()
    causes: list[dict[str, str]] = field(default_factory=list)
    spread: Spread | None = None
    growth: Growth | None = None
    cells: Cells | None = None
    artifact: dict[str, str] | None = None

    @property
    def status(self) -> Literal["passed", "failed", "nothing compared"]:
        if any(row.status == "failed" for row in self.rows):
            return "failed"
        if self.reading.status == "failed":
            return "failed"
        if self.numbers is not None and self.numbers.startswith("failed"):
            return "failed"
        if self.growth is not None and self.growth.failed:
            return "failed"
        if self.cells is not None:
            if self.cells.failed:
                return "failed"
            return "passed" if self.cells.of("passed") else "nothing compared"
        ran = {row.runtime for row in self.rows} - {"eager", "file"}
        return "passed" if ran else "nothing compared"

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    def keep(self, note: str | None) -> None:
        """Add a warning, if there is one and it is new."""
        if note is not None and note not in self.notes:
            self.notes.append(note)

    def to_json(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "artifact": self.artifact,
            "weights": self.weights,
            "reading": self.reading.to_json(),
            "rows": [row.to_json() for row in self.rows],
            "skipped": self.skipped,
            "problems": self.problems,
            "causes": self.causes,
            "quantization_error": self.quantization_error,
            "numbers": self.numbers,
            "left_out": self.left_out,
            "notes": self.notes,
            "not_visible": self.not_visible,
            "baseline": None if self.growth is None else self.growth.to_json(),
            "located": [x.to_json() for x in self.located],
            "cells": None if self.cells is None else self.cells.to_json(),
        }
