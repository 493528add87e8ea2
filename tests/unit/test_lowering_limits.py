"""What a lowering's operators cannot run is refused by name; all else runs, and right."""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from rope_export import AttentionSpec, RotaryAttention, export, open_session
from rope_export.arrays import to_torch
from rope_export.checkpoints.drawn import drawn_weights
from rope_export.errors import InputError
from rope_export.exporter.translation import translate
from rope_export.interface import attention_interface
from rope_export.lowerings import lowered, lowering_for, lowerings, refusal
from rope_export.quantization import Quantization, is_quantized, pack, unpack
from rope_export.rope.default import DefaultRope
from rope_export.spec import LatentSpec
from tests.conftest import TINY

ROPE = DefaultRope(rotary_dim=16)
BASE = AttentionSpec(hidden_size=64, heads=4, kv_heads=2, head_dim=16, rope=ROPE)
RTOL = 1e-4
"""Far above what float32 rounds in sums of 64 terms, far below what a wrong operator is off by."""

CALLS = [(1, 1, 0), (1, 7, 0), (2, 5, 0), (2, 1, 9), (2, 3, 9), (1, 40, 5)]
"""Batch, new tokens, past."""


def headed(head_dim: int, rotary_dim: int | None = None, **facts: Any) -> AttentionSpec:
    rope = DefaultRope(rotary_dim=rotary_dim or head_dim)
    return dataclasses.replace(BASE, head_dim=head_dim, rope=rope, **facts)


def latent(nope: int, rope: int, rank: int, value: int) -> AttentionSpec:
    return AttentionSpec(
        hidden_size=64,
        heads=4,
        kv_heads=4,
        head_dim=nope + rope,
        value_dim=value,
        latent=LatentSpec(q_rank=None, kv_rank=rank, nope_dim=nope, rope_dim=rope),
        rope=DefaultRope(rotary_dim=rope),
    )


LAYERS: dict[str, AttentionSpec] = {
    "head 8": headed(8),
    "head 100": headed(100),
    "head 15": headed(15, 14),
    "head 3": headed(3, 2),
    "head 264": headed(264),
    "head 512": headed(512),
    "rotary 10 of 16": headed(16, 10),
    "no rotation": dataclasses.replace(BASE, rope=None),
    "71 heads, 1 kv": headed(8, heads=71, kv_heads=1),
    "9 heads, 3 kv": headed(8, heads=9, kv_heads=3),
    "hidden 1": headed(8, hidden_size=1),
    "hidden 7": headed(8, hidden_size=7),
    "window 1": dataclasses.replace(BASE, window=1),
    "window 2^31": dataclasses.replace(BASE, window=2**31),
    "window 2^40": dataclasses.replace(BASE, window=2**40),
    "window and later tokens": dataclasses.replace(BASE, causal=False, window=3),
    "window to both sides": dataclasses.replace(BASE, causal=False, window=3, window_after=1),
    "chunk 1": dataclasses.replace(BASE, chunk=1),
    "chunk 2^40": dataclasses.replace(BASE, chunk=2**40),
    "sinks, softcap, window": dataclasses.replace(BASE, sinks=True, softcap=50.0, window=4),
    "softcap 1e-6": dataclasses.replace(BASE, softcap=1e-6),
    "values 24": dataclasses.replace(BASE, value_dim=24),
    "values 1": dataclasses.replace(BASE, value_dim=1),
    "latent 15, 8, 23, 11": latent(15, 8, 23, 11),
    "latent 1, 2, 1, 1": latent(1, 2, 1, 1),
}
CORNERS = {
    ("ort", "window 2^40", "fixed"),
    ("ort", "window and later tokens", "none"),
    ("ort", "71 heads, 1 kv", "fixed"),
    ("standard", "head 100", "fixed"),
    ("standard", "values 1", "growing"),
    ("tensorrt", "head 15", "fixed"),
    ("tensorrt", "latent 1, 2, 1, 1", "growing"),
    ("portable", "head 3", "growing"),
}
"""What an ordinary run of the tests looks at; the whole sweep is behind the long marker."""


def sweep() -> Iterator[Any]:
    for lowering, layer, cache in itertools.product(
        lowerings(), LAYERS, ("none", "growing", "fixed")
    ):
        if refusal(lowerings()[lowering], LAYERS[layer], cache) is None:
            marks = () if (lowering, layer, cache) in CORNERS else pytest.mark.long
            yield pytest.param(lowering, layer, cache, marks=marks)


@pytest.mark.parametrize(("lowering", "layer", "cache"), list(sweep()))
def test_what_is_not_refused_runs_and_is_right(lowering, layer, cache) -> None:
    assert_right(LAYERS[layer], lowering, cache)


