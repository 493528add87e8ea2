"""An engine: a folder with TensorRT's plan beside the artifact that it was built from.

engine.plan is what TensorRT runs; artifact/ is the whole artifact, so that the engine is judged
against eager PyTorch like one, anywhere; manifest.json has what is true of the plan, and
evidence.json what was measured. Reading one needs neither TensorRT nor a GPU.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import msgspec
from msgspec import Struct

from rope_export import gpu
from rope_export.artifacts import contents, evidence, folder, saving
from rope_export.artifacts.folder import MANIFEST, Folder
from rope_export.artifacts.manifest import FORMAT_VERSION, File
from rope_export.artifacts.model_folder import ORIGIN, ModelFolder
from rope_export.engines import module
from rope_export.engines.fusion import Fusion
from rope_export.engines.network import NetworkFacts
from rope_export.engines.profiles import MINIMUM, Profile, Range
from rope_export.errors import ArtifactError
from rope_export.interface import TensorType

PLAN = "engine.plan"
ARTIFACT = "artifact"
INNER = f"{ARTIFACT}/{MANIFEST}"

Value = TypeVar("Value")


class Options(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the builder was told to work; see `build_engine` for what each does."""

    workspace: int | None = None
    optimization_level: int | None = None
    tf32: bool = False
    version_compatible: bool = False
    weight_streaming: bool = False
    refit: bool = False


class EngineManifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is true of a plan.

    engine: the package that built it; version: of that. compute_capabilities: of the GPUs
    it is for. gpu: the one it was built on, where it was built on one. ranges: of each profile's
    axes. inputs, outputs: as the plan has them, sizes that are fixed being numbers. network: what
    was parsed; fusion: what the builder made of it. model: sha256 of each file of the ONNX model.
    files: the engine's own.
    Raises: ValueError if there is no profile, or one has other axes than the inputs.
    """

    format_version: Literal[2] = FORMAT_VERSION
    kind: Literal["engine"] = "engine"
    engine: Literal["tensorrt", "tensorrt-rtx"]
    version: str
    compute_capabilities: tuple[str, ...]
    gpu: str | None
    ranges: tuple[dict[str, Range], ...] = msgspec.field(name="profiles")
    options: Options
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    network: NetworkFacts
    fusion: Fusion
    model: dict[str, str]
    files: dict[str, File] = {}

    def __post_init__(self) -> None:
        axes = {axis for tensor in self.inputs for axis in tensor.shape if axis in MINIMUM}
        for ranges in self.ranges:
            if not axes | {"batch", "sequence"} <= ranges.keys() <= MINIMUM.keys():
                raise ValueError(
                    f"a profile has the axes {', '.join(ranges)}; the inputs have others"
                )
        if not self.ranges:
            raise ValueError("profiles=[]: an engine has at least one")

    @property
    def profiles(self) -> tuple[Profile, ...]:
        return tuple(Profile(axes) for axes in self.ranges)


@dataclass(frozen=True)
class Engine(Folder[EngineManifest]):
    """An engine's folder: a plan, and the artifact that it was built from. Evidence is its own."""

    kind: ClassVar[str] = "engine"
    title: ClassVar[str] = "an engine"
    facts_type: ClassVar[type] = EngineManifest
    required: ClassVar[tuple[str, ...]] = (PLAN, INNER)

    inner: ModelFolder[Any]

    @property
    def artifact(self) -> ModelFolder[Any]:
        return self.inner

    @property
    def runtimes(self) -> tuple[str, ...]:
        return (self.facts.engine, *self.inner.runtimes)

    @property
    def plan(self) -> Path:
        return self.path / PLAN

    @classmethod
    def from_facts(cls, path: Path, facts: EngineManifest, digest: str) -> "Engine":
        """Raises: ArtifactError if the artifact that it holds is another one."""
        inner = folder.peek(path / ARTIFACT)
        if inner.digest != facts.files[INNER].sha256:
            raise contents.mismatch(inner.path / MANIFEST)
        if not isinstance(inner, ModelFolder) or folder.model_hashes(inner) != facts.model:
            raise ArtifactError(
                f"{path}: its plan was built from another model than {ARTIFACT} holds. Build the "
                f"engine again."
            )
        return cls(path, facts, digest, inner)

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.inner.warnings

    def read_plan(self) -> bytes:
        """The plan's bytes, which are those that the manifest names.

        Raises: ArtifactError if the folder holds another by now, with what builds it anew.
        """
        return self._plan(contents.read_verified)

    def hold(self) -> Self:
        self._plan(contents.verify)
        return replace(self, inner=self.inner.hold())

    def moved(self, path: Path) -> Self:
        return replace(self, path=path, inner=self.inner.moved(path / ARTIFACT))

    def _plan(self, check: Callable[[Path, str], Value]) -> Value:
        try:
            return check(self.plan, self.facts.files[PLAN].sha256)
        except ArtifactError as error:
            again = rebuild(self.path, self.facts)
            raise ArtifactError(f"{error} Or build it anew: {again}") from error


def rebuild(path: Path, facts: EngineManifest) -> str:
    """The command that builds the engine anew from the artifact that it holds."""
    profiles = "".join(f" --profile {profile}" for profile in facts.profiles)
    return f"rope-export build {path / ARTIFACT} --out NEW --engine {facts.engine}{profiles}"


def check_version(path: Path | None, facts: EngineManifest, version: str) -> None:
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


def check_gpu(path: Path | None, facts: EngineManifest, here: gpu.Gpu) -> None:
    """Raises: ArtifactError if the plan has no kernels for the GPU that is here."""
    if here.capability not in facts.compute_capabilities:
        ahead = f" --compute-capability {here.capability}" if facts.gpu is None else ""
        raise ArtifactError(
            f"{PLAN}: is for compute capability {', '.join(facts.compute_capabilities)}; "
            f"this GPU is {here}. Build it again: "
            f"{rebuild(path or Path('ENGINE_DIR'), facts)}{ahead}"
        )


def save(
    out: Path, artifact: ModelFolder[Any], facts: EngineManifest, plan: memoryview | bytes
) -> Engine:
    """Write an engine to `out`, in place of the one that is there, as a whole or not at all.

    artifact: what it was built from; it is copied.
    """
    source = {name: value for name, value in artifact.evidence.items() if name in ORIGIN}

    def write_files(place: Path) -> None:
        (place / PLAN).write_bytes(plan)
        inner = place / ARTIFACT
        inner.mkdir()
        beside = [name for name in artifact.companions if (artifact.path / name).exists()]
        for name in (*artifact.facts.files, *beside, MANIFEST):
            shutil.copyfile(artifact.path / name, inner / name)
        evidence.write(inner, source)

    saved = saving.save(out, Engine, facts, write_files, source)
    assert isinstance(saved, Engine)
    return saved


def fixed_tensors(
    tensors: Sequence[TensorType], sizes: Mapping[str, int]
) -> tuple[TensorType, ...]:
    """The tensors with the axes in `sizes` as numbers."""
    return tuple(
        TensorType(
            name=tensor.name,
            dtype=tensor.dtype,
            shape=tuple(sizes.get(a, a) if isinstance(a, str) else a for a in tensor.shape),
        )
        for tensor in tensors
    )
