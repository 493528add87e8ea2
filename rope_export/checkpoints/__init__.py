"""Where a layer comes from: a checkpoint folder, a GGUF file, a config or a hub id."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from rope_export import paths
from rope_export.checkpoints.absent import is_adapter_alone, no_config, no_weights
from rope_export.checkpoints.adapter import CONFIG as ADAPTER
from rope_export.checkpoints.adapter import Adapter, merged, open_adapter
from rope_export.checkpoints.config import Read, read_config, select, spec_of
from rope_export.checkpoints.drawn import drawn_weights
from rope_export.checkpoints.files import WeightFiles, weight_files
from rope_export.checkpoints.forms import forms, integers
from rope_export.checkpoints.gguf import GgufFile
from rope_export.checkpoints.hub import Hub
from rope_export.checkpoints.integers import Integers
from rope_export.checkpoints.locators import Folder, Locator
from rope_export.checkpoints.parts import named_parts
from rope_export.checkpoints.placing import layer_deltas
from rope_export.checkpoints.tensors import (
    Reader,
    check_rotation,
    layer_tensors,
    read_layer,
    reader,
)
from rope_export.checkpoints.unpacking import refuse_unread, unpacking
from rope_export.errors import CheckpointError
from rope_export.spec import AttentionSpec, DType

NO_ADAPTER = "none"
"""Given for an adapter: leave out the one that lies beside the model."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One layer's facts, and a way to its weights, which are read only when asked for.

    facts: what a manifest says of the source: its kind, layer, seed, the config's hash, the names
    of the files that were read, and what should be known of them.
    path: where it was found, to find it again when the artifact is verified.
    names: full name of each tensor in the checkpoint.
    locator, files: of a checkpoint, the way to its files and those that hold its weights.
    notes: what a user should know of how the source was read, a sentence each.
    adapter: folder or hub id of the adapter that is merged into the weights, if any.
    forms: in what form the source has those tensors that it does not have as plain numbers: the
    quant_method of its config, or "gguf" and the type of its blocks.
    integers: those of them that are integers with scales, which are read only when asked for.
    """

    spec: AttentionSpec
    facts: dict[str, Any]
    path: str
    names: dict[str, str]
    weights: Callable[[], dict[str, Tensor]]
    locator: Locator | None = None
    files: WeightFiles | None = None
    notes: tuple[str, ...] = ()
    adapter: str | None = None
    forms: dict[str, str] = field(default_factory=dict)
    integers: Callable[[], dict[str, Integers]] = dict


def open_source(
    source: str | Path,
    *,
    layer: int = 0,
    part: str | None = None,
    dtype: DType = "float32",
    seed: int = 0,
    adapter: str | Path | None = None,
) -> Source:
    """Find SOURCE and read its config; see `Source`.

    source: a checkpoint folder (config.json and safetensors), a GGUF file, a config file, or a hub
    id.
    layer: index of the layer. part: key of an inner config; see `AttentionSpec.from_hf`.
    dtype: what weights are rounded to. seed: for drawn weights. adapter: folder or hub id of a LoRA
    adapter, merged into the weights; the source's own folder for one that lies beside them, or
    "none" to leave that out.
    Raises: CheckpointError or SpecError for what is not there, damaged or not supported.
    """
    path = paths.source(source)
    if path.is_dir():
        return _checkpoint(Folder(path), str(path.resolve()), layer, part, dtype, adapter)
    if path.is_file():
        if adapter is not None and str(adapter) != NO_ADAPTER:
            raise CheckpointError(
                f"adapter {str(adapter)!r}: it is merged into a checkpoint's weights, and {source} "
                f"is a file. Give the folder of the model that it was trained on as SOURCE."
            )
        if path.suffix == ".gguf":
            return _gguf(path, layer, part, dtype)
        return _drawn(path, layer, part, dtype, seed)
    if HUB_ID.fullmatch(str(source)) and not path.parent.is_dir():
        return _checkpoint(Hub(str(source)), str(source), layer, part, dtype, adapter)
    raise CheckpointError(
        f"{source}: no such folder or file; SOURCE is a checkpoint folder, a .gguf file, a config "
        f"file or a hub id like 'owner/name'."
    )


def _facts(kind: str, config: dict[str, Any], layer: int, part: str | None) -> dict[str, Any]:
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    found = {
        "kind": kind,
        "layer": layer,
        "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    return found if part is None else found | {"part": part}


def _spec(read: Read, layer: int, dtype: DType) -> AttentionSpec:
    return dataclasses.replace(spec_of(read, layer), dtype=dtype)


def _checkpoint(
    locator: Locator,
    path: str,
    layer: int,
    part: str | None,
    dtype: DType,
    adapter: str | Path | None,
) -> Source:
    file = locator.find("config.json")
    beside = locator.find(ADAPTER)
    if file is None:
        raise CheckpointError(no_config(locator, beside))
    extra, adapter_notes = _adapter(locator, path, beside, adapter)
    config = read_config(file)
    with named_parts(config, part, layer):
        read = select(config, part)
        spec = _spec(read, layer, dtype)
        files = weight_files(locator, config)
        tensors = unpacking(config, locator, files.tensors, reader(locator, files.tensors))
        layout = read.layout(layer).among(tensors.names, layer, spec)
        with tensors.named():
            pieces = layer_tensors(tensors.names, layer, spec, layout, read.part, tensors.idle)
    check_rotation(tensors.read, tensors.names, layout, spec)
    used = [name for piece in pieces.values() for x in piece.names for name in tensors.behind(x)]
    notes = read.notes + files.notes + files.unlike_index(used) + adapter_notes
    facts = _facts("checkpoint", config, layer, part) | {"files": files.of(used)}
    if isinstance(locator, Hub) and locator.revision is not None:
        facts["revision"] = locator.revision
    kept = pieces
    read_tensor: Reader = tensors.read
    if extra is not None:
        names = [name for piece in pieces.values() for name in piece.names]
        deltas = layer_deltas(extra, names, layout.path(layer), tensors.names)
        facts["adapter"] = extra.facts(deltas)
        read_tensor = merged(read_tensor, extra, deltas)
        kept = {name: x for name, x in pieces.items() if not deltas.keys() & set(x.names)}
        if not deltas:
            notes += ("the adapter adapts other modules and changes nothing in this layer.",)
    return Source(
        spec=spec,
        facts=facts | ({"notes": list(notes)} if notes else {}),
        path=path,
        names={name: piece.name for name, piece in pieces.items()},
        weights=lambda: read_layer(read_tensor, pieces, spec),
        adapter=None if extra is None else extra.where,
        locator=locator,
        files=files,
        notes=notes,
        forms=forms(tensors, kept),
        integers=lambda: integers(tensors, kept, spec),
    )


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
            f"{locator}: an adapter ({ADAPTER}) lies beside the model. Give --adapter {path} to "
            f"merge it, or --adapter none to leave it out."
        )
    if adapter is None or str(adapter) == NO_ADAPTER:
        left = [] if beside is None else ["beside the model"]
        left += [f"in {name}/" for name in locator.folders_with(ADAPTER)]
        notes = (f"the adapter {', '.join(left)} is not merged.",) if left else ()
        return None, notes
    where = paths.source(adapter)
    if where.is_dir():
        found = open_adapter(Folder(where), str(where.resolve()))
    elif HUB_ID.fullmatch(str(adapter)) and not where.parent.is_dir():
        found = open_adapter(Hub(str(adapter)), str(adapter))
    else:
        raise CheckpointError(
            f"adapter {str(adapter)!r}: no such folder, and no hub id. Give it with --adapter."
        )
    if beside is not None and found.where != path:
        raise CheckpointError(
            f"{locator}: an adapter of its own ({ADAPTER}) lies beside the model; with --adapter "
            f"{adapter} there would be two. Move one away."
        )
    return found, ()


def _gguf(path: Path, layer: int, part: str | None, dtype: DType) -> Source:
    if part is not None:
        raise CheckpointError(f"part={part!r}: a GGUF file holds a text decoder alone.")
    tensors = GgufFile(path)
    read = select(tensors.config)
    spec = _spec(read, layer, dtype)
    pieces = layer_tensors(tensors.names, layer, spec, read.layout(layer), None)
    return Source(
        spec=spec,
        facts=_facts("gguf", tensors.config, layer, None) | {"files": [path.name]},
        path=str(path.resolve()),
        names={name: tensors.names[piece.name] for name, piece in pieces.items()},
        weights=lambda: read_layer(tensors.read, pieces, spec),
        forms=forms(tensors, pieces),
        integers=lambda: integers(tensors, pieces, spec),
    )


def _drawn(file: Path, layer: int, part: str | None, dtype: DType, seed: int) -> Source:
    if file.suffix != ".json":
        raise CheckpointError(
            f"{file}: SOURCE is a folder with config.json and safetensors, a file ending in .gguf, "
            f"or a config file ending in .json."
        )
    if seed < 0:
        raise CheckpointError(f"seed={seed}: it must be 0 or more.")
    config = read_config(file)
    with named_parts(config, part, layer):
        read = select(config, part)
        spec = _spec(read, layer, dtype)
        refuse_unread(config, read.layout(layer), layer, spec)
    facts = _facts("drawn", config, layer, part) | {"seed": seed}
    return Source(
        spec=spec,
        facts=facts | ({"notes": list(read.notes)} if read.notes else {}),
        path=str(file.resolve()),
        names={name: name for name in spec.weight_shapes},
        weights=lambda: drawn_weights(spec, seed, layer),
        notes=read.notes,
    )
