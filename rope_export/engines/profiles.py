"""Optimization profiles: the sizes that an engine takes, and those it is made fastest for.

A profile is written in short words, such as batch=1:1:8,sequence=1:128:2048,past=0:512:4096: for
each axis the minimum, the optimum and the maximum, or one number for all three. TensorRT
accepts a profile whose minimum is above its maximum, so everything is checked here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from msgspec import Struct

from rope_export.artifacts.manifest import ModelFacts
from rope_export.errors import InputError
from rope_export.interface import TensorType

MINIMUM = {"batch": 1, "sequence": 1, "past": 0, "capacity": 1}
"""The axes that a profile may have, and the smallest size of each."""

PREFILL, DECODE = "prefill", "decode"
CAPACITY = 2048
"""Slots of a fixed cache, unless a profile says how many."""

DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "none": ("batch=1:1:8,sequence=1:128:2048",),
    "growing": (
        "batch=1:1:8,sequence=1:128:2048,past=0:0:2048",
        "batch=1:1:8,sequence=1,past=0:512:4096",
    ),
    "fixed": (
        f"batch=1:1:8,sequence=1:128:{CAPACITY},capacity={CAPACITY}",
        f"batch=1:1:8,sequence=1,capacity={CAPACITY}",
    ),
}
"""Default profiles by the kind of cache: for prompts, then for single tokens after them."""


class Range(Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True):
    """Sizes of one axis: minimum, optimum and maximum. Raises: ValueError if out of order."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 0 <= self.min <= self.opt <= self.max:
            raise ValueError(f"sizes {self.min}:{self.opt}:{self.max} are out of order")

    def __contains__(self, size: int) -> bool:
        return self.min <= size <= self.max

    def __add__(self, other: "Range") -> "Range":
        return Range(min=self.min + other.min, opt=self.opt + other.opt, max=self.max + other.max)

    def __str__(self) -> str:
        return str(self.min) if self.min == self.max else f"{self.min}:{self.opt}:{self.max}"


@dataclass(frozen=True)
class Profile:
    """Sizes of every axis, by name, in the order in which they are written."""

    axes: dict[str, Range]

    def range(self, axis: int | str) -> Range:
        """The sizes of an axis: a size, a name, or a sum of names. "total" is past + sequence."""
        if isinstance(axis, int):
            return Range(min=axis, opt=axis, max=axis)
        if axis == "total":
            axis = "past + sequence" if "past" in self.axes else "sequence"
        first, *others = (self.axes[term] for term in axis.split(" + "))
        return sum(others, start=first)

    def shapes(self, tensor: TensorType) -> tuple[tuple[int, ...], ...]:
        """The minimum, optimum and maximum shape of a tensor."""
        ranges = [self.range(axis) for axis in tensor.shape]
        return tuple(tuple(getattr(r, end) for r in ranges) for end in ("min", "opt", "max"))

    def refusal(self, sizes: Mapping[str, int]) -> str | None:
        """The first axis whose size lies outside, as "batch = 9 is not in 1:1:8", or nothing."""
        for name, allowed in self.axes.items():
            if sizes[name] not in allowed:
                return f"{name} = {sizes[name]} is not in {allowed}"
        return None

    @property
    def kind(self) -> str:
        return DECODE if self.axes["sequence"].max == 1 else PREFILL

    def corners(self) -> Iterator[dict[str, int]]:
        """Sizes at which an engine must be right: all minima, all optima, and each axis at its
        maximum with the others at their minimum; each once."""
        every = [{n: getattr(r, end) for n, r in self.axes.items()} for end in ("min", "opt")]
        minimum = every[0]
        every += [minimum | {name: sizes.max} for name, sizes in self.axes.items()]
        for at, corner in enumerate(every):
            if corner not in every[:at]:
                yield corner

    def __str__(self) -> str:
        return ",".join(f"{name}={sizes}" for name, sizes in self.axes.items())


def profiles_for(manifest: ModelFacts, words: Sequence[str]) -> tuple[Profile, ...]:
    """The profiles written in `words`, or the default ones of the artifact's kind of cache.

    Raises: InputError naming the profile, what is wrong with it, and what would be right.
    """
    profiles = tuple(_profile(manifest, text) for text in words or DEFAULTS[manifest.cache])
    for at, profile in enumerate(profiles):
        if profile in profiles[:at]:
            raise InputError(f"`profiles`={profile}: is given twice.")
    capacities = {p.axes["capacity"].max for p in profiles if "capacity" in p.axes}
    if len(capacities) > 1:
        raise InputError(
            f"`profiles`: capacity is {' and '.join(map(str, sorted(capacities)))}; an engine has "
            f"one fixed cache, so give every profile the same capacity."
        )
    return profiles


