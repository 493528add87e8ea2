"""One layer with its numbers and its calls, in full, so that a line of text can say it."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rope_export.arrays import to_torch
from rope_export.checkpoints.drawn import drawn_weights
from rope_export.errors import InputError
from rope_export.parity.cases import Case
from rope_export.spec import AttentionSpec
from rope_export.typed_json import parse, plain, typed

COMMAND = ("rope-export", "fuzz", "--example")


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """How the numbers of a tensor differ from those that are drawn for it: each is 2 ** exponent
    times as large, and in one channel of the last axis 2 ** gain times that.

    channel: counted around the axis; none for a tensor without an outlier.
    """

    exponent: int = 0
    channel: int | None = None
    gain: int = 0

    def of(self, values: np.ndarray) -> np.ndarray:
        """Drawn values as these numbers, in float64."""
        changed = np.ldexp(values.astype(np.float64), self.exponent)
        if self.channel is not None and changed.ndim:
            at = self.channel % changed.shape[-1]
            changed[..., at] = np.ldexp(changed[..., at], self.gain)
        return changed


@dataclass(frozen=True, kw_only=True)
class Example:
    """A layer as it is exported and what it is called with.

    spec: of the layer, with its dtype. lowering, cache, padding: as for `export`. runtime: that is
    compared with eager PyTorch. cases: the calls. seed: of all that is drawn. hidden_states: of
    every call. weights: by their names in the spec; those that are not there are plain.
    """

    spec: AttentionSpec
    lowering: str
    cache: Literal["none", "growing", "fixed"]
    cases: tuple[Case, ...]
    padding: bool = False
    runtime: str = "onnxruntime"
    seed: int = 0
    hidden_states: Numbers = field(default_factory=Numbers)
    weights: Mapping[str, Numbers] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(self.weights.keys() - self.spec.weight_shapes.keys())
        if unknown:
            raise InputError(
                f"weights {unknown[0]!r}: the layer has {', '.join(self.spec.weight_shapes)}."
            )
        if self.seed < 0:
            raise InputError(f"seed={self.seed}: it must be 0 or more.")
        for case in self.cases:
            _check_sizes(case)

    def tensors(self) -> dict[str, Tensor]:
        """The weights as they are deployed, in the spec's dtype."""
        drawn = drawn_weights(replace(self.spec, dtype="float32"), self.seed)
        dtype = getattr(torch, self.spec.dtype)
        return {
            name: to_torch(self.weights.get(name, Numbers()).of(value.numpy())).to(dtype)
            for name, value in drawn.items()
        }

    def only(self, case: str) -> "Example":
        """The same with one of its calls, by the name of the case."""
        return replace(self, cases=tuple(x for x in self.cases if x.name == case) or self.cases)

    def to_json(self) -> dict[str, Any]:
        """What is not at its default, as plain values."""
        facts: dict[str, Any] = _told(replace(self, spec=_bare(self.spec)))
        if self.spec.rope is not None:
            rope = _told(self.spec.rope)
            facts["spec"]["rope"] = {"rope_type": self.spec.rope.rope_type, **rope}
        return facts

    @classmethod
    def from_json(cls, text: str) -> "Example":
        """The example that a command line gives.

        Raises: InputError for what is no example, naming key, value and rule.
        """
        where = Path("example")
        facts = parse(text.encode(), where)
        spec = AttentionSpec.from_json({"rope": None, **_object(facts, "spec")})
        bare = {**facts, "spec": plain(_bare(spec))}
        return replace(typed(bare, cls, where, InputError), spec=spec)

    @property
    def command(self) -> str:
        """The command that compares it again."""
        return shlex.join([*COMMAND, json.dumps(self.to_json(), separators=(",", ":"))])


def _check_sizes(case: Case) -> None:
    for name, least in (("batch", 1), ("sequence", 1), ("past", 0), ("spare", 0)):
        if getattr(case, name) < least:
            raise InputError(f"cases: {name}={getattr(case, name)}: it must be {least} or more.")
    rows = case.lengths
    if rows is not None and not (
        len(rows) == case.batch and 0 <= min(rows) <= max(rows) == case.past
    ):
        raise InputError(
            f"cases: lengths={', '.join(map(str, rows))}: there must be one for each row of the "
            f"batch of {case.batch}, the longest as long as the past of {case.past}."
        )


def _bare(spec: AttentionSpec) -> AttentionSpec:
    """A spec without its rotation, whose class JSON does not tell."""
    return replace(spec, rope=None)


def _object(facts: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = facts.get(name)
    if not isinstance(value, Mapping):
        raise InputError(f"example: {name!r} is missing, or no object.")
    return value


def _told(value: Any) -> Any:
    """A value as JSON has it, of dataclasses the fields that are not at their defaults."""
    if is_dataclass(value):
        return {
            x.name: _told(getattr(value, x.name))
            for x in fields(value)
            if getattr(value, x.name) != _default(x)
        }
    if isinstance(value, Mapping):
        return {name: _told(x) for name, x in value.items()}
    if isinstance(value, tuple):
        return [_told(x) for x in value]
    return plain(value)


def _default(of: Any) -> Any:
    return of.default_factory() if of.default_factory is not MISSING else of.default
