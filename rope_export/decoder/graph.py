"""From transformers' causal LM to a decoder's ONNX model without contents of weights."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import onnx_ir as ir
import torch
from torch import nn

from rope_export.attention.layer import RotaryAttention
from rope_export.decoder.around import look_around
from rope_export.decoder.assembly import assembled
from rope_export.decoder.body import Body
from rope_export.decoder.experts import Experts, LoopExpertsPass
from rope_export.decoder.model import CausalLM
from rope_export.decoder.modules import Form, Projection, lower_modules, settings_of
from rope_export.decoder.passes import PackProjectionsPass, SkipNormPass
from rope_export.decoder.quantized import QuantizedProjection
from rope_export.decoder.rotations import refuse_marked
from rope_export.decoder.shared import FILLED, LAST, PLAIN, Shared, parts_of
from rope_export.decoder.skeleton import Skeleton
from rope_export.decoder.stamping import (
    BODY,
    Function,
    Stamp,
    body_taps,
    function_of,
)
from rope_export.decoder.two_forms import TwoFormsPass
from rope_export.decoder.unpadded import without_padding
from rope_export.errors import SpecError
from rope_export.exporter.taps import taps_of
from rope_export.exporter.translation import cleaned, traced
from rope_export.interface import CachePair, Interface, TensorType
from rope_export.interface.base import POSITIONS
from rope_export.lowerings import SCALES
from rope_export.spec import AttentionSpec


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the contents of an initializer are from.

    key: its name in the manifest. name: of a parameter of transformers' model; or of a layer's
    attention, our name for one of its tensors. layer: index of the layer whose attention it is of.
    transposed: whether it lies (in, out) in the file. packed: of a quantized one, whether it is the
    packed "weight" or its "scales".
    """

    key: str
    name: str
    packed: Literal["weight", "scales"] | None = None
    layer: int | None = None
    transposed: bool = False


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A decoder's ONNX model, whose weights have names, dtypes and shapes but no contents.

    weights: the origins of each initializer that is a weight; several lie side by side.
    """

    model: ir.Model
    weights: Mapping[str, tuple[Origin, ...]]


def decoder_graph(
    lm: CausalLM,
    specs: Sequence[AttentionSpec],
    form: Form,
    interface: Interface,
    opset: int,
    *,
    last: bool,
    padding: bool = True,
) -> Graph:
    """Traces skeleton, shared parts and each distinct layer once, and stamps them together.

    specs: of each layer. last: whether the logits are those of each row's last token alone.
    padding: whether tokens may be padding; without, `interface` has no positions.
    """
    tracing = _Tracing(lm, specs, form, interface, opset, last, padding)
    outer, origins = tracing.outer()
    experts = Experts(tracing.skeleton.layers)
    # An engine's parser takes no loop over experts.
    with nullcontext() if form.lowering.engine else experts.registered(lm.model):
        bodies = {first: tracing.body(first) for first in sorted(set(tracing.kinds))}
    stamps = []
    for at, first in enumerate(tracing.kinds):
        function, body_origins = bodies[first]
        names = {}
        for weight, origin in body_origins.items():
            names[weight], placed = tracing.placed(at, first, weight, origin)
            origins[names[weight]] = placed
        stamps.append(tracing.stamp(at, function, names))
    model = assembled(outer, tracing.front(), stamps, interface)
    LoopExpertsPass(experts, opset)(model)
    pack = PackProjectionsPass()
    if form.lowering.packs:
        SkipNormPass()(model)
        pack(model)
        tracing.two_forms(model)
    if not padding:
        without_padding(model, tracing.positions.name, interface)
    used = model.graph.initializers.keys()
    weights: dict[str, tuple[Origin, ...]] = {
        name: (origin,) for name, origin in origins.items() if name in used
    }
    for name, parts in pack.packed.items():
        weights[name] = tuple(origins[part] for part in parts)
    return Graph(model=model, weights=weights)


class _Tracing:
    """The parts of one decoder, traced one by one."""

    def __init__(
        self,
        lm: CausalLM,
        specs: Sequence[AttentionSpec],
        form: Form,
        interface: Interface,
        opset: int,
        last: bool,
        padding: bool,
    ) -> None:
        self.lm, self.specs, self.form = lm, specs, form
        self.interface, self.opset, self.last = interface, opset, last
        self.padding = padding
        self.positions = TensorType(name=POSITIONS, dtype="int64", shape=("batch", "sequence"))
        self.skeleton = Skeleton(lm, form)

    def outer(self) -> tuple[ir.Model, dict[str, Origin]]:
        """The model around its layers, and the origins of its weights."""
        skeleton, interface = self.skeleton, self.interface
        lower_modules(skeleton.model, self.form, "around")
        look_around(skeleton, self.lm.layers_path, self.form.lowering)
        inputs = [interface.input(interface.main_input), self.positions]
        inputs += [TensorType(name=LAST, dtype="int64", shape=("batch",))] if self.last else []
        with _named("the model around its layers", self.lm.model):
            traced_model = traced(skeleton, inputs, [interface.main_output], self.opset)
        model = cleaned(traced_model, skeleton, "around")
        refuse_marked(model)
        origins = {}
        for name in [x for x in model.graph.initializers if x in skeleton.state_dict()]:
            value = model.graph.initializers.pop(name)
            path, _, key = name.rpartition(".")
            owner = skeleton.get_submodule(path)
            path = path.removeprefix("model.")
            if owner is skeleton.head.head:
                path = skeleton.head_path
            value.name = f"{path}.{key}"
            model.graph.initializers[value.name] = value
            origins[value.name] = _origin(path, key, owner)
        return model, origins

    @cached_property
    def kinds(self) -> list[int]:
        """For each layer the first one that its body also serves."""
        facts = [
            (
                self.specs[at],
                self.lm.attentions[at],
                type(layer),
                self.skeleton.nodes[at].call.extras,
                {name: tuple(x.shape) for name, x in layer.named_parameters()},
                settings_of(layer),
            )
            for at, layer in enumerate(self.skeleton.layers)
        ]
        return [facts.index(fact) for fact in facts]

    @cached_property
    def attentions(self) -> dict[int, RotaryAttention]:
        """The lowered attention of the first layer of each kind."""
        attentions = {}
        for at in sorted(set(self.kinds)):
            attention = RotaryAttention(self.specs[at]).eval().requires_grad_(False)
            lower_modules(attention, self.form, "attention")
            attention.operators = self.form.lowering
            attentions[at] = attention
        return attentions

    @cached_property
    def shared(self) -> Shared:
        fixed = self.interface.cache == "fixed"
        covering = fixed and self.interface.covered == "capacity"
        layers = list(self.attentions.values())
        return Shared(
            layers,
            fixed=fixed,
            last=self.last,
            positions=self.lm.positions,
            covering=covering,
            padding=self.padding,
        )

    @cached_property
    def pairs(self) -> dict[int, tuple[CachePair, CachePair]]:
        """Each layer's caches of keys and of values."""
        by_layer: dict[int, list[CachePair]] = {}
        for pair in self.interface.caches:
            by_layer.setdefault(int(pair.input.split(".")[1]), []).append(pair)
        return {at: (pairs[0], pairs[1]) for at, pairs in by_layer.items()}

    @property
    def lengths(self) -> list[str]:
        return [] if self.interface.lengths is None else [self.interface.lengths]

    def front(self) -> ir.Model:
        """What the layers share."""
        past = self.pairs[min(self.pairs)][0].input
        inputs = [self.interface.input(str(self.interface.mask)), self.positions]
        inputs += [self.interface.input(name) for name in (past, *self.lengths)]
        # One length may stand for all rows: seen as that, it is spread over them.
        inputs = [
            replace(x, shape=(1,)) if x.name in self.interface.optional else x for x in inputs
        ]
        model = traced(self.shared, inputs, self.shared.outputs, self.opset)
        return cleaned(model, self.shared, "shared")

    def body(self, at: int) -> tuple[Function, dict[str, Origin]]:
        """One layer as a function, and the origins of its weights, whose names are the layer's."""
        node, layer, path = (
            self.skeleton.nodes[at],
            self.skeleton.layers[at],
            self.lm.attentions[at],
        )
        attention = self.attentions[at]
        lower_modules(layer, self.form, "mlp", beside=path)
        parts = parts_of(attention, self.shared.parts)
        body = Body(
            layer,
            path,
            attention,
            fixed=bool(self.lengths),
            parts=parts,
            arguments=node.call.arguments,
            extras=node.call.extras,
        )
        hidden = TensorType(
            name="hidden_states",
            dtype=attention.spec.dtype,
            shape=("batch", "sequence", attention.spec.hidden_size),
        )
        caches = [pair.input for pair in self.pairs[at]]
        inputs = [hidden, *(self.interface.input(name) for name in [*caches, *self.lengths])]
        inputs += [*(part.tensor for part in parts), *node.call.extras]
        outputs = ["hidden_states_out", "present_key", "present_value"]
        with _named(f"{self.lm.layers_path}.{at}", layer):
            traced_body = traced(body, inputs, outputs, self.opset)
        model = cleaned(traced_body, body, BODY)
        function = function_of(model, f"layer{at}", body.state_dict().keys())
        function = replace(function, taps=body_taps(taps_of(model), path, parts))
        origins = {}
        for name in function.weights:
            owner, _, key = name.rpartition(".")
            origins[name] = _origin(
                f"{owner}."[len("layer.") :].rstrip("."), key, body.get_submodule(owner)
            )
        return function, origins

    def placed(self, at: int, first: int, weight: str, origin: Origin) -> tuple[str, Origin]:
        """The name of the initializer of layer `at` for a weight of its body, and its origin."""
        inside = f"{self.lm.attentions[first]}.attention."
        path = f"{self.lm.layers_path}.{at}."
        own = path + weight.removeprefix("layer.")
        if not origin.name.startswith(inside):
            name = path + origin.name
            return own, replace(origin, key=name, name=name)
        ours = origin.name.removeprefix(inside)
        attention = f"{path}{self.lm.attentions[at]}."
        own = own.replace(path + inside, attention, 1)
        return own, replace(origin, key=attention + ours, name=ours, layer=at)

    def two_forms(self, model: ir.Model) -> None:
        """Computes what padding asks for only where there may be any."""
        biases = {part.tensor.name for part in self.shared.parts if part.padding}
        if biases:
            condition = PLAIN if self.padding else None
            TwoFormsPass(condition, biases, self.shared.tables(), LAST)(model)

    def stamp(self, at: int, function: Function, weights: Mapping[str, str]) -> Stamp:
        parts = parts_of(self.attentions[self.kinds[at]], self.shared.parts)
        caches = self.pairs[at]
        return Stamp(
            function=function,
            inputs=[
                *(pair.input for pair in caches),
                *([FILLED] if self.shared.gives_lengths else self.lengths),
                *(part.tensor.name for part in parts),
            ],
            outputs=[pair.output for pair in caches],
            weights=weights,
        )


def _origin(path: str, key: str, module: nn.Module) -> Origin:
    """Where a tensor is from that a module at `path` holds under `key`."""
    if isinstance(module, QuantizedProjection) and key in (module.packed_name, SCALES):
        packed: Literal["weight", "scales"] = "scales" if key == SCALES else "weight"
        name = f"{path}.weight"
        return Origin(key=name, name=name, packed=packed)
    transposed = isinstance(module, Projection) and key == "weight"
    name = f"{path}.{key}" if path else key
    return Origin(key=name, name=name, transposed=transposed)


@contextmanager
def _named(what: str, module: nn.Module) -> Iterator[None]:
    """Names the module that cannot be traced, and why.

    Raises: SpecError.
    """
    try:
        yield
    except torch.onnx.OnnxExporterError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        line = next(iter(str(cause).strip().splitlines()), "")
        raise SpecError(
            f"{what} ({type(module).__name__}) cannot be traced, so the decoder is not exported "
            f"whole: {type(cause).__name__}: {line[:160]}"
        ) from error
