"""The base class of lowerings, and what several of them share."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rope_export.attention import operators
from rope_export.attention.operators import Operators
from rope_export.spec import AttentionSpec, RopeSpec

PLAIN_TORCH = frozenset(
    {
        "variant",
        "theta",
        "positions",
        "length",
        "attention factor",
        "axes",
        "clockwise",
        "no rotation",
        "bias",
        "norm",
        "norm order",
        "clip",
        "value scale",
        "position scale",
        "gate",
        "latent norm",
        "latent factor",
        "heads",
    }
)
"""Kinds of features that the layer computes around its operators, in plain torch that is traced as
it stands: every lowering expresses them. See `Feature.kind`."""

LAYOUTS = frozenset({"layout half_split", "layout interleaved", "layout permuted"})
"""The layouts of rotary pairs that `halves` and the operators of ONNX cover."""

TAP = "rope_export::Tap"
"""The node that marks a tensor in a traced program."""


class Lowering(Operators):
    """One way to express the layer in ONNX: the operators that it becomes.

    caches: the forms of cache it can express, each with the oldest opset that has its operators.
    features: the kinds of `Feature` it can express; a spec with any other is refused.
    reasons: why it cannot express a kind, where that helps.
    runtimes: what it is made for, the first that is available being the one to verify it with.
    needs: the oldest version of a package that runs its operators, by the package's name.
    quantizes: whether it can have int8 and int4 weights.
    engine: whether it is made for an engine that is built of the file; "auto" and tuning, which
    look for what a runtime does best with the file itself, leave it out then.
    has_rms_norm: whether `rms_norm` is one operator of its own.
    packs: whether products with one input become one, and a norm takes the residual's sum.
    stale_slots: what slots of a fixed cache may hold that a call neither reads nor writes, as in a
    manifest: "finite" where its operator computes over the whole capacity.
    """

    name: ClassVar[str]
    caches: ClassVar[Mapping[str, int]]
    features: ClassVar[frozenset[str]]
    reasons: ClassVar[Mapping[str, str]] = {}
    runtimes: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnxruntime:cuda", "reference")
    needs: ClassVar[Mapping[str, str]] = {}
    quantizes: ClassVar[bool] = False
    engine: ClassVar[bool] = False
    stale_slots: ClassVar[Literal["any", "finite"]] = "finite"
    heads_axis: ClassVar[int] = 1
    has_rms_norm: ClassVar[bool] = False
    packs: ClassVar[bool] = False

    def limit(self, spec: AttentionSpec, cache: str) -> str | None:
        """What values of `spec` its operators do not take with `cache`, one of its own, or nothing.

        For conditions on values alone: whole features are refused by `features`.
        """
        return None

    def bias_is_padding(self, spec: AttentionSpec) -> bool:
        """Whether the bias of its visibility, where a mask is taken, says nothing but the mask, and
        `com.microsoft::GroupQueryAttention` does without it where that is all ones."""
        return False

    def rotates_inside(self, spec: AttentionSpec) -> bool:
        """Whether its operator of attention can rotate q and k itself, by tables of cos and sin,
        where each token's position is its slot."""
        return False

    def split(self, x: Tensor, width: int) -> Tensor:
        """As `Operators.split`, by a shape that does not have to be computed."""
        heads = x.shape[2] // width
        return reshaped(x, [0, 0, heads, width], (*x.shape[:2], heads, width))

    def join(self, x: Tensor) -> Tensor:
        """As `Operators.join`, by a shape that does not have to be computed."""
        width = x.shape[2] * x.shape[3]
        return reshaped(x, [0, 0, width], (*x.shape[:2], width))

    def tap(self, name: str, x: Tensor, axes: str) -> Tensor:
        """x through a node that `exporter.taps` takes out again, after it has noted its place."""
        if not torch.compiler.is_exporting():
            return x
        return torch.onnx.ops.symbolic(
            TAP, (x,), {"name": name, "axes": axes}, dtype=x.dtype, shape=x.shape, version=1
        )

    def keep(self, past: Tensor | None, new: Tensor, lengths: Tensor | None) -> Tensor:
        """As `Operators.keep`; into a fixed cache by TensorScatter-24, in place."""
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

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x (..., D) divided by the root mean square of its last axis and times weight (D), as
        RMSNormalization-23, where the lowering has it."""
        return torch.onnx.ops.symbolic(
            "::RMSNormalization",
            (x, weight),
            {"axis": -1, "epsilon": eps, "stash_type": 1},
            dtype=x.dtype,
            shape=x.shape,
            version=23,
        )


def halves(x: Tensor, rope: RopeSpec) -> Tensor:
    """x (..., D) with rotary pairs that lie side by side moved to halves, the rest as it is."""
    pairs = x[..., : rope.rotary_dim].unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    return torch.cat((pairs, x[..., rope.rotary_dim :]), dim=-1)


def reshaped(x: Tensor, asked: list[int], shape: tuple[int, ...]) -> Tensor:
    """A Reshape of x to `shape` that asks for `asked`, in which 0 keeps an axis; torch's own form
    computes batch and sequence."""
    operands = (x, torch.tensor(asked, dtype=torch.int64))
    return torch.onnx.ops.symbolic("::Reshape", operands, dtype=x.dtype, shape=shape, version=14)