@pytest.mark.parametrize(
    ("hidden", "bits", "block"),
    [
        (17, 4, 16),
        *(
            pytest.param(hidden, bits, block, marks=pytest.mark.long)
            for hidden in (1, 31, 48, 100)
            for bits, block in ((4, 16), (4, 128), (8, 16), (8, 256))
        ),
    ],
)
def test_blocks_that_are_not_full_are_right(hidden, bits, block) -> None:
    how = Quantization(bits=bits, block_size=block, accuracy_level=1)
    assert_right(headed(8, hidden_size=hidden), "ort", "fixed", how)


def assert_right(
    spec: AttentionSpec, name: str, cache: str, how: Quantization | None = None
) -> None:
    """Calls of several sizes in onnxruntime, against eager PyTorch with the same weights."""
    lowering, weights = lowerings()[name], drawn_weights(spec, 0)
    packed = {}
    if how is not None:
        packed = {name: pack(w, how) for name, w in weights.items() if is_quantized(name)}
        inputs_of = {name: w.shape[1] for name, w in weights.items() if w.dim() > 1}
        weights |= {n: to_torch(unpack(x, how, inputs_of[n])) for n, x in packed.items()}
    eager = RotaryAttention.from_weights(spec, {n: w.clone() for n, w in weights.items()})
    interface = attention_interface(spec, cache=cache, padding=False)
    module = lowered(RotaryAttention.from_weights(spec, weights), lowering, cache, packed, how)
    model = translate(module, interface, lowering.caches[cache])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        ir.serde.serialize_model(model).SerializeToString(), options
    )
    stream = np.random.default_rng(0)
    for batch, sequence, past in CALLS:
        if past and cache == "none":
            continue
        capacity = past + sequence + 3
        axes = {"batch": batch, "sequence": sequence, "past": past, "capacity": capacity}
        feeds = {
            tensor.name: stream.standard_normal(tensor.sized(axes), dtype=np.float32)
            for tensor in interface.inputs
        }
        if spec.uses_positions:
            feeds["position_ids"] = np.tile(np.arange(past, past + sequence), (batch, 1))
        if cache == "fixed":
            feeds["cache_lengths"] = np.array([past, max(past - 4, 0)][:batch])
        with torch.no_grad():
            wanted = eager(**{name: torch.from_numpy(x) for name, x in feeds.items()})[0].numpy()
        found = session.run(["attention_output"], feeds)[0]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=RTOL * np.abs(wanted).max())


@pytest.mark.parametrize("head_dim", [1, 4, 12, 100, 250])
def test_head_sizes_that_the_operator_refuses_are_refused_by_name(head_dim) -> None:
    spec = headed(head_dim, 2 if head_dim > 1 else None) if head_dim > 1 else None
    spec = spec or dataclasses.replace(BASE, head_dim=1, rope=None)
    for cache in ("none", "growing", "fixed"):
        with pytest.raises(InputError, match=rf"'ort' cannot express head_dim={head_dim}: .*of 8"):
            lowering_for("ort", spec, cache)
        assert lowering_for("auto", spec, cache).name != "ort"
    with pytest.raises(InputError, match=r"of 8.*no other lowering has weights in 4 bits"):
        lowering_for("auto", spec, "fixed", Quantization(bits=4))


def test_openllama_3b_exports_where_it_was_a_file_that_never_ran(tmp_path: Path) -> None:
    """Its head has 100 features: 3,200 over 32 heads; here 4 heads of them."""
    config = tmp_path / "config.json"
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": None}
    config.write_text(json.dumps({**TINY, **heads, "hidden_size": 400}))
    artifact = export(config, out=tmp_path / "out", cache="fixed")
    assert artifact.manifest.lowering == "standard"
    with open_session(artifact) as session:
        stream = session.start(capacity=4)
        hidden = np.ones((1, 3, 400), np.float32)
        assert np.all(np.isfinite(stream.step(hidden)))


@pytest.mark.parametrize("window", [2**31 - 1, 2**31, 2**40])
def test_a_window_fits_in_the_operators_32_bits(window: int) -> None:
    lowering, spec = lowerings()["ort"], dataclasses.replace(BASE, window=window)
    interface = attention_interface(spec, cache="growing", padding=False)
    layer = RotaryAttention.from_weights(spec, drawn_weights(spec, 0))
    graph = translate(
        lowered(layer, lowering, "growing"), interface, lowering.caches["growing"]
    ).graph
    (attention,) = (node for node in graph if node.op_type == "GroupQueryAttention")
    # numpy refuses a Python int that 32 bits cannot hold.
    assert np.int32(attention.attributes["local_window_size"].as_int()) == 2**31 - 1
