"""Every tensor on the way through an attention layer, as the reference has it."""

from collections.abc import Iterator

import numpy as np

from rope_export.parity.bounds import ACCUMULATOR, UNIT_ROUNDOFF
from rope_export.parity.layer.chain import longest_reduction, stored
from rope_export.parity.layer.deviations import rounding_deviations
from rope_export.parity.layer.reference import ReferenceLayer
from rope_export.parity.layer.trace import Trace
from rope_export.parity.locate.stage import Stage
from rope_export.spec import AttentionSpec

FEATURES = ("batch", "sequence", "channel")
HEADS = ("batch", "head", "sequence", "channel")
SLOTS = ("batch", "head", "slot", "channel")
SCORES = ("batch", "head", "sequence", "slot")

ORDER = (
    "cos", "sin", "q_a_proj", "q_latent", "q_b_proj", "q_proj", "k_proj", "v_proj", "kv_a_proj",
    "latent", "q", "k", "v", "q_rotated", "k_rotated", "q_ready", "k_ready", "cache", "keys",
    "values", "allowed", "bias", "products", "scores", "probabilities", "context", "gate", "heads",
    "o_proj",
)  # fmt: skip
"""The order in which a layer computes them; "cache" stands for the outputs that are the cache."""

TRIGONOMETRIC = 2
"""Roundings of a cosine: of the number itself, and of a function that is right to one unit in the
last place."""


def layer_stages(layer: ReferenceLayer, rough: ReferenceLayer, trace: Trace) -> list[Stage]:
    """The stages of one call, in the order in which they are computed.

    layer: the reference, whose call `trace` is. rough: with the roundings of a runtime's kernels.
    """
    squares: dict[str, np.ndarray] = {}
    rounding_deviations(layer, trace, squares.__setitem__)
    more = squares
    if rough is not layer:
        more = {}
        rounding_deviations(rough, trace, more.__setitem__)
    stages = []
    for key, axes, value, selected in _values(layer, trace):
        exact = key in ("allowed", "bias")
        stages.append(
            Stage(
                key=key,
                name=name_of(layer.spec, key),
                axes=axes,
                expected=value,
                squares=None if exact else _as(squares[key], value, key),
                rough=None if exact else _as(more[key], value, key),
                judged=selected,
                roundings=1 if exact else roundings(layer.spec, key, trace),
                exact=exact,
            )
        )
    return sorted(stages, key=lambda stage: ORDER.index(stage.key))


def cache_stage(
    name: str, expected: np.ndarray, used: np.ndarray, squares: np.ndarray | None = None
) -> Stage:
    """A cache after a call, (B, ..., T, D). used (B,): slots of each row that are valid then."""
    axes = (*("batch", "head")[: expected.ndim - 2], "slot", "channel")
    valid = np.arange(expected.shape[-2]) < used[:, None]
    return Stage(
        key="cache",
        name=name,
        axes=axes,
        expected=expected,
        squares=squares,
        judged=valid.reshape(len(valid), *[1] * (expected.ndim - 3), -1, 1),
    )


def values_of(layer: ReferenceLayer, trace: Trace) -> dict[str, np.ndarray]:
    """The values of the stages of one call, by key."""
    return {key: value for key, _, value, _ in _values(layer, trace)}


def name_of(spec: AttentionSpec, key: str) -> str:
    """The module that makes a tensor, or the tensor's own name where no module does."""
    norms = {x: getattr(spec, f"{x}_norm") for x in "qkv"}
    if key in norms and norms[key] is not None and not (spec.norm_after_rope and key != "v"):
        return f"{key}_norm"
    if key in ("q_ready", "k_ready") and spec.norm_after_rope and norms[key[0]] is not None:
        return f"{key[0]}_norm"
    if key == "q_ready" and spec.position_scale is not None:
        return "q_scaled"
    if key == "heads" and spec.o_norm is not None and spec.gate is None:
        return "o_norm"
    return {
        "q_latent": "q_a_norm",
        "latent": "kv_a_norm",
        "allowed": "mask",
        "bias": "mask",
        "gate": "gate_proj",
        "q_ready": "q_rotated",
        "k_ready": "k_rotated",
        "heads": "gated context" if spec.gate else "context",
    }.get(key, key)


