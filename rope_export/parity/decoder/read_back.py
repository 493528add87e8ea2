"""Parameters of transformers' model as an artifact's own file has them: to be compared with the
source's, or to be believed where that is gone."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from rope_export.artifacts import companions
from rope_export.artifacts.decoder import DecoderArtifact
from rope_export.artifacts.deployed import FileWeights
from rope_export.checkpoints import Model, open_model
from rope_export.checkpoints.layout import Piece, whole
from rope_export.decoder.drawing import Drawn
from rope_export.decoder.model import causal_lm
from rope_export.decoder.naming import Stand, recipes, state_of, ties
from rope_export.decoder.source import config_of
from rope_export.errors import ArtifactError
from rope_export.parity.rows import Row, counted
from rope_export.reading.models import eager
from rope_export.spec import AttentionSpec, DType

CONFIG = "config.json"


def model_of_file(artifact: DecoderArtifact) -> tuple[Any, "ReadBack"]:
    """The model of the config beside the file, and what has read its parameters from the file.

    Raises: ArtifactError if the config is not what was exported, or the file lacks a parameter;
        SpecError and CheckpointError for a config that is not read.
    """
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    facts, path = artifact.facts, artifact.path / CONFIG
    if CONFIG not in artifact.companions or not path.exists():
        raise ArtifactError(f"{path} is missing, which says what the weights mean.")
    if companions.changed(artifact.path, {CONFIG: artifact.companions[CONFIG]}):
        raise ArtifactError(f"{path} was edited, so it does not say what the weights mean.")
    source = open_model(str(path), dtype=cast(DType, facts.dtype))
    config = config_of(source)
    eager(config)
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, facts.dtype))
    model.tie_weights()
    read_back = ReadBack(artifact, source)
    saved = model.state_dict()
    for name, parameter in model.named_parameters():
        parameter.data = read_back.read(name).to(parameter.dtype)
    for name, buffer in model.named_buffers():
        if name in saved and name in facts.weights:
            buffer.data = read_back.read(name)
    return model, read_back


def weight_rows(artifact: DecoderArtifact, source: Model, model: Any, seed: int) -> list[Row]:
    """The file compared with the parameters of transformers' model, bit for bit.

    model: with weights as they are deployed.
    Raises: InputError if the file does not hold a parameter as the model has it.
    """
    read_back = ReadBack(artifact, source)
    return [
        counted(
            case="weights in the file",
            seed=seed,
            runtime="file",
            output=name,
            metric="differing values",
            error=float((read_back.read(name) != value).sum()),
        )
        for name, value in _deployed(artifact, read_back.lm.model, model)
    ]


def _deployed(artifact: DecoderArtifact, lm: Any, model: Any) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a model's text decoder and head by their names in the causal LM `lm`, and
    those of its buffers that the file has.

    Raises: ArtifactError for one that the model does not have.
    """
    saved = model.state_dict()
    theirs = dict(model.named_parameters(remove_duplicate=False))
    theirs |= {name: x for name, x in model.named_buffers() if name in saved}
    names = dict(lm.named_parameters(remove_duplicate=False))
    names |= {name: x for name, x in lm.named_buffers() if name in artifact.facts.weights}
    places = [
        (_path(lm, of_lm), _path(model, of_model))
        for of_lm, of_model in (
            (lm.get_decoder(), model.get_decoder()),
            (lm.get_output_embeddings(), model.get_output_embeddings()),
        )
    ]
    for name in names:
        for ours, path in places:
            if name.startswith(ours):
                other = path + name[len(ours) :]
                if other not in theirs:
                    raise ArtifactError(f"transformers' model has no weight {other!r}.")
                yield name, theirs[other]
                break


def _path(model: Any, module: Any) -> str:
    """How the names begin of what a module of the model holds."""
    return next((f"{name}." for name, x in model.named_modules() if x is module and name), "")


