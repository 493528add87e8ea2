"""The modules around attention as a lowering has them: projections, the head, RMS norms."""

import copy
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rope_export.attention.norm import Norm
from rope_export.decoder.quantized import QuantizedProjection
from rope_export.lowerings import Lowering
from rope_export.quantization import Quantization

CLOSE = 1e-5
"""How far an RMS norm in float32 may be from its formula, relatively."""

ROUTER = re.compile(r"(^|\.)(gate|router|shared_expert_gate)(\.|$)")
"""What a layer that chooses experts is called; it keeps its numbers."""


NUMBER = "rope_export_number"
"""An attribute that numbers modules of experts."""

NUMBERS = ("layer_idx", "layer_id", "layer_number", "layer_index", "training", NUMBER)
"""Attributes by which modules that compute the same may differ."""


class Projection(nn.Module):
    """A linear layer to trace, whose weight (in, out) has no contents yet."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        shape = (linear.in_features, linear.out_features)
        values = torch.empty(shape, dtype=linear.weight.dtype)
        self.weight = nn.Parameter(values, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class TiedHead(nn.Module):
    """A head whose weight (out, in) is the embedding's too, and lies in the file as that does."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(0, -2), self.weight, self.bias).unflatten(0, x.shape[:-1])


class RmsNorm(nn.Module):
    """An RMS norm over the last axis as the lowering has it; what is multiplied is offset + weight.

    Source: RMSNorm, arXiv:1910.07467.
    """

    def __init__(self, weight: nn.Parameter, offset: float, eps: float, lowering: Lowering) -> None:
        super().__init__()
        self.weight, self.offset, self.eps, self.lowering = weight, offset, eps, lowering

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.offset == 0.0 else self.weight + self.offset
        return self.lowering.rms_norm(x, weight, self.eps)


@dataclass(frozen=True, kw_only=True)
class Form:
    """How modules are to be lowered. parts: those whose projections are quantized, among
    "attention", "mlp", "experts", "embedding" and "head"."""

    lowering: Lowering
    quantization: Quantization | None = None
    parts: Collection[str] = ()

    def quantizes(self, part: str) -> bool:
        return self.quantization is not None and part in self.parts

    def projection(self, linear: nn.Linear, part: str) -> nn.Module:
        """A linear layer as it is to be traced."""
        if self.quantization is None or part not in self.parts:
            return Projection(linear)
        return QuantizedProjection(linear, self.quantization)


def lower_modules(root: nn.Module, form: Form, part: str, beside: str | None = None) -> None:
    """Puts the lowering's own in place of linear layers and RMS norms, but for those at `beside`.

    part: that the linear layers are of, unless their path says otherwise.
    """
    norms: dict[tuple[Any, ...], tuple[float, float] | None] = {}
    for name, module in list(root.named_modules()):
        for key, child in list(module.named_children()):
            path = f"{name}.{key}" if name else key
            if beside is not None and (path == beside or path.startswith(f"{beside}.")):
                continue
            if type(child) is nn.Linear:
                setattr(module, key, form.projection(child, _part(path, part)))
                continue
            facts = _rms(child, norms)
            if facts is not None and form.lowering.has_rms_norm:
                setattr(module, key, RmsNorm(child.weight, *facts, form.lowering))


def _part(path: str, part: str) -> str:
    if part != "mlp":
        return part
    if ROUTER.search(path):
        return "router"
    return "experts" if "expert" in path else "mlp"


def _rms(
    module: nn.Module, known: dict[tuple[Any, ...], tuple[float, float] | None]
) -> tuple[float, float] | None:
    """Offset and eps of a module that is an RMS norm with weights."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.ndim != 1:
        return None
    if isinstance(module, Norm):
        spec = module.spec
        plain = spec.kind == "rms" and not spec.bias
        return _exact((spec.offset, spec.eps), weight) if plain else None
    eps = next((x for x in map(_attribute(module), ("variance_epsilon", "eps")) if x), None)
    if "RMSNorm" not in type(module).__name__ or not isinstance(eps, float):
        return None
    key = (type(module), weight.shape, eps)
    if key not in known:
        known[key] = next((x for x in ((0.0, eps), (1.0, eps)) if _computes(module, *x)), None)
    found = known[key]
    return None if found is None else _exact(found, weight)


def _exact(facts: tuple[float, float], weight: nn.Parameter) -> tuple[float, float] | None:
    """The facts, where offset + weight is no more rounded than in the model."""
    return facts if facts[0] == 0.0 or weight.dtype is torch.float32 else None


def _attribute(module: nn.Module) -> Any:
    return lambda name: getattr(module, name, None)


@torch.no_grad()
def _computes(module: nn.Module, offset: float, eps: float) -> bool:
    """Whether a module with drawn weights computes this RMS norm of drawn inputs."""
    stream = torch.Generator().manual_seed(0)
    trial: Any = copy.deepcopy(module).float()
    width = int(trial.weight.shape[0])
    trial.weight = nn.Parameter(torch.randn(width, generator=stream))
    x = torch.randn(3, 2, width, generator=stream) * 1e-2
    expected = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (offset + trial.weight)
    return bool(torch.allclose(trial(x), expected, rtol=CLOSE, atol=CLOSE))


def settings_of(layer: nn.Module) -> list[tuple[str, str, Any]]:
    """The plain attributes of a layer's modules, by which two of one class may differ."""
    return [
        (name, key, value)
        for name, module in layer.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, str | int | float | bool | None) and key not in NUMBERS
    ]
