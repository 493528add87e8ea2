"""The caches of a file that somebody else made: how they lie, and whether their size is fixed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from rope_export.errors import UnavailableError
from rope_export.parity.onnx_file.file import OnnxFile, Value

BY_ROW = ("cache_lengths", "total_lengths", "seqlens_k")
"""Those that tell each row's length, so that rows may differ."""

FILLED = (*BY_ROW, "total_length", "cache_position", "attention_mask")
"""Those that tell how many slots of a fixed cache are filled."""

HEADS_FIRST, SLOTS_FIRST, FLAT = "heads first", "slots first", "flat"
"""How a cache lies in the file: (batch, heads, slots, width), as in ours; (batch, slots, heads,
width); or (batch, slots, heads * width)."""

Slots = int | str | None
"""The axis of a cache's slots: how many there are, the name of how many, or nothing."""


@dataclass(frozen=True, kw_only=True)
class Cache:
    """One cache of the file. before, after: its input and output. layout: of both. slots: of
    each."""

    before: Value
    after: Value
    layout: str
    slots: tuple[Slots, Slots]

    @property
    def capacity(self) -> int | None:
        """How many slots it always has."""
        return self.slots[0] if isinstance(self.slots[0], int) else None

    @property
    def is_fixed(self) -> bool:
        """Whether it has as many slots after a call as before it, as far as its shapes tell."""
        before, after = self.slots
        return self.capacity is not None or (before == after and isinstance(before, str))


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a file takes. inputs: by our names, without the caches. caches: by our names. others:
    outputs that are not looked at. fixed: whether the caches are; without, each call gives longer
    ones."""

    inputs: Mapping[str, Value]
    caches: Mapping[str, Cache]
    others: tuple[str, ...]
    fixed: bool = False

    @property
    def capacity(self) -> int | None:
        """How many slots the caches always have."""
        return next((x.capacity for x in self.caches.values()), None)

    @property
    def whole_mask(self) -> bool:
        """Whether a mask by slots covers every slot of fixed caches, filled or not."""
        mask = self.inputs.get("attention_mask")
        axis = None if mask is None or mask.shape is None else mask.shape[-1]
        slots = [(x.capacity, x.slots[0]) for x in self.caches.values()]
        return self.fixed and axis is not None and any(axis in x for x in slots)

    @property
    def mask_slots(self) -> int | None:
        """How many slots a mask always covers."""
        return self.capacity if self.whole_mask else None

    @property
    def by_row(self) -> bool:
        """Whether rows of fixed caches may be of different lengths."""
        return self.fixed and any(x in self.inputs for x in BY_ROW)


def cache_name(theirs: str) -> str | None:
    """Our name, such as "3.key", of what an exporter calls past_key_values.3.key, past_key_3,
    cache.3.k or present_3_value; none if it is no cache's."""
    name = re.sub(r"key_?values?", "kv", theirs.lower())
    words = [x for x in re.split(r"[^a-z0-9]+|(?<=[a-z])(?=\d)|(?<=\d)(?=[a-z])", name) if x]
    numbers = [x for x in words if x.isdigit()]
    kinds = {"key" if x in ("key", "keys", "k") else "value" for x in words
             if x in ("key", "keys", "k", "value", "values", "v")}  # fmt: skip
    if len(numbers) != 1 or len(kinds) != 1:
        return None
    return f"{int(numbers[0])}.{kinds.pop()}"


def cache_of(file: OnnxFile, before: Value, after: Value, ours: tuple[int | str, ...]) -> Cache:
    """A cache by its input and its output. ours: its shape as we have it.

    Raises: UnavailableError for a shape that is no cache's, or of one length of the past.
    """
    layout, slots = _layout(file, before, ours)
    axis = FORMS[layout].index("slots")
    later = after.shape[axis] if after.shape and len(after.shape) > axis else None
    if isinstance(slots, int) and isinstance(later, int) and slots != later:
        raise UnavailableError(
            f"{file.path}: {before} has {slots} slots and {after} {later}, so its past has one "
            f"length; caches are judged that grow from any length, or keep their size."
        )
    return Cache(before=before, after=after, layout=layout, slots=(slots, later))


FORMS = {
    HEADS_FIRST: ("batch", "heads", "slots", "width"),
    SLOTS_FIRST: ("batch", "slots", "heads", "width"),
    FLAT: ("batch", "slots", "features"),
}


def _layout(file: OnnxFile, value: Value, ours: tuple[int | str, ...]) -> tuple[str, Slots]:
    """How a cache lies in the file, and its axis of slots; a dynamic one before one of a size,
    which may as well be another axis."""
    heads, width = ours[1], ours[3]
    assert isinstance(heads, int)
    assert isinstance(width, int)
    sizes = {"heads": heads, "width": width, "features": heads * width}
    if value.shape is None:
        return HEADS_FIRST, None
    for dynamic in (True, False):
        for layout, form in FORMS.items():
            if len(form) != len(value.shape):
                continue
            slots = value.shape[form.index("slots")]
            others = [
                (x, sizes[axis])
                for x, axis in zip(value.shape, form, strict=True)
                if axis in sizes and (isinstance(x, int) or not dynamic)
            ]
            if isinstance(slots, int) != dynamic and all(x == y for x, y in others):
                return layout, slots
    raise UnavailableError(
        f"{file.path}: {value} is no cache of {heads} heads of {width} features, with an axis of "
        f"slots beside them."
    )


def are_fixed(file: OnnxFile, caches: Mapping[str, Cache], numbers: Mapping[str, Value]) -> bool:
    """Whether the caches of a file are of fixed size.

    numbers: the inputs that are whole numbers.
    Raises: UnavailableError for caches of several kinds or sizes, and for fixed ones of which no
        input tells how many slots are filled.
    """
    told = any(x in numbers for x in (*BY_ROW, "total_length", "cache_position"))
    kinds = {
        (x.is_fixed and (x.capacity is not None or told or _is_capacity(x.slots[0])), x.capacity)
        for x in caches.values()
    }
    if len(kinds) > 1:
        raise UnavailableError(
            f"{file.path}: its caches have different numbers of slots, as those of layers with a "
            f"window may; only caches of one size are judged."
        )
    fixed = any(x for x, _ in kinds)
    if fixed and not any(x in numbers for x in FILLED):
        raise UnavailableError(
            f"{file.path}: none of its inputs tells how many slots of its fixed caches are filled; "
            f"name it with `maps`=OURS=THEIRS, ours being one of {', '.join(FILLED)}."
        )
    return fixed


def _is_capacity(axis: Slots) -> bool:
    """Whether an axis has the name of a number of slots that does not change."""
    return isinstance(axis, str) and re.search(r"max|capacity|cache", axis.lower()) is not None
