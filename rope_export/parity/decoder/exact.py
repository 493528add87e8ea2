"""transformers' model as it is, each of its operations in float64.

A model that is loaded in float64 is not exact: its norms, softmaxes and routers go through float32
by name. Here the model stays in the dtype of the artifact, with the weights as they are deployed,
and every operation that it calls is computed on its operands in float64 and kept there, whatever
narrower dtype is asked for. Only the angles stay the float32 products that the model was trained
with; their cosines and sines are of float64 again.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

NARROW = {torch.float32, torch.float16, torch.bfloat16}

MOVING = {
    "embedding", "index_select", "gather", "index", "view", "_unsafe_view", "reshape", "expand",
    "transpose", "permute", "t", "slice", "select", "unsqueeze", "squeeze", "detach", "alias",
    "split", "split_with_sizes", "unbind", "as_strided", "clone", "repeat", "unfold", "flip",
}  # fmt: skip
"""Operations that move numbers and round none, so that a weight need not be widened for them."""

LARGE = 2**26
"""Numbers of a weight beyond which it is not kept in float64 but widened by each use."""

_ACTIVE = threading.local()


class Widened:
    """What is made of weights in float64, once for each of them, until it is forgotten.

    parameters: of the model; nothing is kept of other tensors.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._storages = {x.untyped_storage().data_ptr() for x in parameters}
        self._kept: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        self._origins: dict[int, int] = {}

    def of(self, tensor: Tensor, make: Callable[[Tensor], Tensor] = Tensor.double) -> Tensor:
        """What `make` makes of a tensor; kept if that is a weight."""
        if tensor.untyped_storage().data_ptr() not in self._storages or tensor.numel() > LARGE:
            return make(tensor)
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, make)
        if key not in self._kept:
            self._kept[key] = tensor, make(tensor)
            self._origins[self._kept[key][1].data_ptr()] = tensor.data_ptr()
        return self._kept[key][1]

    def origin(self, wide: Tensor) -> int | None:
        """Where the weight lies that a kept tensor was made of; none for another tensor."""
        return self._origins.get(wide.data_ptr())

    def forget(self) -> None:
        self._kept.clear()
        self._origins.clear()


def active_mode() -> "Float64 | None":
    """The mode that this thread computes in, if any."""
    return getattr(_ACTIVE, "mode", None)


class Float64(TorchDispatchMode):
    """Computes in float64 what is called inside of it, in this thread."""

    def __init__(self, widened: Widened) -> None:
        super().__init__()
        self.widened = widened
        self.in_angles = 0
        self._outer: Float64 | None = None

    def __enter__(self) -> Self:
        self._outer = getattr(_ACTIVE, "mode", None)
        _ACTIVE.mode = self
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        _ACTIVE.mode = self._outer
        super().__exit__(*exception)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return self.compute(name_of(func), func, *self.widen(func, args, dict(kwargs or {})))

    def compute(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One operation of ATen on operands that are wide enough."""
        return func(*args, **kwargs)

    def widen(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of one operation as they are computed with."""
        name = name_of(func)
        if name not in MOVING and not self._keeps_angle(name, args):
            args = tuple(replaced(x, self._wide) for x in args)
            if kwargs.get("dtype") in NARROW:
                kwargs["dtype"] = torch.float64
        elif name == "_to_copy" and args[0].dtype is torch.float64:
            kwargs.pop("dtype", None)
        return args, kwargs

    def _keeps_angle(self, name: str, args: tuple[Any, ...]) -> bool:
        """Whether this is on the way to an angle, in float32."""
        if not self.in_angles or name in ("cos", "sin", "polar"):
            return False
        tensors = [x for x in args if isinstance(x, Tensor)]
        return all(x.dtype not in (torch.float64, torch.complex128) for x in tensors)

    def _wide(self, tensor: Any) -> Any:
        if not isinstance(tensor, Tensor):
            return tensor
        if tensor.dtype in NARROW:
            return self.widened.of(tensor)
        return tensor.to(torch.complex128) if tensor.dtype is torch.complex64 else tensor


def replaced(argument: Any, by: Callable[[Any], Any]) -> Any:
    """An argument of an ATen operation with `by` of it, or of each of a list."""
    return [by(x) for x in argument] if isinstance(argument, list | tuple) else by(argument)


def tensors_in(arguments: Iterable[Any]) -> list[Tensor]:
    """The tensors among the arguments or the results of an ATen operation."""
    found = []
    for value in arguments:
        several = value if isinstance(value, list | tuple) else (value,)
        found += [x for x in several if isinstance(x, Tensor)]
    return found


def name_of(func: Any) -> str:
    """The name of an ATen operation, without that of its overload."""
    name: str = func._schema.name.partition("::")[2]
    return name


def mark_angles(model: nn.Module) -> None:
    """Has `Float64` know the modules that make angles: those that hold inverse frequencies."""
    for module in model.modules():
        if any("inv_freq" in name for name in module._buffers):
            module.register_forward_pre_hook(_into)
            module.register_forward_hook(_out_of, always_call=True)


def _into(*_: Any) -> None:
    mode = getattr(_ACTIVE, "mode", None)
    if mode is not None:
        mode.in_angles += 1


def _out_of(*_: Any) -> None:
    mode = getattr(_ACTIVE, "mode", None)
    if mode is not None:
        mode.in_angles -= 1
