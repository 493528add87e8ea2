"""Reads single tensors from safetensors files, sharded or not, without loading the others."""

import json
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rope_export.errors import CheckpointError
from rope_export.spec import AttentionSpec

INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class Locator(Protocol):
    """Finds a checkpoint's files by name: in a folder, or on a hub that fetches them."""

    def find(self, name: str) -> Path | None:
        """The file called `name`, or nothing if the checkpoint has none."""


class Folder:
    """A checkpoint on this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def find(self, name: str) -> Path | None:
        path = self.path / name
        return path if path.is_file() else None

    def __str__(self) -> str:
        return str(self.path)


def files_by_tensor(locator: Locator) -> dict[str, str]:
    """Which file holds which tensor, from the index or the only file's header.

    Raises: CheckpointError if there are no safetensors, or an index names a file elsewhere.
    """
    index = locator.find(INDEX)
    if index is None:
        name = "model.safetensors"
        path = locator.find(name)
        if path is None:
            raise CheckpointError(_missing(locator))
        with _open(path) as tensors:
            return dict.fromkeys(tensors.keys(), name)
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not all(isinstance(x, str) for pair in files.items() for x in pair):
            raise TypeError("weight_map must map names to file names")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index}: is not an index of safetensors files ({error})."
        ) from error
    for name in set(files.values()):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: names the file {name!r}; shards are .safetensors files beside the index."
            )
    return files


def _missing(locator: Locator) -> str:
    if isinstance(locator, Folder):
        pickles = sorted(p.name for kind in PICKLES for p in locator.path.glob(kind))
        if pickles:
            return (
                f"{locator}: holds {pickles[0]} but no safetensors; pickle files run code when "
                f"they are loaded and are refused. Save the model with safe_serialization=True."
            )
    return f"{locator}: there is no model.safetensors and no {INDEX}."


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: is damaged, truncated or not safetensors ({error}). Fetch it again."
        ) from error


def layer_tensors(files: dict[str, str], layer: int, spec: AttentionSpec) -> dict[str, str]:
    """The full names of one layer's attention tensors, by their names in the spec.

    Raises: CheckpointError for a tensor that is missing, or there without the config saying so.
    """
    part = f"layers.{layer}.self_attn."
    prefixes = {n[: n.index(part)] for n in files if n.startswith(part) or f".{part}" in n}
    if len(prefixes) != 1:
        found = f"{len(prefixes)} stacks {sorted(prefixes)}" if prefixes else "none"
        raise CheckpointError(
            f"tensors called '…{part}*': {found} found; the common layout has them once, "
            f"as 'model.{part}q_proj.weight' and so on."
        )
    prefix = prefixes.pop() + part
    names = {name: prefix + name for name in spec.weight_shapes}
    for name in sorted(names.values()):
        if name not in files:
            raise CheckpointError(f"tensor {name!r} is missing from the checkpoint.")
    for name in sorted(files):
        known = name in names.values() or name.endswith("rotary_emb.inv_freq")
        if name.startswith(prefix) and not known:
            raise CheckpointError(
                f"tensor {name!r} is in the checkpoint, but the config says nothing of it: "
                f"refused, since leaving it out would change the output."
            )
    return names


def read_layer(
    locator: Locator, files: dict[str, str], names: dict[str, str], spec: AttentionSpec
) -> dict[str, Tensor]:
    """One layer's tensors, checked and rounded to the spec's dtype.

    Raises: CheckpointError for a damaged file, a wrong shape or dtype, NaN or infinite values, and
        values that the dtype cannot hold.
    """
    weights: dict[str, Tensor] = {}
    for name, full in names.items():
        path = locator.find(files[full])
        if path is None:
            raise CheckpointError(f"{locator}: the file {files[full]} with {full!r} is missing.")
        try:
            with _open(path) as tensors:
                tensor = tensors.get_tensor(full)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: tensor {full!r} cannot be read ({error}).") from error
        weights[name] = deployed(full, tensor, spec.weight_shapes[name], spec.dtype)
    return weights


def deployed(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: str) -> Tensor:
    """`tensor` as it will be deployed: of the given shape, finite, rounded to `dtype`.

    Raises: CheckpointError naming the tensor and what is wrong with it.
    """
    if tuple(tensor.shape) != shape:
        raise CheckpointError(
            f"tensor {name!r} has shape {tuple(tensor.shape)}, the config asks for {shape}."
        )
    if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        raise CheckpointError(
            f"tensor {name!r} has dtype {tensor.dtype}; supported: float64, float32, float16, "
            f"bfloat16. Dequantize the checkpoint first."
        )
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise CheckpointError(f"tensor {name!r} has {bad} values that are NaN or infinite.")
    rounded = tensor.to(getattr(torch, dtype))
    if not torch.isfinite(rounded).all():
        raise CheckpointError(
            f"tensor {name!r} has values up to {float(tensor.abs().max()):.3g}, beyond {dtype}. "
            f"Use bfloat16 or float32."
        )
    return rounded.contiguous()
