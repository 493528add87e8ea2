"""One captured attention module against ours: the float64 module, then the exported artifact."""

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rope_export import Artifact, RotaryAttention, export, open_session
from rope_export.arrays import fill_cache
from rope_export.checkpoints import open_model
from rope_export.errors import CheckpointError, SpecError
from rope_export.interface import Interface, attention_interface
from rope_export.lowerings import lowerings, refusal
from rope_export.parity.bounds import floors, tolerance
from rope_export.parity.layer.chain import longest_reduction
from rope_export.parity.metrics import SCALED_MAX
from rope_export.sessions import Session
from rope_export.spec import AttentionSpec
from tests.conformance.families import kept
from tests.conformance.families.calls import comparable, expected, inputs_of, steps, tables
from tests.conformance.families.capture import Call, Capture
from tests.conformance.families.recorder import KeepFloat64

UNMODIFIED = 2e-6
"""transformers computes softmax, norms and angles in float32 even in float64 modules."""
ROUNDING = 64 * 2**-24
"""What a float32 angle below 64 may be off by."""
FLOAT64 = 1e-12
"""With softmax and norms in float64 on both sides; angles stay the float32 ones."""


APART = {
    ("MoonshineModel", "encoder."): "the config's common keys describe the decoder; "
    "the encoder has none of its own",
    ("DiffusionGemmaDecoderModel", ""): "a canvas whose tokens "
    "see each other and another model's cache",
}
"""Attention that no config of its own describes, by model class and the start of the module's path:
never read, so never exported."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one module: proven, refused with the feature that is missing, or wrong."""

    module: str
    path: str
    variant: str
    status: str
    reason: str = ""
    features: tuple[str, ...] = ()
    causal: bool = False
    unmodified: float = 0.0
    float64: float = 0.0
    lowering: str = ""
    runtime: float = 0.0
    tolerance: float = 0.0
    calls: tuple[str, ...] = ()


def compared(
    capture: Capture,
    folder: Path,
    done: dict[str, Outcome],
    every_way: bool = False,
    artifacts: bool = True,
    quick: bool = False,
) -> Outcome:
    """The capture against our reading of the folder that its model was saved to.

    folder: for the artifact. done: outcomes by the module, spec and calls; a layer that is the same
    as one that has been exported is not exported again. every_way: by every lowering and cache that
    can express it, not only the one that "auto" takes. artifacts: without, the module alone.
    quick: one artifact for layers that differ in numbers and biases alone, and none for other
    rotations, of which the proof of variants makes artifacts.
    """
    named: dict[str, Any] = {
        "module": capture.module_class,
        "path": capture.module_path,
        "variant": capture.variant,
    }
    for (model_class, path), why in APART.items():
        if capture.model_class == model_class and capture.module_path.startswith(path):
            return Outcome(**named, status="refused", reason=f"not read from a config: {why}.")
    try:
        source = open_model(capture.folder, part=capture.part).layer(capture.layer_idx or 0)
        weights = {name: tensor.double() for name, tensor in source.weights().items()}
    except SpecError as error:
        return Outcome(**named, status="refused", reason=str(error))
    except CheckpointError as error:
        line = str(error).replace(f"{capture.folder}{os.sep}", "").replace(str(capture.folder), ".")
        return Outcome(**named, status="unread", reason=line)
    spec = source.spec
    named["features"] = tuple(x.name for x in spec.features() if not x.plain)
    named["causal"] = spec.causal
    calls = [call for call in capture.calls if comparable(call)]
    if not calls:
        return Outcome(**named, status="wrong", reason="no call of it can be compared")
    with torch.no_grad():
        plain, exact = module_errors(spec, weights, calls, tables(capture, calls))
    errors: dict[str, Any] = {
        "unmodified": plain,
        "float64": exact,
        "calls": tuple(sorted({c.kind for c in calls})),
    }
    if plain > UNMODIFIED or exact > FLOAT64:
        return Outcome(**named, **errors, status="wrong", reason="differs from transformers")
    if not artifacts or (quick and capture.variant.startswith("rope=")):
        return Outcome(**named, **errors, status="proven")
    key = repr((capture.module_class, spec, [(c.kind, c.past, c.output.shape) for c in calls]))
    if key not in done:
        done[key] = artifact_outcome(
            capture, spec, weights, calls, folder, named | errors, every_way, quick
        )
    first = done[key]
    return dataclasses.replace(
        Outcome(**named, **errors, status=first.status, reason=first.reason),
        lowering=first.lowering,
        runtime=first.runtime,
        tolerance=first.tolerance,
    )


