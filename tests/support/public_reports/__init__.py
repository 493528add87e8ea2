"""Public reports and published files that were tried on this product: one module per kind, each
with a list `REPORTS`."""

from typing import NamedTuple


class Report(NamedTuple):
    """What others met, and what happens here.

    source: where it is told. met: what was met there. right: what is right. ours: what we do.
    test: name of the test that runs it, as file::function.
    """

    source: str
    met: str
    right: str
    ours: str
    test: str
