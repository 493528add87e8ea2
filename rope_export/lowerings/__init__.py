"""How the layer is said to a target: rotation, attention and cache in the operators it runs well.

Each lowering is one file of this folder and is found by looking into it.
"""

from abc import ABC, abstractmethod
from importlib import import_module
from pkgutil import iter_modules
from typing import ClassVar

from torch import Tensor, nn

from rope_export.attention import RotaryAttention
from rope_export.errors import InputError
from rope_export.spec import AttentionSpec, RopeSpec


class Lowering(ABC):
    """One way to express the layer in ONNX.

    opset: the oldest opset that has its operators. caches: the forms of cache it can express.
    runtimes: what it is made for, the first that is available being the one to verify it with.
    """

    name: ClassVar[str]
    opset: ClassVar[int]
    caches: ClassVar[tuple[str, ...]] = ("none", "growing")
    runtimes: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnxruntime:cuda", "reference")

    def refusal(self, spec: AttentionSpec) -> str | None:
        """The feature of `spec` that this lowering cannot express, by name, or nothing."""
        return None

    @abstractmethod
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, rope: RopeSpec) -> Tensor:
        """As `attention.Expression.rotate`."""

    @abstractmethod
    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        past_key: Tensor | None,
        past_value: Tensor | None,
        attention_mask: Tensor | None,
        spec: AttentionSpec,
        sinks: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `attention.Expression.attend`."""


class Projection(nn.Module):
    """A linear layer whose weight is stored (in, out), ready for MatMul: no Transpose in the file.

    `weight` keeps the name it has in the checkpoint.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.t().contiguous(), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


def lowered(layer: RotaryAttention, lowering: Lowering, cache: str) -> RotaryAttention:
    """The layer, saying rotation and attention as the lowering does.

    Takes the layer's weights over, one at a time, so that they are in memory about once.
    """
    for name, module in list(layer.named_children()):
        if isinstance(module, nn.Linear):
            setattr(layer, name, Projection(module))
    layer.expression, layer.keeps_cache = lowering, cache != "none"
    return layer


def lowerings() -> dict[str, Lowering]:
    """Every lowering by its name."""
    found: dict[str, Lowering] = {}
    for module in sorted(m.name for m in iter_modules(__path__)):
        for value in vars(import_module(f"{__name__}.{module}")).values():
            if isinstance(value, type) and issubclass(value, Lowering) and value is not Lowering:
                found[value.name] = value()
    return found


def lowering_for(name: str, spec: AttentionSpec, cache: str) -> Lowering:
    """The lowering called `name`, or for "auto" the first that can express `spec` and `cache`.

    Raises: InputError naming what is there, or what the lowering cannot express.
    """
    known = lowerings()
    if name != "auto" and name not in known:
        raise InputError(f"lowering {name!r} does not exist; use auto, {', '.join(known)}.")
    # The newest operators first: they say the most to a runtime.
    wanted = sorted(known.values(), key=lambda x: -x.opset) if name == "auto" else [known[name]]
    refusals = [_refusal(lowering, spec, cache) for lowering in wanted]
    for lowering, refusal in zip(wanted, refusals, strict=True):
        if refusal is None:
            return lowering
    raise InputError("; ".join(str(r) for r in refusals))


def _refusal(lowering: Lowering, spec: AttentionSpec, cache: str) -> str | None:
    if cache not in lowering.caches:
        return (
            f"lowering {lowering.name!r} has no cache {cache!r}; it has "
            f"{', '.join(lowering.caches)}"
        )
    if cache != "none" and not spec.causal:
        return (
            f"cache {cache!r} with causal=False: a layer that sees later tokens has no cache; "
            f"use cache 'none'"
        )
    return lowering.refusal(spec)
