"""The pipeline from a source to an artifact, read in order."""

import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rope_export.errors import InputError, RopeExportError, extra

with extra("export", "exporting"):
    import onnx
    import onnx_ir as ir
    import torch
    from onnxscript import optimizer
    from torch import Tensor

from rope_export.arrays import to_torch
from rope_export.artifacts import artifact as artifacts
from rope_export.artifacts.artifact import Artifact, Manifest
from rope_export.attention.layer import RotaryAttention
from rope_export.checkpoints import Layer, open_model
from rope_export.checkpoints.stored import store
from rope_export.exporter.simplify import drop_undone_reshapes
from rope_export.interface import TensorType, attention_interface
from rope_export.lowerings import (
    OFFSETS,
    SCALES,
    ZERO_POINTS,
    Lowering,
    lowered,
    lowering_for,
    packed_name,
)
from rope_export.quantization import Bits, Packed, Quantization, unpack
from rope_export.spec import DType
from rope_export.version import VERSION

if TYPE_CHECKING:
    from onnx_ir import Model

EXTERNAL_ABOVE = 100_000_000
"""Bytes of weights above which they lie in a file of their own."""

NEWEST_OPSET = 24
"""The newest opset whose operators torch.onnx.export writes."""

Cache = Literal["none", "growing", "fixed"]
Progress = Callable[[str], None]


def export(
    source: str | Path,
    *,
    out: str | Path,
    layer: int = 0,
    part: str | None = None,
    lowering: str = "auto",
    cache: Cache = "growing",
    dtype: DType = "float32",
    weights: Bits | None = None,
    block_size: int = 32,
    accuracy_level: int = 4,
    padding: bool = False,
    opset: int | None = None,
    seed: int = 0,
    adapter: str | Path | None = None,
    progress: Progress = lambda step: None,
) -> Artifact:
    """Export one attention layer as an artifact, replacing the one that is at `out`.

    source: a checkpoint folder (config.json and safetensors), a config file, whose weights are
    drawn from `seed`, or a hub id. out: the artifact's folder. layer: index of the layer. part:
    key of the inner config of a model of several towers, such as "vision_config"; the text
    decoder's unless given.
    lowering: "portable", "standard", "ort", "tensorrt" for building engines, or "auto" for the one
    that suits layer and cache best in onnxruntime.
    cache: "none"; "growing" for past in and present out; "fixed" for one that is allocated once and
    written in place. dtype: "float32", "float16" or "bfloat16", of weights and activations.
    weights: "int8" or "int4" to store the projections in so few bits, with a scale for block_size
    inputs; accuracy_level: see `Quantization`. padding: take an attention_mask. opset: a newer
    opset than the lowering's own. adapter: folder or hub id of a LoRA adapter to merge into the
    weights; the source's own folder for one that lies beside them, "none" to leave that out.
    progress: called with the name of each step.

    The artifact is not compared with eager PyTorch here: `verify` does that.
    Returns: the artifact, its structure checked by onnx.
    Raises: InputError for what is wrong or not supported; nothing is written then.
    """
    out = Path(out)
    artifacts.check_target(out)
    progress("reading the source")
    opened = open_model(source, part=part, dtype=dtype, seed=seed, adapter=adapter)
    found = opened.layer(layer)
    _refuse_unread(found)
    how = _quantization(weights, block_size, accuracy_level)
    chosen = lowering_for(lowering, found.spec, cache, how)
    wanted_opset = _opset(opset, chosen, cache)
    interface = attention_interface(found.spec, cache=cache, padding=padding)
    inputs, outputs = interface.inputs, interface.outputs
    tensors = found.weights()
    stored = {} if how is None else _stored(found, tensors, how)
    manifest = Manifest(
        spec=found.spec.to_json(),
        lowering=chosen.name,
        opset=wanted_opset,
        cache=cache,
        padding=padding,
        inputs=inputs,
        outputs=outputs,
        source=found.facts,
        weights=_weight_facts(found, tensors, stored, how),
        versions={"rope_export": VERSION}
        | {name: version(name) for name in ("torch", "onnx", "onnxscript")},
        runtimes=chosen.runtimes,
        needs=chosen.needs,
        quantization=None if how is None else how.to_json(),
        stale_slots=chosen.stale_slots if cache == "fixed" else "any",
        first_position=found.spec.first_position,
    )
    progress("tracing and translating")
    layer_module = RotaryAttention.from_weights(found.spec, tensors)
    module = lowered(layer_module, chosen, cache, stored, how)
    del tensors, layer_module, stored
    model = translate(module, inputs, outputs, wanted_opset)
    _describe(model, manifest)

    def write(folder: Path) -> None:
        progress("writing")
        _save_model(model, folder)
        progress("checking the file")
        check_model(folder / artifacts.MODEL, inputs, outputs)

    origin = {"source": found.path}
    if found.adapter is not None:
        origin["adapter"] = found.adapter
    return artifacts.save(out, manifest, write, origin)


