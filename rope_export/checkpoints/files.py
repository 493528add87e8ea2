"""The files of a checkpoint that hold its weights: those that transformers opens."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from rope_export.checkpoints.absent import no_weights
from rope_export.checkpoints.locators import INDEX, KEY, WHOLE, Locator
from rope_export.checkpoints.locators import Folder as Folder
from rope_export.errors import CheckpointError

WHOLE_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
"""Parts of tensors as torch.distributed saves them, which transformers looks for first."""


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """The files that hold the weights.

    chosen: name of the file or index that transformers opens. tensors: full name of each tensor to
    the name of the file that holds it. index: the same by the index, empty without one.
    notes: what a user should know of the choice, a sentence each.
    """

    chosen: str
    tensors: Mapping[str, str]
    index: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def of(self, names: Iterable[str]) -> list[str]:
        """The chosen file or index, then the shards that hold `names`."""
        shards = sorted({self.tensors[name] for name in names} - {self.chosen})
        return [self.chosen, *shards]

    def unlike_index(self, names: Iterable[str]) -> tuple[str, ...]:
        """Notes on those of `names` that lie in another file than by the index."""
        notes = []
        for name in sorted(set(names)) if self.index else ():
            indexed, actual = self.index.get(name), self.tensors[name]
            if indexed != actual:
                notes.append(
                    f"{name} is read from {actual}, where transformers finds it; {self.chosen} "
                    + ("does not name it." if indexed is None else f"says {indexed}.")
                )
        return tuple(notes)


def weight_files(locator: Locator, config: Mapping[str, Any]) -> WeightFiles:
    """The files that transformers opens for `config`.

    The file or index that the config's `transformers_weights` names, else model.safetensors, else
    the index. Of an index, transformers reads the shards in the order of their names and whole, so
    that of tensors that several shards hold the last counts, whatever the index has.

    Raises: CheckpointError if there are no safetensors, or an index names a file elsewhere.
    Source: transformers 5.24, modeling_utils: _get_resolved_checkpoint_files and
    _load_pretrained_model.
    """
    names = locator.listed() or ()
    parts = next(filter(DISTRIBUTED.fullmatch, names), None)
    if parts is not None:
        raise CheckpointError(
            f"{locator}: holds {parts}, one process's part of a distributed checkpoint, which "
            f"transformers reads before all else; not implemented. Save the model whole, with "
            f"save_pretrained, into a folder of its own."
        )
    explicit = config.get(KEY)
    if explicit is not None:
        return _explicit(locator, explicit)
    path = locator.find(WHOLE)
    if path is not None:
        tensors = dict.fromkeys(tensor_names(path), WHOLE)
        notes = _beside(WHOLE, names, (INDEX, *WHOLE_PICKLES))
        return WeightFiles(chosen=WHOLE, tensors=tensors, index={}, notes=notes)
    path = locator.find(INDEX)
    if path is None:
        raise CheckpointError(no_weights(locator))
    return _sharded(locator, path, INDEX, _beside(INDEX, names, WHOLE_PICKLES))


def _beside(chosen: str, names: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    """A note on other weights in the folder, which may be older or newer ones."""
    unread = [name for name in others if name in names]
    if not unread:
        return ()
    return (f"{chosen} is read, as transformers does; beside it, unread: {', '.join(unread)}.",)


def _explicit(locator: Locator, name: Any) -> WeightFiles:
    """What `transformers_weights` names, below the checkpoint's folder."""
    setting = f"config key {KEY}={name!r}"
    if not isinstance(name, str) or not name.endswith((".safetensors", ".safetensors.index.json")):
        raise CheckpointError(f"{setting}: it must name a .safetensors file or its index.")
    if not _inside(name):
        raise CheckpointError(f"{setting}: it must lie in the checkpoint's own folder.")
    name = str(PurePosixPath(os.path.normpath(name)))
    path = locator.find(name)
    if path is None:
        raise CheckpointError(
            f"{setting}: {locator} has no such file; transformers reads no other."
        )
    note = (f"{name} is read, as the config's {KEY} says.",)
    if name.endswith(".json"):
        return _sharded(locator, path, name, note)
    tensors = dict.fromkeys(tensor_names(path), name)
    return WeightFiles(chosen=name, tensors=tensors, index={}, notes=note)


def _inside(name: str) -> bool:
    """Whether a relative path stays below the folder it starts from."""
    path = os.path.normpath(name)
    return not os.path.isabs(path) and path != ".." and not path.startswith(".." + os.sep)


def _sharded(locator: Locator, path: Path, chosen: str, notes: tuple[str, ...]) -> WeightFiles:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not all(isinstance(text, str) for pair in index.items() for text in pair):
            raise TypeError("weight_map must map names to file names")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: is not an index of safetensors files ({error}).") from error
    shards = sorted(set(index.values()))
    for name in shards:
        if not _inside(name) or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{path}: names the file {name!r}; shards are .safetensors files of the "
                f"checkpoint's own folder."
            )
    tensors = dict(index)
    if locator.listed() is not None:  # a hub would fetch every shard
        for name in shards:
            tensors |= dict.fromkeys(_names_if_there(locator, name), name)
    return WeightFiles(chosen=chosen, tensors=tensors, index=index, notes=notes)


def _names_if_there(locator: Locator, name: str) -> list[str]:
    """A shard's tensors; none where it is missing or damaged, which matters once it is read."""
    path = locator.find(name)
    try:
        return [] if path is None else tensor_names(path)
    except CheckpointError:
        return []


def tensor_names(path: Path) -> list[str]:
    """Names of the tensors in a safetensors file, from its header alone."""
    with open_tensors(path) as tensors:
        return list(tensors.keys())


def open_tensors(path: Path) -> safe_open:
    """Opens a safetensors file.

    Raises: CheckpointError for a file that is damaged or not safetensors.
    """
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: is damaged, truncated or not safetensors ({error}). Fetch it again."
        ) from error
