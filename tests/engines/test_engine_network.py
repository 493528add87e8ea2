"""Parsed networks and real plans, built by TensorRT for RTX without a GPU."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import onnx_ir as ir
import pytest

from rope_export import Artifact
from rope_export.engines import fusion, network
from rope_export.engines.fusion import Fusion
from rope_export.engines.network import NetworkFacts
from rope_export.errors import InputError, RopeExportError
from rope_export.typed_json import plain, text, typed
from tests.conftest import TINY
from tests.engines import test_engine_forms as forms

trt: ModuleType = pytest.importorskip(
    "tensorrt_rtx", reason="needs TensorRT for RTX: pip install 'rope_export[rtx]'"
)
CAPACITY = 256
RANGES = {
    "batch": (1, 1, 4),
    "sequence": (1, 16, 128),
    "past": (0, 128, 1024),
    "total": (1, 144, 1152),
}
Parsed = tuple[Any, Any, Any]


@pytest.fixture(scope="module")
def made(
    smollm2: Path, exported: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """The model of an artifact, its capacity fixed; of real weights unless a config is given."""
    folder = tmp_path_factory.mktemp("engines")

    def make(config: dict[str, Any] | None = None, **options: Any) -> Path:
        source = smollm2 if config is None else {**TINY, **config}
        artifact = exported(source, lowering="tensorrt", **options)
        return fixed(artifact.model, folder / f"{artifact.path.name}.onnx")

    return make


def fixed(model: Path, out: Path) -> Path:
    read = ir.load(model)
    for value in (*read.graph.inputs, *read.graph.outputs):
        assert value.shape is not None
        value.shape = ir.Shape([CAPACITY if str(x) == "capacity" else x for x in value.shape])
    ir.save(read, out)
    return out


def parsed(model: Path) -> Parsed:
    """The builder, the network of a model that is not refused, and its log."""
    network.refuse(model)
    log = fusion.logger(trt, True)
    builder = trt.Builder(log)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    definition = builder.create_network(flags)
    network.parse(trt, definition, model, log)
    return builder, definition, log


def built(model: Path, dtype: str, capabilities: tuple[str, ...] = ("SM89",)) -> Fusion:
    builder, definition, log = parsed(model)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = len(capabilities)
    for at, name in enumerate(capabilities):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), at)
    profile = builder.create_optimization_profile()
    for value in onnx.load(str(model), load_external_data=False).graph.input:
        axes = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        if any(isinstance(axis, str) for axis in axes):
            sizes = [[RANGES.get(axis, [axis] * 3)[at] for axis in axes] for at in range(3)]
            profile.set_shape(value.name, *sizes)
    config.add_optimization_profile(profile)
    log.errors.clear()
    plan = builder.build_serialized_network(definition, config)
    assert plan is not None, log.errors
    return fusion.read_fusion(log.lines, network.facts(trt, definition), dtype)


EVERY_DEVICE = ("SM80", "SM86", "SM89", "SM120")
WIDE = {"head_dim": 128, "hidden_size": 256}
WIDEST = {"head_dim": 256, "hidden_size": 256}


@pytest.mark.parametrize(
    ("config", "dtype", "cache"), [(WIDE, "float16", "growing"), (WIDEST, "bfloat16", "fixed")]
)
def test_half_precision_is_fused_for_every_device(made, config, dtype, cache) -> None:
    """Heads of 64 are built in test_engines, of real weights."""
    found = built(made(config, dtype=dtype, cache=cache), dtype, EVERY_DEVICE)
    assert found.fused, found.reason
    assert all("mha" in kernel for kernel in found.kernels)
    assert (found.rotary, found.attention) == (2, 1)
    assert found.kv_cache_updates == (2 if cache == "fixed" else 0)
    assert found.scratch_bytes is not None
    assert found.scratch_bytes > 0
    assert (found.reason, found.remedy) == (None, None)
    assert typed(json.loads(text(found)), Fusion, "fusion") == found


def test_a_network_says_what_it_is_made_of(made) -> None:
    _, definition, _ = parsed(made(dtype="float16", cache="fixed"))
    found = network.facts(trt, definition)
    assert found == NetworkFacts(
        rotary=2,
        attention=1,
        kv_cache_updates=2,
        causal=("NONE",),
        decomposed=0,
        softmax=0,
        head_dims=(64,),
    )
    assert typed(json.loads(text(found)), NetworkFacts, "network") == found


@pytest.mark.parametrize("cache", ["growing", "fixed"])
def test_float32_attention_is_taken_apart_and_says_so(made, cache) -> None:
    """The same operators in the file; without the mark on the network it does not build."""
    model = made(dtype="float32", cache=cache)
    assert network.facts(trt, parsed(model)[1]).decomposed == 1
    found = built(model, "float32")
    assert not found.fused
    assert found.reason == "no attention kernel computes in float32"
    assert found.remedy == "export with dtype float16 or bfloat16"


CONFIGS: dict[str, tuple[dict[str, Any], bool, str]] = {
    "sinks": ({"model_type": "gpt_oss", "sliding_window": 4, "attention_bias": True}, True, ""),
    "capped scores": (
        {"model_type": "gemma2", "attn_logit_softcapping": 30.0, "query_pre_attn_scalar": 16},
        False,
        "matrix products",
    ),
    "heads beyond kernels": ({"head_dim": 512}, False, "head_dim is 512"),
    "interleaved pairs": ({"model_type": "cohere"}, True, ""),
    "values narrower than keys": (
        {
            "model_type": "deepseek_v3",
            "num_key_value_heads": 4,
            "q_lora_rank": 32,
            "kv_lora_rank": 24,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 12,
        },
        True,
        "",
    ),
}


QUICK = ("sinks", "capped scores", "interleaved pairs")


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=() if x in QUICK else pytest.mark.long) for x in CONFIGS]
)
def test_features_build_and_say_whether_they_fuse(made, name) -> None:
    config, fused, reason = CONFIGS[name]
    found = built(made(config, dtype="float16", padding=True), "float16")
    assert found.fused == fused, found
    assert reason in (found.reason or "")
    assert (found.remedy is None) == fused


def test_an_artifact_for_every_runtime_is_not_fused(tiny) -> None:
    found = built(tiny("portable", "float16", "growing").model, "float16")
    assert (found.fused, found.attention, found.rotary) == (False, 0, 0)
    assert "lowering 'tensorrt'" in str(found.remedy)


def test_what_the_parser_says_is_one_line(made, tmp_path) -> None:
    model = forms.saved(forms.plain(softcap=30.0), tmp_path)
    log = fusion.logger(trt, False)
    definition = trt.Builder(log).create_network(0)
    with pytest.raises(RopeExportError, match=r"Attention 'scores': .*softcap") as error:
        network.parse(trt, definition, model, log)
    assert "\n" not in str(error.value)
    assert "cudaError" not in str(error.value)
    assert log.errors


SILENT: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "lengths that are dropped": (
        lambda: forms.plain("", "", "", "used", inputs=forms.LENGTHS),
        "NONE",
    ),
    "is_causal on a cache": (lambda: forms.grown(is_causal=1), "UPPER_LEFT"),
}


@pytest.mark.parametrize("form", SILENT)
def test_the_parser_takes_in_silence_what_is_refused(form: str, tmp_path: Path) -> None:
    """If this fails, TensorRT has learnt something, and the refusal may go."""
    made, causal = SILENT[form]
    model = forms.saved(made(), tmp_path)
    log = fusion.logger(trt, False)
    definition = trt.Builder(log).create_network(0)
    network.parse(trt, definition, model, log)
    found = network.facts(trt, definition)
    assert (found.attention, found.causal) == (1, (causal,))
    with pytest.raises(InputError):
        network.refuse(model)


def test_is_causal_without_a_cache_keeps_its_kind(tmp_path: Path) -> None:
    _, definition, _ = parsed(forms.saved(forms.plain(is_causal=1), tmp_path))
    assert network.facts(trt, definition).causal == ("UPPER_LEFT",)


PLAIN = NetworkFacts(rotary=2, attention=1, kv_cache_updates=0, causal=("NONE",), head_dims=(64,))
FUSED = "Layers:\nName: _gemm_mha_v2_myl0_1, LayerType: kgen, Inputs: []\n"
APART = "Layers:\nName: node_matmul_3_myl1_4, LayerType: gemm, Inputs: [mha_v2]\n"


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([FUSED], None),
        ([FUSED, "Max Scratch Memory: 7 bytes"], None),
        ([APART], "no attention kernel for these"),
        ([FUSED, APART], "no attention kernel for these"),
        ([], "has no list of layers"),
    ],
)
def test_a_log_tells_whether_every_layout_is_fused(lines: list[str], reason: str | None) -> None:
    found = fusion.read_fusion(lines, PLAIN, "float16")
    assert found.fused == (reason is None)
    assert (reason or "") in (found.reason or "")
    assert found.scratch_bytes == (7 if len(lines) == 2 and lines[1] is not APART else None)


def test_reports_of_another_version_are_told_apart() -> None:
    with pytest.raises(InputError, match="missing required field attention"):
        typed({"rotary": 1}, NetworkFacts, "network")
    with pytest.raises(InputError, match="missing required field kernels"):
        typed({"fused": True}, Fusion, "fusion")
    with pytest.raises(InputError, match="unknown field heads"):
        typed({**plain(PLAIN), "heads": 1}, NetworkFacts, "network")
