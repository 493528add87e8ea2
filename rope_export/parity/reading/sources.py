"""The second reading of a source: the same files, read by transformers' own code."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from rope_export.checkpoints import Source, open_source
from rope_export.checkpoints.config import Read, read_config, select, spec_of
from rope_export.checkpoints.files import Folder, tensor_names
from rope_export.checkpoints.tensors import layer_tensors, read_layer, reader
from rope_export.errors import CheckpointError, InputError
from rope_export.parity.reading.compare import compared
from rope_export.parity.reading.folders import config_folder
from rope_export.parity.reading.recorder import Reads, recorded
from rope_export.parity.reading.skeleton import (
    Skeleton,
    Unread,
    configured,
    quiet,
    reason,
    skeleton_of,
)
from rope_export.parity.reading.verdict import Difference, Reading
from rope_export.parity.reading.weights import WrongWeights, drawn, loaded, saved
from rope_export.spec import AttentionSpec

OLDEST = 5
"""Major version of transformers whose modules can be asked."""


@dataclass(kw_only=True)
class _Asked:
    """What is known of the source while transformers is asked about it."""

    spec: AttentionSpec
    path: str
    layer: int
    part: str | None
    seed: int


def installed() -> str | None:
    """transformers' version as "transformers 5.24.0", if it is there."""
    try:
        return f"transformers {version('transformers')}"
    except PackageNotFoundError:
        return None


def reading(
    spec: AttentionSpec,
    path: str | None,
    *,
    layer: int,
    part: str | None = None,
    seed: int = 0,
) -> Reading:
    """Whether transformers' own module, made from the same files, computes what `spec` does.

    spec: of an artifact. path: its source, a checkpoint folder, a config file or a hub id; none if
    it is gone. layer, part, seed: as it was exported.
    Raises: nothing; what transformers cannot do is "unproven", with the reason.
    """
    against = installed()
    if against is None:
        return Reading(
            status="unproven",
            reason="transformers is not installed; pip install 'rope_export[hf]'",
        )
    if int(against.split()[1].partition(".")[0]) < OLDEST:
        return Reading(status="unproven", against=against, reason="it is older than 5.0")
    if path is None:
        return Reading(status="unproven", against=against, reason="the source is gone")
    asked = _Asked(spec=spec, path=path, layer=layer, part=part, seed=seed)
    try:
        with quiet(), torch.no_grad():
            found = _asked(asked)
    except (Unread, InputError) as error:
        found = Reading(status="unproven", reason=str(error))
    except Exception as error:  # transformers' code, or ours on what it gave: nothing is proven
        found = Reading(status="unproven", reason=reason(error))
    return dataclasses.replace(found, against=against)


def _asked(asked: _Asked) -> Reading:
    path = Path(asked.path)
    if path.is_file():
        return _of_config(asked, path)
    source = open_source(path if path.is_dir() else asked.path, layer=asked.layer, part=asked.part)
    return _of_checkpoint(asked, source)


def _of_checkpoint(asked: _Asked, source: Source) -> Reading:
    assert source.locator is not None
    assert source.files is not None
    file = source.locator.find("config.json")
    assert file is not None
    folder = file.parent
    read = select(read_config(file), asked.part)
    spec_of(read, asked.layer)  # for the keys that are read on the way
    with recorded() as reads:
        config = configured(folder)
        skeleton = skeleton_of(config, read, asked.spec, asked.layer, files=source.files.tensors)
        return _judged(
            asked, skeleton, reads, read, lambda: loaded(skeleton, folder, config), source.weights
        )


def _of_config(asked: _Asked, file: Path) -> Reading:
    """Tensors are drawn for transformers' module, saved by its save_pretrained, and read back by
    our reader and by transformers' own."""
    facts = read_config(file)
    read = select(facts, asked.part)
    spec_of(read, asked.layer)
    with config_folder(facts) as folder, recorded() as reads:
        config = configured(folder)
        skeleton = skeleton_of(config, read, asked.spec, asked.layer)
        drawn(skeleton, asked.spec, asked.seed)
        saved(skeleton, folder / "saved")
        weights = folder / "saved" / "model.safetensors"

        def ours() -> dict[str, Tensor]:
            files = dict.fromkeys(tensor_names(weights), weights.name)
            layout = read.layout(asked.layer)
            pieces = layer_tensors(files, asked.layer, asked.spec, layout, read.part)
            spec = dataclasses.replace(asked.spec, dtype="float32")
            return read_layer(reader(Folder(weights.parent), files), pieces, spec)

        found = _judged(
            asked, skeleton, reads, read, lambda: loaded(skeleton, weights.parent, config), ours
        )
    if found.status == "proven":
        return dataclasses.replace(found, reason="of the config; its weights are drawn")
    return found


def _judged(
    asked: _Asked,
    skeleton: Skeleton,
    reads: Reads,
    read: Read,
    theirs: Callable[[], None],
    ours: Callable[[], Mapping[str, Tensor]],
) -> Reading:
    """Both sides' weights, and the comparison of every call."""

    def keys() -> tuple[str, ...]:
        return tuple(sorted(reads.of(skeleton).keys() - read.facts.read))

    try:
        theirs()
        weights = ours()
    except WrongWeights as error:
        return _failed("weights", error.name, keys(), str(error))
    except CheckpointError as error:
        return _failed("weights", "tensors", keys(), str(error))
    config = getattr(skeleton.module, "config", None) or skeleton.model.config.get_text_config()
    found = compared(skeleton, asked.spec, weights, config)
    if found.differences:
        apart = tuple(dataclasses.replace(x, keys=keys()) for x in found.differences)
        return Reading(status="failed", differences=apart)
    if found.left_out:
        return Reading(status="unproven", reason=f"not compared: {found.left_out[0]}")
    return Reading(status="proven")


def _failed(case: str, output: str, keys: tuple[str, ...], why: str) -> Reading:
    difference = Difference(case=case, output=output, error=float("inf"), keys=keys)
    return Reading(status="failed", reason=why, differences=(difference,))