def _profile(manifest: ModelFacts, text: str) -> Profile:
    axes = _axes(manifest)
    ranges: dict[str, Range] = {}
    for word in text.split(","):
        name, equals, sizes = (part.strip() for part in word.partition("="))
        if not equals:
            raise InputError(f"`profiles`={text}: {word!r} is no axis; write such as batch=1:1:8.")
        if name == "total":
            raise InputError(f"`profiles`={text}: total follows from the others; leave it out.")
        if name not in axes:
            raise InputError(
                f"`profiles`={text}: axis {name!r} does not exist; the artifact has "
                f"{', '.join(axes)}."
            )
        if name in ranges:
            raise InputError(f"`profiles`={text}: axis {name!r} is given twice.")
        ranges[name] = _range(text, name, sizes)
    for name in axes:
        if name not in ranges:
            raise InputError(
                f"`profiles`={text}: axis {name!r} is missing; add such as "
                f"{name}={'2048' if name == 'capacity' else f'{MINIMUM[name]}:128:2048'}."
            )
    profile = Profile({name: ranges[name] for name in axes})
    _check_capacity(text, profile)
    return profile


def _axes(manifest: ModelFacts) -> list[str]:
    """The artifact's dynamic axes that a profile has to give."""
    dynamic = {axis for t in manifest.inputs for axis in t.shape if isinstance(axis, str)}
    return [name for name in MINIMUM if name in dynamic]


def _range(text: str, name: str, sizes: str) -> Range:
    parts = sizes.split(":")
    if len(parts) not in (1, 3) or not all(_whole(part) for part in parts):
        raise InputError(
            f"`profiles`={text}: {name}={sizes} is neither one whole number nor "
            f"minimum:optimum:maximum."
        )
    low, opt, high = (int(part) for part in (parts if len(parts) == 3 else parts * 3))
    if low < MINIMUM[name]:
        raise InputError(
            f"`profiles`={text}: {name} starts at {low}; its minimum is at least {MINIMUM[name]}."
        )
    if not low <= opt <= high:
        raise InputError(
            f"`profiles`={text}: {name}={low}:{opt}:{high} is out of order; write "
            f"minimum:optimum:maximum, each at least the one before."
        )
    if high > 2**31 - 1:
        raise InputError(f"`profiles`={text}: {name}={high} is beyond what a dimension can be.")
    return Range(min=low, opt=opt, max=high)


def _whole(text: str) -> bool:
    return text.isascii() and text.strip().removeprefix("-").isdigit()


def _check_capacity(text: str, profile: Profile) -> None:
    capacity, sequence = profile.axes.get("capacity"), profile.axes["sequence"]
    if capacity is None:
        return
    if capacity.min != capacity.max:
        raise InputError(
            f"`profiles`={text}: capacity={capacity} is a range; TensorRT updates a cache in place "
            f"only if its capacity is one number, such as capacity={capacity.max}."
        )
    if sequence.max > capacity.max:
        raise InputError(
            f"`profiles`={text}: sequence goes up to {sequence.max}, beyond the cache's "
            f"capacity of {capacity.max}. Give a larger capacity, or sequence up to {capacity.max}."
        )


def selected(profiles: Sequence[Profile], sizes: Mapping[str, int]) -> int | str:
    """Which profile to run a call with: of those that take its sizes the narrowest, so that
    decode is run by the profile made for it; or why none takes it.

    sizes: of every axis. Returns: its index, or the reason in words.
    """
    refusals = [profile.refusal(sizes) for profile in profiles]
    fitting = [at for at, reason in enumerate(refusals) if reason is None]
    if not fitting:
        return "; ".join(
            f"profile {at} ({profile}): {reason}"
            for at, (profile, reason) in enumerate(zip(profiles, refusals, strict=True))
        )
    return min(fitting, key=lambda at: (_distance(profiles[at], sizes), at))


def _distance(profile: Profile, sizes: Mapping[str, int]) -> float:
    """How wide a profile's range of new tokens is, then how far its optimum sizes are off."""
    sequence = profile.axes["sequence"]
    off = sum(abs(sizes[n] - r.opt) / (r.opt + 1) for n, r in profile.axes.items())
    return (sequence.max - sequence.min) * 1e6 + off


def sizes_of(profiles: Sequence[Profile]) -> dict[str, int]:
    """What every profile fixes to the same number, by axis: the capacity of a fixed cache."""
    return {n: r.max for p in profiles for n, r in p.axes.items() if n == "capacity"}
