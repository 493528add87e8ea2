"""What was measured on the files of a folder: its evidence.json, outside of its hashes.

Keys that this version does not know are kept and not looked at.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from rope_export.artifacts import contents, swap, upgrade
from rope_export.artifacts.manifest import FORMAT_VERSION
from rope_export.errors import ArtifactError
from rope_export.typed_json import parse, text, typed

EVIDENCE = "evidence.json"
KIND = "rope_export evidence"

KNOWN = {"kind", "files", "source", "parity", "proven", "tuning", "numbers"}
"""Entries that an evidence.json without a kind may have."""


class Row(Struct, kw_only=True):
    """A comparison; see `rope_export.parity.Row`."""

    case: str
    runtime: str
    output: str
    metric: str
    error: float | None
    eager_error: float | None
    tolerance: float | None
    status: Literal["passed", "failed"]


class Parity(Struct, kw_only=True):
    """What `verify` found; worst: of each runtime."""

    status: str
    weights: str | None = None
    reading: dict[str, Any] | None = None
    files: dict[str, str] | None = None
    seed: int = 0
    rows: int = 0
    failed: int = 0
    worst: list[Row] = []
    skipped: list[dict[str, str]] = []
    quantization_error: dict[str, float | None] | None = None
    numbers: str | None = None
    left_out: list[str] = []
    not_visible: list[dict[str, str]] = []


class Proven(Struct, kw_only=True):
    """The verdict of `bench` on a runtime, and its error."""

    runtime: str
    files: dict[str, str]
    error: float | None


class Numbers(Struct, kw_only=True):
    """What a GPU computed from an engine's plan."""

    plan: str
    gpu: str
    version: str
    rows: int
    failed: int
    worst: Row


class Evidence(Struct, kw_only=True):
    """The types of what evidence.json may hold.

    files: hashes of the folder's files that all of it is about. source, adapter: where these were.
    """

    format_version: int
    kind: Literal["rope_export evidence"]
    files: dict[str, str] | None = None
    source: str | None = None
    adapter: str | None = None
    parity: Parity | None = None
    proven: Proven | None = None
    tuning: dict[str, Any] | None = None
    numbers: Numbers | None = None


def read(folder: Path) -> dict[str, Any]:
    """The evidence in `folder`, checked; empty where there is none.

    Raises: ArtifactError for a file of that name that is not evidence.
    """
    path = folder / EVIDENCE
    if not os.path.lexists(path):
        return {}
    facts = parse(contents.read(path, contents.LARGEST_JSON), path)
    strange = sorted(facts.keys() - KNOWN)
    if strange and facts.get("kind") != KIND:
        raise ArtifactError(f"{path}: holds {strange[0]!r}, which is no evidence of ours.")
    facts = upgrade.evidence({"kind": KIND} | facts, path)
    typed(facts, Evidence, path)
    return facts


def about(
    facts: Mapping[str, Any], own: Mapping[str, str], model: Mapping[str, str]
) -> dict[str, Any]:
    """The entries of evidence that were measured on files with these hashes.

    own: hashes of the folder's files by name; model: of the ONNX model's, which some parts name.
    """
    if facts.get("files", own) != own:
        return {}
    return {
        name: value
        for name, value in facts.items()
        if name not in ("format_version", "kind", "files")
        and (not isinstance(value, dict) or value.get("files", model) == model)
    }


def replace(folder: Path, measured: Mapping[str, Any]) -> None:
    """Write the evidence of a folder, in place of what is there."""
    swap.write(folder / EVIDENCE, _text(measured))


def write(folder: Path, measured: Mapping[str, Any]) -> None:
    """Write the evidence of a folder that is being made."""
    (folder / EVIDENCE).write_text(_text(measured), encoding="utf-8")


def _text(measured: Mapping[str, Any]) -> str:
    return text({"format_version": FORMAT_VERSION, "kind": KIND, **measured})
