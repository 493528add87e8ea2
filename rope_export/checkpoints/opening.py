"""Opens a source as a model: a checkpoint folder, a GGUF file, a config file or a hub id."""

import re
from pathlib import Path

from rope_export import paths
from rope_export.checkpoints.absent import is_adapter_alone, no_config, no_weights
from rope_export.checkpoints.adapter import CONFIG as ADAPTER
from rope_export.checkpoints.adapter import Adapter, open_adapter
from rope_export.checkpoints.checkpoint import Checkpoint
from rope_export.checkpoints.config import read_config
from rope_export.checkpoints.drawn_model import DrawnModel
from rope_export.checkpoints.gguf.model import GgufModel
from rope_export.checkpoints.hub import Hub
from rope_export.checkpoints.locators import Folder, Locator
from rope_export.checkpoints.model import Model
from rope_export.errors import CheckpointError
from rope_export.spec import DType

NO_ADAPTER = "none"
"""The value of `adapter` that leaves out the adapter that lies beside the model."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def open_model(
    source: str | Path,
    *,
    part: str | None = None,
    dtype: DType = "float32",
    seed: int = 0,
    adapter: str | Path | None = None,
) -> Model:
    """Opens SOURCE as a model, whose config is read once for all layers; see `Model`.

    source: a checkpoint folder (config.json and safetensors), a GGUF file, a config file, or a hub
    id. part: key of an inner config; see `AttentionSpec.from_hf`.
    dtype: what weights are rounded to. seed: for drawn weights. adapter: folder or hub id of a LoRA
    adapter, merged into the weights; the source's own folder for one that lies beside them, or
    "none" to leave that out.
    Raises: CheckpointError for a source or an adapter that is not there, damaged or not supported.
    """
    path = paths.source(source)
    if path.is_dir():
        return _checkpoint(Folder(path), str(path.resolve()), part, dtype, adapter)
    if path.is_file():
        return _file(path, part, dtype, seed, adapter)
    if HUB_ID.fullmatch(str(source)) and not path.parent.is_dir():
        return _checkpoint(Hub(str(source)), str(source), part, dtype, adapter)
    raise CheckpointError(
        f"{source}: no such folder or file; SOURCE is a checkpoint folder, a .gguf file, a config "
        f"file or a hub id like 'owner/name'."
    )


def _checkpoint(
    locator: Locator, path: str, part: str | None, dtype: DType, adapter: str | Path | None
) -> Checkpoint:
    file = locator.find("config.json")
    beside = locator.find(ADAPTER)
    if file is None:
        raise CheckpointError(no_config(locator, beside))
    to_merge, notes = _adapter(locator, path, beside, adapter)
    return Checkpoint(
        locator,
        path,
        read_config(file),
        part=part,
        dtype=dtype,
        adapter=to_merge,
        adapter_notes=notes,
    )


def _file(
    path: Path, part: str | None, dtype: DType, seed: int, adapter: str | Path | None
) -> Model:
    if adapter is not None and str(adapter) != NO_ADAPTER:
        raise CheckpointError(
            f"adapter {str(adapter)!r}: it is merged into a checkpoint's weights, and {path} "
            f"is a file. Give the folder of the model that it was trained on as SOURCE."
        )
    if path.suffix == ".gguf":
        if part is not None:
            raise CheckpointError(f"part={part!r}: a GGUF file holds a text decoder alone.")
        return GgufModel(path, dtype)
    if path.suffix != ".json":
        raise CheckpointError(
            f"{path}: SOURCE is a folder with config.json and safetensors, a file ending in .gguf, "
            f"or a config file ending in .json."
        )
    return DrawnModel(str(path.resolve()), read_config(path), part=part, dtype=dtype, seed=seed)


def _adapter(
    locator: Locator, path: str, beside: Path | None, adapter: str | Path | None
) -> tuple[Adapter | None, tuple[str, ...]]:
    """The adapter to merge, and notes on those that are not; one that lies beside the weights must
    be asked for, or be left out by "none".

    transformers merges that one where PEFT is installed, and leaves it out where it is not.
    """
    if adapter is None and beside is not None:
        if is_adapter_alone(locator):
            raise CheckpointError(no_weights(locator))
        raise CheckpointError(
            f"{locator}: an adapter ({ADAPTER}) lies beside the model. Give `adapter`={path} to "
            f"merge it, or `adapter`={NO_ADAPTER} to leave it out."
        )
    if adapter is None or str(adapter) == NO_ADAPTER:
        left_out = [] if beside is None else ["beside the model"]
        left_out += [f"in {name}/" for name in locator.folders_with(ADAPTER)]
        note = f"the adapter {', '.join(left_out)} is not merged."
        return None, (note,) if left_out else ()
    folder = paths.source(adapter)
    if folder.is_dir():
        opened = open_adapter(Folder(folder), str(folder.resolve()))
    elif HUB_ID.fullmatch(str(adapter)) and not folder.parent.is_dir():
        opened = open_adapter(Hub(str(adapter)), str(adapter))
    else:
        raise CheckpointError(
            f"adapter {str(adapter)!r}: no such folder, and no hub id. `adapter` takes one of them."
        )
    if beside is not None and opened.where != path:
        raise CheckpointError(
            f"{locator}: an adapter of its own ({ADAPTER}) lies beside the model; with `adapter`="
            f"{adapter} there would be two. Move one away."
        )
    return opened, ()
