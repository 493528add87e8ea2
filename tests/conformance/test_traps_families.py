"""Plausible and silent misreadings of model families, each against transformers.

Every test shows that our layer computes what transformers' own attention module computes, and that
the wrong reading does not: so it would fail if we had it. The reference is transformers 5.23 with
eager attention on the CPU in float64, random weights, batch 2.
"""

import dataclasses

import pytest

from rope_export.checkpoints.layout import blocks, group_by_group
from rope_export.rope.default import DefaultRope
from rope_export.spec import NormSpec
from tests.support.trained_layer import FAR, right, trained, turning, wrong


def test_glm_turns_neighbours_in_half_of_a_head() -> None:
    """models/glm. Wrong: halves paired, the whole head, and the powers of a whole head."""
    layer = trained("glm")
    rope = layer.spec.rope
    assert rope is not None
    assert rope.rotary_dim == layer.spec.head_dim // 2
    right(layer)
    wrong(layer.rotated_as(layout="half_split"))
    wrong(layer.rotated_as(rotary_dim=layer.spec.head_dim))
    whole = DefaultRope(rotary_dim=layer.spec.head_dim, theta=rope.theta).inv_freq()
    wrong(turning(layer, whole[: rope.rotary_dim // 2]))


def test_cohere_repeats_each_angle_beside_itself() -> None:
    """models/cohere: repeat_interleave, and the pairs (2i, 2i + 1). Wrong: halves."""
    layer = trained("cohere")
    right(layer)
    wrong(layer.rotated_as(layout="half_split"))


def test_gemma3_has_two_bases() -> None:
    """models/gemma3: sliding layers keep the base of 10000. Wrong: the other layer's."""
    sliding, full = trained("gemma3", 0), trained("gemma3", 1)
    assert sliding.spec.window is not None
    assert full.spec.window is None
    for layer, other in ((sliding, full), (full, sliding)):
        right(layer)
        wrong(layer.read_as(rope=other.spec.rope))


def test_olmo2_norms_the_full_width() -> None:
    """models/olmo2: the mean square is over all heads. Wrong: head by head, weights the same."""
    layer = trained("olmo2")
    right(layer)
    norm = layer.spec.q_norm
    assert isinstance(norm, NormSpec)
    assert norm.over == "all"
    by_head = dataclasses.replace(norm, over="heads")
    misread = layer.read_as(q_norm=by_head, k_norm=by_head)
    weights = {
        name: value.unflatten(0, (-1, layer.spec.head_dim)) if "_norm" in name else value
        for name, value in misread.weights.items()
    }
    wrong(dataclasses.replace(misread, weights=weights))


def test_hunyuan_norms_after_the_rotation() -> None:
    """models/hunyuan_v1_dense. Wrong: before, as most families do."""
    layer = trained("hunyuan_v1_dense")
    right(layer)
    wrong(layer.read_as(norm_after_rope=False))


def test_gpt_oss_has_sinks() -> None:
    """models/gpt_oss in eager attention; sdpa drops them silently. Wrong: without."""
    for index in (0, 1):
        layer = trained("gpt_oss", index)
        right(layer)
        wrong(layer.read_as(sinks=False))


def test_falcon_shares_keys_group_by_group() -> None:
    """models/falcon, new_decoder_architecture: rows are a group's queries, its key, its value, and
    neighbouring heads share a key. Wrong: all queries first; and every second head shares one."""
    layer = trained("falcon", new_decoder_architecture=True, num_kv_heads=2)
    spec = layer.spec
    assert (spec.heads, spec.kv_heads) == (4, 2)
    right(layer)
    wrong(layer.taken_as(blocks("query_key_value")))
    order = [0, 2, 1, 3]
    rows, width = layer.weights["q_proj.weight"], spec.head_dim
    columns = layer.weights["o_proj.weight"]
    weights = {
        **layer.weights,
        "q_proj.weight": rows.unflatten(0, (4, width))[order].flatten(0, 1),
        "o_proj.weight": columns.unflatten(1, (4, width))[:, order].flatten(1),
    }
    wrong(dataclasses.replace(layer, weights=weights))


def test_falcon_has_one_key_for_all_with_multi_query() -> None:
    """models/falcon: whatever num_kv_heads says; and the cache is of one head. Wrong: the value
    before the key, as CodeGen has it."""
    layer = trained("falcon", multi_query=True, new_decoder_architecture=False)
    assert layer.spec.heads > layer.spec.kv_heads == 1
    right(layer)
    _, present_key, present_value = layer.module()(**layer.steps[0].inputs)
    assert present_key.shape[1] == present_value.shape[1] == 1
    swapped = {**group_by_group("query_key_value")}
    swapped["k_proj"], swapped["v_proj"] = swapped["v_proj"], swapped["k_proj"]
    wrong(layer.taken_as(swapped))


def test_phi3_has_all_queries_before_the_keys() -> None:
    """models/phi3: qkv_proj is in three blocks. Wrong: head by head, a group's rows together."""
    layer = trained("phi3")
    right(layer)
    wrong(layer.taken_as(group_by_group("qkv_proj")))


DEEPSEEK_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 40.0,
    "original_max_position_embeddings": 16,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


def test_deepseek_v3_takes_neighbours_apart() -> None:
    """models/deepseek_v3: the pairs are (2i, 2i + 1), written to halves. Wrong: halves paired. That
    the rotated features then lie in another order shows in the cache alone."""
    layer = trained("deepseek_v3")
    right(layer)
    wrong(layer.rotated_as(layout="half_split"))
    beside = layer.rotated_as(layout="interleaved")
    right(beside)
    inputs = layer.steps[0].inputs
    keys = [reading.module()(**inputs)[2] for reading in (layer, beside)]
    assert float((keys[0] - keys[1]).abs().max()) > FAR
    right(trained("deepseek_v3", rope_interleave=False))


def test_deepseek_v3_scales_by_the_square_of_its_magnitude() -> None:
    """models/deepseek_v3: (0.1 mscale_all_dim ln(factor) + 1) ** 2 on top of head_dim ** -0.5, and
    nothing on cos and sin, where both mscales are the same. Wrong: none of it, once, or on cos and
    sin as well."""
    layer = trained("deepseek_v3", rope_parameters=dict(DEEPSEEK_YARN))
    right(layer)
    assert layer.spec.rope is not None
    assert layer.spec.rope.attention_factor == 1.0
    magnitude = 1.36888794541139  # 0.1 ln 40 + 1
    plain = layer.spec.head_dim**-0.5
    assert layer.spec.softmax_scale == pytest.approx(plain * magnitude**2, rel=1e-12)
    wrong(layer.read_as(scale=plain))
    wrong(layer.read_as(scale=plain * magnitude))
    wrong(layer.rotated_as(factor_given=magnitude))
