"""Rotations of a model whose frequencies follow the length of a call, as they are traced.

transformers decides in Python whether a call is longer than those before it, and keeps what it has
computed, which no trace can follow. Each layer of an artifact has a rotation of its own, so what
these modules give is not looked at; should any part of the model do so, it is found.
"""

from collections.abc import Iterable
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from rope_export.errors import SpecError

DOMAIN = "rope_export.rotations"
OPERATOR = "FollowsLength"

FOLLOWING = {"dynamic", "longrope"}
FIXED = "default"
"""What transformers calls rotations that follow the length, and one that does not."""


def without_length(model: nn.Module) -> None:
    """Has such rotations keep their first frequencies, and marks what they give with a node."""
    modules: Iterable[Any] = model.modules()
    for module in modules:
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, str) and kinds in FOLLOWING:
            module.rope_type = FIXED
        elif isinstance(kinds, dict) and FOLLOWING & set(kinds.values()):
            module.rope_type = {x: FIXED if y in FOLLOWING else y for x, y in kinds.items()}
        else:
            continue
        module.forward = _Marked(module.forward)


class _Marked:
    """In place of a module's forward: what it gives, marked."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return tree_map_only(Tensor, _marked, self.forward(*args, **kwargs))


def _marked(tensor: Tensor) -> Tensor:
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{OPERATOR}", (tensor,), dtype=tensor.dtype, shape=tensor.shape, version=1
    )


def refuse_marked(model: ir.Model) -> None:
    """Raises: SpecError if a traced model takes what such a rotation gives, which attention does
    not."""
    if any(node.domain == DOMAIN for node in model.graph):
        raise SpecError(
            "the model takes rotations that follow the length of a call outside of its attention, "
            "so the decoder is not exported whole; export one of its layers with `layer`."
        )
    model.opset_imports.pop(DOMAIN, None)
