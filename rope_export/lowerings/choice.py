"""Which lowerings there are, what each refuses, and which one suits a layer."""

from collections.abc import Sequence

from rope_export.discovery import modules_of
from rope_export.errors import InputError
from rope_export.lowerings.base import Lowering
from rope_export.quantization import Quantization
from rope_export.spec import AttentionSpec
from rope_export.spec.features import beyond


def lowerings() -> dict[str, Lowering]:
    """Every lowering by its name: those that the files of this folder define."""
    assert __package__ is not None
    by_name: dict[str, Lowering] = {}
    for module in modules_of(__package__):
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Lowering) and value is not Lowering:
                by_name[value.name] = value()
    return by_name


def lowering_for(
    name: str, spec: AttentionSpec, cache: str, quantization: Quantization | None = None
) -> Lowering:
    """The lowering called `name`, or for "auto" the one that suits `spec` and `cache` best.

    quantization: of the weights, if they are to be quantized.
    Raises: InputError naming the lowerings, or what the lowering cannot express.
    """
    every = lowerings()
    if name != "auto" and name not in every:
        raise InputError(f"lowering {name!r} does not exist; use auto, {', '.join(every)}.")
    candidates = [every[x] for x in (_order(spec, cache) if name == "auto" else [name])]
    refusals = [refusal(lowering, spec, cache, quantization) for lowering in candidates]
    for lowering, reason in zip(candidates, refusals, strict=True):
        if reason is None:
            return lowering
    able = [at for at, x in enumerate(candidates) if quantization is None or x.quantizes]
    raise InputError("; ".join(str(refusals[at]) for at in able or range(len(candidates))))


def lowering_for_all(
    name: str, specs: Sequence[AttentionSpec], cache: str, quantization: Quantization | None = None
) -> Lowering:
    """The lowering called `name`, or for "auto" the fastest in onnxruntime, that can express every
    one of a decoder's layers.

    Raises: InputError naming the first layer that the lowering cannot express, and why.
    """
    every = lowerings()
    if name != "auto" and name not in every:
        raise InputError(f"lowering {name!r} does not exist; use auto, {', '.join(every)}.")
    names = _order(specs[0], "fixed") if name == "auto" else [name]
    problems = []
    for candidate in names:
        reasons = [refusal(every[candidate], spec, cache, quantization) for spec in specs]
        at = next((at for at, reason in enumerate(reasons) if reason is not None), None)
        if at is None:
            return every[candidate]
        problems.append(f"layer {at}: {reasons[at]}")
    raise InputError("; ".join(problems))


def opset_of(lowering: Lowering, cache: str, opset: int | None, newest: int) -> int:
    """The opset to write: the lowering's own, or a newer one that was asked for.

    Raises: InputError for one that is too old, or newer than `newest`.
    """
    oldest = lowering.caches[cache]
    if opset is None:
        return oldest
    if not oldest <= opset <= newest:
        raise InputError(
            f"opset={opset}: lowering {lowering.name!r} with cache {cache!r} can be written in "
            f"opset {oldest} to {newest}."
        )
    return opset


def _order(spec: AttentionSpec, cache: str) -> list[str]:
    """Names of the lowerings, the one to take first first.

    The newest operators of ONNX itself leave a runtime most to optimise, and run in all that have
    them.
    With a fixed cache onnxruntime's own come first: Attention-24 computes over the whole capacity
    however few slots are filled. They are of no use in bfloat16, which needs another runtime.
    """
    every = [x for x in lowerings().values() if not x.engine]
    every.sort(key=lambda x: -x.caches.get(cache, 0))
    standard = [x.name for x in every if not x.needs]
    own = [x.name for x in every if x.needs]
    fixed = cache == "fixed" and spec.dtype != "bfloat16"
    return own + standard if fixed else standard + own


def refusal(
    lowering: Lowering, spec: AttentionSpec, cache: str, quantization: Quantization | None = None
) -> str | None:
    """Why `lowering` cannot express `spec` with `cache`, in one line, or nothing."""
    if quantization is not None and not lowering.quantizes:
        able = ", ".join(x.name for x in lowerings().values() if x.quantizes)
        bits = quantization.bits
        return f"lowering {lowering.name!r} cannot have weights in {bits} bits; {able} can"
    if quantization is not None and spec.dtype == "bfloat16":
        bits = quantization.bits
        return f"weights in {bits} bits go with dtype float32 or float16, not bfloat16"
    if cache not in lowering.caches:
        return (
            f"lowering {lowering.name!r} has no cache {cache!r}; it has "
            f"{', '.join(lowering.caches)}"
        )
    if cache != "none" and not spec.causal:
        return (
            f"cache {cache!r} with causal=False: a layer that sees later tokens has no cache; "
            f"use cache 'none'"
        )
    problem = _problem(lowering, spec, cache)
    return None if problem is None else f"{problem}; {_way_out(spec, cache, quantization)}"


def _problem(lowering: Lowering, spec: AttentionSpec, cache: str) -> str | None:
    """The features, or else the values, of `spec` that the lowering cannot express."""
    refused = beyond(spec, lowering.features)
    if not refused:
        limit = lowering.limit(spec, cache)
        return None if limit is None else f"lowering {lowering.name!r} cannot express {limit}"
    reasons = [lowering.reasons[x.kind] for x in refused if x.kind in lowering.reasons]
    why = f": {', '.join(reasons)}" if reasons else ""
    return f"lowering {lowering.name!r} cannot express {', '.join(map(str, refused))}{why}"


def _way_out(spec: AttentionSpec, cache: str, quantization: Quantization | None) -> str:
    """What the layer can be exported with instead."""
    every = [x for x in lowerings().values() if quantization is None or x.quantizes]
    for form in dict.fromkeys((cache, "growing")):
        able = [x.name for x in every if form in x.caches and _problem(x, spec, form) is None]
        if able:
            means = "" if form == cache else f" with cache {form!r}"
            return f"use lowering {' or '.join(map(repr, able))}{means}"
    if quantization is not None:
        return f"no other lowering has weights in {quantization.bits} bits"
    return "no lowering can"
