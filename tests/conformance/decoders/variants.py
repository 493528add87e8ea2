"""The thirteen variants as whole decoders, in the same six kinds of calls.

Each is the tiny model of `tests.conformance.variants` with a head, saved by transformers. The
folder is exported with `export --decoder`, growing and fixed, and its logits in onnxruntime are
compared with those of transformers' eager model from the same folder in float64, which reads each
row by itself and without its padding.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM

from rope_export import open_session
from rope_export.bench.markdown import table_lines
from rope_export.decoder.pipeline import Cache, export_decoder
from rope_export.parity.bounds import tolerance
from rope_export.reading.models import quiet
from tests.conformance.decoders.calls import Calls, answered, expected, largest_error, together
from tests.conformance.decoders.run import AGREES, CACHES, floor, vocabulary
from tests.conformance.families import saved
from tests.conformance.variants import CASES, VARIANTS, tiny


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One variant, case and cache. error: of the logits, scaled by the largest of a call."""

    variant: str
    case: str
    cache: str
    lowering: str
    error: float
    tolerance: float

    @property
    def right(self) -> bool:
        return self.error <= self.tolerance


@dataclass(frozen=True, kw_only=True)
class Proof:
    """All cells of one variant."""

    variant: str
    cells: tuple[Cell, ...]


def prove(variant: str, caches: tuple[Cache, ...] = tuple(CACHES)) -> Proof:
    """Every case of the variant, with every cache."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return Proof(variant=variant, cells=tuple(_cells(variant, Path(folder), caches)))


def _cells(variant: str, folder: Path, caches: tuple[Cache, ...]) -> Iterator[Cell]:
    model = tiny(variant, AutoModelForCausalLM)
    with quiet():
        saved.save(model, folder / "model")
        exact, single = (
            saved.load(model.model_class, folder / "model", dtype)
            for dtype in (torch.float64, torch.float32)
        )
    every = {
        case: Calls(vocabulary(exact), padding, chunks) for case, (chunks, padding) in CASES.items()
    }
    wanted = {case: expected(exact, calls) for case, calls in every.items()}
    allowed = {}
    for case, calls in every.items():
        eager = largest_error(together(single, calls), wanted[case], calls)
        allowed[case] = tolerance(min(eager, AGREES), floor(exact))
    for cache in caches:
        artifact = export_decoder(
            folder / "model", out=folder / cache, cache=cache, logits=CACHES[cache]
        )
        with open_session(artifact, "onnxruntime") as session:
            for case, calls in every.items():
                yield Cell(
                    variant=variant,
                    case=case,
                    cache=cache,
                    lowering=artifact.manifest.lowering,
                    error=largest_error(answered(session, calls), wanted[case], calls),
                    tolerance=allowed[case],
                )


def page(cells: list[Cell]) -> Iterator[str]:
    """The part of docs/variants.md that is about whole decoders."""
    yield "## Whole decoders"
    yield ""
    yield (
        f"The same models with a head, exported with `export --decoder`: the largest error of the "
        f"logits of any call, scaled by the largest of them, with a growing cache (logits of all "
        f"tokens) and a fixed one (of the last), and in brackets the share of the tolerance, which "
        f"is twice the error of transformers itself in float32. The reference is transformers' "
        f"eager model in float64, which reads each row by itself. "
        f"{sum(cell.right for cell in cells)} of {len(cells)} comparisons are right."
    )
    yield ""
    rows = []
    for variant in VARIANTS:
        row = [f"{variant} (`{VARIANTS[variant][0]}`)"]
        for case in CASES:
            mine = [cell for cell in cells if (cell.variant, cell.case) == (variant, case)]
            row.append(", ".join(map(_figure, mine)))
        rows.append(row)
    yield from table_lines(("decoder", *CASES), rows)


def _figure(cell: Cell) -> str:
    word = "" if cell.right else "**wrong** "
    return f"{word}{cell.error:.0e} ({100 * cell.error / cell.tolerance:.0f} %)"


def in_one_line(proof: Proof) -> str:
    wrong = sum(not cell.right for cell in proof.cells)
    return f"{proof.variant}, whole decoder: {len(proof.cells)} comparisons, {wrong} wrong"
