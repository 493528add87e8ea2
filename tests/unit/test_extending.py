"""What is added in one new file: a family, a variant, a lowering, a runtime. A feature of a spec
that a lowering forgot is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

import rope_export
from rope_export import AttentionSpec
from rope_export.errors import InputError
from rope_export.lowerings import lowering_for, lowerings, refusal
from tests.conftest import TINY

PACKAGE = Path(rope_export.__file__).parent

FAMILY = '''
"""A made-up family: blocks.N.mixer, one module of queries, keys and values head by head."""

from rope_export.checkpoints.families.base import Family
from rope_export.checkpoints.families.reading import head_norms
from rope_export.checkpoints.layout import TensorLayout, head_by_head

MADE_UP = Family(
    model_type="made_up",
    source="a test",
    attention=head_norms(weight=False),
    layout="interleaved",
    tensors=TensorLayout(layers="blocks.{layer}.mixer.", fused=head_by_head("qkv")),
    defaults={"rms_norm_eps": 1e-5},
)
'''

CONTRIBUTING = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
VARIANT = re.findall(r"```python\n(.*?)```", CONTRIBUTING, re.S)[0]
"""The example that a newcomer starts from."""

LOWERING = '''
"""A made-up lowering: the heads of queries and keys are rotated in one multiplication."""

import torch
from torch import Tensor

from rope_export.lowerings.portable import Portable
from rope_export.rope import RopeSpec


class InOne(Portable):
    name = "in_one"
    runtimes = ("made_up_runtime",)
    features = Portable.features - {"clockwise", "partial", "layout permuted"}

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, rope: RopeSpec) -> Tensor:
        """Pairs (a, b) become (a cos - b sin, b cos + a sin)."""
        cos, sin = cos[:, None], sin[:, None]
        if rope.layout == "interleaved":
            a, b = x[..., 0::2], x[..., 1::2]
            return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
'''

RUNTIME = '''
"""A made-up runtime: onnxruntime's CPU, called without any binding."""

from rope_export.arrays import to_numpy
from rope_export.runtimes.base import NeedsPackages, Runner, written


class MadeUpRuntime(NeedsPackages):
    name = "made_up_runtime"
    needs = {"onnxruntime": "cpu"}

    def unavailable(self, opened=None):
        return self.missing()

    def open(self, artifact, threads=None):
        import onnxruntime

        contents = artifact.read()
        session = onnxruntime.InferenceSession(contents.model, providers=["CPUExecutionProvider"])
        return MadeUpRunner(session)


class MadeUpRunner(Runner):
    def __init__(self, session):
        self.session = session

    def run(self, inputs, axes, into):
        feeds = {name: to_numpy(value) for name, value in inputs.items()}
        names = [output.name for output in self.session.get_outputs()]
        return written(dict(zip(names, self.session.run(names, feeds), strict=True)), into)


RUNTIMES = (MadeUpRuntime(),)
'''

NEW_FILES = {
    "checkpoints/families/made_up.py": FAMILY,
    "rope/half_slow.py": VARIANT,
    "lowerings/in_one.py": LOWERING,
    "runtimes/made_up_runtime.py": RUNTIME,
}
RUN = """
import json, sys
from rope_export.cli import run
for arguments in json.loads(sys.argv[1]):
    print("status", run(arguments), flush=True)
"""


def test_each_is_one_new_file_and_no_edit_elsewhere(tmp_path: Path) -> None:
    """The commands, run on a copy of the package that has four more files."""
    shutil.copytree(PACKAGE, tmp_path / "rope_export")
    for name, text in NEW_FILES.items():
        (tmp_path / "rope_export" / name).write_text(text.lstrip())
    rope = {"rope_type": "half_slow", "rope_theta": 10_000.0, "factor": 4.0}
    facts = {"model_type": "made_up", "num_key_value_heads": 4, "rope_parameters": rope}
    (tmp_path / "config.json").write_text(json.dumps({**TINY, **facts}))
    commands = [
        ["export", "config.json", "--out", "layer", "--lowering", "in_one", "--no-verify"],
        ["verify", "layer", "--runtime", "made_up_runtime", "--runtime", "onnxruntime", "--json"],
        ["doctor"],
        ["export", "config.json", "--out", "other", "--lowering", "in_two"],
    ]
    ran = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(commands)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    statuses = [x for x in ran.stdout.splitlines() if x.startswith("status")]
    assert statuses == ["status 0"] * 3 + ["status 2"], ran.stdout + ran.stderr
    manifest = json.loads((tmp_path / "layer" / "manifest.json").read_text())
    spec = manifest["spec"]
    assert (spec["rope"]["rope_type"], spec["rope"]["factor"]) == ("half_slow", 4.0)
    assert (spec["rope"]["layout"], spec["q_norm"]["eps"]) == ("interleaved", 1e-5)
    assert (manifest["lowering"], manifest["runtimes"]) == ("in_one", ["made_up_runtime"])
    outputs = re.split(r"^status \d\n", ran.stdout, flags=re.M)
    rows = json.loads(outputs[1])["rows"]
    assert {row["runtime"] for row in rows} >= {"made_up_runtime", "onnxruntime"}
    assert "runtime made_up_runtime" in outputs[2]
    assert "in_one" in ran.stderr


@dataclass(frozen=True, kw_only=True)
class Extended(AttentionSpec):
    """A spec with a feature that nothing but the spec knows."""

    reversed_keys: bool = False


def extended(**more: Any) -> Extended:
    spec = AttentionSpec.from_hf(TINY)
    facts = {field.name: getattr(spec, field.name) for field in fields(AttentionSpec)}
    return Extended(**facts, **more)


@pytest.mark.parametrize("name", sorted(lowerings()))
def test_a_feature_that_a_lowering_forgot_is_refused_by_its_name(name: str) -> None:
    cache = next(iter(lowerings()[name].caches))
    assert refusal(lowerings()[name], extended(), cache) is None
    refused = refusal(lowerings()[name], extended(reversed_keys=True), cache)
    assert f"lowering {name!r} cannot express reversed keys" in str(refused)
    with pytest.raises(InputError, match="cannot express reversed keys"):
        lowering_for("auto", extended(reversed_keys=True), cache)
