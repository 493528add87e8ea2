"""OpenVINO on the CPU, which computes in float32 whatever the processor could do faster."""

import re
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rope_export.arrays import check_on_cpu, is_torch, numpy_dtype, to_numpy, to_torch
from rope_export.artifacts.contents import MODEL
from rope_export.artifacts.operators import operators_of
from rope_export.errors import ArtifactError, RopeExportError, UnavailableError
from rope_export.runtimes.base import Compute, NeedsPackages, Runner, written

if TYPE_CHECKING:
    from rope_export.arrays import Array
    from rope_export.artifacts.folder import Folder
    from rope_export.interface import Interface

HINTS = {"INFERENCE_PRECISION_HINT": "f32", "SNIPPETS_MODE": "DISABLE"}
"""Without the first OpenVINO computes in bfloat16 or float16 where the processor has them; without
the second it makes one kernel of attention that has no mask, which is wrong once a call of one
token came before."""

ABSENT = {"TensorScatter"}
"""Operators of ONNX that our files have and OpenVINO does not."""

UNKNOWN = re.compile(r"No conversion rule found for operations: (\S.*)")


class OpenvinoRuntime(NeedsPackages):
    name = "openvino"
    needs: ClassVar[Mapping[str, str]] = {"openvino": "openvino"}

    def unavailable(self, artifact: "Folder | None" = None) -> str | None:
        reason = self.missing()
        if reason or artifact is None:
            return reason
        operators = operators_of(artifact.artifact.read_model())
        for name in sorted(operators.names):
            if name in ABSENT or name.startswith("com.microsoft."):
                return (
                    f"OpenVINO {version('openvino')} has no {name} as the file uses it; export "
                    f"with cache 'growing' or 'none', and lowering 'portable' or 'standard'"
                )
        if operators.float64:
            return (
                "the model computes frequencies in float64, as those that follow a call's length, "
                "and OpenVINO computes float64 in float32; use runtime 'onnxruntime'"
            )
        return None

    def open(self, artifact: "Folder", threads: int | None = None) -> Runner:
        """Raises: UnavailableError naming operators that OpenVINO does not have; ArtifactError if
        it refuses the model for another reason, or its files were changed."""
        files = artifact.read()
        with tempfile.TemporaryDirectory(prefix="rope_export-") as folder:
            model: bytes | Path = files.model
            if files.data is not None:  # weights in a file of their own are found by a path alone
                files.write(Path(folder))
                model = Path(folder) / MODEL
            requests = _Requests(_compiled(model, str(artifact.model), threads))
        files.check()
        return OpenvinoRunner(artifact.manifest.interface, requests)

    def compute(self, model: bytes, threads: int | None = None) -> Compute:
        return _Requests(_compiled(model, "a model", threads)).run


def _compiled(model: bytes | Path, title: str, threads: int | None) -> Any:
    """OpenVINO's compiled model. title: what it is called in errors."""
    import openvino

    options: dict[str, Any] = dict(HINTS)
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # the file of weights is gone by the first call
    try:
        return core.compile_model(core.read_model(model), "CPU", options)
    except Exception as error:  # RuntimeError, and what its bindings raise
        unknown = UNKNOWN.search(str(error))
        if unknown is None:
            raise ArtifactError(f"{title}: OpenVINO refuses it: {last_line(error)}") from error
        raise UnavailableError(
            f"runtime 'openvino': OpenVINO {version('openvino')} has no {unknown[1].strip()}; use "
            f"another lowering or cache."
        ) from error


class _Requests:
    """A compiled model for several threads: a request runs one call at a time."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._names = [output.any_name for output in compiled.outputs]
        self._idle: list[Any] = []

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One call: arrays are taken where they lie, outputs are copied."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            request.infer({name: _tensor(array) for name, array in inputs.items()})
            outputs = {name: _array(request.get_tensor(name)) for name in self._names}
        except Exception as error:
            raise RopeExportError(f"OpenVINO failed: {last_line(error)}") from error
        self._idle.append(request)
        return outputs


class OpenvinoRunner(Runner):
    """Requests behind the interface of an artifact."""

    def __init__(self, interface: "Interface", requests: _Requests) -> None:
        self._interface = interface
        self._requests: _Requests | None = requests

    def run(
        self, inputs: "Mapping[str, Array]", axes: Mapping[str, int], into: "Mapping[str, Array]"
    ) -> "dict[str, Array]":
        check_on_cpu("openvino", inputs)
        if self._requests is None:
            raise RopeExportError("the session is closed.")
        arrays = self._requests.run({name: to_numpy(value) for name, value in inputs.items()})
        of_torch = is_torch(inputs[self._interface.main_input])
        return written({n: to_torch(x) if of_torch else x for n, x in arrays.items()}, into)

    def close(self) -> None:
        self._requests = None


def _tensor(array: np.ndarray) -> Any:
    """An array as a tensor of OpenVINO's in the same memory, which it wants to be writable."""
    import openvino

    array = np.require(array, requirements=("C", "W"))
    if array.dtype.name == "bfloat16":
        bits = array.view(np.uint16)
        return openvino.Tensor(bits, array.shape, openvino.Type.bf16)
    return openvino.Tensor(array, shared_memory=True)


def _array(tensor: Any) -> np.ndarray:
    """A copy of a tensor of OpenVINO's; numpy has no bfloat16."""
    data: np.ndarray = tensor.data
    if tensor.element_type.get_type_name() == "bf16":
        data = data.view(numpy_dtype("bfloat16"))
    return data.copy()


def last_line(error: Exception) -> str:
    """What OpenVINO says of an error, behind where in its sources it was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


RUNTIMES = (OpenvinoRuntime(),)
