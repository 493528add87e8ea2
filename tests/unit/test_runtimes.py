"""Sessions: what they take, what they refuse, and what they need on the machine."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from rope_export import RopeExportError, open_session
from rope_export.errors import ArtifactError, TensorError, UnavailableError
from rope_export.runtimes import find_runtime
from tests.support.gpus import with_cuda, without_cuda
from tests.unit.test_exporter import call


def test_torch_in_torch_out_and_the_same_numbers(tiny, runtime) -> None:
    inputs = call(2, 3, 4)
    with runtime.open(tiny()) as session:
        arrays = session.run(inputs)
        tensors = session.run({name: torch.from_numpy(x) for name, x in inputs.items()})
    for name, value in arrays.items():
        assert isinstance(value, np.ndarray)
        assert isinstance(tensors[name], torch.Tensor)
        np.testing.assert_array_equal(value, tensors[name].numpy())


def test_inputs_and_outputs_are_bound_in_place(tiny, monkeypatch) -> None:
    bound = {}
    with open_session(tiny()) as session:
        bind = type(session.runner)._bind
        monkeypatch.setattr(
            type(session.runner),
            "_bind",
            lambda self, way, name, value: (
                bound.update({name: value}),
                bind(self, way, name, value),
            )[1],
        )
        inputs = call(1, 2, 3)
        outputs = session.run(inputs)
    for name, value in [*inputs.items(), *outputs.items()]:
        assert bound[name].ctypes.data == value.ctypes.data


def test_a_transposed_input_is_read_right(tiny) -> None:
    inputs = call(2, 3, 4)
    turned = {**inputs, "past_key": np.asfortranarray(inputs["past_key"])}
    with open_session(tiny()) as session:
        for name, value in session.run(turned).items():
            np.testing.assert_array_equal(value, session.run(inputs)[name])


BAD = {
    "missing": (lambda x: x.pop("past_key"), "past_key"),
    "unknown": (lambda x: x.update(extra=x["past_key"]), "extra"),
    "dtype": (lambda x: x.update(past_key=x["past_key"].astype(np.float64)), "float64"),
    "rank": (lambda x: x.update(past_key=x["past_key"][0]), "past_key"),
    "fixed size": (lambda x: x.update(past_key=x["past_key"][..., :8]), r"\(2, 2, 4, 8\)"),
    "axes that disagree": (lambda x: x.update(past_key=x["past_key"][:, :, 1:]), "past_value"),
    "nothing new": (
        lambda x: x.update({n: x[n][:, :0] for n in ("hidden_states", "position_ids")}),
        "sequence = 0",
    ),
    "mixed kinds": (lambda x: x.update(past_key=torch.from_numpy(x["past_key"])), "mix"),
    "no tensor": (lambda x: x.update(past_key=[1.0]), "list"),
}


def test_what_breaks_the_contract_is_refused(tiny, runtime) -> None:
    with runtime.open(tiny()) as session:
        for damage, named in BAD.values():
            inputs = call(2, 3, 4)
            damage(inputs)
            with pytest.raises(TensorError, match=named):
                session.run(inputs)


def test_a_mask_of_another_width_is_refused(tiny) -> None:
    inputs = {**call(2, 3, 4), "attention_mask": np.ones((2, 6), np.int64)}
    with (
        open_session(tiny("standard", "float32", "growing", True)) as session,
        pytest.raises(TensorError, match="covers 6 slots"),
    ):
        session.run(inputs)


def test_threads_share_a_session(tiny) -> None:
    calls = [call(1 + n % 3, 1 + n % 5, n % 7) for n in range(64)]
    with open_session(tiny()) as session, ThreadPoolExecutor(8) as pool:
        alone = [session.run(inputs) for inputs in calls]
        for found, expected in zip(pool.map(session.run, calls), alone, strict=True):
            for name, value in found.items():
                np.testing.assert_array_equal(value, expected[name])


def test_a_closed_session_says_so(tiny) -> None:
    session = open_session(tiny())
    session.close()
    with pytest.raises(RopeExportError, match="closed"):
        session.run(call(1, 1, 0))


@without_cuda
def test_no_silent_fallback(tiny) -> None:
    with pytest.raises(UnavailableError, match=r"CUDAExecutionProvider.*rope_export\[gpu\]"):
        open_session(tiny(), "onnxruntime:cuda")


def test_an_error_that_says_nothing_is_told_by_its_kind(tiny, monkeypatch) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    artifact = tiny()
    monkeypatch.setattr(type(find_runtime("onnxruntime")), "start", no_memory)
    with pytest.raises(ArtifactError, match="onnxruntime refuses it: MemoryError"):
        find_runtime("onnxruntime").open(artifact, threads=3)


@with_cuda
def test_the_gpu_computes_what_the_cpu_does(tiny) -> None:
    inputs = call(2, 3, 4)
    with open_session(tiny()) as cpu, open_session(tiny(), "onnxruntime:cuda") as cuda:
        wanted = cpu.run(inputs)
        for name, value in cuda.run(inputs).items():
            # Sums of at most 64 terms of order 1, in TF32 where the GPU has it.
            np.testing.assert_allclose(value, wanted[name], rtol=0, atol=64 * 2**-11)


def test_the_cpu_has_no_bfloat16(tiny) -> None:
    with pytest.raises(UnavailableError, match="no bfloat16 kernels"):
        open_session(tiny("standard", "bfloat16"))


BLOCKED = """
import sys
for name in ("torch", "transformers", "onnx", "onnxscript", "safetensors"):
    sys.modules[name] = None
import numpy as np
from rope_export import open_session
with open_session(sys.argv[1]) as session:
    inputs = {"hidden_states": np.ones((1, 2, 64), np.float32), "position_ids": np.arange(2)[None]}
    cache = np.zeros((1, 2, 0, 16), np.float32)
    outputs = session.run(inputs | {"past_key": cache, "past_value": cache})
print(outputs["present_key"].shape)
"""


def python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_an_artifact_runs_without_torch_and_onnx(tiny) -> None:
    assert python("-c", BLOCKED, str(tiny().path)) == "(1, 2, 2, 16)"


def test_the_package_imports_without_torch() -> None:
    code = "import sys, rope_export; print('torch' in sys.modules, 'onnx' in sys.modules)"
    assert python("-c", code) == "False False"
