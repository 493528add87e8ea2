"""What must hold of any rotary attention, whatever its weights: no reference output is needed.

A property compares two sides that should be equal. How far eager PyTorch's own sides are apart is
the measure for a runtime's; how far eager's may be apart is bounded by the two sides' ceilings.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from rope_export.artifact import Manifest
from rope_export.parity.bounds import ceiling
from rope_export.parity.cases import FAR, Case
from rope_export.parity.reference import ReferenceLayer, pairs

Inputs = dict[str, np.ndarray]
Outputs = dict[str, np.ndarray]
Run = Callable[[Inputs], Outputs]


@dataclass(frozen=True, kw_only=True)
class Property:
    """Two sides of one equality. `sides` computes them with any runtime, in float64; `bound` is
    how far rounding alone may take the two sides of eager apart, element by element; `total` the
    slots in the longest call."""

    name: str
    output: str
    total: int
    sides: Callable[[Run], tuple[np.ndarray, np.ndarray]]
    bound: Callable[[], np.ndarray]


def properties(layer: ReferenceLayer, manifest: Manifest, seed: int) -> Iterator[Property]:
    """Every property that fits the artifact's cache and padding."""
    make = _Maker(layer, manifest, seed)
    yield make.shift(1)
    yield make.shift(4_096)
    yield make.shift(FAR - 16)
    yield make.single_rows()
    yield make.causality()
    if manifest.padding:
        yield make.padding()
    if manifest.cache == "growing":
        yield make.split()
        yield make.identity()
        yield make.norms()


OUTPUT = "attention_output"


