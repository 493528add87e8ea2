"""How the layer is said to a target: rotation, attention and cache in the operators it runs well.

Each lowering is one file of this folder and is found by looking into it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rope_export.attention import operators
from rope_export.attention.layer import RotaryAttention
from rope_export.errors import InputError
from rope_export.quantization import Packed, Quantization
from rope_export.spec import AttentionSpec, RopeSpec


class Lowering(ABC):
    """One way to express the layer in ONNX.

    caches: the forms of cache it can express, each with the oldest opset that has its operators.
    runtimes: what it is made for, the first that is available being the one to verify it with.
    needs: the oldest version of a package that runs its operators, by the package's name.
    quantizes: whether it can have weights in few bits.
    engine: whether it is made for an engine that is built of the file; "auto" and tuning, which
        look for what a runtime does best with the file itself, leave it out then.
    stale_slots: what slots of a fixed cache may hold that a call neither reads nor writes, as in a
    manifest: "finite" where its operator computes over the whole capacity.
    heads_axis: as in `operators.Expression`.
    """

    name: ClassVar[str]
    caches: ClassVar[Mapping[str, int]]
    runtimes: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnxruntime:cuda", "reference")
    needs: ClassVar[Mapping[str, str]] = {}
    quantizes: ClassVar[bool] = False
    engine: ClassVar[bool] = False
    stale_slots: ClassVar[str] = "finite"
    heads_axis: ClassVar[int] = 1

    def refusal(self, spec: AttentionSpec, cache: str) -> str | None:
        """The feature of `spec` that this lowering cannot express with `cache`, which is one of its
        own, by name, or nothing."""
        return None

    def split(self, x: Tensor, width: int) -> Tensor:
        """As `operators.Expression.split`, by a shape that does not have to be computed."""
        heads = x.shape[2] // width
        return _reshaped(x, [0, 0, heads, width], (*x.shape[:2], heads, width))

    def join(self, x: Tensor) -> Tensor:
        """As `operators.Expression.join`."""
        width = x.shape[2] * x.shape[3]
        return _reshaped(x, [0, 0, width], (*x.shape[:2], width))

    @abstractmethod
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, rope: RopeSpec) -> Tensor:
        """As `operators.Expression.rotate`."""

    def keep(self, past: Tensor | None, new: Tensor, lengths: Tensor | None) -> Tensor:
        """As `operators.Expression.keep`; into a fixed cache by TensorScatter-24, in place."""
        if past is None or lengths is None:
            return operators.append(past, new)
        return torch.onnx.ops.symbolic(
            "::TensorScatter",
            (past, new, lengths),
            {"axis": -2},
            dtype=past.dtype,
            shape=past.shape,
            version=24,
        )

    @abstractmethod
    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        past_key: Tensor | None,
        past_value: Tensor | None,
        lengths: Tensor | None,
        attention_mask: Tensor | None,
        spec: AttentionSpec,
        sinks: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `operators.Expression.attend`."""


def halves(x: Tensor, rope: RopeSpec) -> Tensor:
    """x (..., D) with rotary pairs that lie side by side moved to halves, the rest as it is."""
    pairs = x[..., : rope.rotary_dim].unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    return torch.cat((pairs, x[..., rope.rotary_dim :]), dim=-1)


def _reshaped(x: Tensor, said: list[int], shape: tuple[int, ...]) -> Tensor:
    """Reshape to `said`, in which 0 keeps an axis; torch's own form computes batch and sequence."""
    given = (x, torch.tensor(said, dtype=torch.int64))
    return torch.onnx.ops.symbolic("::Reshape", given, dtype=x.dtype, shape=shape, version=14)


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


