"""Plans that were built before, by everything that they were built from.

A folder for each, written as a whole; processes that build the same at once write the same. One
that is damaged is not believed, but built again.
"""

import functools
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rope_export import swap

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
        facts = json.loads((entry / FACTS).read_text(encoding="utf-8"))
        plan = (entry / PLAN).read_bytes()
        if hashlib.sha256(plan).hexdigest() != facts["plan"]:
            return None
        return Built(plan=plan, network=facts["network"], fusion=facts["fusion"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def put(folder: Path, name: str, built: Built) -> None:
    """Keep what was built.

    Raises: OSError if the folder cannot be written.
    """
    facts = {
        "plan": hashlib.sha256(built.plan).hexdigest(),
        "network": dict(built.network),
        "fusion": dict(built.fusion),
    }

    def fill(entry: Path) -> None:
        (entry / PLAN).write_bytes(built.plan)
        (entry / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    swap.replace(folder / name, fill)
