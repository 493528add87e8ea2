"""The pipeline from a source to a whole decoder's artifact, read in order."""

import math
import shutil
from collections.abc import Callable, Collection, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from rope_export import paths
from rope_export.artifacts.contents import MODEL
from rope_export.artifacts.decoder import DecoderArtifact, DecoderManifest, save_decoder
from rope_export.artifacts.manifest import Weight
from rope_export.artifacts.saving import check_target
from rope_export.checkpoints import Model, open_model
from rope_export.decoder.companions import companions
from rope_export.decoder.contents import fill
from rope_export.decoder.graph import Graph, decoder_graph
from rope_export.decoder.model import causal_lm
from rope_export.decoder.modules import Form
from rope_export.decoder.shared import ROWS
from rope_export.decoder.source import config_of
from rope_export.decoder.weights import DecoderWeights
from rope_export.errors import InputError
from rope_export.exporter.onnx_file import check_model, describe_decoder, write_model
from rope_export.exporter.translation import NEWEST_OPSET
from rope_export.interface import decoder_interface
from rope_export.lowerings import lowering_for_all, opset_of
from rope_export.quantization import Bits, quantization_of
from rope_export.reading.models import quiet
from rope_export.reading.unread import refuse_unread
from rope_export.spec import AttentionSpec, DType
from rope_export.version import VERSION

Cache = Literal["growing", "fixed"]
Logits = Literal["last", "all"]
Progress = Callable[[str], None]

PARTS = ("attention", "mlp", "experts", "embedding", "head")
"""Parts of a model whose weights can be quantized; the embedding where it is tied to the head."""

SPARE = 1.02
"""Room on the disk, over the bytes of the weights, that an export asks for."""


def export_decoder(
    source: str | Path,
    *,
    out: str | Path,
    lowering: str = "auto",
    cache: Cache = "growing",
    dtype: DType = "float32",
    logits: Logits = "last",
    weights: Bits | None = None,
    weights_for: Collection[str] = PARTS,
    block_size: int = 32,
    accuracy_level: int = 4,
    padding: bool = True,
    opset: int | None = None,
    seed: int = 0,
    adapter: str | Path | None = None,
    progress: Progress = lambda step: None,
) -> DecoderArtifact:
    """Exports a whole causal LM as an artifact, replacing the one that is at `out`.

    source: a checkpoint folder (config.json and safetensors), a GGUF file, a config file, whose
    weights are drawn from `seed`, or a hub id; of a multimodal model its text decoder is taken.
    lowering: "portable", "standard", "ort", "tensorrt", or "auto" for the one that suits the model
    best in onnxruntime. cache: "growing" for past in and present out; "fixed" for one that is
    allocated once and written in place. logits: of each row's "last" new token, or of "all".
    weights, weights_for: "int8" or "int4" to quantize these parts of the model, among "attention",
    "mlp", "experts", "embedding" (where it is the head's) and "head".
    padding: without it the file is faster, and for less: every token is at the position of its
    slot, several rows have one new token each or an empty cache, and a mask with a 0 makes every
    logit NaN; with lowering "ort".
    dtype, block_size, accuracy_level, opset, adapter, progress: as for `export`.

    What is around the layers comes out of transformers' own forward, and each distinct layer is
    traced once. The artifact is not compared here: `verify` does that. Beside the model lie the
    files that other clients look for: config.json, the tokenizer's, genai_config.json.
    Returns: the artifact, its structure checked by onnx.
    Raises: InputError for what is wrong or not supported; nothing is written then.
    """
    out = Path(out)
    check_target(out, DecoderArtifact)
    progress("reading the source")
    opened = open_model(source, dtype=dtype, seed=seed, adapter=adapter)
    specs = _specs(opened)
    config = config_of(opened)
    with quiet():
        lm = causal_lm(config, getattr(torch, dtype))
    tensors = DecoderWeights(lm.model, opened, dtype)
    for at, attention in enumerate(lm.attentions):
        tensors.refuse_unread(at, f"{lm.layers_path}.{at}.{attention}")
    quantization = quantization_of(weights, block_size, accuracy_level)
    chosen = lowering_for_all(lowering, specs, cache, quantization)
    form = Form(lowering=chosen, quantization=quantization, parts=_parts(weights_for))
    if not padding and not any(map(chosen.bias_is_padding, specs)):
        raise InputError(
            f"`padding`=False: lowering {chosen.name!r} has one form of attention for all calls. "
            f"Export with padding, or with `lowering`='ort'."
        )
    interface = decoder_interface(
        dict(enumerate(specs)),
        vocabulary=lm.vocabulary,
        cache=cache,
        logits=logits,
        dtype=dtype,
        static_mask=chosen.engine,
        padding=padding,
    )
    chosen_opset = opset_of(chosen, cache, opset, NEWEST_OPSET)
    progress("tracing and translating")
    with quiet():
        last = logits == "last"
        graph = decoder_graph(lm, specs, form, interface, chosen_opset, last=last, padding=padding)
    _check_room(out, _nbytes(graph))
    beside = companions(opened, config, interface)
    facts: dict[str, Weight] = {}
    distinct = list(dict.fromkeys(specs))
    manifest = DecoderManifest(
        specs=tuple(spec.to_json() for spec in distinct),
        layers=tuple(distinct.index(spec) for spec in specs),
        vocabulary=lm.vocabulary,
        dtype=dtype,
        logits=logits,
        positions=lm.positions if padding else lm.positions or ROWS,
        padding=padding,
        lowering=chosen.name,
        opset=chosen_opset,
        cache=cache,
        interface=interface,
        source=_source_facts(opened, beside.notes),
        weights=facts,
        versions={"rope_export": VERSION}
        | {name: version(name) for name in ("torch", "onnx", "onnxscript", "transformers")},
        runtimes=chosen.runtimes,
        needs=dict(chosen.needs),
        quantization=quantization,
        weights_for=() if quantization is None else tuple(sorted(form.parts)),
        stale_slots=chosen.stale_slots if cache == "fixed" else "any",
    )
    describe_decoder(graph.model, manifest)
    fill(graph, tensors, facts, quantization)

    def write(folder: Path) -> None:
        progress("writing")
        write_model(graph.model, folder)
        for name, contents in beside.files.items():
            (folder / name).write_bytes(contents)
        progress("checking the file")
        check_model(folder / MODEL, interface)

    origin = {"source": opened.path}
    if opened.adapter is not None:
        origin["adapter"] = opened.adapter
    return save_decoder(out, manifest, write, origin)


