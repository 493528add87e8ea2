"""Messages name parameters; the command line spells them as its flags."""

import pytest

from rope_export.cli import run
from rope_export.cli.flags import spelled

FLAGS = {"profile": "--profile", "tf32": "--tf32", "opset": "--opset", "out": "--out"}


@pytest.mark.parametrize(
    ("message", "printed"),
    [
        ("`opset`=7: too old", "--opset 7: too old"),
        ("`profiles`=batch=9: no", "--profile batch=9: no"),
        ("leave out `tf32`=True", "leave out --tf32"),
        ("give another `out`.", "give another --out."),
        ("`source` is a folder", "SOURCE is a folder"),
        ("`threads`=0 and `q_bias`", "threads=0 and q_bias"),
        ("the file `a b.onnx` is empty", "the file `a b.onnx` is empty"),
    ],
)
def test_a_parameter_is_spelled_as_its_flag(message: str, printed: str) -> None:
    assert spelled(message, FLAGS) == printed


def test_a_command_spells_its_own_flags(tmp_path, tiny, capsys) -> None:
    artifact = tiny("tensorrt")
    arguments = ["build", str(artifact.path), "--out", str(tmp_path / "engine")]
    assert run([*arguments, "--engine", "tensorrt-rtx", "--profile", "batch=0:1:2"]) == 2
    assert "rope-export: --profile batch=0:1:2: " in capsys.readouterr().err
