"""transformers' model with one feature off or altered: what a wrong export may have computed."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rope_export.parity.decoder.exact import Widened, mark_angles
from rope_export.parity.decoder.theirs import Theirs, stack
from rope_export.reading.models import eager, quiet

Make = Callable[[], Any]
Change = Callable[[dict[str, Any]], None]

EPSILONS = (1e-5, 1e-6, 1e-8, 1e-12)
"""What models add to the mean square in their norms."""

UNSEEN = 2**30
"""A window that no text is longer than."""


@dataclass(frozen=True, kw_only=True)
class Alteration:
    """cause: the feature. fault: what is done to it, in words. make: the altered model."""

    cause: str
    fault: str
    make: Make

    def theirs(self, original: Theirs) -> Theirs:
        """The altered model in place of the original one."""
        with quiet(), torch.no_grad():
            model = self.make()
        mark_angles(model)
        return Theirs(
            model=model,
            layers=stack(model, len(original.layers)),
            reading=original.reading,
            widened=Widened(model.parameters()),
            int8_blocks=original.int8_blocks,
        )


def alterations(theirs: Theirs) -> Iterator[Alteration]:
    """Every alteration that changes this model, the likeliest first; those of the config come
    before the others, since the model is made anew for them."""
    model = theirs.model
    for kind in (
        _rope_scaling,
        _window,
        _softcap,
        _base,
        _activation,
        _epsilon,
        _pairing,
        _modules,
    ):
        try:
            yield from list(kind(model))
        except (AttributeError, KeyError, TypeError, ValueError):
            continue  # a config of another form has no such feature to alter


def _with(model: Any, change: Callable[[Any], None]) -> Make:
    """The model made anew of a changed config, with the same weights."""

    def make() -> Any:
        config = copy.deepcopy(model.config)
        change(config)
        eager(config)
        other = type(model)(config).to(next(model.parameters()).dtype)
        other.load_state_dict(model.state_dict(), assign=True, strict=False)
        other.tie_weights()
        return other.eval().requires_grad_(False)

    return make


def _set(key: str, value: Any) -> Callable[[Any], None]:
    return lambda config: setattr(config, key, value)


def _copied(model: Any, change: Callable[[Any], None]) -> Make:
    """A copy of the model that shares its weights, changed module by module."""

    def make() -> Any:
        shared: dict[int, Any] = {id(x): x for x in model.parameters()}
        other = copy.deepcopy(model, shared)
        change(other)
        return other

    return make


def _ropes(config: Any) -> list[dict[str, Any]]:
    """The rotations of a config, which may be of several kinds of layers."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [x for x in parameters.values() if isinstance(x, dict)]
    return [x for x in nested or [parameters] if "rope_type" in x]


def _each_rope(change: Change) -> Callable[[Any], None]:
    def changed(config: Any) -> None:
        for rope in _ropes(config):
            change(rope)

    return changed


def _rope_scaling(model: Any) -> Iterator[Alteration]:
    """Frequencies of the default variant; the factor on cos and sin left out; frequencies that do
    not follow the length."""
    kinds = {rope["rope_type"] for rope in _ropes(model.config)}

    def default(rope: dict[str, Any]) -> None:
        kept = {k: x for k, x in rope.items() if k in ("rope_theta", "partial_rotary_factor")}
        rope.clear()
        rope.update({**kept, "rope_type": "default"})

    def unscaled(rope: dict[str, Any]) -> None:
        rope["attention_factor"] = 1.0

    def rounded(rope: dict[str, Any]) -> None:
        rope["truncate"] = not rope.get("truncate", True)

    def only(name: str) -> Change:
        def one(rope: dict[str, Any]) -> None:
            if rope["rope_type"] == "longrope":
                rope["short_factor"] = rope["long_factor"] = rope[name]

        return one

    def static(rope: dict[str, Any]) -> None:
        if rope["rope_type"] == "dynamic":
            width = _rotary_dim(model.config, rope)
            theta = rope["rope_theta"] * rope["factor"] ** (width / (width - 2))
            default(rope)
            rope["rope_theta"] = theta

    faults: dict[str, tuple[set[str], Change]] = {}
    faults["the rotation is not scaled"] = (kinds - {"default"}, default)
    faults["cos and sin have no factor"] = (kinds & {"yarn", "longrope"}, unscaled)
    faults["the ends of the ramp are rounded the other way"] = (kinds & {"yarn"}, rounded)
    faults["short factors at any length"] = (kinds & {"longrope"}, only("short_factor"))
    faults["long factors at any length"] = (kinds & {"longrope"}, only("long_factor"))
    faults["the base is scaled at any length"] = (kinds & {"dynamic"}, static)
    for fault, (applies, change) in faults.items():
        if applies:
            make = _with(model, _each_rope(change))
            yield Alteration(cause="rope scaling", fault=fault, make=make)


def _rotary_dim(config: Any, rope: dict[str, Any]) -> int:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(head * rope.get("partial_rotary_factor", 1.0))


