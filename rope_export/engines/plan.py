"""An engine: a folder with TensorRT's plan beside the artifact that it was built from.

engine.plan is what TensorRT runs; artifact/ is the whole artifact, so that the engine is judged
against eager PyTorch like one, anywhere; manifest.json has what is true of the plan, and
evidence.json what was measured. Reading one needs neither TensorRT nor a GPU.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rope_export import swap
from rope_export.artifact import EVIDENCE, MANIFEST, MODEL, Artifact, Manifest, file_hash
from rope_export.contract import TensorType
from rope_export.engines import gpu, module
from rope_export.engines.profiles import Profile
from rope_export.errors import ArtifactError

FORMAT_VERSION = 1
PLAN = "engine.plan"
ARTIFACT = "artifact"
FILES = (PLAN, ARTIFACT, MANIFEST, EVIDENCE)


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
        if facts.get("format_version") != FORMAT_VERSION:
            raise ArtifactError(
                f"{where}: format_version={facts.get('format_version')!r}; this version of "
                f"rope_export reads {FORMAT_VERSION}. Build the engine again."
            )
        try:
            return cls(
                **{n: facts[n] for n in ("engine", "version", "gpu", "network", "fusion")},
                **{n: facts[n] for n in ("model", "files")},
                compute_capabilities=tuple(facts["compute_capabilities"]),
                profiles=tuple(Profile.from_json(p) for p in facts["profiles"]),
                options=Options(**facts["options"]),
                inputs=tuple(TensorType.from_json(t) for t in facts["inputs"]),
                outputs=tuple(TensorType.from_json(t) for t in facts["outputs"]),
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
    def artifact(self) -> Artifact:
        """What it was built from."""
        return Artifact.open(self.path / ARTIFACT)

    @classmethod
    def read(cls, path: Path, manifest: Mapping[str, Any]) -> "Engine":
        """The engine at `path` whose manifest.json holds `manifest`.

        Raises: ArtifactError if its files are not what the manifest says.
        """
        facts = EngineFacts.from_json(manifest, path / MANIFEST)
        _verify_files(path, facts)
        inner = Artifact.open(path / ARTIFACT).manifest
        if _hashes(inner) != dict(facts.model):
            raise ArtifactError(
                f"{path}: its plan was built from another model than {ARTIFACT} holds. Build the "
                f"engine again."
            )
        shared = {f.name: getattr(inner, f.name) for f in fields(Manifest)}
        shared["runtimes"] = (facts.engine, *inner.runtimes)
        return cls(path, EngineManifest(**shared, engine=facts))


def _verify_files(path: Path, facts: EngineFacts) -> None:
    if facts.files.keys() != {PLAN, f"{ARTIFACT}/{MANIFEST}"}:
        raise ArtifactError(f"{path / MANIFEST}: lists {sorted(facts.files)}, not {PLAN}.")
    for name, said in facts.files.items():
        file = path / name
        if file.is_symlink() or not file.is_file():
            raise ArtifactError(f"{file}: is missing or a link; an engine holds its files.")
        if file_hash(file) != said["sha256"]:
            raise ArtifactError(
                f"{file}: does not match the sha256 in {MANIFEST}; it was changed or damaged after "
                f"the build. Build the engine again: {rebuild(path, facts)}"
            )


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

    def fill(folder: Path) -> None:
        (folder / PLAN).write_bytes(plan)
        inner = folder / ARTIFACT
        inner.mkdir()
        for name in (*artifact.manifest.files, MANIFEST):
            shutil.copyfile(artifact.path / name, inner / name)
            swap.sync(inner / name)
        source = {k: v for k, v in artifact.evidence.items() if k == "source"}
        text = json.dumps(source, indent=1) + "\n"
        for place in (folder, inner):
            (place / EVIDENCE).write_text(text, encoding="utf-8")
        swap.sync(inner / EVIDENCE)
        files = {
            name: {"sha256": file_hash(folder / name), "bytes": (folder / name).stat().st_size}
            for name in (PLAN, f"{ARTIFACT}/{MANIFEST}")
        }
        whole = replace(facts, files=files).to_json()
        (folder / MANIFEST).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")

    swap.replace(out, fill)
    return open_engine(out)


def open_engine(path: str | Path | Artifact) -> Engine:
    """The engine at `path`, its files verified.

    Raises: ArtifactError if there is none, or it is damaged.
    """
    opened = Artifact.open(path)
    if not isinstance(opened, Engine):
        raise ArtifactError(f"{opened.path}: is an artifact; build an engine from it first.")
    return opened


def check_target(out: Path) -> None:
    """Raises: ArtifactError if saving to `out` would lose something that is not an engine."""
    swap.heal(out)
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ArtifactError(f"{out}: is a file; an engine is a folder. Give another --out.")
    if not out.exists() or not any(out.iterdir()):
        return
    others = sorted(path.name for path in out.iterdir() if path.name not in FILES)
    if not (out / PLAN).is_file() or not (out / MANIFEST).is_file():
        others = others or [path.name for path in out.iterdir()]
    if others:
        raise ArtifactError(
            f"{out}: holds {others[0]!r}, which is not part of an engine and would be lost. Give "
            f"a new folder, or move it away."
        )


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
