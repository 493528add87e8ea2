"""Which input and output of a file with one attention layer is which of ours."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rope_export.errors import InputError, UnavailableError
from rope_export.interface.attention import cached
from rope_export.parity.onnx_file.caches import BY_ROW, Taken, are_fixed, cache_of
from rope_export.parity.onnx_file.file import OnnxFile, Value
from rope_export.parity.onnx_file.names import INTEGERS, MASKS, NUMBERS, RANKS
from rope_export.spec import AttentionSpec

FLOATS = ("float32", "float16", "bfloat16")

ANGLES = {
    "cos": r".*cos.*|position_embeddings?[._]?0",
    "sin": r".*sin.*|position_embeddings?[._]?1",
}
"""Names of cosines and sines, which transformers' modules take in place of positions."""

HIDDEN = r"hidden_?states?|hidden|x|inputs?(_?embeds)?"
OUTPUT = r"attention_?outputs?|attn_?outputs?|outputs?|hidden_?states?|y"


@dataclass(frozen=True, kw_only=True)
class MatchedLayer(Taken):
    """What a layer's tensors are. inputs: hidden_states, position_ids, cos, sin, attention_mask,
    and those that tell what is in a fixed cache, as far as the file takes them. caches: "key" and
    "value". output: of the layer."""

    output: Value


def match_layer(file: OnnxFile, spec: AttentionSpec, maps: Mapping[str, str]) -> MatchedLayer:
    """The tensors of an attention layer.

    maps: theirs by ours, where the caller knows better.
    Raises: UnavailableError for what cannot be matched; InputError for a map to nothing.
    """
    open_, left = dict(maps), {x.name: x for x in file.inputs}
    results = {x.name: x for x in file.outputs}

    def take(ours: str, values: dict[str, Value], fits: Callable[[Value], bool]) -> Value | None:
        theirs = open_.pop(ours, None)
        if theirs is not None:
            if theirs not in values:
                raise InputError(
                    f"`maps`={ours}={theirs}: the file has no {theirs!r} left; of "
                    f"{', '.join(values)}."
                )
            return values.pop(theirs)
        fitting = [x.name for x in values.values() if fits(x)]
        if len(fitting) > 1:
            raise UnavailableError(
                f"{file.path}: {ours} may be any of {', '.join(fitting)}; name it with "
                f"`maps`={ours}=NAME."
            )
        return values.pop(fitting[0]) if fitting else None

    def mask(x: Value) -> bool:
        """By slots, or what each token sees."""
        dtypes = (
            ("bool", *FLOATS) if x.shape is not None and len(x.shape) == 4 else (*MASKS, *FLOATS)
        )
        return named(NUMBERS["attention_mask"], dtypes, 2, 4)(x)

    def angles(pattern: str) -> Callable[[Value], bool]:
        return lambda x: x.shape is not None and named(pattern, FLOATS, 3, 4)(x)

    def named(pattern: str, dtypes: tuple[str, ...], *ranks: int) -> Callable[[Value], bool]:
        return lambda x: (
            re.fullmatch(pattern, x.name, re.IGNORECASE) is not None
            and x.dtype in dtypes
            and (x.shape is None or len(x.shape) in ranks)
        )

    def wide(x: Value) -> bool:
        return x.dtype in FLOATS and _is_wide(x, spec.hidden_size)

    inputs = {
        "position_ids": take("position_ids", left, named(NUMBERS["position_ids"], INTEGERS, 2)),
        "attention_mask": take("attention_mask", left, mask),
        **{name: take(name, left, angles(pattern)) for name, pattern in ANGLES.items()},
        **{
            name: take(name, left, named(NUMBERS[name], INTEGERS, *RANKS[name]))
            for name in (*BY_ROW, "total_length", "cache_position")
        },
    }
    caches = {}
    for name, shape in cached(spec).items():
        if spec.latent is not None:
            break
        before = take(f"past_{name}", left, _holds(name))
        after = take(f"present_{name}", results, _holds(name))
        if before is not None and after is not None:
            caches[name] = cache_of(file, before, after, shape)
        elif before is not None:
            raise UnavailableError(
                f"{file.path}: no output is matched to present_{name}; name it with "
                f"`maps`=present_{name}=NAME."
            )
        elif after is not None:
            results[after.name] = after
    inputs["hidden_states"] = take("hidden_states", left, named(HIDDEN, FLOATS, 3)) or take(
        "hidden_states", left, wide
    )
    output = take("attention_output", results, named(OUTPUT, FLOATS, 3))
    output = output or take("attention_output", results, wide)
    missing = "hidden_states" if inputs["hidden_states"] is None else "attention_output"
    if inputs["hidden_states"] is None or output is None:
        raise UnavailableError(
            f"{file.path}: nothing is matched to {missing}; name it with `maps`={missing}=NAME."
        )
    if left:
        raise UnavailableError(
            f"{file.path}: takes {', '.join(map(str, left.values()))}, and it is not known what "
            f"that is. Name it with `maps`=OURS=THEIRS, ours being hidden_states, position_ids, "
            f"attention_mask, cos, sin, past_key or past_value."
        )
    if open_:
        ours, theirs = next(iter(open_.items()))
        raise InputError(f"`maps`={ours}={theirs}: {ours!r} is no name of ours in a layer.")
    matched = {name: x for name, x in inputs.items() if x is not None}
    if spec.rope is not None and spec.rope.axes != 1 and {"position_ids", "cos"} & matched.keys():
        raise UnavailableError(
            f"{file.path}: the layer's positions have {spec.rope.axes} axes; files of others are "
            f"judged with one."
        )
    dtype = matched["hidden_states"].dtype
    for value in (output, *(y for x in caches.values() for y in (x.before, x.after))):
        if value.dtype != dtype:
            raise UnavailableError(
                f"{file.path}: {value} is not of {dtype}, as its hidden_states are; layers are "
                f"judged in one dtype."
            )
    return MatchedLayer(
        inputs=matched,
        caches=caches,
        output=output,
        others=tuple(results),
        fixed=are_fixed(file, caches, matched),
    )


def _is_wide(value: Value, width: int) -> bool:
    return value.shape is not None and len(value.shape) == 3 and value.shape[-1] == width


def _holds(name: str) -> Callable[[Value], bool]:
    return lambda value: _kind(value.name) == name


def _kind(theirs: str) -> str | None:
    """What a cache of one layer holds, by its name, with or without a number."""
    words = set(re.split(r"[^a-z]+", re.sub(r"key_?values?", "", theirs.lower())))
    kinds = {kind for kind, names in KINDS.items() if words & names}
    return kinds.pop() if len(kinds) == 1 else None


KINDS = {"key": {"key", "keys", "k"}, "value": {"value", "values", "v"}}
