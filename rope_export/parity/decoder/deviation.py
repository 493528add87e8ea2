"""How far rounding can take the elements of one tensor, and one operation for a rule to judge."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rope_export.parity.decoder.roundings import Roundings


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """squares: (u ||a||)^2 of each element. depth: values stored one after the other on the longest
    way here. scores: of the weights of a softmax, what squares were of its scores.
    """

    squares: Tensor
    depth: int
    scores: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation of ATen: what it was called with, as it was before, and what it gave.

    to: where the deviations are, and the roundoffs u and v. depth: of its result.
    """

    to: "Roundings"
    name: str
    func: Callable[..., Any]
    result: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    depth: int

    @property
    def values(self) -> Tensor:
        """The result, or the first of several."""
        first: Tensor = self.result if isinstance(self.result, Tensor) else self.result[0]
        return first

    def squares(self, operand: Any) -> Any:
        """(u ||a||)^2 of an operand; 0 of a number."""
        return self.to.squares(operand) if isinstance(operand, Tensor) else 0.0

    def note(self, squares: Tensor, scores: Tensor | None = None) -> None:
        """The deviation of the result."""
        whole = torch.broadcast_to(squares, self.values.shape)
        self.to.note(self.values, Deviation(squares=whole, depth=self.depth, scores=scores))

    def argument(self, at: int, name: str, default: Any = None) -> Any:
        return self.args[at] if len(self.args) > at else self.kwargs.get(name, default)
