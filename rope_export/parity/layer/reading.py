"""The second reading of a source: the same files, read by transformers' own code."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rope_export.checkpoints import NO_ADAPTER, Layer, open_model
from rope_export.checkpoints.config import Read, read_config, select, spec_of
from rope_export.checkpoints.files import Folder, tensor_names
from rope_export.checkpoints.gguf import GgufFile
from rope_export.checkpoints.stacks import StacksError
from rope_export.checkpoints.tensors import layer_tensors, read_layer, reader
from rope_export.errors import CheckpointError, InputError
from rope_export.parity.layer.reading_calls import compared
from rope_export.reading.adapters import merge
from rope_export.reading.calls import BEYOND
from rope_export.reading.folders import config_folder
from rope_export.reading.gguf import Loader
from rope_export.reading.models import Unread, configured, quiet, reason
from rope_export.reading.recorder import Reads, recorded
from rope_export.reading.skeleton import Skeleton, inner_config, skeleton_of
from rope_export.reading.unread import keys_unread, only_theirs, sentence
from rope_export.reading.verdict import Difference, Reading, installed
from rope_export.reading.weights import WrongWeights, drawn, loaded, saved
from rope_export.spec import AttentionSpec

DRAWN = "of the config; its weights are drawn"
NOT_READ = "of the config; weights not read by transformers"
OUR_FACTS = "of the weights; the file's facts as rope_export reads them"
OLDEST = 5
"""Major version of transformers whose modules can be asked."""


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The layer that transformers is asked about: `spec` is what we have read."""

    spec: AttentionSpec
    facts: Mapping[str, Any]
    path: str
    adapter: str | None

    @property
    def layer(self) -> int:
        return int(self.facts["layer"])

    @property
    def part(self) -> str | None:
        return self.facts.get("part")


def ask_transformers(
    spec: AttentionSpec, facts: Mapping[str, Any], path: str | None, adapter: str | None = None
) -> Reading:
    """Whether transformers' own module, made from the same files, computes what `spec` does.

    spec: of an artifact. facts: its manifest's source. path: a checkpoint folder, a config file or
    a hub id; none if it is gone. adapter: what was merged into the weights.
    Raises: nothing; what transformers cannot do is "unproven", with the reason.
    """
    against = installed()
    if against is None:
        why = "transformers is not installed; pip install 'rope_export[hf]'"
        return Reading(status="unproven", reason=why)
    if int(against.split()[1].partition(".")[0]) < OLDEST:
        why = "it is older than 5.0; pip install 'rope_export[hf]'"
        return Reading(status="unproven", against=against, reason=why)
    if path is None:
        why = "the source is gone; give it with `source`"
        return Reading(status="unproven", against=against, reason=why)
    asked = _Asked(spec=spec, facts=facts, path=path, adapter=adapter)
    try:
        with quiet(), torch.no_grad():
            answer = _asked(asked)
    except (Unread, InputError) as error:
        answer = Reading(status="unproven", reason=str(error))
    except Exception as error:  # transformers' code, or ours on what it gave: nothing is proven
        answer = Reading(status="unproven", reason=reason(error))
    return dataclasses.replace(answer, against=against)


def _asked(asked: _Asked) -> Reading:
    path = Path(asked.path)
    if path.suffix == ".gguf":
        return _of_gguf(asked, path)
    if path.is_file():
        return _of_config(asked, read_config(path), DRAWN)
    adapter = asked.adapter if "adapter" in asked.facts else NO_ADAPTER
    source = open_model(asked.path, part=asked.part, adapter=adapter).layer(asked.layer)
    if source.forms:
        assert source.locator is not None
        facts = read_config(source.locator.find("config.json"))
        facts.pop("quantization_config", None)
        return _of_config(asked, facts, NOT_READ)
    return _of_checkpoint(asked, source)


def _of_checkpoint(asked: _Asked, source: Layer) -> Reading:
    assert source.locator is not None
    file = source.locator.find("config.json")
    assert file is not None
    folder = file.parent
    read = select(read_config(file), asked.part)
    spec_of(read, asked.layer)  # for the keys that are read on the way
    with recorded() as reads:
        config = configured(folder)
        skeleton = skeleton_of(config, read, asked.spec, asked.layer, names=source.names)

        def theirs() -> None:
            loaded(skeleton, folder, config)
            if source.adapter is not None:
                merge(skeleton, source.adapter)

        return _judged(asked, skeleton, reads, read, theirs, source.weights)


