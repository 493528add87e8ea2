"""transformers' attention against ours, call by call."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rope_export.attention.layer import RotaryAttention
from rope_export.parity.bounds import UNIT_ROUNDOFF, tolerance
from rope_export.parity.layer.chain import longest_reduction
from rope_export.parity.metrics import errors
from rope_export.reading.calls import Calls, every_call
from rope_export.reading.models import Unread
from rope_export.reading.skeleton import Skeleton
from rope_export.reading.theirs import Theirs, cast
from rope_export.reading.verdict import Difference
from rope_export.spec import AttentionSpec, DType

AS_IS = 2e-6
"""Largest relative difference in float64: transformers computes softmax, norms and angles in
float32 even in a float64 module."""
OUTPUT = "attention_output"

Outputs = dict[str, Tensor]
"""By the call's name, what is judged of its output: tokens that are no padding."""


@dataclass
class Compared:
    """differences: calls on which the two are apart. left_out: why a call was not made."""

    differences: list[Difference]
    left_out: list[str]


def compared(
    skeleton: Skeleton, spec: AttentionSpec, weights: Mapping[str, Tensor], config: Any
) -> Compared:
    """Both sides on every call: in float64, in float32 and in the spec's dtype.

    One side in one dtype at a time, so that few copies of the weights are held at once.
    weights: ours, as they are in the source. config: transformers', of the attention.
    """
    every = list(every_call(spec, config))
    left_out: list[str] = []
    exact, every = _theirs(skeleton, spec, every, torch.float64, torch.float64, left_out)
    differences = list(_apart(_ours(spec, weights, every, torch.float64), exact))
    names: set[DType] = {"float32", spec.dtype}
    for name in sorted(names, reverse=True) if not differences else ():
        dtype = getattr(torch, name)
        reference = exact
        if not skeleton.is_exact_in(dtype):
            reference, every = _theirs(skeleton, spec, every, torch.float64, dtype, left_out)
        theirs, every = _theirs(skeleton, spec, every, dtype, dtype, left_out)
        ours = _ours(replace(spec, dtype=name), weights, every, dtype)
        left_out += [f"{x}, {name}: transformers' own output is not finite" for x in theirs
                     if not theirs[x].isfinite().all()]  # fmt: skip
        differences += _worse(spec, name, every, ours, theirs, reference)
    return Compared(differences=differences, left_out=left_out)


def _theirs(
    skeleton: Skeleton,
    spec: AttentionSpec,
    every: list[Calls],
    dtype: torch.dtype,
    rounded: torch.dtype,
    left_out: list[str],
) -> tuple[Outputs, list[Calls]]:
    """transformers' outputs, and the calls that could be made."""
    outputs: Outputs = {}
    done = []
    with cast(skeleton, rounded, dtype):
        for calls in every:
            try:
                for name, output in Theirs(skeleton, spec, dtype).run(calls):
                    outputs[name] = _judged(calls, name, output)
            except Unread as error:
                left_out.append(f"{calls.name}: {error}")
                undone = [name for name, _ in calls.steps if name in outputs]
                for name in undone:
                    del outputs[name]
            else:
                done.append(calls)
    return outputs, done


def _ours(
    spec: AttentionSpec, weights: Mapping[str, Tensor], every: list[Calls], dtype: torch.dtype
) -> Outputs:
    """Our eager layer's outputs."""
    layer = RotaryAttention.from_weights(spec, {k: v.to(dtype) for k, v in weights.items()})
    return {
        name: _judged(calls, name, output)
        for calls in every
        for name, output in _run(layer, spec, calls, dtype)
    }


def _run(
    layer: RotaryAttention, spec: AttentionSpec, calls: Calls, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    names = ("key", "value") if spec.latent is None else ("latent", "key_rope")
    past = {k: v.to(dtype) for k, v in calls.cache(spec).items()} if calls.past else {}
    hidden, mask = calls.hidden(spec.hidden_size).to(dtype), calls.mask()
    positions = calls.positions(1 if spec.rope is None else spec.rope.axes)
    for name, part in calls.parts():
        new = slice(part.start - calls.past, part.stop - calls.past)
        inputs = {"hidden_states": hidden[:, new], **{f"past_{k}": v for k, v in past.items()}}
        if spec.uses_positions:
            inputs["position_ids"] = positions[..., part].contiguous()
        if mask is not None:
            inputs["attention_mask"] = mask[:, : part.stop]
        output, *present = layer(**inputs)
        past = dict(zip(names, present, strict=True))
        yield name, output


def _judged(calls: Calls, name: str, output: Tensor) -> Tensor:
    mask = calls.mask()
    part = dict(calls.parts())[name]
    output = output.double()
    return output.flatten(0, 1) if mask is None else output[mask[:, part].bool()]


def _apart(ours: Outputs, theirs: Outputs) -> Iterator[Difference]:
    """Where the two differ in float64 by more than `AS_IS`."""
    for name, expected in theirs.items():
        error = float("inf")
        if ours[name].shape == expected.shape:
            largest = float(expected.abs().max())
            error = float((ours[name] - expected).abs().max()) / (largest or 1.0)
        if not error <= AS_IS:
            yield Difference(case=name, output=OUTPUT, error=error)


def _worse(
    spec: AttentionSpec,
    dtype: DType,
    every: list[Calls],
    ours: Outputs,
    theirs: Outputs,
    exact: Outputs,
) -> Iterator[Difference]:
    """Calls that fail the rule of a row: ours may be twice as far from the float64 module as
    theirs, or as the rounding floor."""
    for calls in every:
        reduction = longest_reduction(replace(spec, dtype=dtype), calls.total)
        floor = UNIT_ROUNDOFF[dtype] * reduction**0.5
        for name, _ in calls.steps:
            expected = exact[name].numpy()
            if not theirs[name].isfinite().all():
                continue
            mine = errors(ours[name].numpy() - expected, expected)
            eager = errors(theirs[name].numpy() - expected, expected)
            worst = max(mine, key=lambda x: mine[x] / max(eager[x], floor))
            if not mine[worst] <= tolerance(eager[worst], floor):
                yield Difference(case=f"{name}, {dtype}", output=OUTPUT, error=mine[worst])