def _as(squares: np.ndarray, value: np.ndarray, key: str) -> np.ndarray:
    """What was noted, arranged as the value."""
    if key in ("cos", "sin"):
        return squares[:, 0]
    if key == "context":
        return squares.swapaxes(1, 2)
    return squares.reshape(value.shape)


def _values(
    layer: ReferenceLayer, trace: Trace
) -> Iterator[tuple[str, tuple[str, ...], np.ndarray, np.ndarray | None]]:
    """Each tensor with its axes, and which of its elements are looked at."""
    spec, attended = layer.spec, trace.attended
    if spec.rope is not None:
        yield "cos", FEATURES, trace.cos[:, 0], None
        yield "sin", FEATURES, trace.sin[:, 0], None
    if spec.latent is None:
        for name in "qkv":
            yield f"{name}_proj", FEATURES, trace.projected[name], None
        yield "q", HEADS, trace.q, None
        yield "k", HEADS, trace.k, None
        yield "v", HEADS, trace.new(trace.cache["value"]), None
        yield "k_ready", HEADS, trace.new(trace.cache["key"]), None
    else:
        yield from _latent_values(layer, trace)
    yield "q_rotated", HEADS, trace.rotated_q, None
    yield "k_rotated", HEADS, trace.rotated_k, None
    yield "q_ready", HEADS, trace.ready_q, None
    visible, rows = trace.visible[:, None], attended[:, None, :, None]
    yield "allowed", SCORES, visible, rows
    yield "bias", SCORES, visible, rows
    yield "products", SCORES, trace.raw_scores, visible
    yield "scores", SCORES, trace.scores, visible
    yield "probabilities", SCORES, trace.weights, rows
    yield "context", HEADS, trace.mixed.swapaxes(1, 2), rows
    if trace.gate is not None:
        gate = trace.gate.reshape(*attended.shape, -1)
        yield "gate", FEATURES, gate, None
    yield "heads", FEATURES, trace.heads, attended[..., None]
    yield "o_proj", FEATURES, trace.output, attended[..., None]


def _latent_values(
    layer: ReferenceLayer, trace: Trace
) -> Iterator[tuple[str, tuple[str, ...], np.ndarray, np.ndarray | None]]:
    latent = layer.spec.latent
    assert latent is not None
    if latent.q_rank is None:
        yield "q_proj", FEATURES, trace.projected["q"], None
    else:
        yield "q_a_proj", FEATURES, trace.projected["q_a"], None
        yield "q_latent", FEATURES, trace.projected["q_latent"], None
        yield "q_b_proj", FEATURES, trace.projected["q"], None
    yield "kv_a_proj", FEATURES, trace.projected["kv_a"], None
    yield "latent", FEATURES, trace.new(trace.cache["latent"]), None
    seen = np.any(trace.visible, axis=1, keepdims=True)[..., None]  # stale slots are nobody's
    yield "keys", SLOTS, trace.keys, seen
    yield "values", SLOTS, trace.values, seen


STORED = {
    "cos": 1, "sin": 1, "q_a_proj": 1, "q_latent": 3, "q_b_proj": 4, "q_proj": 1, "k_proj": 1,
    "v_proj": 1, "kv_a_proj": 1, "latent": 3, "q": 3, "k": 3, "v": 3, "q_rotated": 6,
    "k_rotated": 6, "q_ready": 8, "k_ready": 8, "keys": 7, "values": 5,
}  # fmt: skip
"""Values stored one after the other up to a tensor, as `chain.STORED` counts them for the whole
layer; of those that are not listed, as many as for the whole."""


def roundings(spec: AttentionSpec, key: str, trace: Trace) -> int:
    """Roundings one upon the other in the longest chain up to a tensor."""
    if UNIT_ROUNDOFF[spec.dtype] > ACCUMULATOR:
        return min(STORED.get(key, stored(spec)), stored(spec))
    if key in ("cos", "sin"):
        return TRIGONOMETRIC
    total = trace.keys.shape[2]
    if key in STORED or key in ("products", "scores"):
        return max(spec.hidden_size, spec.head_dim)
    return longest_reduction(spec, total)
