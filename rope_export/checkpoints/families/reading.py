"""Readers that families are built from; each reads fields of a spec from a config."""

from collections.abc import Callable, Mapping
from typing import Any

from rope_export.checkpoints.families.base import Config, Facts
from rope_export.errors import SpecError
from rope_export.rope.axial import halves
from rope_export.rope.sections import blocks, interleaved
from rope_export.spec import NormSpec

Reader = Callable[[Config, int], Facts]
Kinds = Callable[[Config], list[str] | None]


def biases(parts: str, present: bool = True) -> Facts:
    """Fields of a spec: whether the projections named by their letters have a bias."""
    return {f"{part}_bias": present for part in parts}


def no_biases(config: Config, layer: int) -> Facts:
    """Reads a config without biases, for families whose files keep projections together, and their
    biases apart under the names of the modules.

    Raises: SpecError where attention_bias is true.
    """
    if config.flag("attention_bias"):
        raise SpecError(
            "config key attention_bias=True: the family's files keep such biases apart from the "
            "weights; supported: false."
        )
    return {}


def bias_flag(key: str = "attention_bias", parts: str = "qkvo") -> Reader:
    """One switch for the biases of the projections named by their letters."""
    return lambda config, layer: biases(parts, config.flag(key))


def qk_norms(eps: float, **norm: Any) -> Facts:
    """The same kind of norm on queries and on keys."""
    spec = NormSpec(eps=eps, **norm)
    return {"q_norm": spec, "k_norm": spec}


def eps(config: Config, key: str = "rms_norm_eps") -> float:
    """The epsilon of the model's norms."""
    return config.number(key)


def together(*readers: Reader) -> Reader:
    """One reader of all the fields that several readers read; of equal names the last counts."""

    def read(config: Config, layer: int) -> Facts:
        facts: Facts = {}
        for reader in readers:
            facts |= reader(config, layer)
        return facts

    return read


def always(**facts: Any) -> Reader:
    """The same facts for every layer of every config."""
    return lambda config, layer: dict(facts)


def scale_of(key: str, power: float = 1.0) -> Reader:
    """The factor on q·k: a number of the config, to a power."""

    def read(config: Config, layer: int) -> Facts:
        value = config.number(key)
        if value <= 0:
            raise SpecError(f"config key {key}={value!r}: it must be a positive number.")
        return {"scale": value**power}

    return read


def head_norms(key: str = "rms_norm_eps", **norm: Any) -> Reader:
    """RMS norms of queries and keys, one weight for all heads unless `norm` has another `over`."""
    return lambda config, layer: qk_norms(eps(config, key), **norm)


def all_slide(config: Config) -> list[str] | None:
    """Every layer has the window, if the config has one."""
    kind = "full_attention" if config.get("sliding_window") is None else "sliding_attention"
    return [kind] * config["num_hidden_layers"]


def all_full(config: Config) -> list[str] | None:
    """No layer has the window, even if the config has one."""
    return ["full_attention"] * config["num_hidden_layers"]


def no_cache_window(config: Config, layer: int) -> Facts:
    """transformers drops old keys from the cache, but hides none from the tokens of one call."""
    window = config.get("sliding_window")
    if window is not None:
        raise SpecError(
            f"config key sliding_window={window!r}: a window that only the cache has is not "
            f"implemented; supported: null."
        )
    return {}


def every_full(period: int | None = None, key: str | None = None, first: bool = False) -> Kinds:
    """layer_types as given; else sliding but for each `period`-th layer, or each first of so many.

    key: where the config may have another period.
    """

    def kinds(config: Config) -> list[str] | None:
        step = config.get(key) if key is not None else None
        if config.get("layer_types") is not None:
            return config["layer_types"]
        step = period if step is None else step
        if not isinstance(step, int) or step < 1:
            raise SpecError(f"config key {key}={step!r}: it must be a positive whole number.")
        return [
            "sliding_attention" if (at if first else at + 1) % step else "full_attention"
            for at in range(config["num_hidden_layers"])
        ]

    return kinds


