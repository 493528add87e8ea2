"""The calls that an engine is judged on besides: the corners of each of its profiles."""

from collections.abc import Iterator, Mapping, Sequence

from rope_export.engines.profiles import Profile
from rope_export.parity.cases import Case
from rope_export.parity.decoder.cases import Text


def corner_cases(profiles: Sequence[Profile]) -> dict[Case, Profile]:
    """Every corner of every profile, once: all sizes at their minimum, all at their optimum, and
    each axis at its maximum with the others at their minimum.

    A fixed cache is taken empty and full; its capacity is the engine's.
    """
    cases: dict[Case, Profile] = {}
    for profile in profiles:
        for sizes in profile.corners():
            for case in _cases(sizes):
                cases.setdefault(case, profile)
    return cases


def corner_texts(profiles: Sequence[Profile]) -> dict[Text, Profile]:
    """The corners of the profiles as texts of one call each, whose past is drawn."""
    return {
        Text(
            name=f"corner {case.name}",
            counts=((case.sequence,) * case.batch,),
            past=tuple(case.starts.tolist()) if case.past else (),
            spare=case.spare,
        ): profile
        for case, profile in corner_cases(profiles).items()
    }


def _cases(sizes: Mapping[str, int]) -> Iterator[Case]:
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
