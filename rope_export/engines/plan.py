"""An engine: a folder with TensorRT's plan beside the artifact that it was built from.

engine.plan is what TensorRT runs; artifact/ is the whole artifact, so that the engine is judged
against eager PyTorch like one, anywhere; manifest.json has what is true of the plan, and
evidence.json what was measured. Reading one needs neither TensorRT nor a GPU.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from rope_export import gpu, paths
from rope_export.artifacts import artifact as artifacts
from rope_export.artifacts import contents, swap
from rope_export.artifacts.artifact import EVIDENCE, MANIFEST, MODEL, Artifact, file_hash
from rope_export.artifacts.manifest import Manifest, is_files, tensors
from rope_export.artifacts.manifest import check_version as check_format
from rope_export.engines import module
from rope_export.engines.profiles import Profile
from rope_export.errors import ArtifactError
from rope_export.interface import TensorType

FORMAT_VERSION = 1
PLAN = "engine.plan"
ARTIFACT = "artifact"
FILES = (PLAN, ARTIFACT, MANIFEST, EVIDENCE)

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the builder was told to work; see `build_engine` for what each does."""

    workspace: int | None = None
    optimization_level: int | None = None
    tf32: bool = False
    version_compatible: bool = False
    weight_streaming: bool = False
    refit: bool = False

    def to_json(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What is true of a plan.

    engine: "tensorrt" or "tensorrt-rtx"; version: of its module. compute_capabilities: of the GPUs
    it is for. gpu: the one it was built on, where it was built on one. inputs, outputs: as the
    plan has them, sizes that are fixed being numbers. network: what was parsed; fusion: what the
    builder made of it. model: sha256 of each file of the ONNX model. files: sha256 and bytes of
    the engine's own.
    """

    engine: str
    version: str
    compute_capabilities: tuple[str, ...]
    gpu: str | None
    profiles: tuple[Profile, ...]
    options: Options
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    network: Mapping[str, Any]
    fusion: Mapping[str, Any]
    model: Mapping[str, str]
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in ("engine", "version")}
        return {
            "format_version": FORMAT_VERSION,
            "kind": "engine",
            **plain,
            "compute_capabilities": list(self.compute_capabilities),
            "gpu": self.gpu,
            "profiles": [profile.to_json() for profile in self.profiles],
            "options": self.options.to_json(),
            "inputs": [tensor.to_json() for tensor in self.inputs],
            "outputs": [tensor.to_json() for tensor in self.outputs],
            **{name: dict(getattr(self, name)) for name in ("network", "fusion", "model")},
            "files": self.files,
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any], where: Path) -> "EngineFacts":
        """Raises: ArtifactError if it was written by another version or is not whole."""
        check_format(facts, FORMAT_VERSION, where, "Build the engine again.")
        try:
            texts = (facts[name] for name in ("engine", "version"))
            if not is_files(facts["files"]) or not all(isinstance(text, str) for text in texts):
                raise ValueError("files, engine or version")
            for name in ("network", "fusion", "model"):
                if not isinstance(facts[name], dict):
                    raise ValueError(name)
            return cls(
                **{n: facts[n] for n in ("engine", "version", "gpu", "network", "fusion")},
                **{n: facts[n] for n in ("model", "files")},
                compute_capabilities=tuple(facts["compute_capabilities"]),
                profiles=tuple(Profile.from_json(p) for p in facts["profiles"]),
                options=Options(**facts["options"]),
                inputs=tensors(facts["inputs"]),
                outputs=tensors(facts["outputs"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"{where}: is not a whole manifest ({error!r}).") from error


@dataclass(frozen=True, kw_only=True)
class EngineManifest(Manifest):
    """An artifact's facts, and those of the plan beside it."""

    engine: EngineFacts


@dataclass(frozen=True)
class Engine(Artifact):
    """An engine folder, its files verified when it was opened.

    It is an artifact as well: its ONNX model is the one that the plan was built from, so whatever
    takes an artifact takes an engine. `path` is the engine's folder, and evidence is its own.
    """

    manifest: EngineManifest

    @property
    def facts(self) -> EngineFacts:
        return self.manifest.engine

    @property
    def model(self) -> Path:
        return self.path / ARTIFACT / MODEL

    @property
    def plan(self) -> Path:
        return self.path / PLAN

    @property
    def hashes(self) -> dict[str, str]:
        plan = {name: str(said["sha256"]) for name, said in self.facts.files.items()}
        return super().hashes | plan

    @property
    def artifact(self) -> Artifact:
        """What it was built from.

        Raises: ArtifactError if the folder holds another by now.
        """
        inner = Artifact.open(self.path / ARTIFACT)
        if inner.digest != self.hashes[f"{ARTIFACT}/{MANIFEST}"]:
            raise contents.mismatch(inner.path / MANIFEST)
        return inner

    @classmethod
    def read_manifest(cls, path: Path, manifest: Mapping[str, Any], digest: str) -> "Engine":
        """The engine at `path` whose manifest.json holds `manifest` and has that sha256.

        Raises: ArtifactError if the artifact it holds is another one.
        """
        facts = EngineFacts.from_json(manifest, path / MANIFEST)
        if facts.files.keys() != {PLAN, f"{ARTIFACT}/{MANIFEST}"}:
            raise ArtifactError(f"{path / MANIFEST}: lists {sorted(facts.files)}, not {PLAN}.")
        file = path / ARTIFACT / MANIFEST
        text = contents.read_verified(file, facts.files[f"{ARTIFACT}/{MANIFEST}"]["sha256"])
        inner = Manifest.from_json(contents.parsed(text, file), file)
        if _hashes(inner) != dict(facts.model):
            raise ArtifactError(
                f"{path}: its plan was built from another model than {ARTIFACT} holds. Build the "
                f"engine again."
            )
        shared = {f.name: getattr(inner, f.name) for f in fields(Manifest)}
        shared["runtimes"] = (facts.engine, *inner.runtimes)
        return cls(path, EngineManifest(**shared, engine=facts), digest)

    def read_plan(self) -> bytes:
        """The plan's bytes, which are those that the manifest names.

        Raises: ArtifactError if the folder holds another by now, with what builds it anew.
        """
        return self._plan(contents.read_verified)

    def hold(self) -> Self:
        self._plan(contents.verify)
        return super().hold()

    def _plan(self, check: Callable[[Path, str], Found]) -> Found:
        try:
            return check(self.plan, self.facts.files[PLAN]["sha256"])
        except ArtifactError as error:
            again = rebuild(self.path, self.facts)
            raise ArtifactError(f"{error} Or build it anew: {again}") from error


def _hashes(manifest: Manifest) -> dict[str, str]:
    return {name: str(facts["sha256"]) for name, facts in manifest.files.items()}


def rebuild(path: Path, facts: EngineFacts) -> str:
    """The command that builds the engine anew from the artifact that it holds."""
    given = "".join(f" --profile {profile}" for profile in facts.profiles)
    return f"rope-export build {path / ARTIFACT} --out NEW --engine {facts.engine}{given}"


def check_version(path: Path | None, facts: EngineFacts, version: str) -> None:
    """Raises: ArtifactError if a module of this version does not read the plan, with the command
    that builds it anew."""
    if facts.version == version:
        return
    if facts.options.version_compatible and _newer_of_same_major(version, facts.version):
        return
    package = module.PACKAGES[facts.engine]
    raise ArtifactError(
        f"{PLAN}: was built by {package} {facts.version}, and {package} {version} is installed; a "
        f"plan is read by the version that built it. Build it again: "
        f"{rebuild(path or Path('ENGINE_DIR'), facts)}, or install {package}=={facts.version}."
    )


def _newer_of_same_major(version: str, built: str) -> bool:
    now, then = ([int(x) for x in v.split(".") if x.isdigit()] for v in (version, built))
    return now[:1] == then[:1] and now >= then


def check_gpu(path: Path | None, facts: EngineFacts, here: gpu.Gpu) -> None:
    """Raises: ArtifactError if the plan has no kernels for the GPU that is here."""
    if here.capability not in facts.compute_capabilities:
        ahead = f" --compute-capability {here.capability}" if facts.gpu is None else ""
        raise ArtifactError(
            f"{PLAN}: is for compute capability {', '.join(facts.compute_capabilities)}; "
            f"this GPU is {here}. Build it again: "
            f"{rebuild(path or Path('ENGINE_DIR'), facts)}{ahead}"
        )


def save(out: Path, artifact: Artifact, facts: EngineFacts, plan: memoryview | bytes) -> "Engine":
    """Write an engine to `out`, in place of the one that is there, as a whole or not at all."""
    place = check_target(out)
    written = []

    def fill(folder: Path) -> None:
        (folder / PLAN).write_bytes(plan)
        inner = folder / ARTIFACT
        inner.mkdir()
        for name in (*artifact.manifest.files, MANIFEST):
            shutil.copyfile(artifact.path / name, inner / name)
        source = {k: v for k, v in artifact.evidence.items() if k == "source"}
        for folder_with in (folder, inner):
            artifacts.write_evidence(folder_with, source)
        files = {
            name: {"sha256": file_hash(folder / name), "bytes": (folder / name).stat().st_size}
            for name in (PLAN, f"{ARTIFACT}/{MANIFEST}")
        }
        whole = replace(facts, files=files).to_json()
        (folder / MANIFEST).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        written.append(open_engine(folder))

    swap.replace(place, fill, check_folder)
    return replace(written[0], path=out if out.exists() else place)


def open_engine(path: str | Path | Artifact) -> Engine:
    """The engine at `path`, its files verified.

    Raises: ArtifactError if there is none, or it is damaged.
    """
    opened = Artifact.open(path)
    if not isinstance(opened, Engine):
        raise ArtifactError(f"{opened.path}: is an artifact; build an engine from it first.")
    return opened


def check_target(out: Path) -> Path:
    """The real place of `out`, after clearing what killed writers left in it.

    Raises: InputError if saving to `out` would lose something that is not an engine, or cannot
        work.
    """
    place = paths.target(out, "an engine")
    swap.heal(place)
    if place.exists():
        swap.clear(place)
        check_folder(place, out)
    return place


def check_folder(folder: Path, given: Path | None = None) -> None:
    """Raises: ArtifactError if the folder holds anything but a whole engine.

    given: how the user calls it.
    """
    name = given or folder
    artifacts.check_names(folder, name, FILES, "an engine")
    if not any(swap.foreign(folder)):
        return
    try:
        manifest = folder / MANIFEST
        text = contents.read(manifest, contents.LARGEST_JSON)
        facts = contents.parsed(text, manifest)
        if facts.get("kind") != "engine":
            raise ArtifactError(f"{manifest}: is not an engine's")
        own = EngineFacts.from_json(facts, manifest).files
        if own.keys() != {PLAN, f"{ARTIFACT}/{MANIFEST}"}:
            raise ArtifactError(f"{manifest}: lists {sorted(own)}, not {PLAN}.")
        for file, said in own.items():
            contents.verify(folder / file, said["sha256"])
        if os.path.lexists(folder / EVIDENCE):
            artifacts.evidence_in(folder / EVIDENCE)
        artifacts.check_folder(folder / ARTIFACT)
    except ArtifactError as error:
        raise artifacts.not_ours(name, "an engine", error) from error


def built_from(artifact: Artifact) -> Artifact:
    """The artifact that an engine is built from: of an engine the one it holds."""
    return artifact.artifact if isinstance(artifact, Engine) else artifact


def model_hashes(artifact: Artifact) -> dict[str, str]:
    """sha256 of each file of the ONNX model, by name."""
    return _hashes(artifact.manifest)


def fixed_tensors(
    tensors: Sequence[TensorType], sizes: Mapping[str, int]
) -> tuple[TensorType, ...]:
    """The tensors with the axes in `sizes` as numbers."""
    return tuple(
        replace(t, shape=tuple(sizes.get(a, a) if isinstance(a, str) else a for a in t.shape))
        for t in tensors
    )
