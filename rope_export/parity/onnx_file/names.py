"""Which input and output of a file is which of ours: by names, shapes and the layers' facts."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rope_export.errors import InputError, UnavailableError
from rope_export.parity.onnx_file.caches import (
    Cache,
    Taken,
    are_fixed,
    cache_name,
    cache_of,
)
from rope_export.parity.onnx_file.file import OnnxFile, Value

NUMBERS = {
    "input_ids": r"(decoder_)?(input_?ids?|tokens?|token_ids?|ids)",
    "attention_mask": r"(decoder_)?(attention_?mask|attn_?mask|padding_?mask|mask)",
    "position_ids": r"(decoder_)?(position_?ids?|positions?|pos_?ids?|pos)",
    "cache_position": r"cache_?positions?",
    "cache_lengths": r"cache_?len(gth)?s|write_?ind(ex|ices)|past_?(seq(uence)?_?)?len(gth)?s",
    "total_lengths": r"nonpad_?kv_?seq_?lens?|(total|kv)_?(seq(uence)?_?)?len(gth)?s",
    "seqlens_k": r"seq_?lens_?k",
    "total_length": r"(total|kv)_?(seq(uence)?_?)?len(gth)?",
}
"""Names that exporters give to inputs of whole numbers, by ours. Of a fixed cache: cache_lengths,
each row's valid slots before a call; total_lengths, those after it; seqlens_k, one less, as
GroupQueryAttention takes them; total_length, of the longest row after a call."""

LOGITS = r"(lm_)?logits?|output_?logits"

INTEGERS = ("int64", "int32")
MASKS = (*INTEGERS, "bool")
RANKS = {
    "input_ids": (2,), "attention_mask": (2,), "position_ids": (2,), "cache_position": (1,),
    "cache_lengths": (1,), "total_lengths": (1,), "seqlens_k": (1, 2), "total_length": (0, 1),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Matched(Taken):
    """What a decoder's tensors are. inputs: those of whole numbers. caches: by our names without
    the prefix, such as "0.key". logits: the output."""

    logits: Value


class _Matching:
    """Inputs and outputs of a file that are still to be matched.

    ours: every name that a map may have. maps: theirs by ours, which come before all else.
    """

    def __init__(self, file: OnnxFile, ours: Sequence[str], maps: Mapping[str, str]) -> None:
        self.file = file
        self.inputs = {x.name: x for x in file.inputs}
        self.outputs = {x.name: x for x in file.outputs}
        self.mapped: dict[str, Value] = {}
        for name, theirs in maps.items():
            if name not in ours:
                shown = [x for x in ours if ".0." in x or "." not in x]
                raise InputError(
                    f"`maps`={name}={theirs}: {name!r} is no name of ours; use one of "
                    f"{', '.join(shown)}, or of another layer."
                )
            is_output = name == "logits" or name.startswith("present")
            side, values = ("output", self.outputs) if is_output else ("input", self.inputs)
            if theirs not in values:
                raise InputError(
                    f"`maps`={name}={theirs}: the file has no {side} {theirs!r} left, only "
                    f"{', '.join(values)}."
                )
            self.mapped[name] = values.pop(theirs)

    def take(self, ours: str, values: dict[str, Value], fitting: Sequence[Value]) -> Value | None:
        """The tensor that is `ours`: the one that was named, or the only one that fits.

        Raises: UnavailableError if several fit.
        """
        if ours in self.mapped or not fitting:
            return self.mapped.get(ours)
        if len(fitting) > 1:
            names = ", ".join(x.name for x in fitting)
            raise UnavailableError(
                f"{self.file.path}: {ours} may be any of {names}; name it with `maps`={ours}=NAME."
            )
        return values.pop(fitting[0].name)


def match_decoder(
    file: OnnxFile,
    shapes: Mapping[str, tuple[int | str, ...]],
    maps: Mapping[str, str],
    vocabulary: int,
) -> Matched:
    """The tensors of a whole decoder.

    shapes: of each cache by its name, such as "0.key": ("batch", heads, "slots", width). maps:
    theirs by ours, where the caller knows better.
    Raises: UnavailableError for what cannot be matched; InputError for a map to nothing.
    """
    names = [f"{prefix}.{name}" for prefix in ("past_key_values", "present") for name in shapes]
    open_ = _Matching(file, [*NUMBERS, "logits", *names], maps)
    numbers = {}
    for ours in NUMBERS:
        value = open_.take(ours, open_.inputs, _numbers(ours, open_.inputs.values()))
        if value is not None:
            numbers[ours] = value
    if "input_ids" not in numbers:
        rest = [x for x in open_.inputs.values() if _is_tokens(x)]
        if len(rest) == 1:
            numbers["input_ids"] = open_.inputs.pop(rest[0].name)
    logits = open_.take("logits", open_.outputs, _logits(open_.outputs.values(), vocabulary))
    if "input_ids" not in numbers or logits is None:
        missing = "input_ids" if "input_ids" not in numbers else "logits"
        side = file.inputs if missing == "input_ids" else file.outputs
        raise UnavailableError(
            f"{file.path}: nothing is matched to {missing} among {', '.join(map(str, side))}; name "
            f"it with `maps`={missing}=NAME."
        )
    caches = _caches(open_, shapes)
    if open_.inputs:
        raise UnavailableError(
            f"{file.path}: takes {', '.join(map(str, open_.inputs.values()))}, and it is not known "
            f"what that is. Name it with `maps`=OURS=THEIRS, ours being "
            f"{', '.join(NUMBERS)}, past_key_values.N.key or past_key_values.N.value."
        )
    fixed = are_fixed(file, caches, numbers)
    others = tuple(open_.outputs)
    return Matched(inputs=numbers, caches=caches, logits=logits, others=others, fixed=fixed)


def _numbers(ours: str, values: Iterable[Value]) -> list[Value]:
    dtypes = MASKS if ours == "attention_mask" else INTEGERS
    return [
        x
        for x in values
        if re.fullmatch(NUMBERS[ours], x.name, re.IGNORECASE)
        and x.dtype in dtypes
        and (x.shape is None or len(x.shape) in RANKS[ours])
    ]


def _is_tokens(value: Value) -> bool:
    return value.dtype in INTEGERS and value.shape is not None and len(value.shape) == 2


def _logits(values: Iterable[Value], vocabulary: int) -> list[Value]:
    """By the name; else by the width."""
    values = [x for x in values if x.dtype.startswith(("float", "bfloat"))]
    named = [x for x in values if re.fullmatch(LOGITS, x.name, re.IGNORECASE)]
    return named or [x for x in values if x.shape and x.shape[-1] == vocabulary]


def _caches(open_: _Matching, shapes: Mapping[str, tuple[int | str, ...]]) -> dict[str, Cache]:
    """Every cache of the file, or none if it takes none."""
    sides = []
    for prefix, values in (("past_key_values", open_.inputs), ("present", open_.outputs)):
        side = {}
        for name in shapes:
            if f"{prefix}.{name}" in open_.mapped:
                side[name] = open_.mapped[f"{prefix}.{name}"]
        for theirs in list(values):
            ours = cache_name(theirs)
            if (
                ours is not None
                and ours in shapes
                and ours not in side
                and _is_cache(values[theirs])
            ):
                side[ours] = values.pop(theirs)
        sides.append(side)
    before, after = sides
    if not before:
        open_.outputs |= {x.name: x for x in after.values()}
        return {}
    for name in shapes:
        if name not in before or name not in after:
            missing = ("input", "past_key_values") if name not in before else ("output", "present")
            raise UnavailableError(
                f"{open_.file.path}: no {missing[0]} is matched to the cache {missing[1]}.{name}; "
                f"name it with `maps`={missing[1]}.{name}=NAME."
            )
    return {
        name: cache_of(open_.file, before[name], after[name], shape)
        for name, shape in shapes.items()
    }


def _is_cache(value: Value) -> bool:
    return value.dtype.startswith(("float", "bfloat")) and (
        value.shape is None or len(value.shape) in (3, 4)
    )
