"""Plans that were built before, by everything that they were built from.

A folder for each, written as a whole; processes that build the same at once write the same. One
that is damaged is not believed, but built again.
"""

import errno
import functools
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rope_export.artifacts import contents, swap
from rope_export.errors import ArtifactError

VARIABLE = "ROPE_EXPORT_CACHE"
PLAN, FACTS = "engine.plan", "facts.json"


@dataclass(frozen=True, kw_only=True)
class Built:
    """What the builder gave. network, fusion: as in `EngineFacts`."""

    plan: bytes
    network: Mapping[str, Any]
    fusion: Mapping[str, Any]


def location() -> Path | None:
    """The folder of the cache: ROPE_EXPORT_CACHE, or the user's own cache folder; nothing for a
    user who has no home."""
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given) / "engines"
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return Path(base or Path.home() / "AppData" / "Local") / "rope_export" / "engines"
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(base or Path.home() / ".cache") / "rope_export" / "engines"
    except RuntimeError:
        return None


def key(inputs: Mapping[str, Any]) -> str:
    """The name under which what was built from `inputs`, plain values, is kept."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


@functools.cache
def code() -> str:
    """sha256 of what repairs and judges networks: it is an input like any other."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def get(folder: Path, name: str) -> Built | None:
    """What was built before under this name, if it is whole and can be read."""
    entry = folder / name
    try:
        swap.heal(entry)
        facts = _facts(entry)
        plan = (entry / PLAN).read_bytes()
        if hashlib.sha256(plan).hexdigest() != facts["plan"]:
            return None
        return Built(plan=plan, network=facts["network"], fusion=facts["fusion"])
    except (OSError, ValueError, ArtifactError):
        return None


def _facts(entry: Path) -> dict[str, Any]:
    """Raises: ValueError or ArtifactError if what lies there is no entry."""
    facts = contents.parsed(contents.read(entry / FACTS, contents.LARGEST_JSON), entry / FACTS)
    kinds = {"plan": str, "network": dict, "fusion": dict}
    if facts.keys() != kinds.keys():
        raise ValueError(f"{entry}: has other facts than an entry")
    if not all(isinstance(facts[fact], kind) for fact, kind in kinds.items()):
        raise ValueError(f"{entry}: has other facts than an entry")
    return facts


def put(folder: Path, name: str, built: Built) -> None:
    """Keep what was built.

    Raises: OSError if the folder cannot be written, or something else lies there.
    """
    facts = {
        "plan": hashlib.sha256(built.plan).hexdigest(),
        "network": dict(built.network),
        "fusion": dict(built.fusion),
    }

    def fill(entry: Path) -> None:
        (entry / PLAN).write_bytes(built.plan)
        (entry / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

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
    except (ValueError, ArtifactError):
        ours = False
    if not ours:
        raise FileExistsError(errno.EEXIST, "it holds something else", str(entry))
