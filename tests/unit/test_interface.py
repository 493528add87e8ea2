"""The interface of an artifact: what each tensor is for, and what a call must look like."""

from dataclasses import replace

import pytest

from rope_export.errors import TensorError
from rope_export.interface import CachePair, TensorType, attention_interface
from rope_export.rope.default import DefaultRope
from rope_export.spec import AttentionSpec
from rope_export.spec.parts import LatentSpec
from tests.support.interfaces import decoder_interface

SPEC = AttentionSpec(
    hidden_size=64, heads=4, kv_heads=2, head_dim=16, rope=DefaultRope(rotary_dim=16)
)
LATENT = AttentionSpec(
    hidden_size=64,
    heads=4,
    kv_heads=4,
    head_dim=24,
    value_dim=16,
    rope=DefaultRope(rotary_dim=8),
    latent=LatentSpec(q_rank=None, kv_rank=32, nope_dim=16, rope_dim=8),
)


def pair(before: str, after: str, axis: int) -> CachePair:
    return CachePair(input=before, output=after, axis=axis)


@pytest.mark.parametrize(
    ("spec", "cache", "pairs"),
    [
        (SPEC, "none", ()),
        (
            SPEC,
            "growing",
            (pair("past_key", "present_key", 2), pair("past_value", "present_value", 2)),
        ),
        (
            SPEC,
            "fixed",
            (pair("key_cache", "key_cache_out", 2), pair("value_cache", "value_cache_out", 2)),
        ),
        (
            LATENT,
            "growing",
            (
                pair("past_latent", "present_latent", 1),
                pair("past_key_rope", "present_key_rope", 1),
            ),
        ),
        (
            LATENT,
            "fixed",
            (
                pair("latent_cache", "latent_cache_out", 1),
                pair("key_rope_cache", "key_rope_cache_out", 1),
            ),
        ),
    ],
)
def test_a_layer_has_the_names_that_the_design_lists(spec, cache, pairs):
    interface = attention_interface(spec, cache=cache, padding=True)
    assert interface.caches == pairs
    assert interface.cache == cache
    assert (interface.main_input, interface.main_output) == ("hidden_states", "attention_output")
    assert (interface.positions, interface.mask) == ("position_ids", "attention_mask")
    assert interface.lengths == ("cache_lengths" if cache == "fixed" else None)


def test_a_layer_without_rotation_and_padding_takes_neither():
    spec = replace(SPEC, rope=None)
    interface = attention_interface(spec, cache="growing", padding=False)
    assert (interface.positions, interface.mask) == (None, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"main_input": "tokens"}, "'tokens' is not among the inputs"),
        ({"main_input": "past_key_values.0.key"}, "must begin with batch and sequence"),
        ({"main_output": "hidden"}, "'hidden' is not among the outputs"),
        ({"mask": "mask"}, "'mask' is not among the inputs"),
        ({"mask": "position_ids"}, "'position_ids' is there twice"),
        ({"mask": None, "positions": "past_key_values.0.key"}, "'past_key_values.0.key' is there"),
        ({"mask": "past_key_values.0.key", "caches": ()}, "must be int64 with an axis batch"),
        ({"caches": (pair("past_key_values.0.key", "present.0.key", 2),) * 2}, "is there twice"),
        ({"lengths": "attention_mask", "mask": None}, "a fixed cache, and no other"),
        ({"caches": (pair("past_key_values.0.key", "present.0", 2),)}, "'present.0' is not among"),
        ({"caches": (pair("past_key_values.0.key", "present.0.key", 3),)}, "has no slots"),
        (
            {
                "main_output": "present.0.value",
                "caches": (pair("past_key_values.0.key", "logits", 2),),
            },
            "unlike shapes",
        ),
    ],
    ids=str,
)
def test_an_interface_that_contradicts_its_tensors_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(decoder_interface("growing"), **change)


def test_names_are_there_once_and_a_fixed_cache_has_lengths():
    decoder = decoder_interface("fixed")
    with pytest.raises(ValueError, match="'input_ids' is there twice"):
        replace(decoder, inputs=(*decoder.inputs, decoder.inputs[0]))
    with pytest.raises(ValueError, match="lengths"):
        replace(decoder, lengths=None)
    rows = TensorType(name="logits", dtype="float32", shape=("rows", "past + sequence"))
    with pytest.raises(ValueError, match=r"axis 'rows' of logits .* is of no input"):
        replace(decoder, outputs=(rows, *decoder.outputs[1:]))


CALL = {
    "input_ids": ("int64", (3, 2)),
    "attention_mask": ("int64", (3, 7)),
    "position_ids": ("int64", (3, 2)),
    **{
        f"past_key_values.{layer}.{part}": ("float32", (3, 2, 5, 4))
        for layer in range(2)
        for part in ("key", "value")
    },
}


def test_a_call_has_the_sizes_of_its_axes():
    axes = decoder_interface("growing").bind_axes(CALL)
    assert axes == {"batch": 3, "sequence": 2, "past": 5, "total": 7}
    outputs = {t.name: t.sized(axes) for t in decoder_interface("growing").outputs}
    assert outputs["present.1.value"] == (3, 2, 7, 4)
    assert outputs["logits"] == (3, 2, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": ("int32", (3, 2))}, "'input_ids' is int32; it must be int64"),
        ({"input_ids": ("int64", (3,))}, "'input_ids' has shape"),
        ({"position_ids": ("int64", (3, 1))}, "with sequence = 2"),
        ({"past_key_values.1.key": ("float32", (3, 2, 4, 4))}, "with past = 5"),
        ({"past_key_values.1.key": ("float32", (3, 1, 5, 4))}, "'past_key_values.1.key' has shape"),
        ({"attention_mask": ("int64", (3, 6))}, "'attention_mask' covers 6 slots; .* is 7"),
        ({"logits": ("float32", (3, 2, 8))}, "'logits' is unknown"),
    ],
    ids=str,
)
def test_a_call_that_does_not_fit_is_refused_by_name(change, message):
    with pytest.raises(TensorError, match=message):
        decoder_interface("growing").bind_axes({**CALL, **change})


def test_a_call_without_an_input_or_a_token_is_refused():
    interface = decoder_interface("growing")
    with pytest.raises(TensorError, match="'attention_mask' is missing"):
        interface.bind_axes({n: t for n, t in CALL.items() if n != "attention_mask"})
    for axis, shape in (("batch", (0, 2)), ("sequence", (3, 0))):
        types = (TensorType(name="x", dtype="float32", shape=("batch", "sequence")),)
        bare = replace(
            interface,
            inputs=types,
            main_input="x",
            caches=(),
            positions=None,
            mask=None,
        )
        with pytest.raises(TensorError, match=f"{axis} = 0"):
            bare.bind_axes({"x": ("float32", shape)})


def test_rows_of_a_fixed_cache_have_room():
    interface = decoder_interface("fixed")
    interface.check_lengths([0, 3], 1, 4)
    with pytest.raises(TensorError, match=r"cache_lengths\[0\] = -1"):
        interface.check_lengths([-1, 3], 1, 4)
    with pytest.raises(TensorError, match="row 1 of the cache is full"):
        interface.check_lengths([0, 4], 1, 4)
