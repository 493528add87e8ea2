"""Quantized checkpoints as SOURCE: their weights are their formats' definitions, bit for bit."""

import json
from typing import Any

import pytest
import torch

from rope_export.checkpoints import open_model
from rope_export.errors import CheckpointError, RopeExportError
from tests.conftest import TINY
from tests.support.quantized_files import PREFIX, SHAPES, awq, compressed, fp8, gptq

INT = {"type": "int", "dynamic": False}
FLOAT = {"num_bits": 8, "type": "float", "dynamic": False, "symmetric": True}
SOURCES: dict[str, Any] = {
    **{f"gptq-{bits}-bits": lambda bits=bits: gptq(bits) for bits in (2, 3, 4, 8)},
    "gptq-v2": lambda: gptq(version=2),
    "gptq-symmetric": lambda: gptq(symmetric=True),
    "gptq-act-order": lambda: gptq(act_order=True),
    "gptq-act-order-8-bits": lambda: gptq(8, act_order=True, size=16),
    "gptq-one-group": lambda: gptq(size=64, group_size=-1),
    "gptq-dynamic": lambda: gptq(plain=("v_proj",), dynamic={r"-:.*\.v_proj": {}}),
    "gptq-named-modules": lambda: gptq(
        plain=("o_proj",),
        modules_in_block_to_quantize=[["self_attn.q_proj"], ["self_attn.k_proj", "v_proj"]],
    ),
    "awq": awq,
    "awq-left-alone": lambda: awq(plain=("o_proj",), modules_to_not_convert=["o_proj"]),
    "fp8-blocks": fp8,
    "fp8-blocks-bfloat16-scales": lambda: fp8(dtype=torch.bfloat16),
    "fp8-one-scale": lambda: fp8(None),
    "compressed-int4-groups": lambda: compressed(
        {**INT, "num_bits": 4, "strategy": "group", "group_size": 16, "symmetric": True},
        "pack-quantized",
    ),
    "compressed-int4-asymmetric": lambda: compressed(
        {**INT, "num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False},
        "pack-quantized",
    ),
    "compressed-int8-channel-asymmetric": lambda: compressed(
        {**INT, "num_bits": 8, "strategy": "channel", "symmetric": False}, "pack-quantized"
    ),
    "compressed-int8-plain": lambda: compressed(
        {**INT, "num_bits": 8, "strategy": "channel", "symmetric": True}, "int-quantized"
    ),
    "compressed-int8-tensor-asymmetric": lambda: compressed(
        {**INT, "num_bits": 8, "strategy": "tensor", "symmetric": False}, "naive-quantized"
    ),
    "compressed-float8-tensor": lambda: compressed(
        {**FLOAT, "strategy": "tensor"}, "float-quantized"
    ),
    "compressed-float8-channel": lambda: compressed(
        {**FLOAT, "strategy": "channel"}, "float-quantized"
    ),
    "compressed-float8-blocks": lambda: compressed(
        {**FLOAT, "strategy": "block", "block_structure": [16, 32]}, "float-quantized"
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_weights_are_the_definitions_own(name, tmp_path) -> None:
    """Rounded once to each dtype."""
    made = SOURCES[name]()
    folder = made.save(tmp_path / "checkpoint")
    for dtype in ("float32", "float16", "bfloat16"):
        weights = open_model(folder, dtype=dtype).layer().weights()
        for module, expected in made.expected.items():
            wanted = expected.to(getattr(torch, dtype))
            assert torch.equal(weights[f"{module}.weight"], wanted), module


@pytest.mark.parametrize("name", [x for x in SOURCES if "fp8" not in x and "float8" not in x])
def test_the_integers_stand_for_the_weights(name, tmp_path) -> None:
    source = open_model(SOURCES[name]().save(tmp_path / "checkpoint")).layer()
    weights, integers = source.weights(), source.integers()
    assert integers.keys() == source.forms.keys() != set()
    for module, own in integers.items():
        assert torch.equal(own.weight(), weights[module])


def test_fp8_is_what_transformers_dequantizes(tmp_path) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    made = fp8((16, 32))
    weights = open_model(made.save(tmp_path / "checkpoint")).layer().weights()
    for name in SHAPES:
        parts = ("weight", "weight_scale_inv")
        stored = {part: made.tensors[f"{PREFIX}{name}.{part}"] for part in parts}
        (wanted,) = Fp8Dequantize(None).convert(stored).values()
        assert torch.equal(weights[f"{name}.weight"], wanted)


def test_old_gptq_folders_are_known_by_the_file_beside_or_by_their_tensors(tmp_path) -> None:
    """Before transformers had the config key, AutoGPTQ wrote quantize_config.json."""
    made = gptq()
    made.quantization = None
    bare = made.save(tmp_path / "bare")
    beside = made.save(tmp_path / "beside")
    old = {"bits": 4, "group_size": 32, "desc_act": False, "sym": False, "damp_percent": 0.01}
    (beside / "quantize_config.json").write_text(json.dumps(old))
    for folder in (bare, beside):
        source = open_model(folder).layer()
        assert set(source.forms.values()) == {"gptq"}
        for name, wanted in made.expected.items():
            assert torch.equal(source.weights()[f"{name}.weight"], wanted)
    contrary = made.save(tmp_path / "contrary")
    (contrary / "quantize_config.json").write_text(json.dumps({**old, "bits": 8}))
    with pytest.raises(CheckpointError, match=r"bits=8, stored in 4 bits"):
        open_model(contrary).layer().weights()


def test_old_awq_folders_are_known_by_the_file_beside(tmp_path) -> None:
    made = awq()
    made.quantization = None
    folder = made.save(tmp_path / "checkpoint")
    (folder / "quant_config.json").write_text(
        json.dumps({"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"})
    )
    weights = open_model(folder).layer().weights()
    for name, wanted in made.expected.items():
        assert torch.equal(weights[f"{name}.weight"], wanted)


def test_biases_of_zeros_that_old_writers_add_change_nothing(tmp_path) -> None:
    made = gptq()
    made.tensors[f"{PREFIX}q_proj.bias"] = torch.zeros(64)
    assert open_model(made.save(tmp_path / "zeros")).layer().weights()
    made.tensors[f"{PREFIX}q_proj.bias"][3] = 1
    with pytest.raises(CheckpointError, match=r"q_proj\.bias.*says nothing of it"):
        open_model(made.save(tmp_path / "ones")).layer()


def test_symmetric_zero_points_count_by_what_the_file_holds(tmp_path) -> None:
    """Files that say "gptq" are met with zero points as they are: vllm-project/vllm #38966."""
    made = gptq(version=2, symmetric=True, checkpoint_format="gptq")
    weights = open_model(made.save(tmp_path / "checkpoint")).layer().weights()
    for name, wanted in made.expected.items():
        assert torch.equal(weights[f"{name}.weight"], wanted)


def test_rows_of_fused_projections_keep_their_integers(tmp_path) -> None:
    """Phi 3: one quantized module of queries, keys and values."""
    made = gptq(size=16)
    made.config |= {"model_type": "phi3", "pad_token_id": 0}
    names = ("q_proj", "k_proj", "v_proj")
    for part, axis in (("qweight", 1), ("qzeros", 1), ("scales", 1)):
        tensors = [made.tensors.pop(f"{PREFIX}{name}.{part}") for name in names]
        made.tensors[f"{PREFIX}qkv_proj.{part}"] = torch.cat(tensors, axis)
    for name in names:
        g_idx = made.tensors.pop(f"{PREFIX}{name}.g_idx")
    made.tensors[f"{PREFIX}qkv_proj.g_idx"] = g_idx
    source = open_model(made.save(tmp_path / "checkpoint")).layer()
    integers = source.integers()
    for name, wanted in made.expected.items():
        assert torch.equal(source.weights()[f"{name}.weight"], wanted)
        assert torch.equal(integers[f"{name}.weight"].weight(), wanted)


LEFT_ALONE = [
    {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]},
    {"quant_method": "fbgemm_fp8", "modules_to_not_convert": [f"{PREFIX}{x}" for x in SHAPES]},
    {"quant_method": "bitsandbytes", "llm_int8_skip_modules": list(SHAPES)},
    {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"]}
    | {"config_groups": {"g": {"targets": [r"re:.*mlp.*"], "weights": {"num_bits": 4}}}},
    {"quant_method": "compressed-tensors", "format": "float-quantized"}
    | {"ignore": ["lm_head", r"re:.*self_attn\..*"]}
    | {"config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 8}}}},
    {"quant_method": "gptq", "bits": 4, "dynamic": {r"-:.*self_attn": {}}},
    {"quant_method": "awq", "bits": 4, "modules_to_not_convert": ["self_attn"]},
    {"quant_method": "modelopt", "ignore": ["model.layers.0.self_attn"]},
]


@pytest.mark.parametrize("quantization", LEFT_ALONE, ids=lambda x: x["quant_method"])
def test_attention_that_is_left_alone_is_read_as_it_is(quantization, tmp_path) -> None:
    made = awq(plain=tuple(SHAPES))
    made.quantization = quantization
    folder = made.save(tmp_path / "checkpoint")
    source = open_model(folder).layer()
    assert source.forms == {}
    for name, wanted in made.expected.items():
        assert torch.equal(source.weights()[f"{name}.weight"], wanted)
    assert open_model(folder / "config.json").layer().weights()


def _without(made: Any, *keys: str) -> Any:
    for key in keys:
        made.quantization.pop(key)
    return made


def _contrary_order() -> Any:
    made = gptq(act_order=True)
    made.quantization["desc_act"] = False
    return made


def _all_ones() -> Any:
    made = gptq()
    made.tensors[f"{PREFIX}k_proj.qzeros"][0, 0] |= 15
    return made


def _named(method: str, **more: Any) -> Any:
    made = awq(plain=tuple(SHAPES))
    made.quantization = {"quant_method": method, **more}
    return made


REFUSED: dict[str, tuple[Any, str]] = {
    "gptq marlin": (lambda: gptq(checkpoint_format="marlin"), "checkpoint_format='marlin'"),
    "gptq words": (lambda: gptq(pack_dtype="int16"), "pack_dtype='int16'"),
    "gptq other bits": (lambda: _bits(gptq(), 8), "bits=8, stored in 4 bits"),
    "gptq without order": (_contrary_order, "desc_act=False, but g_idx"),
    "gptq all ones": (_all_ones, "qzeros holds 15.*gptq_v2"),
    "gptq not symmetric": (lambda: gptq(sym=True), "sym=True, but qzeros"),
    "gptq plain": (lambda: gptq(plain=("v_proj",)), "v_proj.*stored as it is"),
    "gptq left alone": (lambda: gptq(dynamic={"-:.*q_proj": {}}), "q_proj.*left alone"),
    "awq gemv": (lambda: awq(version="gemv"), "version='gemv'.*'gemm'"),
    "awq without zero points": (lambda: awq(zero_point=False), "zero_point=False"),
    "awq plain": (lambda: awq(plain=("k_proj",)), "k_proj.*stored as it is"),
    "awq left alone": (lambda: awq(modules_to_not_convert=["k_proj"]), "k_proj.*left alone"),
    "awq groups": (lambda: awq(group_size=64), "64 inputs are not 2 groups of 64"),
    "no method": (lambda: _without(awq(), "quant_method"), "no quant_method"),
    "cache": (lambda: _scheme(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme"),
    "transform": (lambda: _scheme(transform_config={"config_groups": {}}), "transform_config"),
    "sparse": (lambda: _scheme(sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config"),
    "nvfp4": (lambda: _scheme(format="nvfp4-pack-quantized"), "nvfp4-pack-quantized.*save_pretr"),
    "frozen": (lambda: _scheme(quantization_status="frozen"), "quantization_status='frozen'"),
    **{
        method: (lambda method=method: _named(method), f"quant_method='{method}'.*save_pretrained")
        for method in ("bitsandbytes", "mxfp4", "aqlm", "torchao", "auto-round", "quark")
    },
}


def _bits(made: Any, bits: int) -> Any:
    made.quantization["bits"] = bits
    return made


def _scheme(**more: Any) -> Any:
    arguments = {**INT, "num_bits": 8, "strategy": "channel", "symmetric": True}
    made = compressed(arguments, "int-quantized")
    made.quantization |= more
    return made


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_by_name(name, tmp_path) -> None:
    make, named = REFUSED[name]
    folder = make().save(tmp_path / "checkpoint")
    with pytest.raises(RopeExportError, match=named) as error:
        open_model(folder).layer().weights()
    assert "\n" not in str(error.value)


def test_a_method_that_is_not_read_is_named_before_its_tensors(tmp_path) -> None:
    made = awq(plain=tuple(SHAPES))
    made.quantization = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    made.tensors[f"{PREFIX}q_proj.weight.absmax"] = torch.ones(4)
    with pytest.raises(CheckpointError, match=r"'bitsandbytes' is not read.*absmax"):
        open_model(made.save(tmp_path / "checkpoint")).layer()


def test_a_config_file_whose_method_is_not_read_is_refused(tmp_path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY | {"quantization_config": {"quant_method": "mxfp4"}}))
    with pytest.raises(CheckpointError, match="'mxfp4', which is not read"):
        open_model(path).layer()
