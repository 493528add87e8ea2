"""Counterfactuals of projections, norms and latents."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from rope_export.parity.layer.counterfactuals.base import Counterfactual, changed, of_kind, weighing
from rope_export.parity.layer.reference import ReferenceLayer
from rope_export.spec import Feature, NormSpec
from rope_export.spec.parts import Over


@of_kind("latent", "value width")
def _shapes(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    """No counterfactual: without these, tensors have other shapes, which are compared first."""
    yield from ()


@of_kind("latent factor")
def _latent_factor(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    assert layer.spec.latent is not None
    none: dict[str, Any] = {f"{feature.part}_factor": 1.0}
    latent = dataclasses.replace(layer.spec.latent, **none)
    yield Counterfactual(fault=f"{feature.name} 1", layer=changed(layer, latent=latent))


@of_kind("latent norm")
def _latent_norm(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    name = f"{feature.part}_norm"
    latent = layer.spec.latent
    assert latent is not None

    class Unnormed(ReferenceLayer):
        def norm(self, called: str, spec: NormSpec, x: np.ndarray) -> np.ndarray:
            return x if called == name else super().norm(called, spec, x)

    class Roomy(ReferenceLayer):
        def norm(self, called: str, spec: NormSpec, x: np.ndarray) -> np.ndarray:
            if called == name:
                spec = dataclasses.replace(spec, eps=10 * spec.eps)
            return super().norm(called, spec, x)

    same = (layer.spec, layer.weights, layer.inv_freq)
    yield Counterfactual(fault=f"{name} left out", layer=Unnormed(*same))
    yield Counterfactual(fault=f"epsilon of {name} times 10", layer=Roomy(*same), search="small")
    ones = np.ones_like(layer.weights[f"{name}.weight"])
    yield Counterfactual(
        fault=f"weights of {name} left out", layer=weighing(layer, **{f"{name}__weight": ones})
    )


@of_kind("bias")
def _bias(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    name = f"{feature.part}_proj"
    none = np.zeros_like(layer.weights[f"{name}.bias"])
    yield Counterfactual(
        fault=f"{feature.name} 0", layer=weighing(layer, **{f"{name}__bias": none})
    )


@of_kind("norm")
def _norm(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    name = f"{feature.part}_norm"
    norm: NormSpec = getattr(layer.spec, name)

    def with_norm(**facts: Any) -> ReferenceLayer:
        return changed(layer, **{name: dataclasses.replace(norm, **facts)})

    yield Counterfactual(fault=f"{name} left out", layer=changed(layer, **{name: None}))
    if norm.eps:
        yield Counterfactual(
            fault=f"epsilon of {name} times 10", layer=with_norm(eps=10 * norm.eps), search="small"
        )
    other = "layer" if norm.kind == "rms" else "rms"
    yield Counterfactual(fault=f"{name} a {other} norm", layer=with_norm(kind=other))
    for part, neutral in (("weight", 1.0 - norm.offset), ("bias", 0.0)):
        if getattr(norm, part):
            values = np.full_like(layer.weights[f"{name}.{part}"], neutral)
            yield Counterfactual(
                fault=f"{part} of {name} left out",
                layer=weighing(layer, **{f"{name}__{part}": values}),
            )
    if norm.weight and norm.offset:
        yield Counterfactual(fault=f"{name} without its offset", layer=with_norm(offset=0.0))
    yield from _other_span(layer, name, norm)


def _other_span(layer: ReferenceLayer, name: str, norm: NormSpec) -> Iterator[Counterfactual]:
    """A norm over all heads in place of each, or the other way round; with the same weights."""
    heads, width = layer.spec.norm_sizes[name]
    if heads == 1 or layer.spec.norm_after_rope:
        return
    over: Over = "all" if norm.over != "all" else "heads"
    other = changed(layer, **{name: dataclasses.replace(norm, over=over)})
    shapes = {"all": (heads * width,), "heads": (heads, width)}
    for part in ("weight", "bias"):
        if getattr(norm, part):
            full = np.broadcast_to(
                layer.weights[f"{name}.{part}"].reshape(-1, width), (heads, width)
            )
            other = weighing(other, **{f"{name}__{part}": full.reshape(shapes[over])})
    yield Counterfactual(fault=f"{name} over {over}", layer=other)


@of_kind("norm order")
def _norm_order(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    before = changed(layer, norm_after_rope=False)
    yield Counterfactual(fault="norms before the rotation", layer=before)


@of_kind("clip")
def _clip(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    off = changed(layer, clip=None)
    yield Counterfactual(fault="clip left out", layer=off, search="large")


@of_kind("value scale")
def _value_scale(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    yield Counterfactual(fault="value scale 1", layer=changed(layer, value_scale=1.0))


@of_kind("gate")
def _gate(layer: ReferenceLayer, feature: Feature) -> Iterator[Counterfactual]:
    yield Counterfactual(fault="gate left out", layer=changed(layer, gate=None))
    other = "softplus" if layer.spec.gate_kind == "sigmoid" else "sigmoid"
    yield Counterfactual(fault=f"a {other} gate", layer=changed(layer, gate_kind=other))
