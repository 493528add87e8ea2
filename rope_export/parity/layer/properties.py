"""What must hold of any rotary attention, whatever its weights: no reference output is needed.

A property compares two sides that should be equal. How far eager PyTorch's own sides are apart is
the measure for a runtime's; how far eager's may be apart is bounded by the two sides' ceilings.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from rope_export.interface import Interface
from rope_export.parity.bounds import Bounds
from rope_export.parity.cases import FAR, Case
from rope_export.parity.comparison import Arrays
from rope_export.parity.layer.chain import bounds_of
from rope_export.parity.layer.deviations import ceiling
from rope_export.parity.layer.inputs import layer_inputs
from rope_export.parity.layer.reference import ReferenceLayer
from rope_export.parity.layer.rotation import pairs, places
from rope_export.parity.subject import Property, Run

Sides = tuple[np.ndarray, np.ndarray]


def layer_properties(
    layer: ReferenceLayer, rough: ReferenceLayer, interface: Interface, seed: int
) -> Iterator[Property]:
    """Every property that fits the layer's cache and padding.

    rough: the layer with the roundings of a runtime's kernels.
    """
    make, spec = _Maker(layer, rough, interface, seed), layer.spec
    rope = spec.rope
    fixed = rope is not None and not rope.depends_on_length
    if fixed and spec.position_scale is None:
        yield make.shift(1)
        yield make.shift(4_096)
        yield make.shift(FAR - 16)
    if rope is None or fixed:
        yield make.single_rows()
    if spec.causal:
        yield make.causality()
    if interface.mask is not None and (rope is None or fixed):
        yield make.padding()
    if interface.caches:
        if rope is None or fixed:
            yield make.split()
        if rope is not None:
            yield make.identity()
        if rope is not None and not spec.norm_after_rope:
            yield make.norms()


OUTPUT = "attention_output"
TOKENS = ("hidden_states", "position_ids")
"""Inputs that count new tokens."""


class _Maker:
    """Makes the properties of one layer."""

    def __init__(
        self, layer: ReferenceLayer, rough: ReferenceLayer, interface: Interface, seed: int
    ) -> None:
        self.layer, self.rough, self.interface, self.seed = layer, rough, interface, seed

    def equality(
        self,
        *,
        name: str,
        output: str,
        total: int,
        sides: Callable[[Run], Sides],
        bound: Callable[[ReferenceLayer], np.ndarray],
    ) -> Property:
        """total: slots in the longest call. bound: how far the roundings of a layer alone may take
        its two sides apart, element by element."""

        def bounds(value: np.ndarray) -> Bounds:
            own = bound(self.layer)
            rough = own if self.rough is self.layer else bound(self.rough)
            return bounds_of(self.layer.spec, total, (own, rough), value)

        return Property(name=name, output=output, sides=sides, bounds=bounds)

    def inputs(self, case: Case) -> Arrays:
        return layer_inputs(case, self.layer, self.interface, self.seed)

    def ceiling(self, rounding: ReferenceLayer, inputs: Arrays, output: str = OUTPUT) -> np.ndarray:
        return ceiling(rounding, self.layer(inputs))[output]

    def shift(self, by: int) -> Property:
        """Scores depend on distances only: RoFormer, arXiv:2104.09864, section 3.1.

        The float32 angles of the two places differ by their own rounding, which the model was
        trained with: that much, computed in float64, is not the runtime's fault.
        """
        plain = self.inputs(Case(batch=2, sequence=16))
        shifted = {**plain, "position_ids": plain["position_ids"] + by}

        def bound(rounding: ReferenceLayer) -> np.ndarray:
            angles = np.abs(self.layer(plain).output - self.layer(shifted).output)
            return self.ceiling(rounding, plain) + self.ceiling(rounding, shifted) + angles

        return self.equality(
            name=f"shift of all positions by {by}",
            output=OUTPUT,
            total=16,
            sides=lambda run: (_wide(run(shifted)[OUTPUT]), _wide(run(plain)[OUTPUT])),
            bound=bound,
        )

    def single_rows(self) -> Property:
        """A row of a batch is what it is alone."""
        past = 5 if self.interface.caches else 0
        batch = self.inputs(Case(batch=3, sequence=6, past=past, start=100))

        def sides(run: Run) -> Sides:
            rows = [run(_row(batch, i))[OUTPUT] for i in range(3)]
            return _wide(run(batch)[OUTPUT]), _wide(np.concatenate(rows))

        return self.equality(
            name="rows of a batch against single rows",
            output=OUTPUT,
            total=past + 6,
            sides=sides,
            bound=lambda r: 2 * self.ceiling(r, batch),
        )

    def causality(self) -> Property:
        """A token's output does not change with the tokens after it."""
        whole = self.inputs(Case(batch=2, sequence=12))
        other = self.inputs(Case(batch=2, sequence=12, start=1))["hidden_states"]
        changed = {**whole, "hidden_states": whole["hidden_states"].copy()}
        changed["hidden_states"][:, 6:] = other[:, 6:]
        return self.equality(
            name="causality: later tokens changed",
            output=OUTPUT,
            total=12,
            sides=lambda run: tuple(_wide(run(x)[OUTPUT][:, :6]) for x in (changed, whole)),  # type: ignore[arg-type, return-value]
            bound=lambda r: 2 * self.ceiling(r, whole)[:, :6],
        )

    def padding(self) -> Property:
        """Padded slots on the left change nothing for the tokens after them."""
        plain = self.inputs(Case(batch=2, sequence=8))
        extra = self.inputs(Case(batch=2, sequence=5, start=7))
        padded = self.inputs(Case(batch=2, sequence=13))
        for name in TOKENS:
            if name in plain:
                both = (extra[name], plain[name])
                padded[name] = np.concatenate(both, axis=_token_axis(name))
        assert self.interface.mask is not None
        padded[self.interface.mask][:, :5] = 0
        return self.equality(
            name="left padding of 5 slots",
            output=OUTPUT,
            total=13,
            sides=lambda run: (
                _wide(run(padded)[OUTPUT][:, 5:]),
                _wide(run(plain)[OUTPUT]),
            ),
            bound=lambda r: 2 * self.ceiling(r, plain),
        )

    def split(self) -> Property:
        """Prefill of 9 then 4 more tokens on its cache is prefill of 13."""
        whole = self.inputs(Case(batch=2, sequence=13, start=50))

        caches = {pair.input: pair.output for pair in self.interface.caches}

        def part(run: Run, at: slice, cache: Arrays) -> Arrays:
            step = {n: _tokens(n, whole[n], at) for n in TOKENS if n in whole}
            if self.interface.mask is not None:
                end = at.stop if self.interface.cache == "growing" else None
                step[self.interface.mask] = whole[self.interface.mask][:, :end]
            if self.interface.lengths is not None:
                step[self.interface.lengths] = np.full(2, at.start)
            return run({**step, **cache})

        def sides(run: Run) -> Sides:
            first = part(run, slice(0, 9), {name: whole[name] for name in caches})
            grown = {name: first[after] for name, after in caches.items()}
            second = part(run, slice(9, 13), grown)
            parts = np.concatenate((first[OUTPUT], second[OUTPUT]), axis=1)
            return _wide(parts), _wide(run(whole)[OUTPUT])

        return self.equality(
            name="prefill split in two",
            output=OUTPUT,
            total=13,
            sides=sides,
            bound=lambda r: 2 * self.ceiling(r, whole),
        )

    @property
    def key(self) -> str:
        """The output that holds what was rotated: the first of the caches, of MLA the second."""
        return self.interface.caches[0 if self.layer.spec.latent is None else 1].output

    def new(self, cache: np.ndarray) -> np.ndarray:
        """The slots of an empty cache that a call of 8 tokens writes."""
        return cache[..., :8, :]

    def identity(self) -> Property:
        """Position 0 rotates nothing: the cached key is what the projection and the norms make."""
        inputs = self.inputs(Case(batch=2, sequence=8))
        inputs["position_ids"][:] = 0
        spec = dataclasses.replace(self.layer.spec, rope=None)
        layer = ReferenceLayer(spec, self.layer.weights, self.layer.inv_freq)
        keys = self.new(layer(inputs).outputs[self.key])
        if not spec.norm_after_rope:
            keys = self._moved(keys) * self._factors(keys.shape[-1])
        return self.equality(
            name="position 0 rotates nothing",
            output=self.key,
            total=8,
            sides=lambda run: (self.new(_wide(run(inputs)[self.key])), keys),
            bound=lambda r: self.new(self.ceiling(r, inputs, self.key)),
        )

    def _moved(self, keys: np.ndarray) -> np.ndarray:
        """Features where the layout leaves them."""
        moved = keys.copy()
        for at, to in zip(pairs(self.layer.spec), places(self.layer.spec), strict=True):
            moved[..., to] = keys[..., at]
        return moved

    def norms(self) -> Property:
        """A rotation keeps the length of every pair, and the features that are not rotated."""
        plain = self.inputs(Case(batch=2, sequence=8))
        plain["position_ids"][:] = 0
        drawn = self.inputs(Case(batch=2, sequence=8, start=None))["position_ids"]
        rotated = {**plain, "position_ids": drawn}

        def lengths(keys: np.ndarray) -> np.ndarray:
            keys, (first, second) = self.new(keys), places(self.layer.spec)
            others = keys[..., 2 * len(first) :]
            return np.concatenate((np.hypot(keys[..., first], keys[..., second]), others), axis=-1)

        return self.equality(
            name="rotation keeps lengths",
            output=self.key,
            total=8,
            sides=lambda run: tuple(lengths(_wide(run(x)[self.key])) for x in (rotated, plain)),  # type: ignore[arg-type, return-value]
            bound=lambda r: sum(lengths(self.ceiling(r, x, self.key)) for x in (rotated, plain)),  # type: ignore[arg-type, return-value]
        )

    def _factors(self, width: int) -> np.ndarray:
        """What each feature of a key is multiplied by at position 0."""
        rope = self.layer.spec.rope
        assert rope is not None
        return np.where(np.arange(width) < rope.rotary_dim, rope.attention_factor, 1.0)


def _token_axis(name: str) -> int:
    """The axis of an input that counts tokens: position_ids may have an axis before batch."""
    return -1 if name == "position_ids" else 1


def _tokens(name: str, value: np.ndarray, at: slice) -> np.ndarray:
    return value[..., at] if name == "position_ids" else value[:, at]


def _row(batch: Arrays, at: int) -> Arrays:
    """One row of a batch, as a batch of one."""
    return {
        name: x[..., at : at + 1, :] if name == "position_ids" else x[at : at + 1]
        for name, x in batch.items()
    }


def _wide(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64)
