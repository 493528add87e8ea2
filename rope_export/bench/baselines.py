"""What artifacts are compared with: the same layer in PyTorch, as a user would run it."""

from collections.abc import Callable
from typing import ClassVar

from rope_export.arrays import fill_cache, to_numpy, to_torch
from rope_export.bench.contenders import CannotError, Contender, Ready
from rope_export.bench.proof import Truth
from rope_export.bench.roofline import weight_bytes
from rope_export.bench.shapes import Arrays, Shape, growing_interface
from rope_export.errors import extra
from rope_export.spec import AttentionSpec
from rope_export.spec.features import beyond

with extra("export", "timing PyTorch"):
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from rope_export.attention.layer import RotaryAttention
    from rope_export.lowerings.base import LAYOUTS, PLAIN_TORCH

COMPILED_SHAPES = 1_000
"""How many shapes PyTorch compiles before it gives up; its own default is 8."""


class Baseline(Contender):
    """The layer in PyTorch. kind: its name, which `name` may carry a suffix to."""

    kind: ClassVar[str]

    def __init__(self, layer: RotaryAttention, name: str = "") -> None:
        self.layer, self.spec, self.name = layer, layer.spec, name or self.kind
        self.weight_bytes = weight_bytes(layer.spec)

    @classmethod
    def refusal(cls, spec: AttentionSpec) -> str | None:
        """The feature of `spec` that it cannot express, or nothing."""
        return None

    def prepare(self, shape: Shape, inputs: Arrays, truth: Truth | None) -> Ready:
        call = self.ready({name: to_torch(value) for name, value in inputs.items()}, shape)
        answer = to_numpy(self.first(call))
        if truth is None:
            return Ready(call=call)
        return Ready(call=call, error=truth.check(answer, truth.tolerance), allowed=truth.tolerance)

    def first(self, call: Callable[[], Tensor]) -> Tensor:
        """The answer of the first call."""
        return call()

    def ready(self, inputs: dict[str, Tensor], shape: Shape) -> Callable[[], Tensor]:
        """A call that gives the attention output, the same at every call."""
        raise NotImplementedError


class EagerBaseline(Baseline):
    """RotaryAttention itself, whose cache grows by concatenation."""

    kind = "torch-eager"

    def ready(self, inputs: dict[str, Tensor], shape: Shape) -> Callable[[], Tensor]:
        return lambda: self.layer(**inputs)[0]


class SdpaBaseline(Baseline):
    """RotaryAttention's projections and rotation around PyTorch's own fused attention, with a cache
    that is allocated once and written in place."""

    kind = "torch-sdpa"
    features: ClassVar[frozenset[str]] = (
        PLAIN_TORCH
        | LAYOUTS
        | {
            *("partial", "value width", "group", "scale", "causal", "bidirectional"),
        }
    )

    @classmethod
    def refusal(cls, spec: AttentionSpec) -> str | None:
        refused = beyond(spec, cls.features)
        if refused:
            names = ", ".join(map(str, refused))
            return f"scaled_dot_product_attention cannot express {names}"
        return None

    def ready(self, inputs: dict[str, Tensor], shape: Shape) -> Callable[[], Tensor]:
        arguments, step = self.arguments(inputs, shape), self.step()
        return lambda: step(*arguments)

    def step(self) -> Callable[..., Tensor]:
        """The function that is timed; `arguments` makes its arguments."""
        return sdpa_step

    def arguments(
        self, inputs: dict[str, Tensor], shape: Shape
    ) -> tuple[RotaryAttention, Tensor, Tensor | None, Tensor, Tensor, Tensor | None, int]:
        """The arguments of `sdpa_step`, its cache filled with the past."""
        interface, spec = growing_interface(self.spec), self.spec
        hidden, caches = inputs[interface.main_input], []
        for at, width in enumerate((spec.head_dim, spec.value_head_dim)):
            size = (shape.batch, spec.kv_heads, shape.total, width)
            cache = torch.zeros(size, dtype=hidden.dtype)
            if shape.past:
                pair = interface.caches[at]
                fill_cache(cache, inputs[pair.input], pair.axis, [shape.past] * shape.batch)
            caches.append(cache)
        mask = None
        if shape.past and shape.sequence > 1:
            seen = torch.ones(shape.sequence, shape.total, dtype=torch.bool)
            mask = seen.tril(shape.past)
        positions = None if interface.positions is None else inputs[interface.positions]
        return self.layer, hidden, positions, caches[0], caches[1], mask, shape.past


class CompiledBaseline(SdpaBaseline):
    """SdpaBaseline under torch.compile, each shape compiled for itself."""

    kind = "torch-compile"

    def step(self) -> Callable[..., Tensor]:
        return torch.compile(sdpa_step, dynamic=False, fullgraph=True)

    def first(self, call: Callable[[], Tensor]) -> Tensor:
        """The first answer. Raises: CannotError if compiling fails, as without a C++ compiler."""
        try:
            with torch._dynamo.config.patch(recompile_limit=COMPILED_SHAPES):
                return call()
        except Exception as error:  # the compiler's own kinds have no common base
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CannotError(f"torch.compile failed: {line}") from error


def sdpa_step(
    layer: RotaryAttention,
    hidden_states: Tensor,
    position_ids: Tensor | None,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    past: int,
) -> Tensor:
    """One call of a layer whose cache, key and value (B, G, T, D or V), is written in place.

    mask: bool (S, T), what each new token sees; none for plain causality, where the first token is
    the first of all or the only one.
    """
    spec = layer.spec
    q, k, v = layer.project(hidden_states)
    q, k = layer.rotated(q, k, layer.rotation(position_ids, q.dtype))
    total = past + hidden_states.shape[1]
    key[:, :, past:total] = k
    value[:, :, past:total] = v
    heads = F.scaled_dot_product_attention(
        q,
        key[:, :, :total],
        value[:, :, :total],
        attn_mask=mask,
        is_causal=spec.causal and mask is None and past == 0,
        scale=spec.softmax_scale,
        enable_gqa=spec.heads != spec.kv_heads,
    )
    return layer.output(heads, hidden_states)


BASELINES: tuple[type[Baseline], ...] = (EagerBaseline, SdpaBaseline, CompiledBaseline)


def blank_layer(spec: AttentionSpec) -> RotaryAttention:
    """A layer of this spec with torch's initial weights: its size and speed are any other's."""
    return RotaryAttention(spec).eval().requires_grad_(False)
