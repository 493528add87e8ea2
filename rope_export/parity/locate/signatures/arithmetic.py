"""Scales, norms and gates that are wrong, and precisions of matrix products."""

from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np

from rope_export.parity.layer.counterfactuals.base import changed
from rope_export.parity.layer.reference import ReferenceLayer
from rope_export.parity.locate.suspect import Alternative, Suspect
from rope_export.spec import NormSpec

RANK = 50


def alternatives(suspect: Suspect) -> Iterator[Alternative]:
    spec = suspect.layer.spec
    if suspect.stage.exact:
        return
    for text, scale in {
        "no scale: scores are multiplied by 1": 1.0,
        "scores are scaled by 1 / sqrt(hidden_size)": spec.hidden_size**-0.5,
        "scores are scaled by 1 / head_dim": 1 / spec.head_dim,
        "scores are scaled twice": spec.softmax_scale**2,
    }.items():
        if scale != spec.softmax_scale:
            yield _of(suspect, text, changed(suspect.layer, scale=scale))
    if "sinks" in suspect.layer.weights:
        weights = {**suspect.layer.weights, "sinks": -suspect.layer.weights["sinks"]}
        other = ReferenceLayer(spec, weights, suspect.layer.inv_freq)
        yield _of(suspect, "sinks have the other sign", other)
    yield from _norms(suspect)
    yield from _gates(suspect)
    yield from _roundings(suspect)


def _norms(suspect: Suspect) -> Iterator[Alternative]:
    class Outside(ReferenceLayer):
        def norm(self, name: str, spec: NormSpec, x: np.ndarray) -> np.ndarray:
            size = np.sqrt(np.mean(x * x, axis=-1, keepdims=True)) + spec.eps
            return self._weighted(name, spec, x / size)

    class Unnormed(ReferenceLayer):
        def norm(self, name: str, spec: NormSpec, x: np.ndarray) -> np.ndarray:
            return self._weighted(name, spec, x)

    for text, kind in {
        "epsilon is added outside of the root": Outside,
        "the norm's weights are applied without the norm": Unnormed,
    }.items():
        layer = suspect.layer
        yield _of(suspect, text, kind(layer.spec, layer.weights, layer.inv_freq))


def _gates(suspect: Suspect) -> Iterator[Alternative]:
    gate = suspect.trace.gate
    if gate is None or suspect.stage.key not in ("gate", "heads"):
        return
    own, heads = gate.reshape(*gate.shape[:2], -1), suspect.trace.mixed
    values = {"gate": 1 - own, "heads": (heads * (1 - gate)).reshape(*heads.shape[:2], -1)}
    yield Alternative(
        text="the gate is inverted: 1 - gate", value=lambda: values[suspect.stage.key]
    )


def _roundings(suspect: Suspect) -> Iterator[Alternative]:
    """Operands of matrix products with fewer bits."""
    kinds: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "TF32-like rounding: operands have 10 bits after the point": lambda x: _mantissa(x, 10),
        "operands are rounded to bfloat16": _to(ml_dtypes.bfloat16),
        "operands are rounded to float16": _to(np.float16),
    }
    for text, to in kinds.items():
        yield Alternative(text=text, value=lambda by=to: _product(suspect, by))  # type: ignore[misc]


def _product(suspect: Suspect, to: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | None:
    layer, trace, key = suspect.layer, suspect.trace, suspect.stage.key
    weights = layer.weights
    if f"{key}.weight" not in weights:
        return None
    x = trace.heads if key == "o_proj" else trace.x
    if key in ("q_b_proj", "kv_b_proj"):
        return None
    return to(x) @ to(weights[f"{key}.weight"]).T + weights.get(f"{key}.bias", 0.0)


def _to(kind: type) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: x.astype(np.float32).astype(kind).astype(np.float64)


def _mantissa(x: np.ndarray, bits: int) -> np.ndarray:
    """Rounded to the nearest number with so many bits after the leading one."""
    fraction, exponent = np.frexp(x)
    return np.ldexp(np.round(fraction * 2 ** (bits + 1)) / 2 ** (bits + 1), exponent)


def _of(suspect: Suspect, text: str, layer: ReferenceLayer) -> Alternative:
    return Alternative(text=text, value=lambda: suspect.of(layer))