def _refuse_unread(source: Layer) -> None:
    """Raises: SpecError for a config key that transformers, where it is installed, reads for this
    attention and that is not implemented here."""
    from rope_export.parity.reading.unread import refuse_unread

    refuse_unread(source)


def _opset(opset: int | None, lowering: Lowering, cache: str) -> int:
    oldest = lowering.caches[cache]
    if opset is None:
        return oldest
    if not oldest <= opset <= NEWEST_OPSET:
        raise InputError(
            f"opset={opset}: lowering {lowering.name!r} with cache {cache!r} can be written in "
            f"opset {oldest} to {NEWEST_OPSET}."
        )
    return opset


def _quantization(weights: str | None, block_size: int, accuracy_level: int) -> Quantization | None:
    if weights is None:
        return None
    known = {"int8": 8, "int4": 4}
    if weights not in known:
        raise InputError(f"weights={weights!r}: use one of {', '.join(known)}, or none.")
    return Quantization(bits=known[weights], block_size=block_size, accuracy_level=accuracy_level)


def _stored(source: Layer, tensors: dict[str, Tensor], how: Quantization) -> dict[str, Packed]:
    """Projections in few bits; `tensors` has what they stand for afterwards."""
    stored = store(tensors, source.integers(), how)
    for name, packed in stored.items():
        tensors[name] = to_torch(unpack(packed, how, tensors[name].shape[1]))
    return stored


def _weight_facts(
    source: Layer,
    tensors: dict[str, Tensor],
    stored: Mapping[str, Packed],
    how: Quantization | None,
) -> dict[str, dict[str, Any]]:
    facts: dict[str, dict[str, Any]] = {
        name: {
            "source_tensor": source.names[name],
            "initializer": name,
            "transposed": name.endswith("_proj.weight"),
            "sha256": tensor_hash(tensor),
        }
        for name, tensor in tensors.items()
    }
    for name, form in source.forms.items():
        facts[name]["source_form"] = form
    for name, packed in stored.items():
        assert how is not None
        whole = name.removesuffix("weight")
        facts[name] |= {
            "initializer": whole + packed_name(how),
            "scales": whole + SCALES,
            "inputs": tensors[name].shape[1],
            "block_size": packed.block_size(how.bits),
            "stored": packed.stored,
            "transposed": False,
        }
        if packed.zeros is not None:
            facts[name]["zero_points"] = whole + ZERO_POINTS
        if packed.offsets is not None:
            facts[name]["offsets"] = whole + OFFSETS
    return facts


def tensor_hash(tensor: Tensor) -> str:
    """sha256 of a tensor's bytes in row-major order, in hexadecimal."""
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().data).hexdigest()


