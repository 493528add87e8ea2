"""transformers' own causal LM with an artifact's weights: the reference, and eager."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from rope_export.artifacts.decoder import DecoderArtifact
from rope_export.checkpoints import NO_ADAPTER, Model, open_model
from rope_export.checkpoints.checkpoint import Checkpoint
from rope_export.decoder.source import config_of
from rope_export.decoder.weights import DecoderWeights
from rope_export.errors import InputError, UnavailableError
from rope_export.parity.decoder.deployed import Deployed, quantize
from rope_export.parity.decoder.exact import Widened, mark_angles
from rope_export.parity.decoder.read_back import ReadBack, model_of_file
from rope_export.reading.models import eager, quiet, reason
from rope_export.reading.verdict import Reading, installed
from rope_export.spec import DType

NOT_READ = "of the config; the weights are read by rope_export alone"
DRAWN = "of the config; its weights are drawn"
GONE = "the source is gone; give it with `source`"
BESIDE = f"{GONE}. The model is that of the config beside the file"
CANNOT = "transformers cannot make the model"
FAILURES = (ImportError, OSError, RuntimeError, TypeError, ValueError, AttributeError, LookupError)
"""What transformers raises where it cannot."""


@dataclass(frozen=True, kw_only=True)
class Theirs:
    """transformers' model in the dtype of the artifact, with eager attention.

    layers: its decoder layers. reading: by whose code its weights were read. widened: its weights
    in float64, as far as they are kept. int8_blocks: how many features share a scale, by the place
    of a weight whose kernel in onnxruntime rounds its input to int8. source: that it was read from;
    where that is gone read_back, what has read it from the artifact.
    """

    model: Any
    layers: nn.ModuleList
    reading: Reading
    widened: Widened
    int8_blocks: Mapping[int, int]
    source: Model | None = None
    read_back: ReadBack | None = None

    @cached_property
    def computed_beyond(self) -> int | None:
        """The length of a call beyond which the rotation is computed anew; none if it never is."""
        dynamic = [x for x in self.model.modules() if getattr(x, "rope_type", None) == "dynamic"]
        return min((int(x.original_max_seq_len) for x in dynamic), default=None)


def their_model(manifest: Deployed, path: str, adapter: str | None) -> Theirs:
    """The model of an artifact's source, with weights as they are deployed.

    path, adapter: where source and adapter are now.
    Raises: UnavailableError if transformers is not installed or cannot make the model;
        CheckpointError for a source that cannot be read.
    """
    against = _installed()
    facts, dtype = manifest.source, cast(DType, manifest.dtype)
    source = source_of(manifest, path, adapter)
    with quiet(), torch.no_grad():
        try:
            model, limit = _loaded(source, Path(path), facts, dtype)
        except FAILURES as error:
            raise UnavailableError(f"{CANNOT}: {reason(error)}") from error
        blocks = quantize(model, manifest)
    reading = Reading(status="proven", against=against, reason=limit)
    return _theirs(model, manifest, reading, blocks, source=source)


def their_model_of_file(artifact: DecoderArtifact) -> Theirs:
    """The model of an artifact whose source is gone: of the config beside the file, with the
    weights that the file holds.

    Raises: UnavailableError if transformers is not installed or cannot make the model, and for a
        file of which not every weight can be read back.
    """
    against = _installed()
    with quiet(), torch.no_grad():
        try:
            model, read_back = model_of_file(artifact)
        except InputError as error:
            raise UnavailableError(f"{GONE}, and {str(error).rstrip('.')}") from error
        except FAILURES as error:
            raise UnavailableError(f"{CANNOT}: {reason(error)}") from error
        blocks = quantize(model, artifact.facts, read_back.read)
    reading = Reading(status="unproven", against=against, reason=BESIDE)
    return _theirs(model, artifact.facts, reading, blocks, read_back=read_back)


def _installed() -> str:
    against = installed()
    if against is None:
        raise UnavailableError(
            "transformers is not installed, whose model is the reference; "
            "pip install 'rope_export[hf]'"
        )
    return against


def _theirs(
    model: Any,
    manifest: Deployed,
    reading: Reading,
    blocks: Mapping[int, int],
    source: Model | None = None,
    read_back: ReadBack | None = None,
) -> Theirs:
    model.eval().requires_grad_(False)
    mark_angles(model)
    return Theirs(
        model=model,
        layers=stack(model, len(manifest.layers)),
        reading=reading,
        widened=Widened(model.parameters()),
        int8_blocks=blocks,
        source=source,
        read_back=read_back,
    )


def source_of(manifest: Deployed, path: str, adapter: str | None) -> Model:
    """The source of an artifact. path, adapter: where it and its adapter are now.

    Raises: CheckpointError for one that cannot be read.
    """
    facts = manifest.source
    return open_model(
        path,
        part=facts.get("part"),
        dtype=cast(DType, manifest.dtype),
        seed=facts.get("seed", 0),
        adapter=adapter if "adapter" in facts and adapter is not None else NO_ADAPTER,
    )


def _loaded(
    source: Model, path: Path, facts: Mapping[str, Any], dtype: DType
) -> tuple[Any, str | None]:
    """The model, and what its reading is limited to."""
    from transformers import AutoModelForCausalLM

    config = config_of(source)
    eager(config)
    plain = isinstance(source, Checkpoint) and path.is_dir() and "adapter" not in facts
    if plain and not getattr(config, "quantization_config", None):
        options = {"config": config, "dtype": getattr(torch, dtype), "local_files_only": True}
        return AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, **options), None
    return _ours(source, config, dtype), DRAWN if facts["kind"] == "drawn" else NOT_READ


def _ours(source: Model, config: Any, dtype: DType) -> Any:
    """The model of a config, with the weights as our code reads them, each in its place."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    weights = DecoderWeights(model, source, dtype)
    for name in weights.names:
        path, _, key = name.rpartition(".")
        module = model.get_submodule(path)
        kept = module._parameters.get(key)
        if kept is not None:
            kept.data = weights.tensor(name).to(kept.dtype)
        else:
            module._buffers[key] = weights.tensor(name)
    return model


def stack(model: nn.Module, count: int) -> nn.ModuleList:
    """The decoder layers: the first list of so many modules, in the order of the model's."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise UnavailableError(f"{type(model).__name__} has no list of {count} decoder layers")
