"""Models of transformers with random weights, the same on every run."""

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from tests.conformance.families.overrides import NOT_EAGER

SEED = 20


@dataclass(frozen=True)
class TinyModel:
    """One model class of a family, small enough to run in milliseconds, not built yet."""

    family: str
    variant: str
    model_class: type[PreTrainedModel]
    config: PreTrainedConfig
    attention_classes: tuple[str, ...]
    """Names of the rotary attention classes that this model is here to show."""
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        return f"{self.family}/{self.model_class.__name__}/{self.variant}"

    def build(self) -> nn.Module:
        return build(self.model_class, self.config, self.dtype)


def set_eager(config: PreTrainedConfig) -> None:
    """Eager attention and experts (grouped kernels know no float64), in nested configs too."""
    config._attn_implementation = NOT_EAGER.get(type(config).__name__, "eager")
    config._experts_implementation = "eager"
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            set_eager(value)


def build(cls: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype) -> nn.Module:
    """The model in eval mode as from_pretrained(dtype=...) makes it, with random weights."""
    before = torch.get_default_dtype()
    torch.manual_seed(SEED)
    try:
        torch.set_default_dtype(dtype)
        with mock.patch.object(torch, "empty", cleared), optional_backends(cls):
            model = cls(config)
    finally:
        torch.set_default_dtype(before)
    randomise(model)
    return model.eval()


@contextmanager
def optional_backends(cls: type) -> Iterator[None]:
    """The packages that a model asks for are not needed: a loss that never runs here has scipy."""
    module = importlib.import_module(cls.__module__)
    with ExitStack() as stack:
        if hasattr(module, "requires_backends"):
            stack.enter_context(mock.patch.object(module, "requires_backends"))
        yield


_EMPTY = torch.empty


def cleared(*size: Any, **options: Any) -> torch.Tensor:
    """torch.empty, but the same on every run."""
    return _EMPTY(*size, **options).zero_()


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Weights that hide nothing: norms near one (or zero), biases away from zero, the rest wide."""
    generator = torch.Generator().manual_seed(SEED)
    for name, value in sorted(model.named_parameters(), key=lambda x: x[0]):
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        if value.dim() > 1:
            fan = max(value[0].numel(), 1) if value.dim() != 3 else value.shape[-1]
            value.copy_(noise * fan**-0.5)
            continue
        usable = bool(torch.isfinite(value).all()) and bool((value.abs() < 100).all())
        centre = value.double() if usable else torch.zeros_like(noise)
        value.copy_(centre + (0.5 if "sink" in name else 0.1) * noise)
    for module in model.modules():  # tables that are parameters, but not learned
        create: Any = getattr(module, "create_weight", None)
        if create is not None:
            module.get_parameter("weight").copy_(create())
