"""The decoders that are proven: causal LMs of transformers that rotate, and the text decoders of
multimodal models that have code of their own."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

from rope_export.reading.models import quiet
from tests.conformance.families.building import TinyModel
from tests.conformance.families.rotary_classes import attention_modules, rotary_families
from tests.conformance.families.shrinking import tiny_config_for

TEXT, MULTIMODAL = "causal LM", "text decoder"
"""The kinds of decoders."""

MAPPINGS = {
    TEXT: ("MODEL_FOR_CAUSAL_LM_MAPPING",),
    MULTIMODAL: ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING", "MODEL_FOR_MULTIMODAL_LM_MAPPING"),
}
"""transformers' models of each kind."""


@cache
def decoders() -> dict[str, dict[str, str]]:
    """Options of each proof by its name, which is the model's class."""
    found: dict[str, dict[str, str]] = {}
    for kind, names in MAPPINGS.items():
        for cls in dict.fromkeys(x for name in names for x in _classes(name)):
            family = cls.__module__.split(".")[-2]
            if family in rotary_families() and cls.__name__ not in found:
                found[cls.__name__] = {"family": family, "name": cls.__name__, "kind": kind}
    return dict(sorted(found.items(), key=lambda item: (item[1]["kind"], item[1]["family"])))


def _classes(mapping: str) -> Iterator[type[PreTrainedModel]]:
    for value in getattr(modeling_auto, mapping).values():
        classes = value if isinstance(value, tuple) else (value,)
        yield from (cls for cls in classes if cls is not None)


def tiny_decoder(family: str, cls: Any) -> TinyModel:
    """The smallest model of a class, its configuration shrunk key by key."""
    with quiet():
        return TinyModel(family, "plain", cls, tiny_config_for(cls, family), ())


def text_decoder(model: Any) -> nn.Module:
    """The part of a model that its layers are in."""
    decoder: Any = model.get_decoder()
    return model if decoder is None else decoder


def rotates(tiny: TinyModel, kind: str) -> bool:
    """Whether a model's text decoder rotates queries and keys in code of the family's own."""
    with torch.device("meta"), quiet():
        model: Any = tiny.model_class(tiny.config)
    modules = attention_modules(model, tiny.family)
    decoder = text_decoder(model)
    return any(module in set(decoder.modules()) for module in modules.values())
