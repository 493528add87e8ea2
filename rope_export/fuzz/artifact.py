"""Examples as artifacts: layers of one spec are traced once, whatever their weights are."""

from functools import lru_cache
from pathlib import Path

import onnx_ir as ir

from rope_export.artifacts.artifact import Artifact
from rope_export.attention.layer import RotaryAttention
from rope_export.checkpoints import Layer
from rope_export.checkpoints.drawn import drawn_weights
from rope_export.exporter.pipeline import manifest_of, save_layer
from rope_export.exporter.translation import NEWEST_OPSET, translate
from rope_export.exporter.weight_facts import facts_of_weights
from rope_export.fuzz.example import Example
from rope_export.interface import attention_interface
from rope_export.lowerings import Lowering, lowered, lowering_for, opset_of
from rope_export.spec import AttentionSpec

KIND = "fuzz"
"""What a manifest has as the kind of the source."""

TRACES = 256
"""Layers that are kept; those of the tiny shapes that are drawn take some hundred kB each."""


def exported(example: Example, out: Path) -> Artifact:
    """The artifact of an example, with its own weights.

    Raises: InputError for what the lowering cannot express; RopeExportError if the file is wrong.
    """
    spec, tensors = example.spec, example.tensors()
    lowering = lowering_for(example.lowering, spec, example.cache)
    opset = opset_of(lowering, example.cache, None, NEWEST_OPSET)
    layer = Layer(
        spec=spec,
        facts={"kind": KIND, "layer": 0, "seed": example.seed},
        path=str(out),
        names={name: name for name in tensors},
        weights=lambda: tensors,
        weight=tensors.__getitem__,
    )
    manifest = manifest_of(
        layer,
        lowering,
        opset=opset,
        cache=example.cache,
        padding=example.padding,
        weights=facts_of_weights(layer, dict(tensors), {}, None),
    )
    model = _traced(spec, lowering.name, type(lowering), example.cache, example.padding, opset)
    module = lowered(RotaryAttention.from_weights(spec, tensors), lowering, example.cache)
    for name, value in module.state_dict().items():  # no weight is folded into anything
        model.graph.initializers[name].const_value = ir.tensor(value, name=name)
    return save_layer(model, manifest, out, {})


@lru_cache(maxsize=TRACES)
def _traced(
    spec: AttentionSpec, name: str, kind: type[Lowering], cache: str, padding: bool, opset: int
) -> ir.Model:
    """The model of a layer with weights of its own. kind: for that a name may come to mean another
    lowering while it is worked on."""
    layer = RotaryAttention.from_weights(spec, drawn_weights(spec, 0))
    interface = attention_interface(spec, cache=cache, padding=padding)
    return translate(lowered(layer, kind(), cache), interface, opset)
