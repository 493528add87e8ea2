"""The contents of a decoder's weights, read one at a time when the file is written."""

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import numpy as np
import onnx_ir as ir
from msgspec.structs import replace
from torch import Tensor

from rope_export.arrays import numpy_dtype, to_numpy, to_torch
from rope_export.artifacts.manifest import Weight
from rope_export.checkpoints import Layer
from rope_export.decoder.graph import Graph, Origin
from rope_export.decoder.weights import DecoderWeights
from rope_export.exporter.weight_facts import tensor_hash
from rope_export.quantization import Packed, Quantization, pack, unpack


def fill(
    graph: Graph,
    weights: DecoderWeights,
    facts: dict[str, Weight],
    quantization: Quantization | None,
) -> None:
    """Gives every weight of the graph its contents, which are read when they are asked for: in the
    graph's order, one ahead.

    facts: filled with those of each tensor, by its name in transformers' model, as it is read.
    """
    order = [name for name in graph.model.graph.initializers if name in graph.weights]
    ahead = _Ahead(_Reader(weights, facts, quantization), graph.weights, order)
    dtype = ir.DataType.from_numpy(numpy_dtype(weights.dtype))
    for name in order:
        value = graph.model.graph.initializers[name]
        assert value.shape is not None
        value.const_value = ir.LazyTensor(
            partial(ahead.read, name),
            dtype=value.dtype or dtype,
            shape=value.shape,
            name=name,
        )


class _Ahead:
    """Reads a weight while the one before is written: all in one thread of its own.

    origins: of each. order: in which they are asked for.
    """

    def __init__(
        self, reader: "_Reader", origins: Mapping[str, tuple[Origin, ...]], order: Sequence[str]
    ) -> None:
        self._reader, self._origins = reader, origins
        self._next = dict(pairwise(order))
        self._pool = ThreadPoolExecutor(1)
        self._reading: dict[str, Future[ir.Tensor]] = {}

    def read(self, name: str) -> ir.Tensor:
        """The contents of an initializer."""
        if name not in self._reading:
            self._start(name)
        tensor = self._reading.pop(name).result()
        if name in self._next:
            self._start(self._next[name])
        return tensor

    def _start(self, name: str) -> None:
        if name not in self._reading:
            work = self._pool.submit(self._reader.read, name, self._origins[name])
            self._reading[name] = work


class _Reader:
    """Reads weights as they lie in the file."""

    def __init__(
        self,
        weights: DecoderWeights,
        facts: dict[str, Weight],
        quantization: Quantization | None,
    ) -> None:
        self.weights, self.facts, self.quantization = weights, facts, quantization
        self._layer: Layer | None = None
        self._packed: dict[str, Packed] = {}

    def read(self, initializer: str, origins: tuple[Origin, ...]) -> ir.Tensor:
        """The contents of an initializer: one tensor, or several side by side."""
        columns, arrays = 0, []
        for origin in origins:
            array, width = self._array(origin, initializer)
            if len(origins) > 1 and origin.packed != "scales":
                facts = self.facts[origin.key]
                self.facts[origin.key] = replace(facts, columns=(columns, columns + width))
                columns += width
            arrays.append(array)
        axis = 0 if origins[0].packed else 1
        whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=axis)
        return ir.Tensor(np.ascontiguousarray(whole), name=initializer)

    def _array(self, origin: Origin, initializer: str) -> tuple[np.ndarray, int]:
        """One tensor as it lies in the file, and its number of outputs."""
        if origin.packed is not None:
            stored = self._quantized(origin)
            facts = self.facts[origin.key]
            if origin.packed == "scales":
                self.facts[origin.key] = replace(facts, scales=initializer)
                return stored.scales, len(stored.scales)
            self.facts[origin.key] = replace(facts, initializer=initializer)
            return stored.packed, len(stored.packed)
        tensor = self._read(origin)
        self.facts[origin.key] = self._facts(origin, initializer, tensor)
        lying = tensor.t().contiguous() if origin.transposed else tensor  # by PyTorch: quicker
        return to_numpy(lying), len(tensor) if tensor.ndim else 1

    def _quantized(self, origin: Origin) -> Packed:
        """A tensor that is quantized, which is kept until its scales were asked for."""
        assert self.quantization is not None
        if origin.key not in self._packed:
            tensor = self._read(origin)
            form = self._facts(origin, "", tensor).source_form
            stored = pack(tensor, self.quantization)
            stored = stored if form is None else dataclasses.replace(stored, stored="requantized")
            inputs = tensor.shape[1]
            deployed = to_torch(unpack(stored, self.quantization, inputs))
            self.facts[origin.key] = replace(
                self._facts(origin, "", deployed),
                scales="",
                inputs=inputs,
                block_size=stored.block_size(self.quantization.bits),
                stored=stored.stored,
            )
            self._packed[origin.key] = stored
        if origin.packed == "scales":
            return self._packed.pop(origin.key)
        return self._packed[origin.key]

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
