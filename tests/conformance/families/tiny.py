"""Tiny random models of every transformers family that applies rotary embeddings itself.

The families are found by reading the installed modeling files, and each tiny configuration is made
by shrinking the defaults of the family's own config class, so that a family that transformers adds
is covered without a line here. Only what generic rules get wrong stands in the overrides table.
"""

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from tests.conformance.families.building import TinyModel
from tests.conformance.families.overrides import SKIP, SUBMODULES
from tests.conformance.families.rotary_classes import (
    attention_modules,
    modeling_modules,
    own_classes,
    rotary_attention_in,
)
from tests.conformance.families.shrinking import tiny_config, tiny_config_for
from tests.conformance.families.switching import attributes_read, switches


def tiny_models(family: str) -> Iterator[TinyModel]:
    """The smallest models that together hold every rotary attention class, then their variants."""
    plain = list(_plain_models(family))
    yield from plain
    for tiny in plain:
        yield from _variants(tiny)


def _plain_models(family: str) -> Iterator[TinyModel]:
    PROBLEMS[family] = []
    for module in modeling_modules(family):
        wanted, candidates = rotary_attention_in(module), []
        covered: set[str] = set()
        for cls in sorted(own_classes(module, PreTrainedModel), key=_expense):
            done = wanted and wanted <= covered and max(_expense(cls)) > 0
            if done or cls.__name__ in SKIP or not _is_concrete(cls):
                continue
            try:
                tiny = TinyModel(family, "plain", cls, tiny_config_for(cls, family), ())
                model = _skeleton(tiny)
            except Exception as error:
                PROBLEMS[family].append(f"{cls.__name__}: {type(error).__name__}: {error}")
                continue
            modules = attention_modules(model, family).values()
            names = {(type(x).__name__, str(getattr(x, "is_causal", None))) for x in modules}
            covered |= {x for x, _ in names}
            size = sum(x.numel() for x in model.parameters())
            candidates.append((size, tiny, names))
        yield from _cover(sorted(candidates, key=lambda x: x[0]))


def _skeleton(tiny: TinyModel) -> nn.Module:
    """The model without weights, which is quick; with them where it cannot be made without."""
    try:
        with torch.device("meta"):
            return tiny.model_class(tiny.config)
    except Exception:
        return tiny.build()


def _expense(cls: type[PreTrainedModel]) -> tuple[int, int]:
    """Models with heads last, composites after their parts."""
    parts = getattr(cls.config_class, "sub_configs_defaults", {})
    return int("For" in cls.__name__), len(parts)


PROBLEMS: dict[str, list[str]] = {}
"""What could not be built, by family, from the last call of tiny_models."""


Kinds = set[tuple[str, str]]
"""Attention classes, each with its is_causal: encoders and decoders may share a class."""


def _cover(candidates: list[tuple[int, TinyModel, Kinds]]) -> Iterator[TinyModel]:
    covered: Kinds = set()
    for _, tiny, kinds in candidates:
        if kinds - covered:
            new = tuple(sorted({x for x, _ in kinds - covered}))
            yield dataclasses.replace(tiny, attention_classes=new)
            covered |= kinds


def _is_concrete(cls: type) -> bool:
    if cls.__name__ in SUBMODULES:  # without a forward of its own, perhaps
        return True
    forward = inspect.unwrap(cls.forward)  # type: ignore[attr-defined]
    return forward.__name__ != "_forward_unimplemented" and "PreTrainedModel" not in (
        cls.__name__.replace("PretrainedModel", "")
    )


def _variants(tiny: TinyModel) -> Iterator[TinyModel]:
    """The tiny model once more for each attention feature that its config can switch."""
    seen = {repr(_plain(tiny.config))}
    reads = attributes_read(tiny)
    for name, changes in switches(tiny.config, tiny.family, reads):
        try:
            config = tiny_config(type(tiny.config), tiny.family, **changes)
        except Exception as error:
            PROBLEMS.setdefault(tiny.family, []).append(f"{name}: {error}")
            continue
        if repr(_plain(config)) not in seen:
            seen.add(repr(_plain(config)))
            yield dataclasses.replace(tiny, variant=name, config=config)


def _plain(config: PreTrainedConfig) -> dict[str, Any]:
    return {x: y for x, y in config.to_dict().items() if not x.startswith("_")}
