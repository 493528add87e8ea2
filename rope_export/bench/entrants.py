"""The contenders of a benchmark: the artifacts by name, and PyTorch with each of their layers."""

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rope_export.artifacts.artifact import layer_of
from rope_export.artifacts.deployed import file_weights
from rope_export.artifacts.folder import Folder, open_folder
from rope_export.bench.baselines import BASELINES, Baseline
from rope_export.bench.contenders import ArtifactContender, Contender
from rope_export.bench.proof import Proof
from rope_export.bench.result import Status
from rope_export.errors import InputError, UnavailableError, extra
from rope_export.spec import AttentionSpec

with extra("export", "benchmarking"):
    from rope_export.attention.layer import RotaryAttention

KINDS = tuple(baseline.kind for baseline in BASELINES)


def named(paths: Iterable[str | Path]) -> dict[str, Folder]:
    """Artifacts by the name of their folder, or by their path where that is not enough.

    Raises: InputError if there are none, or one is given twice; ArtifactError for what is none.
    """
    folders = [Path(path) for path in paths]
    if not folders:
        raise InputError("no artifact is given; name the folder of at least one.")
    short = [os.path.basename(os.path.realpath(path)) for path in folders]
    artifacts: dict[str, Folder] = {}
    for path, name in zip(folders, short, strict=True):
        unique = short.count(name) == 1 and name not in KINDS
        key = name if unique else str(path)
        if key in artifacts:
            raise InputError(f"{path}: is given twice.")
        artifacts[key] = open_folder(path)
    return artifacts


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which contenders take part. only: these and no others, all if empty. against: of the PyTorch
    ones these, all if empty."""

    only: tuple[str, ...] = ()
    against: tuple[str, ...] = ()

    def check(self, artifacts: Iterable[str]) -> None:
        """Raises: InputError for a name that is none."""
        names = [*artifacts, *KINDS]
        for option, chosen, valid in (("only", self.only, names), ("against", self.against, KINDS)):
            for name in chosen:
                if name not in valid:
                    raise InputError(f"`{option}`={name}: use one of {', '.join(valid)}.")

    def takes(self, name: str) -> bool:
        """Whether the artifact of this name, or the PyTorch contender of this kind, takes part."""
        listed = not self.only or name in self.only
        return listed and not (self.against and name in KINDS and name not in self.against)


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A contender, the artifact it is or takes its weights from, and eager PyTorch with them."""

    contender: Contender
    artifact: Folder
    module: RotaryAttention

    @property
    def kind(self) -> str | None:
        """The kind of a PyTorch contender; none of an artifact."""
        return self.contender.kind if isinstance(self.contender, Baseline) else None


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Contenders whose layers are the same but for their weights.

    refused: "wrong" or "cannot", and why, of each artifact that is not run.
    """

    spec: AttentionSpec
    entrants: list[Entrant] = field(default_factory=list)
    refused: dict[str, tuple[Status, str]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    """Why each PyTorch contender that cannot express the layer is left out, by its name."""


def layers(
    artifacts: Mapping[str, Folder],
    proofs: Mapping[str, Proof],
    choice: Choice,
    stack: ExitStack,
    *,
    threads: int | None,
    capacity: int | None,
) -> list[Layer]:
    """Every contender, open until `stack` is closed, by what it computes.

    proofs: of the artifacts that take part.
    """
    groups: dict[AttentionSpec, dict[str, Folder]] = {}
    for name, artifact in artifacts.items():
        spec = AttentionSpec.from_json(layer_of(artifact).facts.spec)
        groups.setdefault(spec, {})[name] = artifact
    opened = []
    for spec, members in groups.items():
        layer, modules = Layer(spec=spec), _Modules(spec)
        for name, artifact in members.items():
            if name in proofs:
                opening = {"threads": threads, "capacity": capacity}
                _add_artifact(layer, name, artifact, proofs[name], modules, stack, opening)
        suffix = f":{next(iter(members))}" if len(groups) > 1 else ""
        wrong = {name for name, (status, _) in layer.refused.items() if status == "wrong"}
        sound = [artifact for name, artifact in members.items() if name not in wrong]
        if sound:
            _add_baselines(layer, sound[0], modules(sound[0]), choice, suffix)
        opened.append(layer)
    return opened


class _Modules:
    """Eager PyTorch with each artifact's weights, once for those that have the same."""

    def __init__(self, spec: AttentionSpec) -> None:
        self.spec = spec
        self.modules: dict[tuple[str, ...], RotaryAttention] = {}

    def __call__(self, artifact: Folder) -> RotaryAttention:
        key = tuple(facts.sha256 for facts in artifact.manifest.weights.values())
        if key not in self.modules:
            self.modules[key] = RotaryAttention.from_weights(self.spec, file_weights(artifact))
        return self.modules[key]


def _add_artifact(
    layer: Layer,
    name: str,
    artifact: Folder,
    proof: Proof,
    modules: _Modules,
    stack: ExitStack,
    opening: Mapping[str, int | None],
) -> None:
    if proof.status != "passed":
        status: Status = "wrong" if proof.status == "failed" else "cannot"
        layer.refused[name] = (status, proof.reason)
        return
    try:
        contender = ArtifactContender(name, artifact, proven=proof.error, **opening)
    except UnavailableError as error:
        layer.refused[name] = ("cannot", str(error))
        return
    stack.callback(contender.close)
    module = modules(artifact)
    layer.entrants.append(Entrant(contender=contender, artifact=artifact, module=module))


def _add_baselines(
    layer: Layer, artifact: Folder, module: RotaryAttention, choice: Choice, suffix: str
) -> None:
    for baseline in BASELINES:
        if not choice.takes(baseline.kind):
            continue
        reason = baseline.refusal(layer.spec)
        if reason is not None:
            layer.left_out[baseline.kind + suffix] = reason
            continue
        contender = baseline(module, baseline.kind + suffix)
        layer.entrants.append(Entrant(contender=contender, artifact=artifact, module=module))
