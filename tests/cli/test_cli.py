"""The command line: what it prints, what it returns, and what bad input leaves behind."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from rope_export.artifacts.saving import file_hash
from rope_export.cli import run
from rope_export.spec import AttentionSpec
from tests.conftest import TINY
from tests.support.gpus import without_cuda


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A small sound checkpoint, for a test to damage."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    shapes = AttentionSpec.from_hf(TINY).weight_shapes
    torch.manual_seed(0)
    weights = {
        f"model.layers.{layer}.self_attn.{name}": torch.randn(shape) / 8
        for layer in range(2)
        for name, shape in shapes.items()
    }
    save_file(weights, folder / "model.safetensors")
    return folder


def edit_config(folder: Path, **changes: object) -> None:
    (folder / "config.json").write_text(json.dumps({**TINY, **changes}))


def edit_tensor(folder: Path, value: torch.Tensor) -> None:
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    save_file({**load_file(path), "model.layers.0.self_attn.k_proj.weight": value}, path)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


K = (32, 64)
BAD = {
    "missing safetensors": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "truncated safetensors": (truncate, "truncated"),
    "wrong shape": (lambda f: edit_tensor(f, torch.zeros(33, 64)), "(33, 64)"),
    "NaN": (lambda f: edit_tensor(f, torch.full(K, torch.nan)), "NaN"),
    "infinite": (lambda f: edit_tensor(f, torch.full(K, torch.inf)), "infinite"),
    "odd rotary dimension": (
        lambda f: edit_config(f, model_type="glm", partial_rotary_factor=0.45),
        "rotary_dim=7",
    ),
    "heads and kv heads": (lambda f: edit_config(f, num_key_value_heads=3), "kv_heads=3"),
    "unknown rope_type": (
        lambda f: edit_config(f, rope_parameters={"rope_type": "spiral"}),
        "rope_type='spiral'",
    ),
    "unknown model_type": (lambda f: edit_config(f, model_type="gpt5"), "model_type='gpt5'"),
}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr of a command that ends with status 2; stdout has nothing, or with
    --json the same in an object."""
    capsys.readouterr()
    assert run(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("rope-export: ")
    assert printed.err.count("\n") == 1
    if "--json" in arguments:
        error = printed.err.removeprefix("rope-export: ").rstrip("\n")
        assert json.loads(printed.out) == {"error": error, "status": 2}
    else:
        assert printed.out == ""
    return printed.err


@pytest.mark.parametrize("fault", BAD)
def test_bad_source_is_one_line_and_writes_nothing(fault, checkpoint, tmp_path, capsys) -> None:
    damage, named = BAD[fault]
    damage(checkpoint)
    assert named in refused(capsys, "export", str(checkpoint), "--out", str(tmp_path / "out"))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def test_the_undamaged_checkpoint_exports_and_verifies(checkpoint, tmp_path, capsys) -> None:
    assert run(["export", str(checkpoint), "--out", str(tmp_path / "out"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["parity"]["status"] == "passed"
    assert result["parity"]["weights"] == "proven"


def test_out_that_is_a_file_is_kept(tiny_config, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    assert "is a file" in refused(capsys, "export", str(tiny_config), "--out", str(out))
    assert out.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    "option",
    [
        ["--dtype", "float8"],
        ["--cache", "ring"],
        ["--cache", "fixed", "--lowering", "portable"],
        ["--lowering", "spiral"],
        ["--opset", "17"],
        ["--layer", "2"],
        ["--seed", "-1"],
        ["--bogus"],
    ],
    ids=" ".join,
)
def test_bad_option_is_one_line_and_writes_nothing(option, tiny_config, tmp_path, capsys) -> None:
    refused(capsys, "export", str(tiny_config), "--out", str(tmp_path / "out"), *option)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def artifact(tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny().path, tmp_path / "artifact"))


def rewrite(artifact: Path, model: onnx.ModelProto) -> None:
    """Replace the model, and the hash in the manifest with it."""
    path = artifact / "model.onnx"
    path.write_bytes(model.SerializeToString())
    manifest = json.loads((artifact / "manifest.json").read_text())
    manifest["files"]["model.onnx"]["sha256"] = file_hash(path)
    (artifact / "manifest.json").write_text(json.dumps(manifest))


def test_changed_file_is_refused(artifact, capsys) -> None:
    with (artifact / "model.onnx").open("ab") as file:
        file.write(b"\0")
    assert "sha256" in refused(capsys, "verify", str(artifact))


def test_external_data_outside_the_folder_is_refused(artifact, capsys) -> None:
    model = onnx.load(artifact / "model.onnx")
    tensor = next(t for t in model.graph.initializer if t.name == "q_proj.weight")
    (artifact.parent / "secret.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    rewrite(artifact, model)
    assert "../secret.bin" in refused(capsys, "verify", str(artifact))


def test_one_wrong_weight_fails(artifact, capsys) -> None:
    """Off by one in one of 4,096 values: the bits tell, and so do the numbers."""
    model = onnx.load(artifact / "model.onnx")
    tensor = next(t for t in model.graph.initializer if t.name == "v_proj.weight")
    values = np.frombuffer(tensor.raw_data, np.float32).copy()
    values[1234] += 1
    tensor.raw_data = values.tobytes()
    rewrite(artifact, model)
    assert run(["verify", str(artifact), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    failed = {
        (row["runtime"], row["output"]) for row in report["rows"] if row["status"] == "failed"
    }
    assert ("file", "v_proj.weight") in failed
    assert ("onnxruntime", "present_value") in failed
    assert ("onnxruntime", "present_key") not in failed


def test_unknown_runtime_is_status_3(artifact, capsys) -> None:
    assert run(["verify", str(artifact), "--runtime", "abacus"]) == 3
    assert "abacus" in capsys.readouterr().err


@without_cuda
def test_missing_runtime_is_status_3(artifact, capsys) -> None:
    assert run(["verify", str(artifact), "--runtime", "onnxruntime:cuda", "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert report["status"] == "nothing compared"
    assert report["skipped"][0]["runtime"] == "onnxruntime:cuda"


def test_verify_prints_a_table_and_the_verdict(artifact, capsys) -> None:
    assert run(["verify", str(artifact), "--all"]) == 0
    printed = capsys.readouterr().out
    assert "1x512, past 0" in printed
    assert "passed: " in printed


def test_inspect_and_doctor_print_one_json_object(artifact, capsys) -> None:
    for command in (
        ["inspect", str(artifact)],
        ["inspect", str(artifact / "model.onnx")],
        ["doctor"],
    ):
        assert run([*command, "--json"]) == 0
        assert isinstance(json.loads(capsys.readouterr().out), dict)
        assert run(command) == 0
        assert capsys.readouterr().out.strip()


def test_interrupt_is_130(monkeypatch, artifact, capsys) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rope_export.parity.verify", interrupted)
    assert run(["verify", str(artifact)]) == 130
    assert capsys.readouterr().err == "rope-export: interrupted\n"


def test_missing_extra_is_one_line_that_names_it(artifact, tmp_path) -> None:
    """In a process where torch cannot be imported, as where [export] was not installed."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from rope_export.cli import run\n"
        f"sys.exit(run(['verify', {str(artifact)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "rope_export[export]" in done.stderr
    assert done.stderr.strip().count("\n") == 0
