"""torch's type promotion of a traced program, with the values that its trace has computed.

torch's exporter writes out the casts between dtypes that operators do by themselves. To know the
dtype of every value it computes the whole program once more with symbolic sizes, although each node
has kept what was computed for it. Here only what is cast is computed again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_here: ContextVar[bool] = ContextVar("_here", default=False)


@contextmanager
def from_the_trace() -> Iterator[None]:
    """Within it, torch's exporter takes the values of nodes from the trace. Of a torch that keeps
    its pass elsewhere, nothing is changed."""
    _extend_once()
    token = _here.set(True)
    try:
        yield
    finally:
        _here.reset(token)


def _extend_once() -> None:
    try:
        from torch.onnx._internal.fx.passes import type_promotion
    except ImportError:
        return
    interpreter: Any = getattr(type_promotion, "_TypePromotionInterpreter", None)
    rule_of: Any = getattr(type_promotion, "get_type_promotion_rule", None)
    run = getattr(interpreter, "run_node", None)
    if run is not None and rule_of is not None and not hasattr(run, "from_the_trace"):
        interpreter.run_node = _from_the_trace(run, rule_of)


def _from_the_trace(run: Any, rule_of: Any) -> Any:
    """Runs a node as `run` does, but returns the value that it has."""

    def run_node(self: Any, node: Any) -> Any:
        if not _here.get() or node.op != "call_function" or node.meta.get("val") is None:
            return run(self, node)
        rule = rule_of(node, self.type_promotion_table)
        if rule is not None:
            with self._set_current_node(node):
                self._maybe_promote_node(node, rule)
        return node.meta["val"]

    run_node.from_the_trace = True  # type: ignore[attr-defined]
    return run_node
