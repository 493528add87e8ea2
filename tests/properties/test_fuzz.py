"""Layers and calls that Hypothesis draws: sound lowerings pass, a planted fault is found, shrunk,
and shown again by the command that is printed."""

import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

import rope_export.lowerings
from rope_export import AttentionSpec
from rope_export.cli import run
from rope_export.errors import InputError, UnavailableError
from rope_export.fuzz import Counterexample, Example, Numbers, check, examples, fuzz, search
from rope_export.lowerings import lowerings
from rope_export.parity.cases import Case
from rope_export.rope.default import DefaultRope

PACKAGE = Path(rope_export.lowerings.__file__).parent.parent

PLAIN = AttentionSpec(
    hidden_size=8, heads=2, kv_heads=1, head_dim=8, rope=DefaultRope(rotary_dim=8)
)
ONE = Case(batch=1, sequence=3)

MIXED_PAIRS = '''
"""A made-up lowering: interleaved pairs are rotated as if they lay in halves."""

import dataclasses

from rope_export.attention import operators
from rope_export.lowerings.portable import Portable


class MixedPairs(Portable):
    name = "mixed_pairs"

    def rotate(self, x, cos, sin, rope):
        return operators.rotate(x, cos, sin, dataclasses.replace(rope, layout=LAYOUT))
'''


@pytest.fixture
def mixed_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The text of a lowering that lies in a folder of its own, where lowerings are looked for."""
    text = MIXED_PAIRS.replace("LAYOUT", '"half_split"')
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "mixed_pairs.py").write_text(text.lstrip())
    found = [*rope_export.lowerings.__path__, str(tmp_path / "plugins")]
    monkeypatch.setattr(rope_export.lowerings, "__path__", found)
    yield text
    sys.modules.pop("rope_export.lowerings.mixed_pairs", None)
    vars(rope_export.lowerings).pop("mixed_pairs", None)


def again(command: str, folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """What the printed command does in a fresh process, on a copy of the package that has the
    lowering."""
    if not folder.exists():
        shutil.copytree(PACKAGE, folder / "rope_export")
    (folder / "rope_export" / "lowerings" / "mixed_pairs.py").write_text(text.lstrip())
    program, *arguments = shlex.split(command)
    assert program == "rope-export"
    return subprocess.run(
        [sys.executable, "-m", "rope_export", *arguments, "--json"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


def test_a_planted_fault_is_found_shrunk_and_shown_again(mixed_pairs, tmp_path) -> None:
    with pytest.raises(Counterexample) as raised:
        fuzz(["mixed_pairs"], caches=["none"], dtypes=["float32"], seed=2, shrinking=20)
    found = raised.value.example
    spec, (case,) = found.spec, found.cases
    assert spec.rope is not None
    assert (spec.rope.layout, spec.heads, found.weights) == ("interleaved", 1, {})
    assert case.batch == 1
    command = str(raised.value).splitlines()[-1]
    ran = again(command, tmp_path / "copy", mixed_pairs)
    assert ran.returncode == 1, ran.stderr
    report = json.loads(ran.stdout)
    failed = {(row["case"], row["runtime"]) for row in report["rows"] if row["status"] == "failed"}
    assert failed == {(case.name, "onnxruntime")}
    (located,) = report["located"]
    assert (located["tensor"], "pairs" in located["diagnosis"]) == ("q_rotated", True)
    repaired = dataclasses.replace(found, lowering="portable")
    assert check(repaired)


def test_sound_lowerings_pass() -> None:
    assert fuzz(count=3) == 3


LATENT = (
    '{"spec":{"hidden_size":8,"heads":1,"kv_heads":1,"head_dim":8,"rope":%s,'
    '"latent":{"q_rank":3,"kv_rank":6,"nope_dim":4,"rope_dim":4},"dtype":"%s"},'
    '"lowering":"standard","cache":"growing","padding":%s,"cases":[%s],"hidden_states":%s}'
)
SEVERAL_AXES = '{"rope_type":"default","rotary_dim":2,"pair_axes":[1]}'
PADDED = '{"batch":1,"sequence":7,"past":15,"padding":"right"}'


@pytest.mark.parametrize(
    ("facts", "compared"),
    [
        ((SEVERAL_AXES, "float32", "false", '{"batch":1,"sequence":1}', "{}"), True),
        (("null", "float16", "true", PADDED, '{"exponent":-1,"channel":1,"gain":11}'), False),
    ],
    ids=["the order of a sum of axes", "padded tokens beyond what a session keeps"],
)
def test_what_a_long_search_found(facts: tuple[str, ...], compared: bool) -> None:
    assert check(Example.from_json(LATENT % facts)) == compared


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", sorted(lowerings()))
def test_many_examples_of_a_sound_lowering_pass(name: str, seed: int) -> None:
    assert fuzz([name], count=150, seed=seed) == 150


@settings(max_examples=60, deadline=None, database=None)
@given(examples())
def test_a_command_says_all_of_an_example(example: Example) -> None:
    *_, text = shlex.split(example.command)
    assert Example.from_json(text) == example


def test_numbers_of_every_size_are_drawn_and_deployed() -> None:
    """Float32's smallest number is 2^-149, and an outlier is in one channel alone."""
    tiny = {"q_proj.weight": Numbers(exponent=-149, channel=2, gain=40)}
    example = Example(
        spec=PLAIN, lowering="portable", cache="none", cases=(ONE,), weights=tiny, seed=3
    )
    plain = dataclasses.replace(example, weights={}).tensors()["q_proj.weight"].numpy()
    deployed = example.tensors()["q_proj.weight"].numpy()
    smallest = np.float32(2.0**-149)
    expected = np.round(plain.astype(np.float64)) * np.float64(smallest)
    others = [0, 1, 3, 4, 5, 6, 7]
    assert np.array_equal(deployed[:, others], expected[:, others].astype(np.float32))
    ratio = deployed[:, 2].astype(np.float64) / plain[:, 2] * 2.0**109
    assert np.allclose(ratio, 1, rtol=0, atol=1e-6)


