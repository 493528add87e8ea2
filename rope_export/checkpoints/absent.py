"""Why a folder is no checkpoint, or has no weights that can be read: texts of errors."""

import json
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from rope_export.checkpoints.locators import INDEX, KEY, WHOLE, Locator

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
OTHERS = ("*.h5", "*.msgpack", "*.onnx", "*.npz", "*.mlmodel")


ADAPTER_WEIGHTS = "adapter_model.safetensors"


def is_adapter_alone(locator: Locator) -> bool:
    """Whether a folder with an adapter holds no other safetensors."""
    names = locator.listed()
    if names is None:
        return False
    return {name for name in names if "safetensors" in name} <= {ADAPTER_WEIGHTS}


def no_weights(locator: Locator) -> str:
    """Why there are no weights, by what lies there in their place."""
    names = locator.listed() or ()
    if "adapter_config.json" in names:
        return (
            f"{locator}: holds an adapter and no weights of the model that it was trained on. "
            f"Give that model's folder as SOURCE and this one as `adapter`."
        )
    shards = [name for name in names if name.endswith(".safetensors")]
    if shards and re.fullmatch(r".*-\d+-of-\d+\.safetensors", shards[0]):
        return f"{locator}: holds {shards[0]} but no {INDEX}, which tells what shards there are."
    if shards:
        return (
            f"{locator}: holds {shards[0]} but neither {WHOLE} nor {INDEX}, which transformers "
            f'looks for. To read it, add "{KEY}": "{shards[0]}" to config.json.'
        )
    gguf = _like(names, ("*.gguf",))
    if gguf:
        return f"{locator}: holds {gguf[0]} but no safetensors. Give that file itself as SOURCE."
    pickles = _like(names, PICKLES)
    if pickles:
        return (
            f"{locator}: holds {pickles[0]} but no safetensors; pickle files run code when "
            f"they are loaded and are refused. Save the model with safe_serialization=True."
        )
    others = _like(names, OTHERS)
    if others:
        return (
            f"{locator}: holds {others[0]} but no safetensors. Save the model with transformers' "
            f"save_pretrained."
        )
    return f"{locator}: there is no {WHOLE} and no {INDEX}."


def no_config(locator: Locator, adapter: Path | None) -> str:
    """Why a folder without config.json is no checkpoint, and which one may be meant.

    adapter: the config of an adapter in it, if any.
    """
    if adapter is not None:
        base = _base(adapter)
        named = f" (it names {base!r})" if base else ""
        return (
            f"{locator}: holds an adapter alone. Give the model that it was trained on{named} as "
            f"SOURCE, and this folder as `adapter`."
        )
    gguf = _like(locator.listed() or (), ("*.gguf",))
    if gguf:
        return f"{locator}: there is no config.json. Give {gguf[0]} itself as SOURCE."
    below = locator.folders_with("config.json")
    if below:
        return f"{locator}: there is no config.json, but in {below[0]}. Give that folder as SOURCE."
    return f"{locator}: there is no config.json."


def _base(adapter: Path) -> object:
    """The model that an adapter names, if it can be read."""
    try:
        config = json.loads(adapter.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("base_model_name_or_path") if isinstance(config, dict) else None


def _like(names: Iterable[str], patterns: tuple[str, ...]) -> list[str]:
    return sorted(name for name in names if any(fnmatch(name, pattern) for pattern in patterns))