class QuantizedProjection(nn.Module):
    """A linear layer whose weight is stored in few bits: com.microsoft MatMulNBits."""

    def __init__(self, linear: nn.Linear, stored: Packed, how: Quantization) -> None:
        super().__init__()
        self.how, self.outputs = how, linear.out_features
        self.attributes: dict[str, Any] = {"K": linear.in_features, "N": self.outputs}
        self.attributes |= how.to_json() | {"block_size": stored.block_size(how.bits)}
        self.register_buffer(packed_name(how), torch.from_numpy(stored.packed))
        self.register_buffer(SCALES, torch.from_numpy(stored.scales))
        self.has_zeros, self.block = stored.zeros is not None, stored.block_size(how.bits)
        if stored.zeros is not None:
            self.register_buffer(ZERO_POINTS, torch.from_numpy(stored.zeros))
        self.has_offsets = stored.offsets is not None
        if stored.offsets is not None:
            self.register_buffer(OFFSETS, torch.from_numpy(stored.offsets))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        names = (packed_name(self.how), SCALES, *((ZERO_POINTS,) if self.has_zeros else ()))
        y = torch.onnx.ops.symbolic(
            "com.microsoft::MatMulNBits",
            (x, *(self.get_buffer(name) for name in names)),
            self.attributes,
            dtype=x.dtype,
            shape=(*x.shape[:-1], self.outputs),
            version=1,
        )
        if self.has_offsets:
            y = y + self._sums(x) @ self.get_buffer(OFFSETS)
        return y if self.bias is None else y + self.bias

    def _sums(self, x: Tensor) -> Tensor:
        """The sum of each block's inputs, (B, S, blocks)."""
        blocks = x.shape[-1] // self.block
        shape = (*x.shape[:2], blocks, self.block)
        return _reshaped(x, [0, 0, blocks, self.block], shape).sum(dim=-1)


SCALES = "weight_scales"
"""What follows a projection's name in that of its scales."""
ZERO_POINTS = "weight_zero_points"
"""What follows a projection's name in that of its zero points."""
OFFSETS = "weight_offsets"
"""What follows a projection's name in that of its blocks' offsets."""


def packed_name(how: Quantization) -> str:
    """What follows a projection's name in that of its packed weight."""
    return f"weight_Q{how.bits}"


def lowered(
    layer: RotaryAttention,
    lowering: Lowering,
    cache: str,
    stored: Mapping[str, Packed] | None = None,
    how: Quantization | None = None,
) -> RotaryAttention:
    """The layer, saying rotation and attention as the lowering does.

    Takes the layer's weights over, one at a time, so that they are in memory about once. stored:
    by the names of the weights, those that are stored in few bits, in the way that `how` says.
    """
    for name, module in list(layer.named_children()):
        if not isinstance(module, nn.Linear):
            continue
        if stored is None or how is None:
            setattr(layer, name, Projection(module))
        else:
            setattr(layer, name, QuantizedProjection(module, stored[f"{name}.weight"], how))
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


def lowering_for(
    name: str, spec: AttentionSpec, cache: str, how: Quantization | None = None
) -> Lowering:
    """The lowering called `name`, or for "auto" the one that suits `spec` and `cache` best.

    how: the weights are to be stored, if in few bits.
    Raises: InputError naming what is there, or what the lowering cannot express.
    """
    known = lowerings()
    if name != "auto" and name not in known:
        raise InputError(f"lowering {name!r} does not exist; use auto, {', '.join(known)}.")
    wanted = [known[x] for x in (_order(spec, cache) if name == "auto" else [name])]
    refusals = [refusal(lowering, spec, cache, how) for lowering in wanted]
    for lowering, reason in zip(wanted, refusals, strict=True):
        if reason is None:
            return lowering
    able = [at for at, lowering in enumerate(wanted) if how is None or lowering.quantizes]
    reasons = "; ".join(str(refusals[at]) for at in able or range(len(wanted)))
    if len(able) < len(wanted) and able and how is not None:
        reasons += f"; no other lowering has weights in {how.bits} bits"
    raise InputError(reasons)


def _order(spec: AttentionSpec, cache: str) -> list[str]:
    """Names of the lowerings, the one to take first first.

    The newest operators of ONNX itself say the most to a runtime and run in all that have them.
    With a fixed cache onnxruntime's own come first: Attention-24 computes over the whole capacity
    however few entries are in use. They are of no use in bfloat16, which needs another runtime.
    """
    known = [x for x in lowerings().values() if not x.engine]
    known.sort(key=lambda x: -x.caches.get(cache, 0))
    standard = [x.name for x in known if not x.needs]
    own = [x.name for x in known if x.needs]
    fixed = cache == "fixed" and spec.dtype != "bfloat16"
    return own + standard if fixed else standard + own


def refusal(
    lowering: Lowering, spec: AttentionSpec, cache: str, how: Quantization | None = None
) -> str | None:
    """Why `lowering` cannot express `spec` with `cache`, in one line, or nothing."""
    if how is not None and not lowering.quantizes:
        able = ", ".join(x.name for x in lowerings().values() if x.quantizes)
        return f"lowering {lowering.name!r} cannot have weights in {how.bits} bits; {able} can"
    if how is not None and spec.dtype == "bfloat16":
        return f"weights in {how.bits} bits go with dtype float32 or float16, not bfloat16"
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
    return lowering.refusal(spec, cache)