def _of_gguf(asked: _Asked, file: Path) -> Reading:
    """The file's facts as we read them, which are llama.cpp's (transformers has defaults of its own
    for some), and its weights as transformers' dequantizing loader reads them, where it can."""
    source = open_model(file).layer(asked.layer)
    tensors = GgufFile(file)
    config = tensors.config
    read = select(config)
    spec_of(read, asked.layer)
    try:
        with config_folder(config) as folder, recorded() as reads:
            loader = Loader(file)
            skeleton = skeleton_of(
                configured(folder),
                read,
                asked.spec,
                asked.layer,
                names=loader.names(source.names, tensors.names),
                mapping=loader.mapping,
            )
            answer = _judged(
                asked, skeleton, reads, read, lambda: loader.load(skeleton), source.weights
            )
            return _limited(answer, OUR_FACTS)
    except Unread as error:
        return _of_config(asked, config, f"{NOT_READ} ({error})")


def _of_config(asked: _Asked, facts: Mapping[str, Any], limit: str) -> Reading:
    """Tensors are drawn for transformers' module, saved by its save_pretrained, and read back by
    our reader and by transformers' own. limit: what is not proven by that."""
    read = select(facts, asked.part)
    spec_of(read, asked.layer)
    with config_folder(facts) as folder, recorded() as reads:
        config = configured(folder)
        try:
            skeleton = skeleton_of(config, read, asked.spec, asked.layer)
        except StacksError as error:  # transformers saves several, and the config names none
            raise Unread(str(error)) from error
        except CheckpointError as error:  # of the names under which transformers saves the layer
            return _failed("weights", "names", (), str(error))
        drawn(skeleton, asked.spec, asked.facts.get("seed", 0))
        saved(skeleton, folder / "saved")
        weights = folder / "saved" / "model.safetensors"

        def ours() -> dict[str, Tensor]:
            files = dict.fromkeys(tensor_names(weights), weights.name)
            layout = read.layout(asked.layer)
            pieces = layer_tensors(files, asked.layer, asked.spec, layout, read.part)
            spec = dataclasses.replace(asked.spec, dtype="float32")
            return read_layer(reader(Folder(weights.parent), files), pieces, spec)

        answer = _judged(
            asked, skeleton, reads, read, lambda: loaded(skeleton, weights.parent, config), ours
        )
    return _limited(answer, limit)


def _limited(answer: Reading, limit: str) -> Reading:
    """The reading with its limit as the reason, if it is proven."""
    if answer.status != "proven":
        return answer
    return dataclasses.replace(answer, reason="; ".join(filter(None, (limit, answer.reason))))


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
        return tuple(sorted(only_theirs(skeleton, reads, read)))

    try:
        theirs()
        weights = ours()
    except WrongWeights as error:
        return _failed("weights", error.name, keys(), str(error))
    except CheckpointError as error:
        return _failed("weights", "tensors", keys(), str(error))
    comparison = compared(skeleton, asked.spec, weights, inner_config(skeleton))
    if comparison.differences:
        apart = tuple(dataclasses.replace(x, keys=keys()) for x in comparison.differences)
        return Reading(status="failed", differences=apart)
    undone = [x for x in comparison.left_out if not x.startswith(BEYOND)]
    if undone:
        return Reading(status="unproven", reason=f"not compared: {undone[0]}")
    for key, value in keys_unread(skeleton, reads, read).items():
        return Reading(status="unproven", reason=sentence(read.kind.model_type, key, value))
    limit = (
        f"transformers itself does not go {comparison.left_out[0]}" if comparison.left_out else None
    )
    return Reading(status="proven", reason=limit)


def _failed(case: str, output: str, keys: tuple[str, ...], why: str) -> Reading:
    difference = Difference(case=case, output=output, error=float("inf"), keys=keys)
    return Reading(status="failed", reason=why, differences=(difference,))
