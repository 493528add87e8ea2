"""Tuning: every lowering that can is measured, the fastest is taken, and that is written down."""

import json
import shutil
from pathlib import Path

import pytest

from rope_export import Artifact, RopeExportError, verify
from rope_export.bench import Plan, Shape, tune
from rope_export.bench.proof import Proof
from rope_export.bench.timing import summarized
from rope_export.cli import run
from rope_export.errors import InputError
from tests.conftest import TINY

pytestmark = pytest.mark.usefixtures("short_prompts", "known_limits")

SHORT = Plan(rounds=2, seconds=0.01, calls=1, warm_seconds=0.0, warm_calls=1)
SHAPES = (Shape(batch=1, sequence=1, past=4), Shape(batch=2, sequence=3, past=0))


@pytest.fixture
def made_once(exported, monkeypatch) -> None:
    """What tuning exports is copied from artifacts that tests share."""

    def export(source: Path, *, out: Path, lowering: str) -> Artifact:
        made = exported(json.loads(source.read_text()), lowering=lowering)
        return Artifact.open(shutil.copytree(made.path, out))

    monkeypatch.setattr(tune, "export", export)


@pytest.fixture
def fastest(monkeypatch):
    """Makes one lowering the fastest, whatever this machine says; all are believed to be right."""

    def choose(wanted: str) -> None:
        def measure(calls, plan, clock=None, progress=None):
            return {
                name: summarized([[1.0 if name == wanted else 2.0]] * plan.rounds, 0)
                for name in calls
            }

        monkeypatch.setattr("rope_export.bench.harness.measure", measure)
        monkeypatch.setattr(
            "rope_export.bench.harness.prove", lambda *_, **__: Proof(status="passed")
        )

    return choose


def test_the_fastest_is_exported_and_why_is_written_down(
    tiny_config, tmp_path, fastest, made_once
) -> None:
    wanted = "portable"  # neither the first nor what "auto" takes
    fastest(wanted)
    artifact = tune.tuned(tiny_config, out=tmp_path / "out", shapes=SHAPES, plan=SHORT)
    assert artifact.manifest.lowering == wanted
    evidence = artifact.evidence["tuning"]
    assert evidence["chosen"] == wanted
    assert evidence["mean_ms"] == pytest.approx(
        {name: 1e3 if name == wanted else 2e3 for name in ("ort", "portable", "standard")}
    )
    assert len(evidence["rows"]) == 3 * len(SHAPES)
    assert verify(artifact).passed
    assert artifact.evidence["tuning"] == evidence  # beside the parity that was added


def test_only_what_can_express_the_layer_is_measured(tmp_path, fastest, made_once) -> None:
    fastest("portable")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**TINY, "model_type": "gpt_oss", "attention_bias": True}))
    artifact = tune.tuned(config, out=tmp_path / "out", shapes=SHAPES, plan=SHORT)
    assert set(artifact.evidence["tuning"]["mean_ms"]) == {"ort", "portable"}


def test_a_wrong_lowering_ends_it_and_nothing_is_written(
    tiny_config, tmp_path, monkeypatch
) -> None:
    from rope_export.lowerings.ort import Ort

    rotate = Ort.rotate
    monkeypatch.setattr(
        Ort, "rotate", lambda self, x, cos, sin, rope: rotate(self, x, sin, cos, rope)
    )
    with pytest.raises(RopeExportError, match=r"'ort' computes something wrong"):
        tune.tuned(tiny_config, out=tmp_path / "out", shapes=SHAPES, plan=SHORT)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_tuned_is_refused(tiny_config, tmp_path, capsys) -> None:
    with pytest.raises(InputError, match="bfloat16"):
        tune.tuned(tiny_config, out=tmp_path / "x", weights="int4", dtype="bfloat16")
    words = ["export", str(tiny_config), "--out", str(tmp_path / "x"), "--tune"]
    assert run([*words, "--lowering", "ort"]) == 2
    assert "--tune looks for the lowering" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
