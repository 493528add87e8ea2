"""A manifest of any content is one line of status 2, or an artifact that works."""

import copy
import json
import random
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from rope_export import Artifact, export, open_session
from rope_export.artifacts import upgrade
from rope_export.artifacts.external_data import locations
from rope_export.artifacts.manifest import Manifest
from rope_export.artifacts.saving import check_target
from rope_export.cli import run
from rope_export.errors import ArtifactError, InputError, UnavailableError
from rope_export.spec import AttentionSpec
from rope_export.typed_json import parse, typed
from tests.cli.test_cli import refused
from tests.conftest import ON_EVERY_MACHINE


@pytest.fixture
def artifact(tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny().path, tmp_path / "artifact"))


TEXTS = {
    "nothing": b"",
    "no JSON": b"port: 80",
    "not UTF-8": b'{"kind": "\xff"}',
    "a list": b"[1, 2]",
    "a number": b"7",
    "null": b"null",
    "nested deeply": b"[" * 100_000,
    "objects nested deeply": b'{"a":' * 100_000,
    "nested and closed": b'{"format_version": 1, "kind": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "a number of many digits": b'{"format_version": 1' + b"0" * 10_000 + b"}",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "cut": b'{"format_version": 1, "kind": "attention", "spec": {"hid',
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["manifest.json", "evidence.json"])
def test_a_file_that_is_none_of_ours_is_one_line(name, text, artifact, tiny_config, capsys) -> None:
    (artifact / name).write_bytes(TEXTS[text])
    assert name in refused(capsys, "inspect", str(artifact))
    assert name in refused(capsys, "export", str(tiny_config), "--out", str(artifact))


@pytest.mark.parametrize("name", ["manifest.json", "evidence.json"])
def test_a_file_of_many_bytes_is_not_read(name, artifact, capsys) -> None:
    """Sparse: it takes no room here, and would take all memory there."""
    with (artifact / name).open("ab") as file:
        file.truncate(1 << 40)
    assert "has at most" in refused(capsys, "inspect", str(artifact))


def test_damaged_evidence_does_not_stop_a_verdict(artifact) -> None:
    (artifact / "evidence.json").write_text("{")
    note = Artifact.open(artifact).record(parity={"status": "passed"})
    assert note is not None
    assert "is not JSON" in note
    assert (artifact / "evidence.json").read_text() == "{"


VALUES = (None, True, -1, 0, 1.5, 2**70, "x", "", [], [[]], {}, {"x": {}}, [{"name": 1}], "\ud800")


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value in a JSON document."""
    yield at
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(one, (*at, key))


def with_other(facts: Any, way: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(facts)
    at = changed
    for key in way[:-1]:
        at = at[key]
    at[way[-1]] = value
    return changed


def test_every_value_of_a_manifest_by_one_of_another_kind(artifact, tmp_path) -> None:
    """Reading it raises an ArtifactError, or its spec a SpecError, or it is as good as it was."""
    facts = json.loads((artifact / "manifest.json").read_text())
    refusals = 0
    for way in places(facts):
        for value in VALUES if way else ():
            text = json.dumps(with_other(facts, way, value))
            try:
                manifest = typed(
                    upgrade.manifest(parse(text.encode(), artifact), artifact), Manifest, artifact
                )
                AttentionSpec.from_json(manifest.spec)
            except InputError:
                refusals += 1
    assert refusals > 300


def tried(artifact: Path, draw: random.Random) -> None:
    """One or two values of the manifest are others: no command fails by itself."""
    path = artifact / "manifest.json"
    before = path.read_bytes()
    facts = json.loads(before)
    for _ in range(draw.randint(1, 2)):
        way = draw.choice([x for x in places(facts) if x])
        facts = with_other(facts, way, draw.choice(VALUES))
    path.write_text(json.dumps(facts))
    told = json.dumps(facts)
    for command in (
        ["inspect", str(artifact)],
        ["export", str(artifact.parent / "none.json"), "--out", str(artifact)],
    ):
        assert run(command) in (0, 2), told
    for runtime in ON_EVERY_MACHINE:
        with suppress(InputError, UnavailableError):  # of status 2 and 3
            open_session(artifact, runtime).close()
    path.write_bytes(before)


@pytest.mark.parametrize("seeds", [range(30), pytest.param(range(30, 400), marks=pytest.mark.long)])
@pytest.mark.parametrize("weights", [None, "int4"])
def test_fuzz_of_manifests(weights, seeds, tiny_config, tmp_path) -> None:
    artifact = export(tiny_config, out=tmp_path / "artifact", weights=weights).path
    for seed in seeds:
        tried(artifact, random.Random(seed))


def test_a_model_that_nests_graphs_for_ever_is_refused() -> None:
    """ModelProto.graph, then node, attribute and graph within one another."""
    inner = b""
    for field in [7, *[1, 5, 6] * 3_000][::-1]:
        size, length = len(inner), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        inner = bytes([field << 3 | 2]) + length + bytes([size]) + inner
    with pytest.raises(ValueError, match="nested"):
        locations(inner)


def test_another_kind_and_a_newer_version_are_named(artifact) -> None:
    for changes, named in (({"kind": "tokenizer"}, "'tokenizer'"), ({"format_version": 3}, "=3")):
        facts = json.loads((artifact / "manifest.json").read_text()) | changes
        (artifact / "manifest.json").write_text(json.dumps(facts))
        with pytest.raises(ArtifactError, match=named):
            Artifact.open(artifact)
        with pytest.raises(ArtifactError, match=named):
            check_target(artifact, Artifact)
