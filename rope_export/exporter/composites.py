"""Composite operators of a traced program replaced one by one, without tracing it again.

Before torch's exporter translates a program, it decomposes it by tracing it a second time, with
symbolic sizes, which takes longer than all else of an export. In a layer that changes a few
operators, which are replaced here by the same ones. A program that has others is left to torch.
"""

import functools
import operator
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument
from torch.fx import Graph, Node

aten = torch.ops.aten

_here: ContextVar[bool] = ContextVar("_here", default=False)


@contextmanager
def replaced_in_place() -> Iterator[None]:
    """Within it, `ExportedProgram.run_decompositions` returns the program itself where
    `decompose` can decompose it."""
    run = ExportedProgram.run_decompositions
    if not hasattr(run, "in_place"):
        ExportedProgram.run_decompositions = _in_place(run)  # type: ignore[method-assign]
    token = _here.set(True)
    try:
        yield
    finally:
        _here.reset(token)


def _in_place(run: Callable[..., ExportedProgram]) -> Callable[..., ExportedProgram]:
    @functools.wraps(run)
    def run_decompositions(
        program: ExportedProgram, decomp_table: Any = None, *args: Any, **kwargs: Any
    ) -> ExportedProgram:
        if _here.get() and decomp_table is not None and decompose(program, decomp_table):
            return program
        return run(program, decomp_table, *args, **kwargs)

    run_decompositions.in_place = True  # type: ignore[attr-defined]
    return run_decompositions


def decompose(program: ExportedProgram, table: Container[Any]) -> bool:
    """Decompose a program in place, as torch does by tracing it with a table of decompositions.

    Returns: whether it is done; False, and nothing but unused nodes is changed, where an operator
        has no replacement here.
    """
    graph = program.graph
    graph.eliminate_dead_code()
    sizes = _Sizes(graph)
    composites = [node for node in graph.nodes if _is_composite(node, table)]
    if not all(_is_replaced(node, sizes, table) for node in composites):
        return False
    sizes.read_once()
    for node in composites:
        with graph.inserting_before(node):
            REPLACEMENTS[node.target](node, sizes)
    _name_outputs(program)
    program.graph_module.recompile()
    return True


def _name_outputs(program: ExportedProgram) -> None:
    """Has the program's signature name the nodes that its outputs are by now."""
    (results,) = program.graph.output_node().args
    assert isinstance(results, tuple | list)
    for spec, node in zip(program.graph_signature.output_specs, results, strict=True):
        if isinstance(node, Node) and isinstance(spec.arg, TensorArgument):
            spec.arg = TensorArgument(name=node.name)


def _is_composite(node: Node, table: Container[Any]) -> bool:
    """Whether torch decomposes the node's operator: one of the table, one that writes to its input,
    a view that is made of other operators, a branch or a loop."""
    if node.op != "call_function":
        return node.op not in ("placeholder", "output")
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False  # of Python, on sizes
    schema = node.target._schema
    aliases = any(argument.alias_info is not None for argument in schema.arguments)
    made_of_others = torch._C._dispatch_has_kernel_for_dispatch_key(
        node.target.name(), "CompositeImplicitAutograd"
    )
    return (
        node.target in table
        or node.target is aten.lift_fresh_copy.default  # of a constant, which is a copy then
        or schema.is_mutable
        or (aliases and made_of_others)
    )


class _Sizes:
    """The nodes of a graph that compute symbolic sizes, by what they compute.

    Of several that read the same size of an input, the last of those under whose symbol the others
    are known; of several that compute one, the first, for nodes that come after it.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: dict[Any, Node] = {}
        self._computed: dict[Any, Node] = {}
        self._order = {node: at for at, node in enumerate(graph.nodes)}
        for node in self._all():
            value = node.meta["val"].node
            expression = getattr(value, "_expr", value.expr)
            if node.target is aten.sym_size.int:
                self.nodes[expression] = node
            else:
                self._computed.setdefault(expression, node)

    def _all(self) -> Iterator[Node]:
        return (node for node in self.graph.nodes if isinstance(node.meta.get("val"), SymInt))

    def read_once(self) -> None:
        """Have every size of an input read from one input alone."""
        for node in self._all():
            one = self.nodes.get(node.meta["val"].node.expr)
            if one is not None and one.target is node.target is aten.sym_size.int:
                node.replace_all_uses_with(one)

    def has(self, size: int | SymInt, user: Node) -> bool:
        """Whether there is a node for the size, or for every factor of it, before its user."""
        if not isinstance(size, SymInt) or self._known(size.node.expr, user) is not None:
            return True
        number, factors = size.node.expr.as_coeff_mul()
        return bool(number.is_Integer) and all(factor in self.nodes for factor in factors)

    def _known(self, expression: Any, user: Node) -> Node | None:
        """The node that computes a size, if there is one before its user."""
        if expression in self.nodes:
            return self.nodes[expression]
        node = self._computed.get(expression)
        return node if node is not None and self._order[node] < self._order[user] else None

    def argument(self, size: int | SymInt, user: Node) -> int | Node:
        """The size as an argument of a node."""
        if not isinstance(size, SymInt):
            return size
        expression = size.node.expr
        known = self._known(expression, user)
        if known is not None:
            return known
        if expression not in self.nodes:
            number, (first, *others) = expression.as_coeff_mul()
            node = self.nodes[first]
            for factor in [*map(self.nodes.get, others), *([int(number)] if number != 1 else [])]:
                node = self._product(factor, node)
            self.nodes[expression] = node
        return self.nodes[expression]

    def _product(self, factor: Any, node: Node) -> Node:
        product = self.graph.call_function(operator.mul, (factor, node))
        value = factor.meta["val"] if isinstance(factor, Node) else factor
        product.meta["val"] = value * node.meta["val"]
        return product


def _is_replaced(node: Node, sizes: _Sizes, table: Container[Any]) -> bool:
    if node.target not in REPLACEMENTS or node.kwargs:
        return False
    if REPLACEMENTS[node.target] is _out_of_place:
        return _function_of(node.target) not in table and _writes_to_its_own(node)
    if node.target is aten.to.device:
        return _keeps(node)
    if node.target is aten.to.dtype:
        return len(node.args) == 2
    if node.target is aten.chunk.default:
        return isinstance(_chunked_size(node), int)
    value = node.meta.get("val")
    if REPLACEMENTS[node.target] is not _view:
        return isinstance(value, Tensor)
    return isinstance(value, Tensor) and all(sizes.has(x, node) for x in value.shape)


def _function_of(target: Any) -> Any:
    """The operator that returns what this one writes to its first input."""
    packet, _, overload = str(target).removeprefix("aten.").partition(".")
    return getattr(getattr(aten, packet.removesuffix("_")), overload)


def _writes_to_its_own(node: Node) -> bool:
    """Whether nothing but the node sees what it writes to: a new tensor of the operands' dtype, of
    which there is no view, and which is not looked at afterwards but as the node's result."""
    x: Any = node.args[0]
    others = [user for user in x.users if user is not node]
    operands = [a.meta["val"] for a in node.args if isinstance(a, Node)]
    dtypes = {value.dtype for value in operands if value.is_floating_point()}
    return (
        _is_new(x)
        and dtypes <= {x.meta["val"].dtype}
        and all(user < node and user.op == "call_function" and _is_new(user) for user in others)
    )


