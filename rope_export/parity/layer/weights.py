"""The weights an artifact should hold: from its source, or read back where the source is gone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from rope_export.artifacts.deployed import file_weights
from rope_export.artifacts.folder import Folder
from rope_export.checkpoints import NO_ADAPTER, open_model
from rope_export.checkpoints.drawn import drawn_weights
from rope_export.checkpoints.integers import Integers
from rope_export.checkpoints.stored import deployed
from rope_export.errors import ArtifactError
from rope_export.parity.rows import Row, counted
from rope_export.spec import AttentionSpec


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights that an artifact should hold.

    tensors: as they should be deployed. original: as the source has them, where they are deployed
    quantized. rows: the file compared with `tensors`, bit for bit; none where the source is gone
    and the file itself had to be believed.
    """

    tensors: dict[str, Tensor]
    original: dict[str, Tensor] | None = None
    verdict: Literal["proven", "unproven"]
    rows: list[Row]


def true_weights(
    artifact: Folder,
    spec: AttentionSpec,
    source: str | None,
    seed: int,
    adapter: str | None = None,
) -> Weights:
    """The weights from `source` and the adapter that was merged into them, if any, or from where
    the artifact was made if they are still there.

    Raises: CheckpointError if `source` cannot be read; ArtifactError if it describes another layer
        or the adapter is another one.
    """
    in_file = file_weights(artifact)
    tensors = _from_source(artifact, spec, source, adapter)
    if tensors is None:
        return Weights(tensors=in_file, verdict="unproven", rows=[])
    original, integers = tensors
    quantization = artifact.manifest.quantization
    expected = deployed(original, integers, quantization)
    rows = [
        counted(
            case="weights in the file",
            seed=seed,
            runtime="file",
            output=name,
            metric="differing values",
            error=float((in_file[name] != tensor).sum())
            if in_file[name].shape == tensor.shape and in_file[name].dtype == tensor.dtype
            else float(tensor.numel()),
        )
        for name, tensor in expected.items()
    ]
    return Weights(
        tensors=expected,
        original=None if quantization is None else original,
        verdict="proven",
        rows=rows,
    )


def _from_source(
    artifact: Folder, spec: AttentionSpec, source: str | None, adapter: str | None
) -> tuple[dict[str, Tensor], dict[str, Integers]] | None:
    """The source's weights, and those of them that it has as integers."""
    facts = artifact.manifest.source
    if source is None and facts["kind"] == "drawn":
        return drawn_weights(spec, facts["seed"], facts["layer"]), {}
    path = source or artifact.evidence.get("source")
    if path is None or (source is None and not Path(path).exists()):
        return None
    if "adapter" not in facts:
        adapter = adapter or NO_ADAPTER
    elif adapter is None:
        adapter = artifact.evidence.get("adapter")
        if adapter is None or (source is None and not Path(adapter).is_dir()):
            return None
    model = open_model(
        path,
        part=facts.get("part"),
        dtype=spec.dtype,
        seed=facts.get("seed", 0),
        adapter=adapter,
    )
    layer = model.layer(facts["layer"])
    if layer.spec != spec or layer.facts["kind"] != facts["kind"]:
        raise ArtifactError(
            f"{path}: its layer {facts['layer']} is not what {artifact.path} was made from; "
            f"the specs differ. Give the right `source`, or export again."
        )
    if layer.facts.get("adapter") != facts.get("adapter"):
        raise ArtifactError(
            f"{artifact.path}: the adapter at {adapter} is not what was merged into its weights. "
            f"Give the right `adapter`, or export again."
        )
    return layer.weights(), layer.integers()