class ReadBack:
    """Parameters of transformers' model out of an artifact's file.

    The file has those outside of attention under their own names, and those of each attention as
    our layer names them. Where these lie in what transformers saves is asked of our own reader:
    given numbers that count the places of a tensor, it tells which it takes for what.
    """

    def __init__(self, artifact: DecoderArtifact, source: Model) -> None:
        """source: whose layers tell our reading of the config.

        Raises: ArtifactError if the source describes other layers than the artifact has.
        """
        self.file, self.path = FileWeights(artifact), artifact.model
        self.lm = causal_lm(config_of(source), getattr(torch, artifact.facts.dtype))
        model = self.lm.model
        self.state, self.ties = state_of(model), ties(model)
        self.saved = Drawn(model, self.state, self.ties, 0)
        self.recipes = recipes(self.saved.names, model, self.state)
        self.stand = Stand(model.config, self.state)
        self.attentions: dict[int, tuple[str, tuple[str, ...]]] = {}
        self.parts: dict[str, list[tuple[str, Piece, AttentionSpec]]] = {}
        lm = self.lm
        specs = [AttentionSpec.from_json(spec) for spec in artifact.facts.specs]
        for at, spec in enumerate(artifact.facts.layers):
            if spec is None:
                continue
            layer = source.layer(at)
            if layer.spec != specs[spec]:
                raise ArtifactError(
                    f"layer {at} of {self.path} is not what {source.path} describes."
                )
            path = f"{lm.layers_path}.{at}.{lm.attentions[at]}."
            self.attentions[at] = path, tuple(layer.spec.weight_shapes)
            for ours, piece in self.saved.pieces(source, layer).items():
                for name in piece.names:
                    parts = self.parts.setdefault(name, [])
                    parts.append((path + ours, piece, layer.spec))

    def read(self, name: str) -> Tensor:
        """A parameter or buffer, of the file's own name for it or of another that it is tied to.

        Raises: ArtifactError if the file does not hold it whole.
        """
        value = self._read(name)
        if value is None or name not in self.state:
            raise ArtifactError(f"{self.path} has no weight {name!r}, which the model has.")
        if value.shape != self.state[name].shape:
            raise ArtifactError(
                f"{self.path} has {name!r} of shape {tuple(value.shape)}, the model of "
                f"{tuple(self.state[name].shape)}."
            )
        return value

    def attention(self, layer: int) -> dict[str, Tensor]:
        """The weights of one layer's attention, by their names in its spec."""
        path, names = self.attentions[layer]
        return {name: self.file.tensor(path + name) for name in names}

    def _read(self, name: str) -> Tensor | None:
        names = (name, *self.ties.get(name, ()))
        for own in names:
            recipe = self.recipes.get(own)
            if recipe is not None and any(x in self.parts for x in recipe.names):
                return recipe.made(self._of_attention, self.stand)[own]
        for own in names:
            if own in self.file.facts:
                return self.file.tensor(own)
        return None

    def _of_attention(self, name: str) -> Tensor:
        """A tensor of an attention, of the name that transformers saves it under."""
        shape, parts = self.saved.shapes[name], self.parts.get(name, [])
        if [piece.take for _, piece, _ in parts] == [whole] and parts[0][0] in self.file.facts:
            return self.file.tensor(parts[0][0])
        values: Tensor | None = None
        missing = torch.ones(shape, dtype=torch.bool).flatten()
        for ours, piece, spec in parts:
            places = _places(piece, name, self.saved.shapes, spec)
            if ours not in self.file.facts:
                continue
            found = self.file.tensor(ours)
            if places is None or places.shape != found.shape:
                raise ArtifactError(f"{self.path} has {ours!r} not as {name!r} is saved.")
            if values is None:
                values = torch.empty(missing.shape, dtype=found.dtype)
            here = places >= 0
            taken = places[here]
            values[taken], missing[taken] = found[here].to(values.dtype), False
            if not torch.equal(values[taken], found[here].to(values.dtype)):
                raise ArtifactError(f"{self.path} has different copies in {ours!r} of {name!r}.")
        if values is None or missing.any():
            raise ArtifactError(f"{self.path} holds only a part of {name!r}.")
        return values.reshape(shape)


def _places(
    piece: Piece, name: str, shapes: dict[str, tuple[int, ...]], spec: AttentionSpec
) -> Tensor | None:
    """Where in the tensor called `name` each number of a layer's tensor lies, -1 for one that is of
    another tensor; none if the numbers are not the same ones, moved or copied."""

    def numbered(stored: str) -> Tensor:
        count = torch.arange(torch.Size(shapes[stored]).numel()).reshape(shapes[stored])
        return count if stored == name else torch.full_like(count, -1)

    def zeros(stored: str) -> Tensor:
        return torch.zeros(shapes[stored], dtype=torch.int64)

    places = piece.out_of(numbered, spec)
    if places.is_floating_point() or piece.out_of(zeros, spec).any():
        return None
    return places if int(places.max()) < torch.Size(shapes[name]).numel() else None
