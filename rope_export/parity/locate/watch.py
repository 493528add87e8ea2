"""What the modules of transformers' decoder compute, exactly and in eager."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from rope_export.parity.decoder.exact import active_mode
from rope_export.parity.decoder.passage import Passage, to_float
from rope_export.parity.decoder.roundings import Roundings


@dataclass
class Watched:
    """Tensors by the module that gives them, each a list of one for each group of rows, in the
    order in which they are computed. squares, rough: as of a `Block`'s parts."""

    exact: dict[str, list[np.ndarray]] = field(default_factory=dict)
    eager: dict[str, list[np.ndarray]] = field(default_factory=dict)
    squares: dict[str, list[np.ndarray]] = field(default_factory=dict)
    rough: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def note(self, name: str, value: Tensor) -> None:
        """Keeps a tensor of whichever run is going on."""
        mode = active_mode()
        if not isinstance(mode, Roundings):
            self.eager.setdefault(name, []).append(to_float(value))
            return
        squares = to_float(mode.squares(value))
        if mode.int8_blocks:
            self.rough.setdefault(name, []).append(squares)
            return
        self.exact.setdefault(name, []).append(to_float(value))
        self.squares.setdefault(name, []).append(squares)

    def of_all(self, kind: str, name: str) -> np.ndarray | None:
        """One tensor (rows, sequence, ...) of a run of all rows together, if its module ran
        once."""
        values = getattr(self, kind).get(name, ())
        return values[0] if len(values) == 1 and values[0].ndim > 2 else None

    def part(self, kind: str, name: str, passage: Passage) -> np.ndarray | None:
        """One tensor of all rows, (rows, sequence, ...), if every group has it in that form."""
        values = getattr(self, kind).get(name)
        if values is None or len(values) != len(passage.groups):
            return None
        arranged = []
        for group, value in zip(passage.groups, values, strict=True):
            rows = len(group.rows)
            if value.ndim < 2 or value.shape[0] % rows or (value.ndim > 2 and len(value) != rows):
                return None
            arranged.append(value if value.ndim > 2 else value.reshape(rows, -1, value.shape[-1]))
        if len({x.shape[2:] for x in arranged}) > 1:
            return None
        return passage.together(arranged)


@contextmanager
def watched(modules: Mapping[str, nn.Module], seen: Watched | None = None) -> Iterator[Watched]:
    """While it lasts, these modules are looked at when they run, by their names; of a norm also
    what it takes: the residual. seen: to which it is added."""
    seen, handles = Watched() if seen is None else seen, []

    def before(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                seen.note(f"{name}.input", args[0])

        return hook

    def after(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            value = output[0] if isinstance(output, tuple) and output else output
            if isinstance(value, Tensor) and value.is_floating_point():
                seen.note(name, value)

        return hook

    for name, module in modules.items():
        if "norm" in name.lower():
            handles.append(module.register_forward_pre_hook(before(name)))
        handles.append(module.register_forward_hook(after(name)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def units(squares: np.ndarray) -> np.ndarray:
    """What the errors of each element are measured in: what rounding may do to it, and no less than
    to most of its token. In the tails of an activation it is the difference of larger numbers,
    which runtimes approximate."""
    most = np.median(squares, axis=-1, keepdims=True)
    return np.sqrt(np.maximum(squares, most)) + np.finfo(float).tiny
