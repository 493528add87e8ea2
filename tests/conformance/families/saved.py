"""A tiny model as a folder that transformers has saved, and its modules as loaded from there.

What is ours and what is transformers' have that folder between them and nothing else.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from rope_export.checkpoints.families import towers_of
from tests.conformance.families.building import TinyModel, cleared, optional_backends, set_eager
from tests.conformance.families.overrides import OVERRIDES

FILE = "model.safetensors"


def save(tiny: TinyModel, folder: Path) -> None:
    """Writes config.json and model.safetensors, with weights in float32.

    Raises: ValueError if transformers writes no such file.
    """
    model: Any = tiny.build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    if not (folder / FILE).is_file():
        raise ValueError(f"save_pretrained wrote {sorted(x.name for x in folder.iterdir())}")


def load(cls: type[PreTrainedModel], folder: Path, dtype: torch.dtype = torch.float64) -> nn.Module:
    """transformers' model from the folder, in eager attention.

    Raises: ValueError if transformers does not find tensors in the file that it has written.
    """
    config_class: Any = cls.config_class
    config = config_class.from_pretrained(folder)
    _stand_in(config)
    set_eager(config)
    with mock.patch.object(torch, "empty", cleared), optional_backends(cls):
        loaded: Any = cls.from_pretrained(
            folder, config=config, dtype=dtype, output_loading_info=True
        )
    model, told = loaded
    lost = sorted(told["missing_keys"]) + sorted(str(x) for x in told["mismatched_keys"])
    if lost:
        raise ValueError(f"transformers does not find {lost[0]} in the file it has written")
    found: nn.Module = model.eval()
    return found


def _stand_in(config: Any) -> None:
    """Towers of other libraries that nothing is proven of are replaced as they were when saved."""
    for inner in (config, *(x for _, x in parts(config))):
        for key, value in OVERRIDES.get(type(inner).__name__, {}).items():
            if isinstance(value, PreTrainedConfig):
                setattr(inner, key, value)


def parts(config: PreTrainedConfig, path: str = "") -> Iterator[tuple[str, PreTrainedConfig]]:
    """The configs within a config by their dotted keys, outer ones first."""
    for key, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield f"{path}{key}", value
            yield from parts(value, f"{path}{key}.")


def part_of(model: Any, path: str) -> str | None:
    """What `--part` calls the config that the module at `path` is built from; None for the model's
    own. The nearest config above the module is asked."""
    outer = path
    while path:
        config = getattr(model.get_submodule(path), "config", None)
        if isinstance(config, PreTrainedConfig):
            break
        path = path.rpartition(".")[0]
    else:
        return None
    towers = towers_of(model.config.model_type)
    for key in outer.split("."):
        if key in towers:
            return key
    every = list(parts(model.config))
    same = [key for key, value in every if value is config]
    alike = [key for key, value in every if type(value) is type(config)]
    if same or type(config) is type(model.config):
        return same[0] if same else None
    return alike[0] if len(alike) == 1 else None
