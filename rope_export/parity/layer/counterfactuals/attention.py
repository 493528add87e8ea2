"""Counterfactuals of the scores, and of which slots a token sees."""

from collections.abc import Iterator, Mapping

import numpy as np

from rope_export.parity.layer.counterfactuals.base import Counterfactual, changed, of_kind, weighing
from rope_export.parity.layer.reference import ReferenceLayer
from rope_export.spec import Feature, PositionScale


@of_kind("causal")
def _causal(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    yield Counterfactual(fault="later tokens seen", layer=changed(layer, causal=False))


@of_kind("bidirectional")
def _bidirectional(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    causal = changed(layer, causal=True, window_after=None)
    yield Counterfactual(fault="later tokens not seen", layer=causal)


@of_kind("heads")
def _heads(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    """The heads' outputs are joined in another order."""
    width = layer.spec.value_head_dim
    rolled = np.roll(layer.weights["o_proj.weight"], width, axis=1)
    yield Counterfactual(fault="heads permuted", layer=weighing(layer, o_proj__weight=rolled))


@of_kind("group")
def _group(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    class Tiled(ReferenceLayer):
        def expanded(self, cache: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
            group = self.spec.heads // self.spec.kv_heads
            return tuple(np.tile(x, (1, group, 1, 1)) for x in super().expanded(cache))  # type: ignore[return-value]

    if layer.spec.kv_heads > 1:  # one key head can be shared in one way only
        tiled = Tiled(layer.spec, layer.weights, layer.inv_freq)
        yield Counterfactual(fault="neighbouring heads share no key", layer=tiled)


@of_kind("window")
def _window(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    size: int = feature.value
    for fault, window in (("no window", None), ("a window of one slot more", size + 1)):
        other = changed(layer, window=window)
        yield Counterfactual(fault=fault, layer=other, search="long", limit=size)
    if size > 1:
        other = changed(layer, window=size - 1)
        yield Counterfactual(
            fault="a window of one slot less", layer=other, search="long", limit=size
        )


@of_kind("window_after")
def _window_after(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    size: int = feature.value
    for fault, window in (("every later slot seen", None), ("one later slot more", size + 1)):
        other = changed(layer, window_after=window)
        yield Counterfactual(fault=fault, layer=other, search="long", limit=size)


@of_kind("chunk")
def _chunk(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    size: int = feature.value
    for fault, chunk in (("no chunks", None), ("chunks of one slot more", size + 1)):
        other = changed(layer, chunk=chunk)
        yield Counterfactual(fault=fault, layer=other, search="long", limit=size)


@of_kind("lengths")
def _lengths(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    """A constant of the file that could be a limit on slots is one."""
    limit: int = feature.value

    class Shortsighted(ReferenceLayer):
        def _visible(
            self, inputs: Mapping[str, np.ndarray], starts: np.ndarray, sequence: int, total: int
        ) -> np.ndarray:
            seen = super()._visible(inputs, starts, sequence, total)
            own = starts[:, None, None] + np.arange(sequence)[:, None]
            return seen & (own - np.arange(total) < limit)

    class Truncated(ReferenceLayer):
        def _visible(
            self, inputs: Mapping[str, np.ndarray], starts: np.ndarray, sequence: int, total: int
        ) -> np.ndarray:
            seen = super()._visible(inputs, starts, sequence, total)
            return seen & (np.arange(total) < limit)

    same = (layer.spec, layer.weights, layer.inv_freq)
    spec = layer.spec
    if all(size is None or size > limit for size in (spec.window, spec.chunk)):
        yield Counterfactual(
            fault=f"a window of {limit} slots",
            layer=Shortsighted(*same),
            search="long",
            limit=limit,
        )
    yield Counterfactual(
        fault=f"slots from {limit} on not seen", layer=Truncated(*same), search="long", limit=limit
    )


@of_kind("scale")
def _scale(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    yield Counterfactual(fault="scale doubled", layer=changed(layer, scale=2 * feature.value))


@of_kind("softcap")
def _softcap(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    for fault, softcap in (("no softcap", None), ("softcap doubled", 2 * feature.value)):
        other = changed(layer, softcap=softcap)
        yield Counterfactual(fault=fault, layer=other, search="large")


@of_kind("sinks")
def _sinks(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    none = {name: value for name, value in layer.weights.items() if name != "sinks"}
    without = ReferenceLayer(layer.spec, none, layer.inv_freq)
    yield Counterfactual(fault="no sinks", layer=without)


@of_kind("position scale")
def _position_scale(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    scale = layer.spec.position_scale
    assert scale is not None
    none = PositionScale(beta=0.0, length=scale.length, offset=scale.offset, form=scale.form)
    off = changed(layer, position_scale=none)
    yield Counterfactual(fault="no position scale", layer=off, search="far")