def _parts(weights_for: Collection[str]) -> frozenset[str]:
    for part in weights_for:
        if part not in PARTS:
            raise InputError(f"`weights_for`={part}: use any of {', '.join(PARTS)}.")
    return frozenset(weights_for)


def _specs(opened: Model) -> list[AttentionSpec]:
    """The spec of every layer.

    Raises: SpecError for one that does not attend, and for a config key that is not read here.
    """
    layers = list(opened.layers)
    for spec in dict.fromkeys(layer.spec for layer in layers):
        refuse_unread(next(layer for layer in layers if layer.spec == spec))
    return [layer.spec for layer in layers]


def _source_facts(opened: Model, further: Iterable[str]) -> dict[str, Any]:
    """What the manifest records of the source: as of a layer's, for all of them. further: notes."""
    facts: dict[str, Any] = {}
    notes: dict[str, None] = {}
    files: dict[str, None] = {}
    for layer in opened.layers:
        notes |= dict.fromkeys(layer.facts.get("notes", ()))
        files |= dict.fromkeys(layer.facts.get("files", ()))
        facts |= layer.facts
    notes |= dict.fromkeys(further)
    facts.pop("layer")
    facts |= {"notes": list(notes)} if notes else {}
    return facts | ({"files": sorted(files)} if files else {})


def _nbytes(graph: Graph) -> int:
    """Bytes of the weights as they will lie in the file."""
    size = 0.0
    for name in graph.weights:
        value = graph.model.graph.initializers[name]
        assert value.shape is not None
        assert value.dtype is not None
        size += math.prod(value.shape.numpy()) * value.dtype.itemsize
    return int(size)


def _check_room(out: Path, size: int) -> None:
    """Raises: InputError if the disk of `out` has no room for that many bytes."""
    place = out.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < size * SPARE:
        raise InputError(
            f"{paths.shown(out)}: the weights take {size / 1e9:.2f} GB and the disk has "
            f"{free / 1e9:.2f} GB free. Free some, or give a folder on another disk."
        )
