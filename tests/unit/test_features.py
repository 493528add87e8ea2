"""Features beyond plain attention: their tensors, which lowering says them, how faults show."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rope_export import Artifact, AttentionSpec, RotaryAttention, export, verify
from rope_export.attention import operators
from rope_export.attention.norm import Norm
from rope_export.errors import InputError, SpecError
from rope_export.lowerings import lowering_for
from rope_export.lowerings.portable import Portable
from rope_export.quantization import Quantization
from rope_export.rope.default import DefaultRope
from rope_export.spec import LatentSpec, NormSpec, PositionScale
from tests.conftest import TINY

pytestmark = pytest.mark.usefixtures("short_prompts")

NORMED = {"model_type": "qwen3"}
CAPPED = {
    "model_type": "gemma2",
    "attn_logit_softcapping": 1.0,
    "query_pre_attn_scalar": 1,
    "sliding_window": 4,
}
SUNK = {"model_type": "gpt_oss", "sliding_window": 4, "attention_bias": True}
LATENT = {
    "model_type": "deepseek_v3",
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
GATED = {"model_type": "afmoe", "sliding_window": 4}
BERT = {
    "local_attention": 8,
    "layer_types": ["sliding_attention"] * 2,
    "attention_bias": False,
    "num_key_value_heads": 4,
}
EVERY = [NORMED, CAPPED, SUNK, LATENT, GATED]
Make = Callable[..., Artifact]


@pytest.fixture
def make(exported: Make) -> Make:
    """An artifact of the tiny config with some keys changed."""
    return lambda config, **options: exported({**TINY, **config}, **options)


def names(tensors: Any) -> list[str]:
    return [tensor.name for tensor in tensors]


def test_sinks_are_refused_by_name_and_auto_finds_what_can(make: Make) -> None:
    with pytest.raises(InputError, match=r"'standard' cannot express sinks"):
        make(SUNK, lowering="standard")
    sunk, capped = (AttentionSpec.from_hf({**TINY, **config}) for config in (SUNK, CAPPED))
    assert lowering_for("auto", sunk, "growing").name == "portable"
    assert lowering_for("auto", capped, "growing").name == "standard"


def test_a_layer_that_sees_later_tokens_has_no_cache() -> None:
    spec = AttentionSpec.from_hf({**TINY, "model_type": "eurobert"})
    with pytest.raises(InputError, match=r"cache 'growing' with causal=False.*use cache 'none'"):
        lowering_for("auto", spec, "growing")
    assert lowering_for("auto", spec, "none").name == "standard"


def test_a_layer_without_rotation_takes_no_positions(make: Make) -> None:
    """An input is honoured or not there."""
    config = {"model_type": "smollm3", "no_rope_layers": [0, 1]}
    artifact = make(config)
    assert "position_ids" not in names(artifact.manifest.inputs)
    assert verify(artifact).passed
    assert "position_ids" in names(make(config, layer=1).manifest.inputs)


def test_latent_attention_caches_its_latent(make: Make) -> None:
    artifact = make(LATENT)
    inputs = {tensor.name: tensor.shape for tensor in artifact.manifest.inputs}
    assert inputs["past_latent"] == ("batch", "past", 24)
    assert inputs["past_key_rope"] == ("batch", "past", 8)
    outputs = names(artifact.manifest.outputs)
    assert outputs == ["attention_output", "present_latent", "present_key_rope"]


@pytest.mark.parametrize("config", EVERY, ids=lambda c: c["model_type"])
def test_padding_and_half_precision_pass(make: Make, config: dict[str, Any]) -> None:
    assert verify(make(config, padding=True, dtype="float16")).passed


CHUNKED = {
    "model_type": "llama4_text",
    "attention_chunk_size": 8,
    "no_rope_layers": [1, 1],
    "layer_types": ["chunked_attention"] * 2,
}
FIXED = [
    ("ort", NORMED, {"padding": True}),
    ("ort", CAPPED, {"dtype": "float16"}),
    ("ort", SUNK, {"padding": True}),
    ("ort", CHUNKED, {}),
    ("standard", CAPPED, {"padding": True}),
    ("standard", LATENT, {"padding": True}),
    ("standard", CHUNKED, {"padding": True}),
    ("standard", GATED, {"dtype": "float16"}),
]


@pytest.mark.parametrize(
    ("lowering", "config", "options"),
    FIXED,
    ids=[f"{lowering}-{config['model_type']}" for lowering, config, _ in FIXED],
)
def test_fixed_caches_pass(
    make: Make, lowering: str, config: dict[str, Any], options: dict[str, Any]
) -> None:
    """Rows of different length and caches filled to the last entry are among the cases."""
    assert verify(make(config, lowering=lowering, cache="fixed", **options)).passed


@pytest.mark.parametrize("config", [SUNK, CAPPED], ids=lambda c: c["model_type"])
def test_own_operators_grow_a_cache(make: Make, config: dict[str, Any]) -> None:
    assert verify(make(config, lowering="ort", padding=True)).passed


def test_own_operators_run_without_a_cache_and_see_later_tokens(make: Make) -> None:
    for config in ({"model_type": "eurobert"}, {"model_type": "modernbert", **BERT}):
        assert verify(make(config, lowering="ort", cache="none", padding=True)).passed


def test_what_the_operators_cannot_say_is_refused_by_name(make: Make) -> None:
    with pytest.raises(InputError, match=r"'ort' cannot express latent.*use lowering 'standard'"):
        make(LATENT, lowering="ort", cache="fixed")
    with pytest.raises(InputError, match=r"'portable' has no cache 'fixed'; it has none, growing"):
        make(NORMED, lowering="portable", cache="fixed")
    with pytest.raises(InputError, match="sinks"):
        make(SUNK, lowering="standard", cache="fixed")


def test_auto_takes_for_a_fixed_cache_what_reads_only_the_entries_in_use() -> None:
    plain, latent = (AttentionSpec.from_hf({**TINY, **config}) for config in (NORMED, LATENT))
    narrow = dataclasses.replace(plain, dtype="bfloat16")
    found = [lowering_for("auto", spec, "fixed").name for spec in (plain, latent, narrow)]
    assert found == ["ort", "standard", "standard"]
    assert lowering_for("auto", plain, "growing").name == "standard"
    assert lowering_for("auto", plain, "growing", Quantization(bits=4)).name == "ort"


@pytest.mark.parametrize("config", EVERY, ids=lambda c: c["model_type"])
def test_a_spec_comes_back_from_its_json(config: dict[str, Any]) -> None:
    spec = AttentionSpec.from_hf({**TINY, **config})
    assert AttentionSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def no_window(sequence, total, attention_mask, spec, device, lengths=None):
    spec = dataclasses.replace(spec, window=None)
    return ALLOWED(sequence, total, attention_mask, spec, device, lengths)


def without(**changed: Any) -> Callable[..., Any]:
    """The attention of a spec that lacks a feature, in eager and in the portable lowering."""

    def eager(q, k, v, allowed, spec, sinks, tap):
        return ATTEND(q, k, v, allowed, dataclasses.replace(spec, **changed), sinks, tap)

    def portable(self, request):
        spec = dataclasses.replace(request.spec, **changed)
        return PORTABLE(self, dataclasses.replace(request, spec=spec))

    return lambda: [(operators, "attend", eager), (Portable, "attend", portable)]


def sinks_of_another_sign() -> list[tuple[Any, str, Any]]:
    def eager(q, k, v, allowed, spec, sinks, tap):
        return ATTEND(q, k, v, allowed, spec, -sinks, tap)

    def portable(self, request):
        return PORTABLE(self, dataclasses.replace(request, sinks=-request.sinks))

    return [(operators, "attend", eager), (Portable, "attend", portable)]


GATE = RotaryAttention.gate
ALLOWED, ATTEND, PORTABLE = operators.allowed_slots, operators.attend, Portable.attend
FAULTS: dict[str, tuple[dict[str, Any], Callable[[], list[tuple[Any, str, Any]]]]] = {
    "only the norm's weight": (
        NORMED,
        lambda: [(Norm, "forward", lambda self, x: x * self.weight)],
    ),
    "softcap forgotten": (CAPPED, without(softcap=None)),
    "window forgotten": (CAPPED, lambda: [(operators, "allowed_slots", no_window)]),
    "sinks of another sign": (SUNK, sinks_of_another_sign),
    "gate upside down": (
        GATED,
        lambda: [(RotaryAttention, "gate", lambda self, x: 1 - GATE(self, x))],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_shared_fault_fails(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong in eager and in the artifact alike."""
    config, broken = FAULTS[fault]
    for place, name, wrong in broken():
        monkeypatch.setattr(place, name, wrong)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**TINY, **config}))
    report = verify(export(path, out=tmp_path / "artifact", lowering="portable"))
    assert report.status == "failed"
    by = {row.runtime for row in report.rows if row.status == "failed"}
    assert by == {"eager", "onnxruntime"}


