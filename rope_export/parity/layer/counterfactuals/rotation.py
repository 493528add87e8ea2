"""Counterfactuals of the rotation."""

from collections.abc import Iterator

import numpy as np

from rope_export.parity.layer.counterfactuals.base import (
    Counterfactual,
    Inputs,
    changed,
    of_kind,
    with_rope,
)
from rope_export.parity.layer.reference import ReferenceLayer
from rope_export.rope.default import DefaultRope
from rope_export.spec import AttentionSpec, Feature

CLIPPED = 131_071
"""The last position of the longest published tables."""


def _plain_rope(spec: AttentionSpec, width: int) -> DefaultRope:
    """Default frequencies over `width` features, laid out as the spec's."""
    rope = spec.rope
    if rope is None:
        return DefaultRope(rotary_dim=width)
    axes = (*rope.pair_axes, *(0,) * (width // 2))[: width // 2] if rope.pair_axes else ()
    return DefaultRope(
        rotary_dim=width,
        theta=rope.theta,
        layout=rope.layout,
        pair_axes=axes,
        clockwise=rope.clockwise,
    )


@of_kind("variant")
def _variant(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    rope = layer.spec.rope
    assert rope is not None
    if rope.rope_type != "default":
        plain = _plain_rope(layer.spec, rope.rotary_dim)
        yield Counterfactual(
            fault="frequencies of the default variant",
            layer=changed(layer, rope=plain),
            search="far",
        )


@of_kind("theta")
def _theta(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    yield Counterfactual(fault="theta doubled", layer=with_rope(layer, theta=2 * feature.value))


@of_kind("layout")
def _layout(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    other = "interleaved" if feature.name == "half_split" else "half_split"
    yield Counterfactual(fault=f"layout {other}", layer=with_rope(layer, layout=other))


@of_kind("partial")
def _partial(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    spec = layer.spec
    width = spec.head_dim if spec.latent is None else spec.latent.rope_dim
    plain = _plain_rope(spec, width // 2 * 2)
    yield Counterfactual(fault="the whole head rotated", layer=changed(layer, rope=plain))


@of_kind("axes")
def _axes(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    rope = layer.spec.rope
    assert rope is not None
    swapped = tuple((axis + 1) % rope.axes for axis in rope.pair_axes)
    yield Counterfactual(fault="axes swapped", layer=with_rope(layer, pair_axes=swapped))


@of_kind("clockwise")
def _clockwise(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    yield Counterfactual(fault="counterclockwise", layer=with_rope(layer, clockwise=False))


@of_kind("attention factor")
def _attention_factor(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    class Unscaled(ReferenceLayer):
        def _cos_sin(
            self, x: np.ndarray, position_ids: np.ndarray | None
        ) -> tuple[np.ndarray, np.ndarray]:
            cos, sin = super()._cos_sin(x, position_ids)
            return cos / feature.value, sin / feature.value

    other = Unscaled(layer.spec, layer.weights, layer.inv_freq)
    yield Counterfactual(fault="attention factor 1", layer=other)


@of_kind("length")
def _length(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    """Frequencies chosen without regard to the length, and one position late."""
    spec = layer.spec
    short = ReferenceLayer(spec, layer.weights, lambda length: layer.inv_freq(1))
    yield Counterfactual(fault="frequencies of a short call", layer=short, search="far")
    first = trained_length(spec)
    if first is not None and spec.rope is not None and spec.rope.rope_type == "longrope":
        late = ReferenceLayer(spec, layer.weights, lambda length: layer.inv_freq(length - 1))
        at = Counterfactual(
            fault="frequencies one position late", layer=late, search="far", limit=first
        )
        yield at
        long = ReferenceLayer(spec, layer.weights, lambda length: layer.inv_freq(2**40))
        yield Counterfactual(fault="frequencies of a long call", layer=long)


def trained_length(spec: AttentionSpec) -> int | None:
    """Positions of the original context, where the rotation knows it."""
    for name in ("original_length", "max_position_embeddings"):
        value = getattr(spec.rope, name, None)
        if value is not None:
            return int(value)
    return None


@of_kind("positions")
def _positions(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    def clipped(inputs: Inputs) -> Inputs:
        return {**inputs, "position_ids": np.minimum(inputs["position_ids"], CLIPPED)}

    def absolute(inputs: Inputs) -> Inputs:
        return {**inputs, "position_ids": np.abs(inputs["position_ids"])}

    yield Counterfactual(
        fault=f"positions clipped at {CLIPPED:,}", layer=layer, inputs=clipped, search="far"
    )
    if layer.spec.first_position is None:
        yield Counterfactual(
            fault="absolute values of positions", layer=layer, inputs=absolute, search="far"
        )


@of_kind("no rotation")
def _no_rotation(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    spec = layer.spec
    width = spec.head_dim if spec.latent is None else spec.latent.rope_dim

    def placed(inputs: Inputs) -> Inputs:
        batch, sequence, _ = inputs["hidden_states"].shape
        counted = np.broadcast_to(np.arange(sequence), (batch, sequence))
        return {"position_ids": counted, **inputs}

    if width > 1:
        other = changed(layer, rope=_plain_rope(spec, width // 2 * 2))
        yield Counterfactual(fault="rotated by the default variant", layer=other, inputs=placed)