def test_a_layer_without_rotation_is_read_as_it_was_written() -> None:
    example = Example(
        spec=dataclasses.replace(PLAIN, rope=None), lowering="portable", cache="none", cases=(ONE,)
    )
    again = Example.from_json(json.dumps(example.to_json()))
    assert again.spec.to_json() == example.spec.to_json()


def changed(**facts) -> str:
    """An example with another fact."""
    example = Example(spec=PLAIN, lowering="standard", cache="fixed", cases=(ONE,))
    return json.dumps(example.to_json() | facts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ('{"spec": 1}', "'spec' is missing"),
        ('{"spec": {"hidden_size": 8}}', "heads"),
        ('{"lowering": "portable"}', "'spec' is missing"),
        (changed(seed=-1), "seed=-1: it must be 0 or more"),
        (changed(cases=[{"batch": 0, "sequence": 1}]), "batch=0: it must be 1 or more"),
        (changed(cases=[{"batch": 1, "sequence": 1, "past": -1}]), "past=-1: it must be 0"),
        (
            changed(cases=[{"batch": 2, "sequence": 1, "past": 3, "lengths": [3]}]),
            "one for each row of the batch of 2",
        ),
        (
            changed(cases=[{"batch": 2, "sequence": 1, "past": 3, "lengths": [2, 1]}]),
            "the longest as long as the past of 3",
        ),
    ],
)
def test_what_is_no_example_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Example.from_json(text)


def test_names_that_there_are_not_are_refused() -> None:
    with pytest.raises(InputError, match="'fast' does not exist"):
        fuzz(["fast"])
    with pytest.raises(InputError, match="has none, growing"):
        fuzz(["portable"], caches=["fixed"])
    with pytest.raises(InputError, match="cache 'static' does not exist; use none, growing, fixed"):
        fuzz(caches=["static"])
    with pytest.raises(InputError, match="dtype 'float8' does not exist; use float32"):
        fuzz(["portable"], dtypes=["float8"])
    weights = {"r_proj.weight": Numbers()}
    with pytest.raises(InputError, match=r"'r_proj\.weight'"):
        Example(spec=PLAIN, lowering="portable", cache="none", cases=(ONE,), weights=weights)


def test_only_lowerings_with_the_cache_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Example] = []
    monkeypatch.setattr(search, "check", lambda example: drawn.append(example) or True)
    assert fuzz(caches=["fixed"], count=30) == 30
    assert {example.cache for example in drawn} == {"fixed"}
    assert "portable" not in {example.lowering for example in drawn}


def test_a_search_in_which_nothing_is_compared_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on onnxruntime's CPU, which has no kernels for bfloat16."""
    seen: list[Example] = []
    monkeypatch.setattr(search, "check", seen.append)
    with pytest.raises(UnavailableError, match="onnxruntime in bfloat16 could run none of 20"):
        fuzz(["portable"], dtypes=["bfloat16"], count=5)
    assert len(seen) == search.HOPELESS


def test_calls_beyond_the_range_of_a_dtype_are_not_judged() -> None:
    """Queries of 2^20 are more than float16 holds, so that PyTorch has no answer."""
    facts = {"lowering": "portable", "cache": "none", "cases": (ONE,)}
    huge = {"q_proj.weight": Numbers(exponent=20)}
    half = dataclasses.replace(PLAIN, dtype="float16")
    assert check(Example(spec=PLAIN, weights=huge, **facts))
    assert not check(Example(spec=half, weights=huge, **facts))


def test_the_command_line_says_what_was_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fuzz", "portable", "--cache", "none", "--count", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"status": "passed", "compared": 1}
    for arguments, message in (
        (["fuzz", "fast"], "lowering 'fast' does not exist"),
        (["fuzz", "portable", "--cache", "fixed"], "--cache fixed: lowering 'portable' has"),
        (["fuzz", "--runtime", "abacus"], "abacus"),
        (["fuzz", "--out", "x"], "give --example too"),
        (["fuzz", "ort", "--example", "{}"], "an example names its lowering"),
        (["fuzz", "--example", "{}"], "'spec' is missing"),
        (["fuzz", "--example", "{}", "--runtime", "eager"], "an example has its own"),
        (["fuzz", "--example", "{}", "--seed", "1"], "Leave --seed out"),
    ):
        assert run(arguments) in (2, 3)
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(("dtype", "exponent"), [("float32", -140), ("float16", -19)])
def test_bounds_know_where_a_dtype_ends(dtype: str, exponent: int) -> None:
    """Values and outputs of subnormal numbers: sound, though most of their bits are lost."""
    tiny = {"v_proj.weight": Numbers(exponent=exponent)}
    example = Example(
        spec=dataclasses.replace(PLAIN, dtype=dtype),
        lowering="portable",
        cache="growing",
        cases=(dataclasses.replace(ONE, past=4),),
        weights=tiny,
    )
    assert check(example)
