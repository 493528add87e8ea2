"""Manifests and evidence of older format versions, as the newest one has them.

Version 2: the interface is stored, where version 1 had only the tensors and told by their names
what each is for; `budget` and `loss` of evidence became `tolerance` and `quantization_error`.
Nothing on the disk is changed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from rope_export.artifacts.manifest import FORMAT_VERSION, KIND
from rope_export.errors import ArtifactError
from rope_export.interface import TensorType, attention_roles
from rope_export.typed_json import brief, plain, typed

LATER: Mapping[str, Any] = {
    "needs": {},
    "quantization": None,
    "stale_slots": "finite",
    "first_position": None,
}
"""Facts that some manifests of version 1 lack, and what they then are."""

RENAMED = {"budget": "tolerance", "loss": "quantization_error"}


def manifest(facts: dict[str, Any], where: Path) -> dict[str, Any]:
    """The facts of a manifest of any kind and version, as the newest version has them.

    Raises: ArtifactError for a newer version, or tensors that are not an attention layer's.
    """
    version = facts.get("format_version")
    _check(version, where)
    if version == FORMAT_VERSION:
        return facts
    upgraded = _attention(facts, where) if facts.get("kind") == KIND else facts
    return upgraded | {"format_version": FORMAT_VERSION}


def evidence(facts: dict[str, Any], where: Path) -> dict[str, Any]:
    """Evidence of any version, which it states since version 2, as the newest version has it.

    Raises: ArtifactError for a newer version.
    """
    version = facts.get("format_version", 1)
    _check(version, where)
    if version == FORMAT_VERSION:
        return facts
    return {"format_version": FORMAT_VERSION} | {n: _renamed(x) for n, x in facts.items()}


def _check(version: object, where: Path) -> None:
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise ArtifactError(
            f"{where}: format_version={brief(version)}; this version of rope_export reads 1 to "
            f"{FORMAT_VERSION}. Install a newer one, or export the artifact or build the engine "
            f"again."
        )


class _Tensors(Struct):
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]


def _attention(facts: dict[str, Any], where: Path) -> dict[str, Any]:
    tensors = typed(facts, _Tensors, where)
    try:
        interface = attention_roles(tensors.inputs, tensors.outputs)
    except ValueError as error:
        raise ArtifactError(f"{where}: {error}.") from error
    kept = {name: fact for name, fact in facts.items() if name not in ("inputs", "outputs")}
    return dict(LATER) | kept | {"interface": plain(interface)}


def _renamed(value: Any) -> Any:
    if isinstance(value, list):
        return [_renamed(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {RENAMED.get(name, name): _renamed(item) for name, item in value.items()}