def translate(
    module: RotaryAttention,
    inputs: tuple[TensorType, ...],
    outputs: tuple[TensorType, ...],
    opset: int,
) -> "Model":
    """The module as an ONNX model whose dynamic axes have the names of the contract."""
    # Sizes of at least 2 and all different: torch.export fixes an axis of size 0 or 1, and takes
    # two axes of one size for the same.
    growing = any("past" in t.shape for t in inputs)
    sizes = {"batch": 2, "sequence": 3, "past": 5 if growing else 0, "capacity": 7}
    sizes["total"] = sizes["past"] + sizes["sequence"]
    examples = {t.name: torch.zeros(t.sized(sizes), dtype=_torch_dtype(t)) for t in inputs}
    axes = {
        name: torch.export.Dim(name) for t in inputs for name in t.shape if isinstance(name, str)
    }
    if not growing and "total" in axes:
        axes["total"] = axes["sequence"]  # without a past they are one size, and one symbol
    shapes = {
        t.name: {at: axes[name] for at, name in enumerate(t.shape) if isinstance(name, str)}
        for t in inputs
    }
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            kwargs=examples,
            dynamo=True,
            opset_version=opset,
            input_names=[t.name for t in inputs],
            output_names=[t.name for t in outputs],
            dynamic_shapes=shapes,
            optimize=False,
            verbose=False,
        )
        assert program is not None
        _optimize(program.model, set(module.state_dict()))
    for value, tensor in zip(program.model.graph.inputs, inputs, strict=True):
        value.shape = ir.Shape(tensor.shape)
    return program.model


def _optimize(model: "Model", weights: set[str]) -> None:
    """Folds what is constant, but no weight: each stays in the file as it was deployed, under its
    own name, so that it can be proven.

    The passes see the weights as inputs. As constants, a weight of nothing but ones or zeros would
    be folded away, and of two equal ones only the first would stay.
    Raises: RopeExportError if the graph does not use a weight.
    """
    graph = model.graph
    hidden = {name: value for name, value in graph.initializers.items() if name in weights}
    kept = {name: value.const_value for name, value in hidden.items()}
    for name, value in hidden.items():
        del graph.initializers[name]
        value.const_value = None
        graph.inputs.append(value)
    optimizer.optimize_ir(model)
    drop_undone_reshapes(model)
    unused = sorted(weights - {name for name, value in hidden.items() if value.uses()})
    if unused:
        raise RopeExportError(f"the exported model does not use the weight {unused[0]!r}.")
    for name, value in hidden.items():
        graph.inputs.remove(value)
        value.const_value = kept[name]
        graph.register_initializer(value)
    ir.passes.common.RemoveUnusedNodesPass()(model)


def _torch_dtype(tensor: TensorType) -> torch.dtype:
    return getattr(torch, tensor.dtype)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says about itself; its errors still come through."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _describe(model: "Model", manifest: Manifest) -> None:
    """Say in the file what it is, and drop what only tells how this machine made it."""
    ir.passes.common.ClearMetadataAndDocStringPass()(model)
    model.producer_name = "rope_export"
    model.producer_version = manifest.versions["rope_export"]
    model.graph.name = "rotary_attention"
    spec = dict(manifest.spec)
    model.metadata_props.update(
        {
            "rope_export.lowering": manifest.lowering,
            "rope_export.cache": manifest.cache,
            "rope_export.rope": _listed(spec.pop("rope") or {"rope_type": None}),
            "rope_export.attention.layer": _listed(spec),
            "rope_export.source": _listed(manifest.source),
        }
    )


def _listed(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in facts.items())


def _save_model(model: "Model", folder: Path) -> None:
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    external = artifacts.DATA if size > EXTERNAL_ABOVE else None
    ir.save(model, folder / artifacts.MODEL, external_data=external)


def check_model(
    path: Path, inputs: tuple[TensorType, ...], outputs: tuple[TensorType, ...]
) -> None:
    """Raises: RopeExportError if onnx finds the file invalid or its tensors break the contract."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RopeExportError(f"the exported model is not valid: {error}") from error
    graph = onnx.load(str(path), load_external_data=False).graph
    for expected, found in ((inputs, graph.input), (outputs, graph.output)):
        if tuple(map(_declared, found)) != expected:
            raise RopeExportError(
                f"the exported model has {[str(_declared(v)) for v in found]}, "
                f"the contract is {[str(t) for t in expected]}."
            )


def _declared(value: onnx.ValueInfoProto) -> TensorType:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
    return TensorType(name=value.name, dtype=dtype, shape=shape)
