"""How figures, shares and outputs are written, in every form of a report."""

import re

from rope_export.parity.rows import Row

LAYER = re.compile(r"^(layers|present)\.(\d+)")
"""How the names of outputs begin that each layer of a decoder has."""


def figure(value: float) -> str:
    """An error or a tolerance."""
    return "0" if value == 0 else f"{value:.1e}"


def share(row: Row) -> str:
    """How much of its tolerance a row uses."""
    return percent(row.used)


def percent(used: float) -> str:
    """A share of a tolerance."""
    return f"{100 * used:.0f} %" if used < 1e4 else "> 1e6 %"


def kind_of(output: str) -> str:
    """The kind of an output of a decoder, which is its own name if it is of none: what every layer
    has is one."""
    layer = LAYER.match(output)
    return output if layer is None else layer.group(1)
