"""Rules that leave cells of a matrix out."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import msgspec

from rope_export.errors import InputError

if TYPE_CHECKING:
    from rope_export.sweep.matrix import Matrix

LISTS = {
    "lowering": "lowerings",
    "cache": "caches",
    "dtype": "dtypes",
    "weights": "weights",
    "padding": "padding",
    "runtime": "runtimes",
}
"""The key of the matrix whose values each key of a rule may have."""

SHOWN = 5
"""Sources that an error names."""


class Exclusion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Leaves out the cells that have all of these; of a list any one.

    source: a pattern with * and ? for the source's path or the end of it. layer: its number.
    decoder: whether a cell is of a whole decoder.
    """

    source: str | list[str] | None = None
    layer: int | list[int] | None = None
    decoder: bool | None = None
    lowering: str | list[str] | None = None
    cache: str | list[str] | None = None
    dtype: str | list[str] | None = None
    weights: str | list[str] | None = None
    padding: bool | None = None
    runtime: str | list[str] | None = None

    def leaves_out(self, facts: Mapping[str, Any]) -> bool:
        """Whether a cell of these facts, by the keys of a rule, is left out; a rule on what is not
        among them leaves nothing out."""
        rule = {
            key: value
            for key in self.__struct_fields__
            if (value := getattr(self, key)) is not None
        }
        return all(key in facts and _matches(key, value, facts[key]) for key, value in rule.items())


def check_exclusions(matrix: "Matrix", where: str) -> None:
    """Raises: InputError for a rule without a key, and for a value that the matrix does not have:
    it would leave out nothing, without a word."""
    for at, rule in enumerate(matrix.exclude):
        if all(getattr(rule, key) is None for key in rule.__struct_fields__):
            raise InputError(f"{where}: exclude[{at}] has no key, and would leave out everything.")
        for key, plural in LISTS.items():
            value = getattr(rule, key)
            for one in _listed(value):
                if one not in getattr(matrix, plural):
                    raise InputError(
                        f"{where}: exclude[{at}].{key}={one!r} is none of this matrix's {plural}: "
                        f"{', '.join(map(str, getattr(matrix, plural)))}."
                    )


def check_sources(matrix: "Matrix", sources: Sequence[str], where: str) -> None:
    """sources: their paths. Raises: InputError for a rule with a source that none of them is."""
    for at, rule in enumerate(matrix.exclude):
        for one in _listed(rule.source):
            if not any(_matches("source", one, source) for source in sources):
                raise InputError(
                    f"{where}: exclude[{at}].source={one!r} matches none of this matrix's sources: "
                    f"{', '.join(sources[:SHOWN])}{', …' if len(sources) > SHOWN else ''}."
                )


def _matches(key: str, rule: Any, value: Any) -> bool:
    if key != "source":
        return value in _listed(rule)
    return any(fnmatchcase(value, one) or fnmatchcase(value, f"*/{one}") for one in _listed(rule))


def _listed(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    return value if isinstance(value, list) else [value]
