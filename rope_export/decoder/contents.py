"""The contents of a decoder's weights, read one at a time when the file is written."""

from functools import partial

import onnx_ir as ir
import torch
from msgspec.structs import replace
from torch import Tensor

from rope_export.arrays import numpy_dtype, to_numpy
from rope_export.artifacts.manifest import Weight
from rope_export.checkpoints import Layer
from rope_export.decoder.graph import Graph, Origin
from rope_export.decoder.weights import DecoderWeights
from rope_export.exporter.weight_facts import tensor_hash


def fill(graph: Graph, weights: DecoderWeights, facts: dict[str, Weight]) -> None:
    """Gives every weight of the graph its contents, which are read when they are asked for.

    facts: filled with those of each tensor, by its name in transformers' model, as it is read.
    """
    reader = _Reader(weights, facts)
    dtype = ir.DataType.from_numpy(numpy_dtype(weights.dtype))
    for name, origins in graph.weights.items():
        value = graph.model.graph.initializers[name]
        assert value.shape is not None
        value.const_value = ir.LazyTensor(
            partial(reader.read, name, origins),
            dtype=value.dtype or dtype,
            shape=value.shape,
            name=name,
        )


class _Reader:
    """Reads weights as they lie in the file."""

    def __init__(self, weights: DecoderWeights, facts: dict[str, Weight]) -> None:
        self.weights, self.facts = weights, facts
        self._layer: Layer | None = None

    def read(self, initializer: str, origins: tuple[Origin, ...]) -> ir.Tensor:
        """The contents of an initializer: one tensor, or several side by side."""
        columns, tensors = 0, []
        for origin in origins:
            tensor = self._read(origin)
            facts = self._facts(origin, initializer, tensor)
            if len(origins) > 1:
                facts = replace(facts, columns=(columns, columns + tensor.shape[0]))
                columns += tensor.shape[0]
            self.facts[origin.key] = facts
            tensors.append(tensor.t() if origin.transposed else tensor)
        whole = tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=1)
        return ir.Tensor(to_numpy(whole.contiguous()), name=initializer)

    def _read(self, origin: Origin) -> Tensor:
        if origin.layer is None:
            return self.weights.tensor(origin.name)
        return self._opened(origin.layer).weight(origin.name)

    def _opened(self, index: int) -> Layer:
        """One attention layer, which is kept until another is asked for."""
        if self._layer is None or self._layer.index != index:
            self._layer = self.weights.layer(index)
        return self._layer

    def _facts(self, origin: Origin, initializer: str, tensor: Tensor) -> Weight:
        if origin.layer is None:
            found = self.weights.facts(origin.name)
            source, form = ", ".join(found.names), found.form
        else:
            layer = self._opened(origin.layer)
            source, form = layer.names[origin.name], layer.forms.get(origin.name)
        return Weight(
            source_tensor=source,
            initializer=initializer,
            transposed=origin.transposed,
            sha256=tensor_hash(tensor),
            source_form=form,
        )
