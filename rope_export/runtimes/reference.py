"""onnx's own reference evaluator: slow, and it computes what the operators' definitions state."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from rope_export.arrays import is_torch, to_numpy, to_torch
from rope_export.errors import failures
from rope_export.runtimes.base import NeedsPackages, Runner, written

if TYPE_CHECKING:
    from rope_export.arrays import Array
    from rope_export.artifacts.folder import Folder
    from rope_export.interface import Interface


class ReferenceRuntime(NeedsPackages):
    name = "reference"
    needs: ClassVar[Mapping[str, str]] = {"onnx": "export"}

    def unavailable(self, artifact: "Folder | None" = None) -> str | None:
        own = artifact is not None and (
            "onnxruntime" in artifact.manifest.needs or artifact.manifest.quantization is not None
        )
        if own:
            return (
                "the file has operators of onnxruntime's own domain com.microsoft, which onnx does "
                "not define; use runtime 'onnxruntime', or export with lowering 'standard'"
            )
        return self.missing()

    def open(self, artifact: "Folder", threads: int | None = None) -> Runner:
        """threads: not used, it computes on one."""
        from rope_export.artifacts.deployed import read_model

        return ReferenceRunner(artifact.manifest.interface, evaluator_of(read_model(artifact)))


def evaluator_of(model: Any) -> Any:
    """onnx's ReferenceEvaluator of a model, with operators that sum as every runtime does."""
    from onnx.reference import ReferenceEvaluator

    with failures("onnx's reference evaluator"):
        return ReferenceEvaluator(model, new_ops=[_wide_matmul(), _wide_attention()])


class ReferenceRunner(Runner):
    """An evaluator of onnx, which computes with numpy on the CPU."""

    whole_capacity = True

    def __init__(self, interface: "Interface", evaluator: Any) -> None:
        self._interface, self._evaluator = interface, evaluator

    def run(
        self, inputs: "Mapping[str, Array]", axes: Mapping[str, int], into: "Mapping[str, Array]"
    ) -> "dict[str, Array]":
        feeds = {name: to_numpy(value) for name, value in inputs.items()}
        names = [tensor.name for tensor in self._interface.outputs]
        with failures("onnx's reference evaluator"):
            outputs = dict(zip(names, self._evaluator.run(names, feeds), strict=True))
        like = inputs[self._interface.main_input]
        if is_torch(like):
            outputs = {name: to_torch(x).to(like.device) for name, x in outputs.items()}
        return written(outputs, into)


def _wide_matmul() -> Any:
    """MatMul that sums narrow types in float32, as every runtime does.

    numpy sums bfloat16 products in bfloat16 where there is a batch axis: with a past of 2,000 the
    attention output would be off by half of itself.
    """
    import numpy as np
    from onnx.reference.op_run import OpRun

    class MatMul(OpRun):
        op_domain = ""

        def _run(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray]:
            if a.dtype.itemsize >= 4:
                return (np.matmul(a, b),)
            return (np.matmul(a.astype(np.float32), b.astype(np.float32)).astype(a.dtype),)

    return MatMul


def _wide_attention() -> Any:
    """Attention whose softmax is in float32 unless the node sets it, as in every runtime.

    By the definition it is then in the type of the scores, and the evaluator adds up thousands of
    bfloat16 weights in bfloat16.
    """
    from onnx import TensorProto
    from onnx.reference.ops import op_attention

    class Attention(op_attention.Attention_23):
        op_domain = ""

        def _run(self, *inputs: Any, **attributes: Any) -> Any:
            if inputs[0].dtype.itemsize < 4 and attributes.get("softmax_precision") is None:
                attributes["softmax_precision"] = TensorProto.FLOAT
            return super()._run(*inputs, **attributes)

    return Attention


RUNTIMES = (ReferenceRuntime(),)
