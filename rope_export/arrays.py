"""numpy arrays and torch tensors: their dtypes, and conversion to plain memory.

A tensor is bound to a runtime by its address. So what reaches one is plain: in the machine's byte
order, contiguous, aligned, without lazy bits, and of no class that gives its bytes another meaning.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np

from rope_export.errors import TensorError

if TYPE_CHECKING:
    import torch

    Array: TypeAlias = np.ndarray | torch.Tensor

SAME_BYTES = (np.ndarray, np.memmap, np.matrix)
"""numpy's classes whose elements mean what they mean in an ndarray. A masked array's do not, nor do
a quantity's that has a unit."""


def is_torch(value: Any) -> "TypeGuard[torch.Tensor]":
    """Whether `value` is a torch tensor, of a subclass too, without importing torch."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor is not None and isinstance(value, tensor)


def plain(name: str, value: object) -> "Array":
    """`value` as a plain tensor: itself if it is one, without a copy where none is needed.

    name: of the input, for errors.
    Raises: TensorError for what is no tensor, or one that cannot be read from its memory.
    """
    if type(value) is np.ndarray and value.dtype.isnative and value.flags.carray:
        return value
    if isinstance(value, np.ndarray):
        return _plain_array(name, value)
    if is_torch(value):
        return _plain_tensor(name, value)
    raise TensorError(
        f"input {name!r} is a {_kind(value)}; give a numpy array or a torch tensor, such as "
        f"np.asarray or np.from_dlpack makes."
    )


def plain_inputs(inputs: Mapping[str, object]) -> "dict[str, Array]":
    """Every tensor of a call as a plain one.

    Raises: TensorError as `plain`, and for inputs that mix numpy arrays and torch tensors.
    """
    if not isinstance(inputs, Mapping):
        raise TensorError(f"inputs is a {_kind(inputs)}; give a dict from names to tensors.")
    values = {name: plain(name, value) for name, value in inputs.items()}
    if len({is_torch(value) for value in values.values()}) > 1:
        raise TensorError("inputs mix numpy arrays and torch tensors; give one kind.")
    return values


def _plain_array(name: str, value: np.ndarray) -> np.ndarray:
    if type(value) not in SAME_BYTES:
        raise TensorError(
            f"input {name!r} is a {_kind(value)}, whose elements may mean something else than its "
            f"bytes; give a plain array, such as np.asarray or a masked array's filled makes."
        )
    value = value.view(np.ndarray)
    if not value.dtype.isnative:
        value = value.astype(value.dtype.newbyteorder("="))
    return np.require(value, requirements=("C", "A"))


def _plain_tensor(name: str, value: "torch.Tensor") -> "torch.Tensor":
    import torch

    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        kind = f"a {_kind(value)}"
    elif value.is_nested or value.layout != torch.strided:
        kind = "nested" if value.is_nested else f"of layout {value.layout}"
    elif value.is_quantized or value.is_meta:
        kind = "quantized" if value.is_quantized else "on the device meta, which holds no values"
    else:
        return _in_memory(name, value)
    raise TensorError(f"input {name!r} is {kind}; give a plain dense torch.Tensor.")


def _in_memory(name: str, value: "torch.Tensor") -> "torch.Tensor":
    """The tensor with its lazy bits resolved, and memory of its own."""
    if value.requires_grad:
        value = value.detach()
    if value.is_neg() or value.is_conj():
        value = value.resolve_conj().resolve_neg()
    value = value.contiguous()
    try:
        at = value.data_ptr()
    except RuntimeError:  # wrapped by a transform, such as vmap
        at = 0
    if at == 0 and value.numel():
        raise TensorError(
            f"input {name!r} has no memory of its own (it is wrapped by a transform, or all "
            f"zeros by definition); give a plain dense torch.Tensor, such as clone makes."
        )
    return value.clone() if at % value.element_size() else value


def whole_numbers(name: str, values: object, count: int | None = None) -> np.ndarray:
    """`values` as int64 (count): integers in a list, a tuple, an array or a tensor.

    Raises: TensorError naming the values if they are anything else: bools and fractions too.
    """
    shown = f"{name}={values!r}"
    if isinstance(values, Sequence) and not isinstance(values, str):
        whole = all(isinstance(x, (int, np.integer)) and not isinstance(x, bool) for x in values)
        fits = whole and all(-(2**63) <= int(x) < 2**63 for x in values)
        numbers = np.array([int(x) for x in values], np.int64) if fits else None
    elif not (isinstance(values, np.ndarray) or is_torch(values)):
        numbers = None
    else:
        array = to_numpy(plain(name, values))
        whole = array.dtype.kind in "iu" and array.ndim == 1
        fits = whole and not np.any(array > np.uint64(2**63 - 1))
        numbers = array.astype(np.int64) if fits else None
        shown = f"{name} of dtype {array.dtype.name} and shape {array.shape}"
    if numbers is None or (count is not None and len(numbers) != count):
        expected = "whole numbers" if count is None else f"{count} whole numbers, one for each row"
        raise TensorError(f"{shown}: want {expected}.")
    return numbers


def check_mask(mask: "Array") -> None:
    """Raises: TensorError for an attention_mask, int64, that holds anything but 0 and 1."""
    odd = mask >> 1  # 0 for both
    if bool(odd.any()):
        value = int(mask[odd != 0].reshape(-1)[0])
        raise TensorError(
            f"input 'attention_mask' holds {value}; it holds 1 where a token attends, 0 elsewhere."
        )


def check_on_cpu(runtime: str, inputs: "Mapping[str, Array]") -> None:
    """Raises: TensorError for a tensor that lies elsewhere, on a runtime that computes there."""
    for name, value in inputs.items():
        if not isinstance(value, np.ndarray) and value.device.type != "cpu":
            raise TensorError(
                f"tensor {name!r} lies on {value.device}; runtime {runtime!r} takes tensors on cpu."
            )


def _kind(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def dtype_name(value: "Array") -> str:
    """The dtype as ONNX and the manifest spell it, such as "float16".

    Raises: TensorError for what is neither a numpy array nor a torch tensor.
    """
    if isinstance(value, np.ndarray):
        return value.dtype.name
    if is_torch(value):
        return str(value.dtype).removeprefix("torch.")
    raise TensorError(f"{_kind(value)} given; inputs are numpy arrays or torch tensors.")


def address(value: "Array") -> int:
    """The address of the first element."""
    return int(value.ctypes.data if isinstance(value, np.ndarray) else value.data_ptr())


def to_numpy(value: "Array") -> np.ndarray:
    """A numpy array of the same values, without a copy if `value` lies on the CPU."""
    if isinstance(value, np.ndarray):
        return value
    value = value.detach().cpu().resolve_conj().resolve_neg()
    if str(value.dtype) == "torch.bfloat16":
        import ml_dtypes
        import torch

        return value.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return value.numpy()


def to_torch(value: np.ndarray) -> "torch.Tensor":
    """A torch tensor of the same values, without a copy but of an array that is read-only, which
    torch does not have."""
    import torch

    if not value.flags.writeable:
        value = value.copy()
    if value.dtype.name == "bfloat16":
        return torch.from_numpy(value.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(value)


def like(other: "Array", values: np.ndarray) -> "Array":
    """`values` as a tensor of the kind and on the device of `other`."""
    if not is_torch(other):
        return np.ascontiguousarray(values)
    import torch

    return torch.from_numpy(np.ascontiguousarray(values)).to(other.device)


def writable(other: "Array") -> AbstractContextManager[Any]:
    """Where tensors of the kind of `other` are made that may be written to later: those that torch
    makes in its inference mode cannot, outside of it."""
    if not is_torch(other):
        return nullcontext()
    import torch

    return torch.inference_mode(False)


def numpy_dtype(name: str) -> np.dtype:
    """numpy's dtype of that name, or ml_dtypes' for bfloat16."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def fill_cache(cache: Any, past: Any, axis: int, lengths: Sequence[int]) -> None:
    """Copies each row's valid slots of a past into a fixed cache, in place.

    cache, past: two numpy arrays or two torch tensors. axis: of both, on which the slots lie;
    axis 0 is the batch. lengths: valid slots of each row.
    """
    between = (slice(None),) * (axis - 1)
    for row, length in enumerate(lengths):
        slots = (row, *between, slice(int(length)))
        cache[slots] = past[slots]