PLAIN: dict[str, Any] = {
    "hidden_size": 64,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 16,
    "rope": DefaultRope(rotary_dim=16),
}
WRONG = {
    "softcap": {"softcap": 0.0},
    "clip": {"clip": float("inf")},
    "window": {"window": 0},
    "chunk": {"window": 4, "chunk": 4},
    "window_after": {"window_after": 2},
    "gate_kind": {"gate": "head", "gate_kind": "relu"},
    "head_dim": {"latent": LatentSpec(q_rank=None, kv_rank=8, nope_dim=8, rope_dim=16)},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_contradictory_spec_is_refused_by_the_field(name: str) -> None:
    with pytest.raises(SpecError, match=name) as error:
        AttentionSpec(**{**PLAIN, **WRONG[name]})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: NormSpec(kind="batch"),
        lambda: NormSpec(eps=-1.0),
        lambda: PositionScale(beta=0.1, length=0),
        lambda: LatentSpec(q_rank=0, kv_rank=8, nope_dim=8, rope_dim=8),
        lambda: LatentSpec(q_rank=None, kv_rank=0, nope_dim=8, rope_dim=8),
    ],
)
def test_wrong_parts_are_refused(wrong: Callable[[], Any]) -> None:
    with pytest.raises(SpecError, match=r"must be|use one of"):
        wrong()
