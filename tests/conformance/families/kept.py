"""Errors of artifacts that have been compared, kept in build/conformance/artifacts.

An artifact in onnxruntime is right or wrong for the facts of its layer, whichever family has them,
so layers of the same facts and calls are exported once (variants: of the same features), as long as
the code that exports, runs and compares them is the same. Reading a checkpoint, and comparing it in
float64, is done every time.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rope_export.spec import AttentionSpec, Feature
from tests.conformance.families.capture import Call
from tests.conformance.runner import RESULTS, ROOT, Store, digest, files_digest

KEPT = Store(RESULTS / "artifacts")
NOT_IN_ARTIFACTS = ("bench", "checkpoints", "cli", "engines")
"""Folders of the package that have no part in an artifact, or in running it in onnxruntime."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What came of one artifact: its error in onnxruntime and how large it may be."""

    lowering: str
    error: float
    tolerance: float


@cache
def code_digest() -> str:
    """Changes with the code that exports and compares, and with the versions of what runs it."""
    package = ROOT / "rope_export"
    outside = {package / name for name in NOT_IN_ARTIFACTS}
    own = [path for path in package.rglob("*.py") if not outside & set(path.parents)]
    return files_digest([*own, *(Path(__file__).parent / x for x in ("compare.py", "calls.py"))])


def key(
    spec: AttentionSpec, variant: str, calls: list[Call], *ways: object, quick: bool = False
) -> str:
    """What a comparison is kept under: the code, the layer's facts, and the calls in outline; of a
    variant with a feature switched, its features. ways: how the layer is exported. quick: features
    of any variant, but those that every lowering leaves to the layer or has in its other tests."""
    facts: object = spec
    outline: object = [(call.kind, call.past, tuple(call.output64.shape)) for call in calls]
    if quick or variant != "plain":
        rope = None if spec.rope is None else spec.rope.rope_type
        features = [(x.kind, x.name) for x in spec.features() if not (quick and _common(x))]
        facts = (rope, sorted(features))
        outline = sorted({call.kind for call in calls})
    return digest(code_digest(), facts, outline, ways)


def _common(feature: Feature) -> bool:
    return feature.kind in ("bias", "group") or "rms norm (head)" in feature.name
