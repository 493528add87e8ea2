"""The rotation of one layer, from a config's rope parameters."""

from typing import Any

from rope_export.checkpoints.families.base import Config, Family
from rope_export.checkpoints.families.tables import class_defaults, keys_read
from rope_export.checkpoints.keys import rope_notes, short
from rope_export.errors import SpecError
from rope_export.rope.base import RopeSpec
from rope_export.rope.parameters import number
from rope_export.rope.variants import not_published, variant

ROPE_PARAMETER_KEYS = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})
ALSO_THERE = {"max_position_embeddings", "original_max_position_embeddings"}
"""Lengths that some configs repeat for variants that do not look at them."""


def read_rotation(
    facts: Config, kind: Family, layer: int, layer_type: str, head_dim: int, latent: bool
) -> RopeSpec | None:
    """The rotation, from `rope_parameters` or the older `rope_theta` and `rope_scaling`.

    head_dim: the features that may rotate; in latent attention all of them do.
    """
    changed = kind.rope(facts, layer)
    if changed is None:
        return None
    parameters = _rope_parameters(facts, layer_type)
    if parameters is None:
        return None
    outer = {
        key: facts[key]
        for key in ("rope_theta", "partial_rotary_factor")
        if facts.get(key) is not None
    }
    parameters = {**outer, **parameters, **changed}
    rope_type = parameters.get("rope_type", parameters.get("type", "default"))
    if not isinstance(rope_type, str):
        raise SpecError(f"config key rope_type={rope_type!r}: it must be a name.")
    cls = variant(rope_type)
    if not cls.published and "rope_type" not in changed:
        raise not_published(rope_type)
    partial_factor = number(parameters, "partial_rotary_factor", 1.0)
    reads_factor = (
        cls.reads_partial_factor
        or _reads_partial_factor(kind.model_type)
        or "partial_rotary_factor" in changed
    )
    if partial_factor != 1.0 and not reads_factor and not latent:
        raise SpecError(
            f"config key partial_rotary_factor={partial_factor}: the code of model_type="
            f"{kind.model_type!r} rotates whole heads; supported: 1.0."
        )
    pair_axes = parameters.pop("pair_axes", ())
    layout = kind.layout if isinstance(kind.layout, str) else kind.layout(facts)
    fields = {"layout": layout, "clockwise": parameters.pop("clockwise", False)}
    unread = parameters.keys() - ROPE_PARAMETER_KEYS - ALSO_THERE - cls.hf_keys.keys()
    facts.notes.update(rope_notes({key: parameters[key] for key in unread}, rope_type))
    return cls.read(
        parameters,
        facts,
        head_dim=head_dim,
        rotary_dim=head_dim if latent else int(head_dim * partial_factor),
        theta=number(parameters, "rope_theta", 10_000.0),
        pair_axes=pair_axes,
        **fields,
    )


def _rope_parameters(facts: Config, layer_type: str) -> dict[str, Any] | None:
    """The rope parameters of the layer's kind; none where the config has null for that kind."""
    new, old = facts.get("rope_parameters"), facts.get("rope_scaling")
    for key, value in (("rope_parameters", new), ("rope_scaling", old)):
        if value is not None and not isinstance(value, dict):
            raise SpecError(f"config key {key}={value!r}: it must be an object or null.")
    if new and old and new != old:
        raise SpecError("config keys rope_parameters and rope_scaling contradict each other.")
    parameters = dict(new or old or {})
    if not any(isinstance(value, dict) for value in parameters.values()):
        # Beside the parameters, the original length counts more than among them.
        outer = facts.get("original_max_position_embeddings")
        if outer is None:
            return parameters
        return {**parameters, "original_max_position_embeddings": outer}
    reads = keys_read(str(facts.get("model_type")))
    if reads is not None and not reads["rope_by_kind"]:
        raise SpecError(
            f"config key rope_parameters={short(parameters)}: the code of model_type="
            f"{facts['model_type']!r} has one rotation for all layers. Give its parameters without "
            f"kinds of layers."
        )
    if layer_type not in parameters:
        raise SpecError(
            f"config key rope_parameters={parameters!r}: it has none for a {layer_type!r} layer."
        )
    layer_parameters = parameters[layer_type]
    if layer_parameters is not None and layer_parameters.get("truncate") is False:
        raise SpecError(
            f"config key rope_parameters.{layer_type}.truncate=False: transformers looks for it "
            f"outside of the layer kinds only, and truncates; supported there: true."
        )
    return None if layer_parameters is None else dict(layer_parameters)


def _reads_partial_factor(model_type: str) -> bool:
    """Whether the family's code reads partial_rotary_factor; families that are not in transformers
    are assumed to."""
    return bool(class_defaults().get(model_type, {"partial": True}).get("partial"))
