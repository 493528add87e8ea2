"""Configs that public reports are about, as transformers reads them: the same file, both ways."""

import dataclasses
from typing import Any

import pytest
from transformers import logging as transformers_logging

from rope_export import AttentionSpec
from rope_export.errors import SpecError
from tests.conformance.test_config_keys import FAR, TWO_KINDS, UNMODIFIED
from tests.support.layer_of import layer_of, tiny


@pytest.fixture(autouse=True)
def quiet():
    transformers_logging.set_verbosity_error()


def test_a_window_that_is_switched_off_hides_nothing() -> None:
    config = tiny("qwen2", head_dim=None, sliding_window=4, use_sliding_window=False)
    layer = layer_of(config)
    assert layer.spec.window is None
    assert layer.error() <= UNMODIFIED
    assert layer.error(dataclasses.replace(layer.spec, window=4)) > FAR


def test_a_window_of_qwen3_alone_hides_nothing() -> None:
    layer = layer_of(tiny("qwen3", sliding_window=4), 1)
    assert layer.spec.window is None
    assert layer.error() <= UNMODIFIED


def test_a_window_counts_the_token_itself() -> None:
    layer = layer_of(tiny("mistral", sliding_window=4))
    assert layer.spec.window == 4
    assert layer.error() <= UNMODIFIED
    assert layer.error(dataclasses.replace(layer.spec, window=5)) > FAR


def test_a_window_of_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match="sliding_window=0: it must be a positive whole number"):
        AttentionSpec.from_hf(tiny("mistral", sliding_window=0))


def test_a_base_among_the_rope_parameters_counts_more_than_one_beside_them() -> None:
    config = tiny(
        "llama", rope_theta=1e4, rope_parameters={"rope_theta": 5e5, "rope_type": "default"}
    )
    layer = layer_of(config)
    assert layer.spec.rope is not None
    assert layer.spec.rope.theta == 5e5
    assert layer.error() <= UNMODIFIED


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(
    ("model_type", "value"), [("gemma3_text", True), ("gemma4_text", "all")], ids=["3", "4"]
)
def test_gemma_sees_both_sides_where_it_is_told_to(model_type: str, value: Any, layer: int) -> None:
    own = {"global_head_dim": 16, "hidden_size_per_layer_input": 0}
    config = tiny(
        model_type,
        sliding_window=9,
        layer_types=TWO_KINDS,
        use_bidirectional_attention=value,
        **(own if value == "all" else {}),
    )
    both = layer_of(config, layer)
    assert not both.spec.causal
    assert both.error() <= UNMODIFIED


@pytest.mark.parametrize("rope_type", ["default", "yarn"])
def test_several_axes_rotate_part_of_a_head(rope_type: str) -> None:
    rope: dict[str, Any] = {"rope_type": rope_type, "mrope_section": [2, 1, 1], "rope_theta": 1e4}
    if rope_type == "yarn":
        rope |= {"factor": 4.0, "original_max_position_embeddings": 16}
    config = tiny(
        "qwen3_5_text",
        layer_types=["full_attention"] * 2,
        rope_parameters={**rope, "partial_rotary_factor": 0.5},
    )
    layer = layer_of(config)
    assert layer.spec.rope is not None
    assert layer.spec.rope.rotary_dim == 8
    assert layer.spec.rope.rope_type == rope_type
    assert layer.error() <= UNMODIFIED