def module_errors(
    spec: AttentionSpec,
    weights: dict[str, Tensor],
    calls: list[Call],
    tables: list[tuple[Tensor, Tensor]],
) -> tuple[float, float]:
    """Largest relative error of our float64 module over all calls: as it is, and with softmax and
    norms in float64. tables: transformers' own cos and sin where their last bit differs."""
    layer = RotaryAttention.from_weights(spec, weights)
    layer.cos_sin = _as_trained(layer.cos_sin, tables)  # type: ignore[method-assign]
    plain = largest_error(spec, calls, lambda inputs: layer(**inputs), exact=False)
    with KeepFloat64():
        exact = largest_error(spec, calls, lambda inputs: layer(**inputs), exact=True)
    return plain, exact


def _as_trained(cos_sin: Any, tables: list[tuple[Tensor, Tensor]]) -> Any:
    """cos and sin of the float32 angle, also where everything else is kept at float64; from
    `tables`, once they are seen to differ by rounding only."""

    def tabled(position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        with torch._C.DisableTorchFunction():
            cos, sin = cos_sin(position_ids, dtype)
            for pair in tables:
                theirs = [x.reshape(-1, *x.shape[-2:]) for x in pair]
                if theirs[0].shape[1:] != cos.shape[1:]:
                    continue
                theirs = [x.expand(cos.shape[0], -1, -1) for x in theirs]
                apart = [(x - y).abs().max() for x, y in zip(theirs, (cos, sin), strict=True)]
                if max(apart) <= ROUNDING:
                    return theirs[0].to(dtype), theirs[1].to(dtype)
            return cos, sin

    return tabled


def largest_error(spec: AttentionSpec, calls: list[Call], run: Any, *, exact: bool) -> float:
    """Largest error of any call, scaled by the largest value of the expected output."""
    names = [pair.input for pair in growing(spec).caches]
    largest = 0.0
    at: dict[int, int] = {}
    # A module that runs several times a step has as many caches, by the length they have come to.
    caches: dict[int, list[dict[str, Tensor]]] = {0: []}
    for call, inputs, goes_on in steps(spec, calls):
        cache = caches[call.past].pop(0) if goes_on else {}
        output, *present = run({**inputs, **cache})
        if call.kind != "encode":
            total = call.past + output.shape[1]
            caches.setdefault(total, []).append(dict(zip(names, present, strict=False)))
        done = at.get(id(call), 0)
        wanted, real = expected(call, exact, done, output.shape[1])
        at[id(call)] = done + output.shape[1]
        if wanted.shape != output.shape:
            return float("inf")
        wanted, output = wanted[real].double(), torch.as_tensor(output)[real].double()
        error = float((output - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))
        largest = max(largest, error if error == error else float("inf"))
    return largest


def artifact_outcome(
    capture: Capture,
    spec: AttentionSpec,
    weights: dict[str, Tensor],
    calls: list[Call],
    folder: Path,
    named: dict[str, Any],
    every_way: bool,
    quick: bool,
) -> Outcome:
    """The saved model's layer, exported, in onnxruntime; its error and eager's are both against
    transformers in float64. every_way: by every lowering and cache that can, the worst
    of them. quick: see `compared`."""
    calls = [call for call in calls if spec.causal or not call.past]
    padding = any(growing(spec).mask in inputs_of(call, spec) for call in calls)
    found = []
    for lowering, cache in _ways(spec) if every_way else [("auto", _plain_cache(spec))]:
        key = kept.key(spec, capture.variant, calls, lowering, cache, padding, quick=quick)
        one = kept.KEPT.get(key, kept.Compared)
        if one is None:
            artifact = exported(
                capture, spec, folder, padding=padding, lowering=lowering, cache=cache
            )
            with open_session(artifact, "onnxruntime") as session:
                error, tolerance = runtime_errors(spec, weights, calls, session)
            one = kept.Compared(
                lowering=artifact.manifest.lowering, error=error, tolerance=tolerance
            )
            kept.KEPT.put(key, one)
        found.append(one)
    worst = max(found, key=lambda x: x.error / x.tolerance)
    status = "proven" if worst.error <= worst.tolerance else "wrong"
    return Outcome(
        **named,
        status=status,
        reason="" if status == "proven" else "the artifact differs from transformers",
        lowering=worst.lowering,
        runtime=worst.error,
        tolerance=worst.tolerance,
    )


def _plain_cache(spec: AttentionSpec) -> str:
    return "growing" if spec.causal else "none"


def _ways(spec: AttentionSpec) -> Iterator[tuple[str, str]]:
    """Every lowering with every cache that can express the layer in onnxruntime."""
    for lowering in lowerings().values():
        for cache in lowering.caches:
            if refusal(lowering, spec, cache) is None and (cache != "none" or not spec.causal):
                yield lowering.name, cache


def exported(
    capture: Capture,
    spec: AttentionSpec,
    folder: Path,
    *,
    padding: bool,
    lowering: str = "auto",
    cache: str | None = None,
) -> Artifact:
    """The capture's layer, exported from the folder that the model was saved to."""
    return export(
        capture.folder,
        out=folder / f"{lowering}-{cache}",
        layer=capture.layer_idx or 0,
        part=capture.part,
        lowering=lowering,
        cache=cache or _plain_cache(spec),  # type: ignore[arg-type]
        padding=padding,
    )


def runtime_errors(
    spec: AttentionSpec, weights: dict[str, Tensor], calls: list[Call], session: Session
) -> tuple[float, float]:
    """The session's largest error, and what it may be by the acceptance rule."""
    single = RotaryAttention.from_weights(spec, {k: v.float() for k, v in weights.items()})
    with torch.no_grad():
        eager = largest_error(spec, calls, lambda x: single(**_single(x)), exact=True)
    error = largest_error(spec, calls, lambda x: _run(session, spec, _single(x)), exact=True)
    total = max(call.past + call.output.shape[1] for call in calls)
    roundings = longest_reduction(spec, total)
    floor = floors("float32", roundings, {SCALED_MAX: 0.0}, 1)[SCALED_MAX]
    return error, tolerance(eager, floor)


def _single(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.float() if v.is_floating_point() else v for k, v in inputs.items()}


FREE = 3
"""Slots of a fixed cache that stay free after the call."""
STALE = 100.0
"""What lies in the slots of a fixed cache after the valid ones."""


def _run(session: Any, spec: AttentionSpec, inputs: dict[str, Tensor]) -> list[Tensor]:
    """The session's output and its caches after the call, without the free slots of fixed ones.

    inputs: as those of a growing cache, without a past or a mask where the call has none.
    """
    own, interface = growing(spec), session.interface
    hidden = inputs[own.main_input]
    batch, sequence = hidden.shape[:2]
    pasts = [inputs.get(pair.input) for pair in own.caches]
    past = 0 if pasts[0] is None else pasts[0].shape[own.caches[0].axis]
    total, free = past + sequence, FREE if interface.cache == "fixed" else 0
    axes = {"batch": batch, "sequence": sequence, "past": past, "capacity": total + free}
    given = {interface.main_input: hidden}
    if interface.positions is not None:
        given[interface.positions] = inputs[str(own.positions)]
    for pair, value in zip(interface.caches, pasts, strict=False):  # some have none
        cache = torch.full(interface.input(pair.input).sized(axes), STALE)
        if value is not None:
            fill_cache(cache, value, pair.axis, [past] * batch)
        given[pair.input] = cache
    if interface.lengths is not None:
        given[interface.lengths] = torch.full((batch,), past)
    mask = inputs.get(str(own.mask))
    if interface.mask is not None:
        mask = torch.ones(batch, total, dtype=torch.int64) if mask is None else mask
        given[interface.mask] = torch.nn.functional.pad(mask, (0, free), value=1)
    elif mask is not None or (past and not interface.caches):
        raise ValueError("the artifact has no input for the mask or the past of this call")
    outputs = session.run({k: v.contiguous() for k, v in given.items()})
    after = [outputs[x.output].narrow(x.axis, 0, total).contiguous() for x in interface.caches]
    return [outputs[interface.main_output], *after]


def growing(spec: AttentionSpec) -> Interface:
    """The interface of the layer with a growing cache and a mask, by whose names calls go."""
    return attention_interface(spec, cache="growing", padding=True)
