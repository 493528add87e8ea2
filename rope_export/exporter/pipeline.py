"""The pipeline from a source to an artifact, read in order."""

from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from rope_export.errors import extra

with extra("export", "exporting"):
    import onnx_ir as ir
    from torch import Tensor

    from rope_export.attention.layer import RotaryAttention
    from rope_export.exporter.onnx_file import check_model, describe, write_model
    from rope_export.exporter.translation import NEWEST_OPSET, translate

from rope_export.arrays import to_torch
from rope_export.artifacts.artifact import Artifact, save
from rope_export.artifacts.contents import MODEL
from rope_export.artifacts.manifest import Manifest, Weight
from rope_export.artifacts.saving import check_target
from rope_export.checkpoints import Layer, open_model
from rope_export.checkpoints.stored import store
from rope_export.exporter.weight_facts import facts_of_weights
from rope_export.interface import attention_interface
from rope_export.lowerings import Lowering, lowered, lowering_for, opset_of
from rope_export.quantization import Bits, Packed, Quantization, quantization_of, unpack
from rope_export.spec import AttentionSpec, DType
from rope_export.version import VERSION

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
    """Exports one attention layer as an artifact, replacing the one that is at `out`.

    source: a checkpoint folder (config.json and safetensors), a config file, whose weights are
    drawn from `seed`, or a hub id. out: the artifact's folder. layer: index of the layer. part:
    key of the inner config of a model of several towers, such as "vision_config"; the text
    decoder's unless given.
    lowering: "portable", "standard", "ort", "tensorrt" for building engines, or "auto" for the one
    that suits layer and cache best in onnxruntime.
    cache: "none"; "growing" for past in and present out; "fixed" for one that is allocated once and
    written in place. dtype: "float32", "float16" or "bfloat16", of weights and activations.
    weights: "int8" or "int4" to quantize the projections, with a scale for each block_size inputs;
    accuracy_level: see `Quantization`. padding: take an attention_mask. opset: a newer opset than
    the lowering's own. adapter: folder or hub id of a LoRA adapter to merge into the
    weights; the source's own folder for one that lies beside them, "none" to leave that out.
    progress: called with the name of each step.

    The artifact is not compared with eager PyTorch here: `verify` does that.
    Returns: the artifact, its structure checked by onnx.
    Raises: InputError for what is wrong or not supported; nothing is written then.
    """
    out = Path(out)
    check_target(out, Artifact)
    progress("reading the source")
    opened = open_model(source, part=part, dtype=dtype, seed=seed, adapter=adapter)
    source_layer = opened.layer(layer)
    spec = source_layer.spec
    AttentionSpec.from_json(spec.to_json())  # what a manifest cannot hold is refused here
    _refuse_unread(source_layer)
    quantization = quantization_of(weights, block_size, accuracy_level)
    chosen = lowering_for(lowering, spec, cache, quantization)
    chosen_opset = opset_of(chosen, cache, opset, NEWEST_OPSET)
    tensors = source_layer.weights()
    packed = {} if quantization is None else _quantized(source_layer, tensors, quantization)
    manifest = manifest_of(
        source_layer,
        chosen,
        opset=chosen_opset,
        cache=cache,
        padding=padding,
        weights=facts_of_weights(source_layer, tensors, packed, quantization),
        quantization=quantization,
    )
    interface = manifest.interface
    progress("tracing and translating")
    attention = RotaryAttention.from_weights(spec, tensors)
    module = lowered(attention, chosen, cache, packed, quantization)
    del tensors, attention, packed
    model = translate(module, interface, chosen_opset)
    origin = {"source": source_layer.path}
    if source_layer.adapter is not None:
        origin["adapter"] = source_layer.adapter
    return save_layer(model, manifest, out, origin, progress)


def manifest_of(
    layer: Layer,
    lowering: Lowering,
    *,
    opset: int,
    cache: Cache,
    padding: bool,
    weights: dict[str, Weight],
    quantization: Quantization | None = None,
) -> Manifest:
    """What is true of the artifact of one layer. weights: facts of each as it is deployed."""
    spec = layer.spec
    return Manifest(
        spec=spec.to_json(),
        lowering=lowering.name,
        opset=opset,
        cache=cache,
        padding=padding,
        interface=attention_interface(spec, cache=cache, padding=padding),
        source=layer.facts,
        weights=weights,
        versions={"rope_export": VERSION}
        | {name: version(name) for name in ("torch", "onnx", "onnxscript")},
        runtimes=lowering.runtimes,
        needs=dict(lowering.needs),
        quantization=quantization,
        stale_slots=lowering.stale_slots if cache == "fixed" else "any",
        first_position=spec.first_position,
    )


def save_layer(
    model: ir.Model,
    manifest: Manifest,
    out: Path,
    origin: Mapping[str, str],
    progress: Progress = lambda step: None,
) -> Artifact:
    """Writes a translated layer as an artifact, checked by onnx. origin: where its source is."""
    describe(model, manifest)

    def write(folder: Path) -> None:
        progress("writing")
        write_model(model, folder)
        progress("checking the file")
        check_model(folder / MODEL, manifest.interface)

    return save(out, manifest, write, origin)


def _refuse_unread(source: Layer) -> None:
    """Raises: SpecError for a config key that transformers, where it is installed, reads for this
    attention and that is not implemented here."""
    from rope_export.reading.unread import refuse_unread

    refuse_unread(source)


def _quantized(
    layer: Layer, tensors: dict[str, Tensor], quantization: Quantization
) -> dict[str, Packed]:
    """The quantized projections; `tensors` holds afterwards the weights that they stand for."""
    packed = store(tensors, layer.integers(), quantization)
    for name, stored in packed.items():
        tensors[name] = to_torch(unpack(stored, quantization, tensors[name].shape[1]))
    return packed