def _is_new(node: Node) -> bool:
    """Whether the node's value shares its memory with no other's."""
    if node.target is operator.getitem:
        source: Any = node.args[0]
        return _is_new(source)
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if REPLACEMENTS.get(node.target) is _out_of_place:
        return True  # which is seen to by itself
    return all(result.alias_info is None for result in node.target._schema.returns)


def _out_of_place(node: Node, sizes: _Sizes) -> None:
    made = node.graph.call_function(_function_of(node.target), node.args)
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made)
    node.graph.erase_node(node)


def _keeps(node: Node) -> bool:
    """Whether a node that asks for a device and a dtype leaves its input as it is."""
    x: Any
    device: Any
    x, device, dtype, *copies = node.args
    value = x.meta["val"]
    return value.device == torch.device(device) and value.dtype == dtype and not any(copies)


def _drop(node: Node, sizes: _Sizes) -> None:
    node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
    node.graph.erase_node(node)


def _clone(node: Node, sizes: _Sizes) -> None:
    made = node.graph.create_node("call_function", aten.clone.default, node.args, name="clone")
    made.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(made)
    node.graph.erase_node(node)


def _cast(node: Node, sizes: _Sizes) -> None:
    x: Any
    x, dtype = node.args
    if x.meta["val"].dtype == dtype:
        _drop(node, sizes)
    else:
        node.target, node.args, node.kwargs = aten._to_copy.default, (x,), {"dtype": dtype}


def _view(node: Node, sizes: _Sizes) -> None:
    x: Any = node.args[0]
    shape = [sizes.argument(size, node) for size in node.meta["val"].shape]
    if _storage(x) == _storage(node):
        node.target, node.args = aten.view.default, (x, shape)
        return
    copied = node.graph.call_function(
        aten.clone.default, (x,), {"memory_format": torch.contiguous_format}
    )
    copied.meta["val"] = x.meta["val"].clone(memory_format=torch.contiguous_format)
    node.target, node.args = aten._unsafe_view.default, (copied, shape)


def _storage(node: Node) -> int:
    return node.meta["val"].untyped_storage()._cdata


def _chunk(node: Node, sizes: _Sizes) -> None:
    x, chunks, *axis = node.args
    node.target = aten.split.Tensor
    node.args = (x, -(-_chunked_size(node) // chunks), *axis)


def _chunked_size(node: Node) -> Any:
    x: Any
    axis: Any
    x, axis = node.args[0], node.args[2] if len(node.args) > 2 else 0
    return x.meta["val"].shape[axis]


def _renamed(target: Any) -> Callable[[Node, _Sizes], None]:
    def rename(node: Node, sizes: _Sizes) -> None:
        node.target = target

    return rename


REPLACEMENTS: dict[Any, Callable[[Node, _Sizes], None]] = {
    aten.lift_fresh_copy.default: _clone,
    aten.detach_.default: _drop,
    aten.to.device: _drop,
    aten.add_.Tensor: _out_of_place,
    aten.mul_.Tensor: _out_of_place,
    aten.div_.Tensor: _out_of_place,
    aten.scatter_.src: _out_of_place,
    aten.scatter_.value: _out_of_place,
    aten.to.dtype: _cast,
    aten.reshape.default: _view,
    aten.flatten.using_ints: _view,
    aten.unflatten.int: _view,
    aten.chunk.default: _chunk,
    aten.__and__.Tensor: _renamed(aten.bitwise_and.Tensor),
    aten.__or__.Tensor: _renamed(aten.bitwise_or.Tensor),
}
"""What torch decomposes each operator into."""
