"""A LoRA adapter: its config and tensors, and how they are merged into the weights."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from rope_export.checkpoints.files import open_tensors, tensor_names
from rope_export.checkpoints.locators import Locator
from rope_export.checkpoints.tensors import Reader
from rope_export.errors import CheckpointError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT puts before the names of the model's modules."""
SUPPORTED = "supported: LoRA's A and B with their scale. Merge it with PEFT's merge_and_unload()."
HARMLESS = re.compile(
    "alpha_pattern|auto_mapping|base_model_(class|name_or_path)|bias|(corda|eva|loftq|lora_ga|"
    "runtime|velora)_config|ensure_weight_tying|exclude_modules|fan_in_fan_out|inference_mode|"
    "init_lora_weights|layers_(pattern|to_transform)|lora_(alpha|dropout)|megatron_core|"
    "modules_to_save|parent_library|peft_(type|version)|qalora_group_size|r|rank_pattern|revision|"
    "target_(modules|parameters)|task_type|trainable_token_indices|unsloth_fixed|use_rslora"
)
"""Keys that are read here, or that bear on training, on other modules or on nothing; of others,
none may be set."""
PLAIN_STARTS = (None, True, False, "gaussian", "eva")
"""Initial values that leave the model's own weights alone; PEFT computes others from them again
whenever it loads the adapter, and takes them off."""


@dataclass(frozen=True, kw_only=True)
class Delta:
    """One tensor's change by the adapter: scale · B·A, under the module's name in the adapter."""

    module: str
    rank: int
    scale: float


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter's config and the file of its tensors.

    where: its folder or hub id. modules: name of each adapted module, as in the model, to the name
    in the file, both without `lora_A.weight`. others: further tensors, by the same names.
    """

    where: str
    config: Mapping[str, Any]
    path: Path
    modules: Mapping[str, str]
    others: tuple[str, ...]

    def delta(self, module: str) -> Delta:
        """Rank and scale of one module.

        Source: PEFT 0.21, tuners/lora: model.py (patterns), layer.py (update_layer).
        """
        rank = _of_pattern(self.config, "rank_pattern", "r", module)
        alpha = _of_pattern(self.config, "alpha_pattern", "lora_alpha", module)
        if rank < 1 or rank != int(rank):
            raise CheckpointError(f"{self.where}: rank {rank} of {module}: it must be 1 or more.")
        root = math.sqrt(rank) if self.config.get("use_rslora") else rank
        return Delta(module=self.modules[module], rank=int(rank), scale=alpha / root)

    def product(self, delta: Delta, dtype: torch.dtype) -> Tensor:
        """scale · B·A: dtype[out, in], in the order of operations that PEFT has."""
        pair = []
        try:
            with open_tensors(self.path) as tensors:
                for name in ("lora_A", "lora_B"):
                    tensor = tensors.get_tensor(f"{delta.module}.{name}.weight")
                    if not tensor.is_floating_point():
                        raise CheckpointError(
                            f"{self.path}: {delta.module}.{name} has dtype {tensor.dtype}; "
                            f"{SUPPORTED}"
                        )
                    pair.append(tensor.to(dtype))
        except SafetensorError as error:
            raise CheckpointError(f"{self.path}: {delta.module}: {error}.") from error
        a, b = pair
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != delta.rank or b.shape[1] != delta.rank:
            raise CheckpointError(
                f"{self.path}: {delta.module} has A of shape {tuple(a.shape)} and B of "
                f"{tuple(b.shape)}; its config says rank {delta.rank}."
            )
        return (b @ a) * delta.scale

    @cached_property
    def weights_hash(self) -> str:
        """sha256 of the file of its tensors."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def facts(self, deltas: Mapping[str, Delta]) -> dict[str, Any]:
        """What a manifest records of it."""
        text = json.dumps(self.config, sort_keys=True, separators=(",", ":"))
        return {
            "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "weights_sha256": self.weights_hash,
            "merged": {
                name: {"rank": delta.rank, "scale": delta.scale}
                for name, delta in sorted(deltas.items())
            },
        }


def open_adapter(locator: Locator, where: str) -> Adapter:
    """Opens an adapter as PEFT saves it.

    Raises: CheckpointError for what is not an adapter, or one that is more than LoRA's A and B.
    """
    path = locator.find(CONFIG)
    if path is None:
        raise CheckpointError(f"{where}: is no adapter; there is no {CONFIG} in it.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: is not JSON ({error}).") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: an adapter's config is a JSON object, this is not one.")
    _check(where, config)
    weights = locator.find(WEIGHTS)
    if weights is None:
        raise CheckpointError(
            f"{where}: there is no {WEIGHTS}. Save the adapter again, with safetensors; pickle "
            f"files such as adapter_model.bin run code when they are loaded."
        )
    modules: dict[str, str] = {}
    others = []
    names = set(tensor_names(weights))
    for name in sorted(names):
        module, dot, kind = name.rpartition(".lora_")
        if not dot or kind not in ("A.weight", "B.weight"):
            others.append(name.removeprefix(PREFIX))
        elif not {f"{module}.lora_A.weight", f"{module}.lora_B.weight"} <= names:
            raise CheckpointError(f"{weights}: of {module!r} there is {kind[0]} alone.")
        else:
            modules[module.removeprefix(PREFIX)] = module
    return Adapter(where=where, config=config, path=weights, modules=modules, others=tuple(others))


def _check(where: str, config: Mapping[str, Any]) -> None:
    """Refuses an adapter whose config makes the merge another one than scale · B·A, by the key."""

    def refuse(key: str) -> None:
        raise CheckpointError(f"{where}: {key}={config[key]!r} is not implemented; {SUPPORTED}")

    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"{where}: peft_type={config.get('peft_type')!r}; {SUPPORTED}")
    if config.get("bias", "none") != "none":
        refuse("bias")
    if config.get("init_lora_weights") not in PLAIN_STARTS:
        refuse("init_lora_weights")
    for key in sorted(config):
        if config[key] and not HARMLESS.fullmatch(key):
            refuse(key)


def _of_pattern(config: Mapping[str, Any], patterns: str, key: str, module: str) -> float:
    """The value of the first pattern that the end of a module's name matches, else that of all."""
    rules = config.get(patterns) or {}
    value = config.get(key, 8)  # PEFT's default of both
    try:
        if not isinstance(rules, Mapping):
            raise TypeError("it is not an object")
        matching = (pattern for pattern in rules if re.match(rf"(.*\.)?({pattern})$", module))
        match = next(matching, None)
        value = value if match is None else rules[match]
    except (TypeError, re.error) as error:
        raise CheckpointError(
            f"adapter: {patterns}={rules!r}: it must map regular expressions to numbers ({error})."
        ) from error
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CheckpointError(f"adapter: {key}={value!r} of {module}: it must be a number.")
    return value


def merged(read: Reader, adapter: Adapter, deltas: Mapping[str, Delta]) -> Reader:
    """Reads tensors with what the adapter adds: W + scale · B·A in float32 (float64 for such W)."""

    def read_merged(name: str) -> Tensor:
        tensor = read(name)
        if name not in deltas:
            return tensor
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"tensor {name!r} has dtype {tensor.dtype}: an adapter is merged into floating "
                f"point weights. Dequantize the checkpoint first."
            )
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        added = adapter.product(deltas[name], dtype)
        if added.shape != tensor.shape:
            raise CheckpointError(
                f"{adapter.where}: adds {tuple(added.shape)} to {name!r} of shape "
                f"{tuple(tensor.shape)}; it was made for another model."
            )
        return tensor.to(dtype) + added

    return read_merged
