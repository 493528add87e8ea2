"""The interface of a decoder: the names that clients feed, and the mask's own axis."""

from dataclasses import replace

import pytest

from rope_export.errors import TensorError
from rope_export.interface import decoder_interface
from tests.unit.test_interface import LATENT, SPEC


def decoder(cache: str, **options):
    settings = {"vocabulary": 50, "logits": "last", "dtype": "float32", **options}
    return decoder_interface({0: SPEC, 3: LATENT}, cache=cache, **settings)


def tensors(types) -> dict[str, tuple]:
    return {tensor.name: (tensor.dtype, tensor.shape) for tensor in types}


def test_a_growing_decoder_has_the_names_that_clients_feed():
    interface = decoder("growing")
    assert tensors(interface.inputs) == {
        "input_ids": ("int64", ("batch", "sequence")),
        "attention_mask": ("int64", ("batch", "total")),
        "position_ids": ("int64", ("batch", "sequence")),
        "past_key_values.0.key": ("float32", ("batch", 2, "past", 16)),
        "past_key_values.0.value": ("float32", ("batch", 2, "past", 16)),
        "past_key_values.3.key": ("float32", ("batch", 1, "past", 32)),
        "past_key_values.3.value": ("float32", ("batch", 1, "past", 8)),
    }
    assert tensors(interface.outputs) == {
        "logits": ("float32", ("batch", 1, 50)),
        "present.0.key": ("float32", ("batch", 2, "past + sequence", 16)),
        "present.0.value": ("float32", ("batch", 2, "past + sequence", 16)),
        "present.3.key": ("float32", ("batch", 1, "past + sequence", 32)),
        "present.3.value": ("float32", ("batch", 1, "past + sequence", 8)),
    }
    assert interface.optional == ()


def test_a_fixed_decoder_has_lengths_that_may_be_left_out():
    interface = decoder("fixed", logits="all", dtype="float16")
    inputs, outputs = tensors(interface.inputs), tensors(interface.outputs)
    assert inputs["past_key_values.3.key"] == ("float16", ("batch", 1, "capacity", 32))
    assert outputs["present.3.key"] == inputs["past_key_values.3.key"]
    assert inputs["attention_mask"] == ("int64", ("batch", "total"))
    assert inputs["cache_lengths"] == ("int64", ("batch",))
    assert outputs["logits"] == ("float16", ("batch", "sequence", 50))
    assert interface.optional == ("cache_lengths",)
    static = decoder("fixed", static_mask=True)
    assert tensors(static.inputs)["attention_mask"] == ("int64", ("batch", "capacity"))
    assert static.optional == ()


def call(interface, **sizes: int) -> dict:
    axes = {"batch": 2, "sequence": 1, "past": 0, "total": 1, "capacity": 8} | sizes
    return {tensor.name: (tensor.dtype, tensor.sized(axes)) for tensor in interface.inputs}


def test_the_mask_of_a_fixed_cache_ends_between_the_new_tokens_and_the_capacity():
    interface = decoder("fixed")
    axes = interface.bind_axes(call(interface, total=5))
    assert axes == {"batch": 2, "sequence": 1, "total": 5, "capacity": 8}
    without = call(interface, total=5)
    del without["cache_lengths"]
    assert interface.bind_axes(without) == axes
    with pytest.raises(TensorError, match=r"covers 9 slots; .* at most the capacity, 8"):
        interface.bind_axes(call(interface, total=9))
    with pytest.raises(TensorError, match=r"covers 1 slots; it must cover the 2 new ones"):
        interface.bind_axes(call(interface, sequence=2, total=1))
    interface.check_covered([4, 2], 1, 5)
    with pytest.raises(TensorError, match=r"row 0 has 5 entries and 1 new ones, .* 6 at least"):
        interface.check_covered([5, 2], 1, 5)


def test_only_lengths_may_be_left_out():
    interface = decoder("fixed")
    for name in ("attention_mask", "past_key_values.0.key"):
        with pytest.raises(ValueError, match=f"{name} may not be left out"):
            replace(interface, optional=(name,))
    with pytest.raises(ValueError, match="no layer has a cache"):
        decoder_interface({}, vocabulary=5, cache="fixed", logits="all", dtype="float32")
