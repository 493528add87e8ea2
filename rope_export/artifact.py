"""An artifact: a folder with an ONNX model, what is true of it, and what was measured on it.

manifest.json holds facts that are the same for the same inputs; evidence.json what was measured.
Reading one needs neither torch nor onnx.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rope_export import external_data, swap
from rope_export.contract import TensorType
from rope_export.errors import ArtifactError

FORMAT_VERSION = 1
MODEL = "model.onnx"
DATA = "model.onnx.data"
MANIFEST = "manifest.json"
EVIDENCE = "evidence.json"
FILES = (MODEL, DATA, MANIFEST, EVIDENCE)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is true of an artifact.

    spec: an AttentionSpec as plain values. source: kind, layer, seed, hash of the config.
    weights: for each tensor of the layer its name in the source, the initializer that holds it,
        whether transposed, and the sha256 of its bytes as deployed, in the source's orientation.
    quantization: how projections are stored in few bits; then each has its scales and inputs too.
    needs: oldest version of a package that runs it. files: sha256 and bytes of the model's files.
    """

    spec: Mapping[str, Any]
    lowering: str
    opset: int
    cache: str
    padding: bool
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    source: Mapping[str, Any]
    weights: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, str]
    runtimes: tuple[str, ...]
    needs: Mapping[str, str] = field(default_factory=dict)
    quantization: Mapping[str, int] | None = None
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def dtype(self) -> str:
        return str(self.spec["dtype"])

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "kind": "attention",
            **{name: getattr(self, name) for name in ("spec", "lowering", "opset", "cache")},
            "padding": self.padding,
            "inputs": [t.to_json() for t in self.inputs],
            "outputs": [t.to_json() for t in self.outputs],
            **{name: getattr(self, name) for name in ("source", "weights", "versions")},
            "runtimes": list(self.runtimes),
            "needs": dict(self.needs),
            "quantization": self.quantization,
            "files": self.files,
        }

    @classmethod
    def from_json(cls, facts: Any, where: Path) -> "Manifest":
        """Raises: ArtifactError if it was written by another version or is not a manifest."""
        version = facts.get("format_version") if isinstance(facts, dict) else None
        if version != FORMAT_VERSION:
            raise ArtifactError(
                f"{where}: format_version={version!r}; this version of rope_export reads "
                f"{FORMAT_VERSION}. Export the artifact again."
            )
        try:
            return cls(
                **{
                    name: facts[name]
                    for name in ("spec", "lowering", "opset", "cache", "padding", "source")
                },
                **{name: facts[name] for name in ("weights", "versions", "files")},
                inputs=tuple(TensorType.from_json(t) for t in facts["inputs"]),
                outputs=tuple(TensorType.from_json(t) for t in facts["outputs"]),
                runtimes=tuple(facts["runtimes"]),
                needs=facts.get("needs", {}),
                quantization=facts.get("quantization"),
            )
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"{where}: is not a whole manifest ({error!r}).") from error


@dataclass(frozen=True)
class Artifact:
    """An artifact on the disk, its files verified against its manifest when it was opened."""

    path: Path
    manifest: Manifest

    @property
    def model(self) -> Path:
        return self.path / MODEL

    @property
    def evidence(self) -> dict[str, Any]:
        """What was measured on it so far; empty if nothing was."""
        try:
            evidence = json.loads((self.path / EVIDENCE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise ArtifactError(f"{self.path / EVIDENCE}: is not JSON ({error}).") from error
        return dict(evidence)

    def record(self, **measured: Any) -> None:
        """Add to what was measured, replacing what has the same name."""
        text = json.dumps({**self.evidence, **measured}, indent=1) + "\n"
        swap.write(self.path / EVIDENCE, text)

    @classmethod
    def open(cls, path: "str | Path | Artifact") -> "Artifact":
        """The artifact at `path`, after finishing an interrupted save and checking every hash;
        of an engine's folder an Engine, which is an artifact as well.

        Raises: ArtifactError if it is not one, or its files are not what its manifest says.
        """
        if isinstance(path, Artifact):
            path = path.path
        path = Path(path)
        swap.heal(path)
        manifest = path / MANIFEST
        if not path.is_dir() or not manifest.is_file():
            raise ArtifactError(f"{path}: is not an artifact folder; it has no {MANIFEST}.")
        try:
            facts = json.loads(manifest.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ArtifactError(f"{manifest}: is not JSON ({error}).") from error
        if isinstance(facts, dict) and facts.get("kind") == "engine":
            from rope_export.engines.plan import Engine

            return Engine.read(path, facts)
        artifact = cls(path, Manifest.from_json(facts, manifest))
        artifact._verify_files()
        return artifact

    def _verify_files(self) -> None:
        for name, facts in self.manifest.files.items():
            path = self.path / name
            if name not in (MODEL, DATA):
                raise ArtifactError(f"{self.path / MANIFEST}: lists the file {name!r}.")
            if path.is_symlink() or not path.is_file():
                raise ArtifactError(f"{path}: is missing or a link; an artifact holds its files.")
            if file_hash(path) != facts["sha256"]:
                raise ArtifactError(
                    f"{path}: does not match the sha256 in {MANIFEST}; it was changed or damaged "
                    f"after the export. Export the artifact again."
                )
        try:
            outside = external_data.locations(self.model.read_bytes()) - {DATA}
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{self.model}: is not an ONNX model ({error}).") from error
        if outside:
            raise ArtifactError(
                f"{self.model}: keeps weights in {sorted(outside)[0]!r}; an artifact's weights lie "
                f"in its own {DATA} and nowhere else."
            )
        if not {MODEL} <= self.manifest.files.keys() <= {MODEL, DATA}:
            raise ArtifactError(f"{self.path / MANIFEST}: does not list {MODEL}.")


def save(
    path: Path, manifest: Manifest, write_model: Callable[[Path], None], evidence: dict[str, Any]
) -> Artifact:
    """Write an artifact to `path`, in place of the one that is there, as a whole or not at all.

    write_model: writes model.onnx, and model.onnx.data if large, into the folder it is given.
    Raises: ArtifactError if `path` holds something else; then nothing is written.
    """
    check_target(path)

    def fill(folder: Path) -> None:
        write_model(folder)
        files = {
            name: {"sha256": file_hash(folder / name), "bytes": (folder / name).stat().st_size}
            for name in (MODEL, DATA)
            if (folder / name).exists()
        }
        facts = {**manifest.to_json(), "files": files}
        (folder / MANIFEST).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        text = json.dumps(evidence, indent=1) + "\n"
        (folder / EVIDENCE).write_text(text, encoding="utf-8")

    swap.replace(path, fill)
    return Artifact.open(path)


def check_target(path: Path) -> None:
    """Raises: ArtifactError if saving to `path` would lose something that is not an artifact."""
    swap.heal(path)
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise ArtifactError(f"{path}: is a file; an artifact is a folder. Give another --out.")
    others = sorted(p.name for p in path.iterdir() if p.name not in FILES) if path.exists() else []
    if others:
        raise ArtifactError(
            f"{path}: holds {others[0]!r}, which is not part of an artifact and would be lost. "
            f"Give a new folder, or move it away."
        )
    if path.exists() and any(path.iterdir()) and not (path / MANIFEST).is_file():
        raise ArtifactError(f"{path}: is not an artifact folder and not empty. Give another --out.")


def file_hash(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
