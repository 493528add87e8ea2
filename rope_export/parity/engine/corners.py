"""The calls that an engine is judged on besides: the corners of each of its profiles."""

from collections.abc import Iterator
from dataclasses import dataclass

from rope_export.engines.plan import EngineFacts
from rope_export.engines.profiles import Profile
from rope_export.parity.layer.cases import Case
from rope_export.spec import AttentionSpec

AFFORDABLE = 2**26
"""Scores of one call that are compared unless asked for more: the float64 reference and its bound
hold several copies, half a gigabyte each."""


@dataclass(frozen=True, kw_only=True)
class Corners:
    """cases: to compare. left_out: one line for each that is too large."""

    cases: tuple[Case, ...]
    left_out: tuple[str, ...]


def corners(facts: EngineFacts, spec: AttentionSpec, *, large: bool) -> Corners:
    """Every corner of every profile, once: all sizes least, all usual, and each axis at its largest
    with the others at their least.

    A fixed cache is taken empty and full; its capacity is the engine's.
    large: also those with more than AFFORDABLE scores.
    """
    found: dict[Case, Profile] = {}
    for profile in facts.profiles:
        for sizes in profile.corners():
            for case in _cases(sizes):
                found.setdefault(case, profile)
    kept, left = [], []
    for case, profile in found.items():
        scores = case.batch * spec.heads * case.sequence * (case.total + case.spare)
        if large or scores <= AFFORDABLE:
            kept.append(case)
        else:
            left.append(
                f"corner {case.name} of profile {profile} was not compared: its {scores:.1e} "
                f"scores are more than {AFFORDABLE:.1e}; add --large."
            )
    return Corners(cases=tuple(kept), left_out=tuple(left))


def _cases(sizes: dict[str, int]) -> Iterator[Case]:
    batch, sequence = sizes["batch"], sizes["sequence"]
    if "capacity" not in sizes:
        yield Case(batch=batch, sequence=sequence, past=sizes.get("past", 0))
        return
    free = sizes["capacity"] - sequence
    yield Case(batch=batch, sequence=sequence, past=0, spare=free)
    if free:
        yield Case(batch=batch, sequence=sequence, past=free, spare=0)
    if free and batch > 1:
        lengths = (free, 0, *(free // 2,) * (batch - 2))
        yield Case(batch=batch, sequence=sequence, past=free, lengths=lengths, spare=0)
