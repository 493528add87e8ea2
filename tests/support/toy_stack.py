"""A stack of toy layers as a subject: other names than an attention layer's, slots on any axis.

A layer writes a key and a value of each token, and adds to the token what it reads from the slots
that it sees: sums over slots of value times (key . token), which needs no softmax. Eager computes
in float32, the reference in float64, and the session in float32 in another order.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rope_export.interface import Interface
from rope_export.parity import Report
from rope_export.parity.bounds import UNIT_ROUNDOFF, Bounds, floors
from rope_export.parity.cases import Case
from rope_export.parity.comparison import Arrays, Expected
from rope_export.parity.metrics import METRICS
from rope_export.parity.subject import Property, Subject
from rope_export.sessions import Session

LAYERS, HEADS, WIDTH, VOCABULARY = 2, 2, 4, 8
ROUNDINGS = 200
"""More than follow one another in a stack of two layers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ToyExpected(Expected):
    """Every output may be off by what its longest chain of roundings makes."""

    def bounds(self) -> Mapping[str, Bounds]:
        ceilings = dict.fromkeys(METRICS, ROUNDINGS * UNIT_ROUNDOFF["float32"])
        floor = floors("float32", ROUNDINGS, {}, 1) | dict.fromkeys(
            METRICS, ROUNDINGS**0.5 * UNIT_ROUNDOFF["float32"]
        )
        return dict.fromkeys(self.outputs, Bounds(ceilings=ceilings, floors=floor))


class ToySession(Session):
    """Computes like eager, then changes outputs by `fault`."""

    def __init__(self, subject: "ToySubject") -> None:
        self.subject, self.closed = subject, False

    def run(self, inputs: Arrays, *, check_values: bool = True) -> Arrays:  # type: ignore[override]
        outputs = self.subject.stack(inputs, np.float32, backwards=True)
        return self.subject.fault(outputs)

    def __enter__(self) -> "ToySession":
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


@dataclass
class ToySubject(Subject):
    """fault: what the session does to its outputs. shared: what both eager and the session do.
    blind: the first token of the first row attends to nothing."""

    toy_interface: Interface
    fault: Callable[[Arrays], Arrays] = dict
    shared: Callable[[Arrays], Arrays] = dict
    blind: bool = False
    kept: dict[str, Any] = field(default_factory=dict)
    runtimes = ("toy",)
    dtype = "float32"

    @property
    def interface(self) -> Interface:
        return self.toy_interface

    def report(self) -> Report:
        return Report(weights="unproven")

    def cases(self) -> Iterator[Case]:
        yield Case(batch=2, sequence=5)
        yield Case(batch=2, sequence=3, past=4)
        yield Case(batch=1, sequence=1, past=7)

    def inputs(self, case: Case, seed: int) -> Arrays:
        stream = np.random.default_rng(seed)
        fixed = self.interface.cache == "fixed"
        slots = case.total + case.spare if fixed else case.past
        sizes = {"batch": case.batch, "sequence": case.sequence, "past": slots, "capacity": slots}
        sizes["total"] = case.total
        inputs = {}
        for tensor in self.interface.inputs:
            shape = tensor.sized(sizes)
            if tensor.name == self.interface.main_input:
                inputs[tensor.name] = stream.integers(0, VOCABULARY, shape)
            elif tensor.name == self.interface.lengths:
                inputs[tensor.name] = case.starts
            elif tensor.dtype == "int64":
                inputs[tensor.name] = np.ones(shape, np.int64)
            else:
                inputs[tensor.name] = stream.standard_normal(shape).astype(np.float32)
        return inputs

    def expected(self, case: Case, inputs: Arrays) -> ToyExpected:
        return ToyExpected(
            interface=self.interface,
            outputs=self.stack(inputs, np.float64),
            starts=case.starts,
            sequence=case.sequence,
            attended=self._attended(case),
        )

    def _attended(self, case: Case) -> np.ndarray:
        attended = np.ones((case.batch, case.sequence), bool)
        attended[0, 0] = not self.blind
        return attended

    def eager(self, inputs: Arrays) -> Arrays:
        return self.shared(self.stack(inputs, np.float32))

    def open(self, runtime: str) -> ToySession:  # type: ignore[override]
        return ToySession(self)

    def record(self, evidence: Mapping[str, Any]) -> str | None:
        self.kept.update(evidence)
        return None

    def properties(self, seed: int) -> Iterator[Property]:
        """A row of a batch is what it is alone."""
        inputs, main = self.inputs(Case(batch=2, sequence=4), seed), self.interface.main_output
        single = {name: value[:1] for name, value in inputs.items()}
        bounds = self.expected(Case(batch=2, sequence=4), inputs).bounds()[main]
        yield Property(
            name="a row alone",
            output=main,
            sides=lambda run: (run(inputs)[main][:1], run(single)[main]),
            bounds=lambda _: bounds,
        )

    def stack(self, inputs: Arrays, dtype: type, *, backwards: bool = False) -> Arrays:
        """Every output, computed in `dtype`; sums are taken the other way round if `backwards`."""
        stream = np.random.default_rng(0)
        weights = stream.standard_normal((LAYERS, 2, HEADS * WIDTH, HEADS * WIDTH))
        weights = (weights / 8).astype(np.float32).astype(dtype)
        table = stream.standard_normal((VOCABULARY, HEADS * WIDTH)).astype(np.float32)
        x = table.astype(dtype)[inputs[self.interface.main_input]]
        order = slice(None, None, -1 if backwards else 1)
        outputs: Arrays = {}
        for layer in range(LAYERS):
            pairs = self.interface.caches[2 * layer : 2 * layer + 2]
            both = []
            for pair, weight in zip(pairs, weights[layer], strict=True):
                new = (x[..., order] @ weight[order]).reshape(*x.shape[:2], HEADS, WIDTH)
                cache = np.moveaxis(inputs[pair.input].astype(dtype), pair.axis, 1)
                cache = self._written(cache, new, inputs)
                outputs[pair.output] = np.ascontiguousarray(np.moveaxis(cache, 1, pair.axis))
                both.append(cache)
            x = x + self._read(x, *both, inputs) / 16
        outputs[self.interface.main_output] = x @ table.T.astype(dtype)
        return {tensor.name: outputs[tensor.name] for tensor in self.interface.outputs}

    def _written(self, cache: np.ndarray, new: np.ndarray, inputs: Arrays) -> np.ndarray:
        if self.interface.lengths is None:
            return np.concatenate((cache, new), axis=1)
        cache = cache.copy()
        for row, values, at in zip(cache, new, inputs[self.interface.lengths], strict=True):
            row[at : at + len(values)] = values
        return cache

    def _read(self, x: np.ndarray, keys: np.ndarray, values: np.ndarray, inputs: Arrays) -> Any:
        batch, sequence, _ = x.shape
        slots = keys.shape[1]
        starts = np.full(batch, slots - sequence)
        if self.interface.lengths is not None:
            starts = inputs[self.interface.lengths]
        seen = np.arange(slots) <= (starts[:, None] + np.arange(sequence))[..., None]
        queries = x.reshape(batch, sequence, HEADS, WIDTH)
        scores = np.einsum("bshd,bthd->bsht", queries, keys) * seen[:, :, None]
        return np.einsum("bsht,bthd->bshd", scores, values).reshape(x.shape)