def named_kinds(names: Mapping[str, str]) -> Kinds:
    """layer_types under the family's own names; layers that are not named are not attention."""

    def kinds(config: Config) -> list[str] | None:
        layer_types = config.get("layer_types")
        return None if layer_types is None else [names.get(kind, kind) for kind in layer_types]

    return kinds


def by_layer(config: Config, layer: int) -> Mapping[str, Any] | None:
    """layer_rope_theta names each layer's base; 0 is a layer without rotation."""
    bases = config.get("layer_rope_theta")
    if bases is None:
        return {}
    if len(bases) <= layer:
        raise SpecError(f"config key layer_rope_theta={bases!r}: it must name every layer's base.")
    return {"rope_theta": bases[layer]} if bases[layer] else None


def switched_window(config: Config) -> list[str] | None:
    """Qwen's rule: layers from max_window_layers on slide where use_sliding_window is on; where it
    is off there is no window, even if the config has one.

    Raises: SpecError for layers that slide without a window, which transformers refuses too.
    """
    return window_from_layer(config) if _switched_on(config) else given_or_full(config)


def every_other_window(config: Config) -> list[str] | None:
    """Qwen2-MoE's rule: of the layers below max_window_layers every other slides, the first among
    them, where use_sliding_window is on.

    Raises: SpecError as `switched_window`.
    """
    if not _switched_on(config) or config.get("layer_types") is not None:
        return given_or_full(config)
    last = config.get("max_window_layers") or 0
    return [
        "full_attention" if at % 2 or at >= last else "sliding_attention"
        for at in range(config["num_hidden_layers"])
    ]


def given_or_full(config: Config) -> list[str] | None:
    """layer_types as given; else no layer slides."""
    return config["layer_types"] if config.get("layer_types") is not None else all_full(config)


def _switched_on(config: Config) -> bool:
    """use_sliding_window; off, no layer may slide."""
    kinds, on = config.get("layer_types"), config.flag("use_sliding_window")
    if kinds is not None and "sliding_attention" in kinds and not on:
        raise SpecError(
            f"config key use_sliding_window={config.get('use_sliding_window')!r}: it switches "
            f"off the window that sliding_attention in layer_types needs, and transformers "
            f"refuses that; supported: true, or full_attention throughout."
        )
    return on


def window_from_layer(config: Config) -> list[str] | None:
    """layer_types as given; else layers from max_window_layers on slide where there is a window."""
    if config.get("layer_types") is not None:
        return config["layer_types"]
    first = config.get("max_window_layers") or 0
    if config.get("sliding_window") is None:
        return all_full(config)
    return [
        "sliding_attention" if at >= first else "full_attention"
        for at in range(config["num_hidden_layers"])
    ]


def sections(default: tuple[int, ...], mixed: bool = False) -> Callable[..., Mapping[str, Any]]:
    """Reads which pairs rotate with time, height and width.

    mixed: axis after axis, not in blocks.
    """

    def rope(config: Config, layer: int) -> Mapping[str, Any]:
        parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
        nested = [
            value
            for value in parameters.values()
            if isinstance(value, dict) and value.get("mrope_section")
        ]
        parameters = nested[0] if nested else parameters
        sizes = tuple(parameters.get("mrope_section") or default)
        axes = interleaved(sizes) if mixed else blocks(sizes)
        # "mrope" in older files is the plain variant with sections.
        older = {"rope_type": "default", "type": None} if parameters.get("type") == "mrope" else {}
        return {"pair_axes": axes, "mrope_section": None, "mrope_interleaved": None, **older}

    return rope


def rows_and_columns(head_dim: int) -> Mapping[str, Any]:
    """Half of the pairs rotate with the row, half with the column."""
    return {"rope_type": "axial", "pair_axes": halves(head_dim)}
