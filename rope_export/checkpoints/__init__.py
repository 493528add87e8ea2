"""Where a layer comes from: a checkpoint folder, a config whose weights are drawn, or a hub id."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rope_export.checkpoints.config import Read, read_config, select, spec_of
from rope_export.checkpoints.drawn import drawn_weights
from rope_export.checkpoints.files import Folder, Locator, WeightFiles, weight_files
from rope_export.checkpoints.hub import Hub
from rope_export.checkpoints.tensors import layer_tensors, read_layer, reader
from rope_export.errors import CheckpointError
from rope_export.spec import AttentionSpec, DType

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
    """

    spec: AttentionSpec
    facts: dict[str, Any]
    path: str
    names: dict[str, str]
    weights: Callable[[], dict[str, Tensor]]
    locator: Locator | None = None
    files: WeightFiles | None = None
    notes: tuple[str, ...] = ()


def open_source(
    source: str | Path,
    *,
    layer: int = 0,
    part: str | None = None,
    dtype: DType = "float32",
    seed: int = 0,
) -> Source:
    """Find SOURCE and read its config; see `Source`.

    source: a checkpoint folder (config.json and safetensors), a config file, or a hub id.
    layer: index of the layer. part: key of an inner config; see `AttentionSpec.from_hf`.
    dtype: what weights are rounded to. seed: for drawn weights.
    Raises: CheckpointError or SpecError for what is not there, damaged or not supported.
    """
    path = Path(source)
    if path.is_dir():
        return _checkpoint(Folder(path), str(path.resolve()), layer, part, dtype)
    if path.is_file():
        return _drawn(path, layer, part, dtype, seed)
    if HUB_ID.fullmatch(str(source)) and not path.parent.is_dir():
        return _checkpoint(Hub(str(source)), str(source), layer, part, dtype)
    raise CheckpointError(
        f"{source}: no such folder or file; SOURCE is a checkpoint folder, a config file or a hub "
        f"id like 'owner/name'."
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


def _checkpoint(locator: Locator, path: str, layer: int, part: str | None, dtype: DType) -> Source:
    file = locator.find("config.json")
    if file is None:
        raise CheckpointError(f"{locator}: there is no config.json.")
    config = read_config(file)
    read = select(config, part)
    spec = _spec(read, layer, dtype)
    files = weight_files(locator, config)
    pieces = layer_tensors(files.tensors, layer, spec, read.layout(layer), read.part)
    used = [name for piece in pieces.values() for name in piece.names]
    notes = files.notes + files.unlike_index(used)
    facts = _facts("checkpoint", config, layer, part) | {"files": files.of(used)}
    if isinstance(locator, Hub) and locator.revision is not None:
        facts["revision"] = locator.revision
    return Source(
        spec=spec,
        facts=facts | ({"notes": list(notes)} if notes else {}),
        path=path,
        names={name: piece.name for name, piece in pieces.items()},
        weights=lambda: read_layer(reader(locator, files.tensors), pieces, spec),
        locator=locator,
        files=files,
        notes=notes,
    )


def _drawn(file: Path, layer: int, part: str | None, dtype: DType, seed: int) -> Source:
    if file.suffix != ".json":
        raise CheckpointError(
            f"{file}: SOURCE is a folder with config.json and safetensors, or a config file "
            f"ending in .json."
        )
    if seed < 0:
        raise CheckpointError(f"seed={seed}: it must be 0 or more.")
    config = read_config(file)
    spec = _spec(select(config, part), layer, dtype)
    return Source(
        spec=spec,
        facts=_facts("drawn", config, layer, part) | {"seed": seed},
        path=str(file.resolve()),
        names={name: name for name in spec.weight_shapes},
        weights=lambda: drawn_weights(spec, seed, layer),
    )
