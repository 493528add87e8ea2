"""How far rounding alone can take any part of a model from its reference: the ceiling.

As in `layer.deviations`, every stored or summed number is off by a factor 1 + d with |d| <= u, the
d independent and of mean zero, and u ||a|| is carried forward to first order, squared and element
by element; the ceiling is t times that, with the t of `bounds`. There it is written down for one
layer; here each operation of ATen that the reference calls has its rule, in `rules`, so that norms,
MLPs, experts and residuals of any family need no words of their own. Every operation is taken to
store its result in the artifact's dtype, also where eager keeps float32 for a while, which makes
the bound wider by a small factor; products and sums are accumulated in float32 or better.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rope_export.parity.bounds import ACCUMULATOR, UNIT_ROUNDOFF
from rope_export.parity.decoder.deviation import Deviation, Operation
from rope_export.parity.decoder.exact import MOVING, Float64, Widened, replaced, tensors_in
from rope_export.parity.decoder.rules import EXACT, MAKING, PLACING, RULES


class Roundings(Float64):
    """Computes in float64, and beside every number how far rounding can take it.

    dtype: of the artifact. int8_blocks: how many features share a scale, by the place of a weight
    whose kernel rounds what it is multiplied with to int8. longest: terms of the longest sum so
    far. unknown: operations without a rule; what depends on them has no bound. margins: for each
    choice of the largest of several, by how many times their deviation the last that was chosen is
    apart from the next.
    """

    def __init__(
        self, widened: Widened, dtype: str, int8_blocks: Mapping[int, int] | None = None
    ) -> None:
        super().__init__(widened)
        self.int8_blocks = int8_blocks or {}
        self.dtype, self.u, self.v = dtype, UNIT_ROUNDOFF[dtype], ACCUMULATOR
        self.longest = 1
        self.unknown: set[str] = set()
        self.margins: list[Tensor] = []
        self._deviations: dict[int, tuple[Tensor, Deviation]] = {}

    def of(self, tensor: Tensor) -> Deviation | None:
        """The deviation of a tensor that was computed here; none of one that is exact."""
        entry = self._deviations.get(id(tensor))
        return None if entry is None else entry[1]

    def squares(self, tensor: Tensor) -> Tensor:
        """(u ||a||)^2, of the shape of the tensor; of a complex one as complex numbers, of which
        each part has its own."""
        deviation = self.of(tensor)
        return _zeros(tensor) if deviation is None else deviation.squares

    def note(self, tensor: Tensor, deviation: Deviation) -> None:
        self._deviations[id(tensor)] = tensor, deviation

    def compute(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = args
        if name.endswith("_") and name in RULES:  # what is written over is still an operand
            before = (args[0].clone(), *args[1:])
            self._deviations[id(before[0])] = before[0], self._deviation(args[0])
        result = func(*args, **kwargs)
        outputs = tensors_in([result])
        if name in EXACT or not any(map(_has_numbers, outputs)):
            return result
        operands = tensors_in((*args, *kwargs.values()))
        inexact = [x for x in map(self.of, operands) if x is not None]
        depth = max((x.depth for x in inexact), default=0)
        if name in MAKING:
            self.note(result, Deviation(squares=_zeros(result), depth=0))
        elif name in MOVING or name in PLACING:
            if inexact:
                self._move(func, args, kwargs, outputs, depth)
        elif name in RULES:
            RULES[name](
                Operation(
                    to=self,
                    name=name,
                    func=func,
                    result=result,
                    args=before,
                    kwargs=kwargs,
                    depth=depth + 1,
                )
            )
        elif inexact:
            self.unknown.add(name)
        return result

    def _deviation(self, tensor: Tensor) -> Deviation:
        return self.of(tensor) or Deviation(squares=self.squares(tensor), depth=0)

    def _move(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outputs: list[Any],
        depth: int,
    ) -> None:
        """Numbers that are moved and not changed: their deviations move as they do."""

        def moved(part: str) -> list[Any]:
            def swapped(x: Any) -> Any:
                if isinstance(x, float):
                    return 0.0  # a number that is placed is exact
                return self._part(x, part) if _has_numbers(x) else x

            rest = {key: replaced(x, swapped) for key, x in kwargs.items()}
            return tensors_in([func(*(replaced(x, swapped) for x in args), **rest)])

        scored = any(map(self._has_scores, tensors_in((*args, *kwargs.values()))))
        squares = moved("squares")
        scores = moved("scores") if scored else [None] * len(outputs)
        for output, square, score in zip(outputs, squares, scores, strict=True):
            if _has_numbers(output):
                self.note(output, Deviation(squares=square, depth=depth, scores=score))

    def _part(self, tensor: Tensor, part: str) -> Tensor:
        deviation = self.of(tensor)
        value = None if deviation is None else getattr(deviation, part)
        return _zeros(tensor) if value is None else value

    def _has_scores(self, value: Any) -> bool:
        deviation = self.of(value) if isinstance(value, Tensor) else None
        return deviation is not None and deviation.scores is not None


def _has_numbers(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _zeros(tensor: Tensor) -> Tensor:
    """The squares of a tensor that is exact."""
    dtype = torch.complex128 if tensor.is_complex() else torch.float64
    return torch.zeros(tensor.shape, dtype=dtype)
