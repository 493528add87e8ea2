"""What is true of an artifact: the facts in its manifest.json."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rope_export.errors import ArtifactError
from rope_export.interface import Interface, TensorType, attention_roles

FORMAT_VERSION = 1
KIND = "attention"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is true of an artifact.

    spec: an AttentionSpec as plain values. source: kind, layer, seed, hash of the config.
    weights: for each tensor of the layer its name in the source, the initializer that holds it,
        whether transposed, and the sha256 of its bytes as deployed, in the source's orientation.
    quantization: how projections are quantized; then each has its scales and inputs too.
    needs: oldest version of a package that runs it. files: sha256 and bytes of the model's files.
    stale_slots: what those slots of a fixed cache may hold that a call neither reads nor writes:
        "any" bits; or only what is "finite", and in size at most 1/64 of the dtype's largest
        number, where an operator computes over them.
    first_position: the lowest position that the layer is defined at, or none if every one is.
    """

    spec: Mapping[str, Any]
    lowering: str
    opset: int
    cache: str
    padding: bool
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    source: Mapping[str, Any]
    weights: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, str]
    runtimes: tuple[str, ...]
    needs: Mapping[str, str] = field(default_factory=dict)
    quantization: Mapping[str, int] | None = None
    stale_slots: str = "any"
    first_position: int | None = None
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def dtype(self) -> str:
        return str(self.spec["dtype"])

    @property
    def interface(self) -> Interface:
        """The tensors, and what each is for. Raises: ValueError if they are no attention's."""
        return attention_roles(self.inputs, self.outputs)

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "kind": KIND,
            **{name: getattr(self, name) for name in ("spec", "lowering", "opset", "cache")},
            "padding": self.padding,
            "inputs": [t.to_json() for t in self.inputs],
            "outputs": [t.to_json() for t in self.outputs],
            **{name: getattr(self, name) for name in ("source", "weights", "versions")},
            "runtimes": list(self.runtimes),
            "needs": dict(self.needs),
            "quantization": self.quantization,
            "stale_slots": self.stale_slots,
            "first_position": self.first_position,
            "files": self.files,
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any], where: Path) -> "Manifest":
        """Raises: ArtifactError if it is of another kind or version, or not a whole manifest."""
        check_version(facts, FORMAT_VERSION, where, "Export the artifact again.")
        if facts.get("kind") != KIND:
            raise ArtifactError(
                f"{where}: kind={_brief(facts.get('kind'))}; an artifact's is {KIND!r}, so this is "
                f"not one."
            )
        try:
            json.dumps(facts, ensure_ascii=False).encode()  # text, not halves of characters
            for name, fits in SHAPE.items():
                value = facts.get(name, LATER[name]) if name in LATER else facts[name]
                if not fits(value):
                    raise ValueError(f"{name} is {_brief(value)}")
            return cls(
                **{
                    name: facts[name]
                    for name in ("spec", "lowering", "opset", "cache", "padding", "source")
                },
                **{name: facts[name] for name in ("weights", "versions", "files")},
                inputs=tensors(facts["inputs"]),
                outputs=tensors(facts["outputs"]),
                runtimes=tuple(facts["runtimes"]),
                needs=facts.get("needs", {}),
                quantization=facts.get("quantization"),
                stale_slots=facts.get("stale_slots", LATER["stale_slots"]),
                first_position=facts.get("first_position"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{where}: is not a whole manifest ({error!r}).") from error


DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "uint8", "bool")
"""Of tensors that go in and out."""


def check_version(facts: Mapping[str, Any], version: int, where: Path, way_out: str) -> None:
    """Raises: ArtifactError if a manifest was written by another version of this package."""
    found = facts.get("format_version")
    if type(found) is not int or found != version:
        raise ArtifactError(
            f"{where}: format_version={_brief(found)}; this version of rope_export reads "
            f"{version}. {way_out}"
        )


def tensors(listed: Any) -> tuple[TensorType, ...]:
    """Raises: ValueError, KeyError or TypeError for what are no tensors."""
    found = tuple(TensorType.from_json(t) for t in listed)
    for t in found:
        axes = all(type(axis) in (int, str) for axis in t.shape)
        if not (isinstance(t.name, str) and t.dtype in DTYPES and axes):
            raise ValueError(f"a tensor is {_brief(t)}")
    return found


def is_files(value: Any) -> bool:
    """Whether a value has a sha256 and a size for each file, as manifests list them."""
    return _is_facts(value) and all(
        isinstance(said.get("sha256"), str) and type(said.get("bytes")) is int
        for said in value.values()
    )


def _is_facts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(x, dict) for x in value.values())


def _is_weights(value: Any) -> bool:
    return _is_facts(value) and all(
        isinstance(x.get("initializer"), str)
        and isinstance(x.get("sha256"), str)
        and isinstance(x.get("transposed"), bool)
        and ("scales" not in x or (isinstance(x["scales"], str) and type(x["inputs"]) is int))
        for x in value.values()
    )


def _is_source(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("kind"), str)
        and type(value.get("layer")) is int
        and type(value.get("seed", 0)) is int
        and isinstance(value.get("part"), str | None)
    )


SHAPE: Mapping[str, Callable[[Any], bool]] = {
    "spec": lambda x: isinstance(x, dict) and isinstance(x.get("dtype"), str),
    "lowering": lambda x: isinstance(x, str),
    "opset": lambda x: type(x) is int,
    "cache": lambda x: x in ("none", "growing", "fixed"),
    "padding": lambda x: isinstance(x, bool),
    "source": _is_source,
    "weights": _is_weights,
    "versions": lambda x: isinstance(x, dict),
    "quantization": lambda x: x is None or isinstance(x, dict),
    "stale_slots": lambda x: x in ("any", "finite"),
    "first_position": lambda x: x is None or type(x) is int,
    "needs": lambda x: isinstance(x, dict) and all(isinstance(y, str) for y in x.values()),
    "files": is_files,
    "runtimes": lambda x: isinstance(x, list) and all(isinstance(name, str) for name in x),
}
"""What each fact of a manifest must be."""


LATER: Mapping[str, Any] = {
    "needs": {},
    "quantization": None,
    "stale_slots": "finite",
    "first_position": None,
}
"""Facts that older manifests lack, and what they then are."""


def _brief(value: Any) -> str:
    """A value in a line, however long it is."""
    try:
        text = repr(value)
    except RecursionError:
        return f"a nested {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}…"
