"""Features by allow-list: what a lowering does not list is refused by name, never dropped."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest

from rope_export import AttentionSpec, RotaryAttention
from rope_export.bench.baselines import CompiledBaseline, SdpaBaseline
from rope_export.errors import InputError
from rope_export.lowerings import lowered, lowering_for, lowerings, refusal
from rope_export.quantization import Quantization
from rope_export.rope.default import DefaultRope
from rope_export.spec import LatentSpec
from rope_export.spec.features import NAMED, NAMED_OF_ROPE, beyond


@dataclass(frozen=True, kw_only=True)
class NewSpec(AttentionSpec):
    """A spec to which a feature was added that nothing else knows of."""

    echo_strength: float = 0.0


PLAIN: dict[str, Any] = {
    "hidden_size": 64,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 16,
    "rope": DefaultRope(rotary_dim=16),
}
LAYER = AttentionSpec(**PLAIN)


@pytest.mark.parametrize("name", lowerings())
def test_a_feature_that_a_lowering_does_not_list_is_refused(name: str) -> None:
    lowering, spec = lowerings()[name], NewSpec(**PLAIN, echo_strength=0.5)
    for cache in lowering.caches:
        reason = refusal(lowering, spec, cache)
        assert reason == f"lowering {name!r} cannot express echo strength 0.5; no lowering can"
        assert refusal(lowering, NewSpec(**PLAIN), cache) is None
    with pytest.raises(InputError, match="cannot express echo strength"):
        lowered(RotaryAttention(spec), lowering, next(iter(lowering.caches)))


def test_fused_attention_of_torch_refuses_it_as_well() -> None:
    for baseline in (SdpaBaseline, CompiledBaseline):
        assert "echo strength" in str(baseline.refusal(NewSpec(**PLAIN, echo_strength=0.5)))
        assert baseline.refusal(NewSpec(**PLAIN)) is None


@pytest.mark.parametrize("name", lowerings())
def test_a_layout_that_a_lowering_does_not_list_is_refused(name: str) -> None:
    rope = DefaultRope(rotary_dim=16)
    object.__setattr__(rope, "layout", "spiral")
    spec = dataclasses.replace(LAYER, rope=rope)
    assert "cannot express spiral" in str(refusal(lowerings()[name], spec, "none"))
    assert "spiral" in str(SdpaBaseline.refusal(spec))


def test_every_field_of_a_spec_is_a_feature_or_a_size() -> None:
    """What `features_of` names is what there is, so that only new fields are refused as such."""
    assert {field.name for field in dataclasses.fields(AttentionSpec)} == NAMED
    rope_fields = {field.name for field in dataclasses.fields(DefaultRope)}
    assert rope_fields == NAMED_OF_ROPE


def test_a_refusal_names_what_can_express_the_layer() -> None:
    sunk = dataclasses.replace(LAYER, sinks=True)
    with pytest.raises(InputError) as error:
        lowering_for("standard", sunk, "fixed")
    assert str(error.value) == (
        "lowering 'standard' cannot express sinks: Attention-23 has no such input; "
        "use lowering 'ort' or 'tensorrt'"
    )
    narrow = dataclasses.replace(LAYER, value_dim=8)
    assert "'ort' cannot express value width" in str(refusal(lowerings()["ort"], narrow, "none"))
    assert "'portable' or 'standard'" in str(refusal(lowerings()["ort"], narrow, "growing"))
    with pytest.raises(InputError, match="no other lowering has weights in 4 bits"):
        lowering_for("ort", narrow, "growing", Quantization(bits=4))


def test_a_latent_in_a_fixed_cache_is_offered_another_lowering_for_it() -> None:
    spec = AttentionSpec(
        hidden_size=64,
        heads=4,
        kv_heads=4,
        head_dim=16,
        latent=LatentSpec(q_rank=None, kv_rank=8, nope_dim=8, rope_dim=8),
        rope=DefaultRope(rotary_dim=8),
    )
    reason = str(refusal(lowerings()["tensorrt"], spec, "fixed"))
    assert "cache 'fixed' of a latent" in reason
    assert reason.endswith("use lowering 'standard'")
    assert beyond(spec, lowerings()["standard"].features) == ()
