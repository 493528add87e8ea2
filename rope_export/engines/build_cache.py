"""Plans that were built before, by everything that they were built from.

A folder for each, written as a whole; processes that build the same at once write the same. One
that is damaged is not believed, but built again.
"""

import errno
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import Struct

from rope_export import paths
from rope_export.artifacts import contents, swap
from rope_export.engines.fusion import Fusion
from rope_export.engines.network import NetworkFacts
from rope_export.errors import ArtifactError
from rope_export.typed_json import parse, text, typed

PLAN, FACTS = "engine.plan", "facts.json"


@dataclass(frozen=True, kw_only=True)
class Built:
    """What the builder gave. network, fusion: as in `EngineManifest`."""

    plan: bytes
    network: NetworkFacts
    fusion: Fusion


class _Facts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an entry states of its plan, whose sha256 is `plan`."""

    plan: str
    network: NetworkFacts
    fusion: Fusion


def location() -> Path | None:
    """The folder of the cache of plans, if the user has a place for such."""
    folder = paths.cache_folder()
    return None if folder is None else folder / "engines"


def key(inputs: Mapping[str, Any]) -> str:
    """The name under which what was built from `inputs`, plain values, is kept."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


@functools.cache
def code() -> str:
    """sha256 of the code that repairs and judges networks, an input of every build."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def get(folder: Path, name: str) -> Built | None:
    """What was built before under this name, if it is whole and can be read."""
    entry = folder / name
    try:
        swap.heal(entry)
        facts = _facts(entry)
        plan = (entry / PLAN).read_bytes()
        if hashlib.sha256(plan).hexdigest() != facts.plan:
            return None
        return Built(plan=plan, network=facts.network, fusion=facts.fusion)
    except (OSError, ArtifactError):
        return None


def _facts(entry: Path) -> _Facts:
    """Raises: ArtifactError if what lies there is no entry."""
    where = entry / FACTS
    return typed(parse(contents.read(where, contents.LARGEST_JSON), where), _Facts, where)


def put(folder: Path, name: str, built: Built) -> None:
    """Keep what was built.

    Raises: OSError if the folder cannot be written, or something else lies there.
    """
    plan = hashlib.sha256(built.plan).hexdigest()
    facts = text(_Facts(plan=plan, network=built.network, fusion=built.fusion))

    def fill(entry: Path) -> None:
        (entry / PLAN).write_bytes(built.plan)
        (entry / FACTS).write_text(facts, encoding="utf-8")

    swap.replace(folder / name, fill, _check_entry)


def _check_entry(entry: Path) -> None:
    """Raises: FileExistsError for what is no entry of this cache; one with a damaged plan is, and
    is built again."""
    ours = not entry.is_symlink() and entry.is_dir()
    names = {path.name for path in swap.foreign(entry)} if ours else set()
    plan = entry / PLAN
    ours = ours and names <= {PLAN, FACTS} and not plan.is_symlink() and not plan.is_dir()
    try:
        if names:
            _facts(entry)
    except ArtifactError:
        ours = False
    if not ours:
        raise FileExistsError(errno.EEXIST, "it holds something else", str(entry))