class _Maker:
    def __init__(self, layer: ReferenceLayer, manifest: Manifest, seed: int) -> None:
        self.layer, self.manifest, self.seed = layer, manifest, seed

    def inputs(self, case: Case) -> Inputs:
        return case.inputs(self.layer, self.manifest, self.seed)

    def ceiling(self, inputs: Inputs, output: str = OUTPUT) -> np.ndarray:
        return getattr(ceiling(self.layer, self.layer(inputs)), output)

    def shift(self, by: int) -> Property:
        """Scores depend on distances only: RoFormer, arXiv:2104.09864, section 3.1.

        The float32 angles of the two places differ by their own rounding, which the model was
        trained with: that much, computed in float64, is not the runtime's fault.
        """
        here = self.inputs(Case(batch=2, sequence=16))
        there = {**here, "position_ids": here["position_ids"] + by}

        def bound() -> np.ndarray:
            angles = np.abs(self.layer(here).output - self.layer(there).output)
            return self.ceiling(here) + self.ceiling(there) + angles

        return Property(
            name=f"shift of all positions by {by}",
            output=OUTPUT,
            total=16,
            sides=lambda run: (_wide(run(there)[OUTPUT]), _wide(run(here)[OUTPUT])),
            bound=bound,
        )

    def single_rows(self) -> Property:
        """A row of a batch is what it is alone."""
        past = 5 if self.manifest.cache == "growing" else 0
        batch = self.inputs(Case(batch=3, sequence=6, past=past, start=100))

        def sides(run: Run) -> tuple[np.ndarray, np.ndarray]:
            rows = [run({n: x[i : i + 1] for n, x in batch.items()})[OUTPUT] for i in range(3)]
            return _wide(run(batch)[OUTPUT]), _wide(np.concatenate(rows))

        return Property(
            name="rows of a batch against single rows",
            output=OUTPUT,
            total=past + 6,
            sides=sides,
            bound=lambda: 2 * self.ceiling(batch),
        )

    def causality(self) -> Property:
        """A token's output does not change with the tokens after it."""
        whole = self.inputs(Case(batch=2, sequence=12))
        other = self.inputs(Case(batch=2, sequence=12, start=1))["hidden_states"]
        changed = {**whole, "hidden_states": whole["hidden_states"].copy()}
        changed["hidden_states"][:, 6:] = other[:, 6:]
        return Property(
            name="causality: later tokens changed",
            output=OUTPUT,
            total=12,
            sides=lambda run: tuple(_wide(run(x)[OUTPUT][:, :6]) for x in (changed, whole)),  # type: ignore[arg-type, return-value]
            bound=lambda: 2 * self.ceiling(whole)[:, :6],
        )

    def padding(self) -> Property:
        """Padded slots on the left change nothing for the tokens after them."""
        plain = self.inputs(Case(batch=2, sequence=8))
        extra = self.inputs(Case(batch=2, sequence=5, start=7))
        padded = {
            name: np.concatenate((extra[name], plain[name]), axis=1)
            for name in ("hidden_states", "position_ids", "attention_mask")
        }
        padded["attention_mask"][:, :5] = 0
        past = {name: plain[name] for name in plain if name.startswith("past")}
        return Property(
            name="left padding of 5 slots",
            output=OUTPUT,
            total=13,
            sides=lambda run: (
                _wide(run({**padded, **past})[OUTPUT][:, 5:]),
                _wide(run(plain)[OUTPUT]),
            ),
            bound=lambda: 2 * self.ceiling(plain),
        )

    def split(self) -> Property:
        """Prefill of 9 then 4 more tokens on its cache is prefill of 13."""
        whole = self.inputs(Case(batch=2, sequence=13, start=50))

        def sides(run: Run) -> tuple[np.ndarray, np.ndarray]:
            def part(at: slice, keys: np.ndarray, values: np.ndarray) -> Outputs:
                step = {n: x[:, at] for n, x in whole.items() if not n.startswith("past")}
                if "attention_mask" in step:
                    step["attention_mask"] = whole["attention_mask"][:, : at.stop]
                return run({**step, "past_key": keys, "past_value": values})

            first = part(slice(0, 9), whole["past_key"], whole["past_value"])
            second = part(slice(9, 13), first["present_key"], first["present_value"])
            parts = np.concatenate((first[OUTPUT], second[OUTPUT]), axis=1)
            return _wide(parts), _wide(run(whole)[OUTPUT])

        return Property(
            name="prefill split in two",
            output=OUTPUT,
            total=13,
            sides=sides,
            bound=lambda: 2 * self.ceiling(whole),
        )

    def identity(self) -> Property:
        """At position 0 nothing turns: the cached key is the projection itself."""
        inputs = self.inputs(Case(batch=2, sequence=8))
        inputs["position_ids"][:] = 0
        keys = self.layer.split(self.layer.project("k", _wide(inputs["hidden_states"])))
        factor = self._factors()
        return Property(
            name="position 0 turns nothing",
            output="present_key",
            total=8,
            sides=lambda run: (_wide(run(inputs)["present_key"]), keys * factor),
            bound=lambda: self.ceiling(inputs, "present_key"),
        )

    def norms(self) -> Property:
        """A turn keeps the length of every pair, and the features that do not turn."""
        here = self.inputs(Case(batch=2, sequence=8))
        here["position_ids"][:] = 0
        there = {
            **here,
            "position_ids": self.inputs(Case(batch=2, sequence=8, start=None))["position_ids"],
        }

        def lengths(keys: np.ndarray) -> np.ndarray:
            first, second = pairs(self.layer.spec)
            still = keys[..., self.layer.spec.rope.rotary_dim :]
            return np.concatenate((np.hypot(keys[..., first], keys[..., second]), still), axis=-1)

        return Property(
            name="turning keeps lengths",
            output="present_key",
            total=8,
            sides=lambda run: tuple(lengths(_wide(run(x)["present_key"])) for x in (there, here)),  # type: ignore[arg-type, return-value]
            bound=lambda: sum(lengths(self.ceiling(x, "present_key")) for x in (there, here)),  # type: ignore[arg-type, return-value]
        )

    def _factors(self) -> np.ndarray:
        """What each feature of a key is multiplied by when nothing turns."""
        spec = self.layer.spec
        turning = np.arange(spec.head_dim) < spec.rope.rotary_dim
        return np.where(turning, spec.rope.attention_factor, 1.0)


def _wide(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64)
