"""Artifacts that have been compared, kept under build/families and not exported again.

An artifact in onnxruntime is right or wrong for the facts of its layer, whichever family has them,
so layers of the same facts and calls are exported once (variants: of the same features), as long as
the code that exports, runs and compares them is the same. Reading a checkpoint, and comparing it in
float64, is done every time.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime
import torch
import transformers

import rope_export
from rope_export.spec import AttentionSpec
from tests.conformance.families.capture import Call

KEPT = Path("build/families")
READS = {"bench", "checkpoints", "cli", "engines", "parity"}
"""Folders of ours that have no part in an artifact, or in running it in onnxruntime."""
BESIDE = ("compare.py", "calls.py")


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What came of one artifact: its error in onnxruntime and how large it may be."""

    lowering: str
    error: float
    tolerance: float


@cache
def code_stamp() -> str:
    """Changes with the code that exports and compares, and with the versions of what runs it."""
    versions = (transformers.__version__, torch.__version__, onnxruntime.__version__)
    digest = hashlib.sha256(" ".join(versions).encode())
    root = Path(rope_export.__file__).parent
    ours = [x for x in sorted(root.rglob("*.py")) if x.relative_to(root).parts[0] not in READS]
    for path in (
        *ours,
        root / "parity" / "rounding.py",
        *(Path(__file__).parent / x for x in BESIDE),
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def name(spec: AttentionSpec, variant: str, calls: list[Call], *ways: object) -> str:
    """What a comparison is kept under: the code, the layer's facts, and the calls in outline; of a
    variant with a feature switched, its features. ways: how the layer is exported."""
    facts: object = spec
    outline: object = [(call.kind, call.past, tuple(call.output64.shape)) for call in calls]
    if variant != "plain":
        rope = None if spec.rope is None else spec.rope.rope_type
        facts = (rope, sorted((x.kind, x.name) for x in spec.features()))
        outline = sorted({call.kind for call in calls})
    return hashlib.sha256(repr((code_stamp(), facts, outline, ways)).encode()).hexdigest()


def find(key: str) -> Compared | None:
    try:
        facts: dict[str, Any] = json.loads((KEPT / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return Compared(**facts)


def keep(key: str, found: Compared) -> None:
    KEPT.mkdir(parents=True, exist_ok=True)
    path = KEPT / f"{key}.json"
    path.with_suffix(".tmp").write_text(json.dumps(dataclasses.asdict(found)), encoding="utf-8")
    path.with_suffix(".tmp").replace(path)
