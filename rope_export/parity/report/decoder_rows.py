"""The rows of a whole decoder, which may be thousands: by kind of output, and what is shown."""

from collections.abc import Sequence

from rope_export.parity.report.result import Report
from rope_export.parity.report.words import LAYER, kind_of
from rope_export.parity.rows import TEXT, Row

KINDS = ("logits", TEXT, "layers", "present")
"""How the names of the kinds of outputs begin, in the order in which they are told: logits, greedy
text, hidden states that leave a layer, caches."""

MOST_FAILED = 12
"""Failed rows of layers and weights that are shown of each runtime; the first wrong layer is what
matters."""


def is_decoder(report: Report) -> bool:
    """Whether a report is about a whole decoder."""
    rows = (row for row in report.rows if row.runtime != "file")  # an engine's structure, weights
    return any(row.output in KINDS or LAYER.match(row.output) for row in rows)


def text_lines(report: Report) -> list[str]:
    """What each runtime's greedy text came to: tokens that were judged, and near ties."""
    lines = [f"text on {row.runtime}: {row.case}." for row in report.rows if row.output == TEXT]
    return list(dict.fromkeys(lines))


def order_of(row: Row) -> int:
    """The place of a row's kind; others come last."""
    kind = kind_of(row.output)
    return KINDS.index(kind) if kind in KINDS else len(KINDS)


def layer_of(row: Row) -> int | None:
    """The layer that an output is of, if it is of one; what leaves layer 0 is called layers.1."""
    found = LAYER.match(row.output)
    if found is None:
        return None
    return int(found.group(2)) - (found.group(1) == "layers")


def shown_failures(failed: Sequence[Row]) -> tuple[list[Row], str | None]:
    """Rows that failed: logits and text, then weights, then layers in their order, the first ones
    of each runtime where they are many.

    Returns: them, and a sentence on those that are not among them, if there are any.
    """

    def place(row: Row) -> tuple[bool, int, float]:
        layer = layer_of(row)
        return order_of(row) > 1, -1 if layer is None else layer, -row.used

    shown: list[Row] = []
    taken: dict[str, int] = {}
    for row in sorted(failed, key=place):
        if order_of(row) > 1:
            taken[row.runtime] = taken.get(row.runtime, 0) + 1
        if taken.get(row.runtime, 0) <= MOST_FAILED or order_of(row) <= 1:
            shown.append(row)
    if len(shown) == len(failed):
        return shown, None
    layers = sorted({layer for row in failed if (layer := layer_of(row)) is not None})
    where = f" in {len(layers)} layers from {layers[0]} to {layers[-1]}" if layers else ""
    return shown, f"... and {len(failed) - len(shown)} more; all are {len(failed)}{where}."
