"""Whatever a JSON file of a folder holds is read, or refused in one line that names the file."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from rope_export import Artifact
from rope_export.artifacts import evidence
from rope_export.artifacts.folder import peek
from rope_export.engines.plan import Engine
from rope_export.engines.profiles import selected
from rope_export.errors import InputError, SpecError
from rope_export.spec import AttentionSpec
from tests.unit.test_format_versions import SAMPLES
from tests.unit.test_safety_manifests import places

VALUES = (None, True, -1, 0, 1.5, 2**70, 1e400, "x", "", [], [[]], {}, {"x": {}}, [{"name": 1}])


def changed_value(facts: Any, draw: random.Random) -> Any:
    """One value is another, or gone, or has a key more, or is the value of another key."""
    ways = [way for way in places(facts) if way]
    *above, key = draw.choice(ways)
    at = facts
    for step in above:
        at = at[step]
    change = draw.randrange(4)
    if change == 0:
        at[key] = draw.choice(VALUES)
    elif change == 1:
        del at[key]
    elif change == 2 and isinstance(at, dict):
        at[draw.choice(["new", "", "kind", "axis"])] = draw.choice(VALUES)
    else:
        other = facts
        for step in draw.choice(ways):
            other = other[step]
        at[key] = json.loads(json.dumps(other))
    return facts


def changed_bytes(text: bytes, draw: random.Random) -> bytes:
    """A byte is another, or some are gone, or come twice."""
    at = draw.randrange(len(text))
    end = at + draw.randint(1, 40)
    new = (bytes([draw.randrange(256)]), b"", text[at:end] * 2, b"[" * 2_000)
    return text[:at] + draw.choice(new) + text[end:]


def read(folder: Path) -> None:
    """All that is done with the facts of a folder before its model is read."""
    opened = peek(folder)
    AttentionSpec.from_json(opened.manifest.spec)
    for tensor in (*opened.manifest.inputs, *opened.manifest.outputs):
        str(tensor)
    if isinstance(opened, Engine):
        sizes = {"batch": 1, "sequence": 1, "past": 0, "capacity": 8}
        selected(opened.facts.profiles, sizes)
    assert isinstance(opened.evidence, dict)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "file",
    [
        "growing/manifest.json",
        "int4/manifest.json",
        "int4/evidence.json",
        "engine/manifest.json",
        "engine/evidence.json",
    ],
)
def test_whatever_a_file_holds_is_read_or_refused(file, version, tmp_path) -> None:
    name, json_file = file.split("/")
    folder = Path(shutil.copytree(SAMPLES / name, tmp_path / name))
    if version == 2:
        opened = Artifact.open(folder)
        evidence.write(folder, opened.evidence)
        (folder / "manifest.json").write_text(newest(folder))
    path = folder / json_file
    text, refusals = path.read_bytes(), []
    for seed in range(150):
        draw = random.Random(seed)
        if seed % 3:
            path.write_text(json.dumps(changed_value(json.loads(text), draw)))
        else:
            path.write_bytes(changed_bytes(text, draw))
        try:
            read(folder)
        except InputError as error:
            refusals.append(error)
    assert len(refusals) > 50
    for error in refusals:
        assert "\n" not in str(error)
        assert json_file in str(error) or isinstance(error, SpecError), str(error)


def newest(folder: Path) -> str:
    """The manifest of a folder as it would be written now."""
    from rope_export.typed_json import text

    return text(peek(folder).facts)
