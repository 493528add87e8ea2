"""One decoder layer as a module to trace: transformers' own, with RotaryAttention in it."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from rope_export.attention.layer import RotaryAttention
from rope_export.attention.operators import BY_FEATURE, Operators
from rope_export.decoder.forwards import results_of
from rope_export.decoder.model import set_submodule
from rope_export.decoder.shared import Part, grouped
from rope_export.interface import TensorType

CACHES = {
    (False, False): ("past_key", "past_value"),
    (False, True): ("key_cache", "value_cache"),
    (True, False): ("past_latent", "past_key_rope"),
    (True, True): ("latent_cache", "key_rope_cache"),
}
"""What our attention calls its cache, by whether it is MLA and whether it is fixed."""

AROUND = "/"
"""How the names of tensors begin that can be looked at and are not the attention's own."""


class InPlace(nn.Module):
    """RotaryAttention in the place of transformers' attention: what the layer hands it is ignored
    but for the hidden states; rotation, visibility and cache come from the body around it.

    results: how many values transformers' own attention returns.
    """

    def __init__(self, attention: RotaryAttention, results: int) -> None:
        super().__init__()
        self.attention, self.results = attention, results
        self.arguments: dict[str, Any] = {}
        self.present: tuple[Tensor, ...] = ()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else next(iter(kwargs.values()))
        hidden = self.attention.operators.tap("hidden_states", hidden, BY_FEATURE)
        output, *present = self.attention(hidden, **self.arguments)
        self.present = tuple(present)
        return (output, *[None] * (self.results - 1)) if self.results > 1 else output


def look_at(module: nn.Module, name: str, operators: Operators) -> None:
    """Has what a module gives be looked at, by its name, and of a norm what it takes: the
    residual."""

    def seen(name: str, value: Any) -> Any:
        plain = isinstance(value, Tensor) and value.is_floating_point() and value.dim() in (2, 3)
        if not plain or free_unbacked_symbols(value):
            return value
        return operators.tap(AROUND + name, value, BY_FEATURE)

    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (seen(f"{name}.input", args[0]), *args[1:]) if args else args

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return seen(name, output)

    if "norm" in name.lower():
        module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


class Body(nn.Module):
    """One decoder layer as a function of tensors alone.

    layer: transformers' decoder layer. path: of its attention. attention: ours, lowered. arguments:
    of the layer's forward, as its model calls it; tensors there by their names in `extras`.
    """

    def __init__(
        self,
        layer: nn.Module,
        path: str,
        attention: RotaryAttention,
        *,
        fixed: bool,
        parts: Sequence[Part],
        arguments: Mapping[str, Any],
        extras: Sequence[TensorType],
    ) -> None:
        super().__init__()
        self.place = InPlace(attention, results_of(layer, path))
        set_submodule(layer, path, self.place)
        for name, module in layer.named_modules():
            if name and name != path and not name.startswith(f"{path}."):
                look_at(module, name, attention.operators)
        self.layer, self.fixed = layer, fixed
        self.parts, self.extras = tuple(parts), tuple(extras)
        self.layer_arguments = dict(arguments)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """hidden_states (B, S, H), the layer's cache, the lengths of a fixed one, its parts, then
        the extra arguments of its forward."""
        hidden_states, key, value, *rest = tensors
        lengths = {"cache_lengths": rest.pop(0)} if self.fixed else {}
        names = [part.tensor.name for part in self.parts]
        values = dict(zip(names, rest, strict=False))
        extras = dict(zip([x.name for x in self.extras], rest[len(names) :], strict=True))
        rotation, visibility = grouped(self.place.attention, self.parts, values)
        latent = self.place.attention.spec.latent is not None
        before = CACHES[latent, self.fixed]
        cache = [x.squeeze(1) if latent else x for x in (key, value)]
        self.place.arguments = {
            **dict(zip(before, cache, strict=True)),
            **lengths,
            "rotation": rotation,
            "visibility": visibility,
        }
        output = self.layer(hidden_states, **{**self.layer_arguments, **extras})
        output = output[0] if isinstance(output, tuple) else output
        present = self.place.present
        self.place.arguments, self.place.present = {}, ()
        return output, *(x.unsqueeze(1) if latent else x for x in present)