def _window(model: Any) -> Iterator[Alteration]:
    window = getattr(model.config, "sliding_window", None)
    for fault, size in (
        ("the window is ignored", UNSEEN),
        ("the window is one too long", (window or 0) + 1),
        ("the window is one too short", (window or 0) - 1),
    ):
        if window:
            make = _with(model, _set("sliding_window", size))
            yield Alteration(cause="window", fault=fault, make=make)


def _softcap(model: Any) -> Iterator[Alteration]:
    for key, fault in (
        ("attn_logit_softcapping", "the softcap of the scores is dropped"),
        ("final_logit_softcapping", "the softcap of the logits is dropped"),
    ):
        if getattr(model.config, key, None):
            make = _with(model, _set(key, None))
            yield Alteration(cause="softcap", fault=fault, make=make)


def _activation(model: Any) -> Iterator[Alteration]:
    """GELU by the error function in place of its approximation by tanh, or the other way."""
    for key in ("hidden_act", "hidden_activation"):
        name = str(getattr(model.config, key, None) or "")
        if name.startswith("gelu"):
            other = "gelu_pytorch_tanh" if name == "gelu" else "gelu"
            fault = f"the activation is {other} in place of {name}"
            make = _with(model, _set(key, other))
            yield Alteration(cause="activation", fault=fault, make=make)


def _epsilon(model: Any) -> Iterator[Alteration]:
    """What norms add to the mean square: another one of those that configs have."""
    for key in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"):
        own = getattr(model.config, key, None)
        for other in EPSILONS if isinstance(own, float) else ():
            if other != own:
                fault = f"norms add {other:g} in place of {own:g}"
                make = _with(model, _set(key, other))
                yield Alteration(cause="norm epsilon", fault=fault, make=make)


def _pairing(model: Any) -> Iterator[Alteration]:
    """Features of q and k in another order are the other pairing: adjacent ones in place of halves,
    or halves in place of adjacent ones."""
    attentions = [x for x in model.modules() if hasattr(x, "q_proj") and hasattr(x, "k_proj")]
    if not attentions or not _ropes(model.config):
        return
    width = _rotary_dim(model.config, _ropes(model.config)[0])

    for fault, order in (
        ("features are rotated in pairs of halves", torch.arange(width).view(2, -1).T.flatten()),
        (
            "features are rotated in adjacent pairs",
            torch.arange(width).view(-1, 2).T.flatten(),
        ),
    ):

        def change(other: Any, order: Tensor = order) -> None:
            for module in other.modules():
                if hasattr(module, "q_proj") and hasattr(module, "k_proj"):
                    for name in ("q_proj", "k_proj", "q_norm", "k_norm"):
                        _reorder(getattr(module, name, None), module.head_dim, order)

        yield Alteration(cause="pairing", fault=fault, make=_copied(model, change))


def _reorder(module: Any, head_dim: int, order: Tensor) -> None:
    """The rotated features of each head of a projection or a norm in another order."""
    for name, weight in list(getattr(module, "_parameters", {}).items()):
        if weight is None or weight.shape[0] % head_dim:
            continue
        heads = weight.detach().clone().view(-1, head_dim, *weight.shape[1:])
        heads[:, : len(order)] = heads[:, order]
        module._parameters[name] = nn.Parameter(heads.view(weight.shape), requires_grad=False)


def _modules(model: Any) -> Iterator[Alteration]:
    """What attention modules have beside their projections."""
    named = {name for x in model.modules() for name in ("q_norm", "k_norm", "sinks") if
             getattr(x, name, None) is not None}  # fmt: skip

    def no_norms(other: Any) -> None:
        for module in other.modules():
            for name in ("q_norm", "k_norm"):
                if getattr(module, name, None) is not None:
                    setattr(module, name, nn.Identity())

    def no_sinks(other: Any) -> None:
        for module in other.modules():
            if getattr(module, "sinks", None) is not None:
                value = torch.full_like(module.sinks, -1e9)
                module._parameters["sinks"] = nn.Parameter(value, requires_grad=False)

    def plain_scale(other: Any) -> None:
        for module in other.modules():
            if hasattr(module, "scaling") and hasattr(module, "head_dim"):
                module.scaling = module.head_dim**-0.5

    scaled = any(
        abs(x.scaling - x.head_dim**-0.5) > 1e-9
        for x in model.modules()
        if isinstance(getattr(x, "scaling", None), float) and hasattr(x, "head_dim")
    )
    for applies, cause, fault, change in (
        (named & {"q_norm", "k_norm"}, "qk norm", "q and k are not normalised", no_norms),
        (named & {"sinks"}, "sinks", "the sinks are left out", no_sinks),
        (scaled, "scale", "scores are scaled by 1 / sqrt(head_dim)", plain_scale),
    ):
        if applies:
            yield Alteration(cause=cause, fault=fault, make=_copied(model, change))


def _base(model: Any) -> Iterator[Alteration]:
    """One base in place of two, another share of the head that is rotated."""
    ropes = _ropes(model.config)
    bases = sorted({rope["rope_theta"] for rope in ropes})
    for base in bases if len(bases) > 1 else ():

        def one(rope: dict[str, Any], base: float = base) -> None:
            rope["rope_theta"] = base

        make = _with(model, _each_rope(one))
        yield Alteration(cause="rope base", fault=f"every layer has the base {base:g}", make=make)
