"""Sessions of files that somebody else made, as the other side of an artifact of ours."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rope_export.arrays import numpy_dtype, to_numpy
from rope_export.errors import InputError, ProfileError, RopeExportError
from rope_export.interface import LENGTHS, Interface
from rope_export.parity.onnx_file.facts import (
    FileFacts,
    cache_shapes,
    file_dtype,
    file_interface,
)
from rope_export.parity.onnx_file.file import OnnxFile
from rope_export.parity.onnx_file.int8 import without_rounding
from rope_export.parity.onnx_file.layer_names import MatchedLayer, match_layer
from rope_export.parity.onnx_file.layer_runner import LayerRunner
from rope_export.parity.onnx_file.names import match_decoder
from rope_export.parity.onnx_file.runner import FileRunner, check_caches, check_sizes, start
from rope_export.runtimes import Runner
from rope_export.sessions import Session
from rope_export.spec import AttentionSpec

if TYPE_CHECKING:
    from rope_export.arrays import Array

Logits = Literal["last", "all"]

PROBED = 3
"""Tokens of the call that tells whether the file gives the logits of all of them."""


def probed(runner: FileRunner, facts_of: Callable[[Logits], FileFacts]) -> Session:
    """A session on a whole decoder, after a call that tells whether it gives all logits or the last
    ones. facts_of: by what it gives."""
    session = Session(facts_of("all"), runner)
    try:
        inputs = _probe(session.interface, runner.sizes)
        if session.run(inputs)["logits"].shape[1] == 1 < inputs["input_ids"].shape[1]:
            session = Session(facts_of("last"), runner)
    except RopeExportError:  # told by the rows of every call
        pass
    return session


def _probe(interface: Interface, fixed: tuple[int | None, int | None]) -> dict[str, Any]:
    """The inputs of a first call. fixed: batch and sequence, where they always are the same."""
    batch, sequence = fixed[0] or 1, fixed[1] or PROBED
    ids = np.ones((batch, sequence), np.int64)
    sizes = {"batch": batch, "past": 0, "capacity": sequence}
    inputs: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.zeros_like(ids) + np.arange(sequence),
        LENGTHS: np.zeros(batch, np.int64),
    }
    inputs = {name: x for name, x in inputs.items() if name in {y.name for y in interface.inputs}}
    for pair in interface.caches:
        tensor = interface.input(pair.input)
        inputs[pair.input] = np.zeros(tensor.sized(sizes), numpy_dtype(tensor.dtype))
    return inputs


def decoder_beside(
    file: OnnxFile,
    specs: Sequence[AttentionSpec],
    vocabulary: int,
    maps: Mapping[str, str],
    runtime: str,
    *,
    last: bool,
) -> Session:
    """A session on a whole decoder beside one that is judged. specs: of every layer. maps: names
    of its tensors by ours. last: whether only the logits of last tokens are looked at.

    Raises: InputError for a file that does not take the texts; UnavailableError for what cannot be
        matched, or a runtime that cannot run it.
    """
    shapes = cache_shapes(specs)
    matched = match_decoder(file, shapes, maps, vocabulary)
    if not matched.caches:
        raise InputError(
            f"`against`={file.path}: takes no cache, so it cannot go on with a text as the "
            f"artifact does. Verify it by itself, with `source`."
        )
    dtype = file_dtype(file, matched)

    def facts(logits: Logits) -> FileFacts:
        return FileFacts(
            interface=file_interface(matched, shapes, vocabulary, logits),
            dtype=dtype,
            source={},
            layers=tuple(range(len(specs))),
            vocabulary=vocabulary,
            logits=logits,
        )

    heads = {name: shape[1] for name, shape in shapes.items()}
    inner = start(without_rounding(file), runtime)
    session = probed(FileRunner(inner, matched, heads), facts)
    if not last and session.interface.output("logits").shape[1] == 1:
        raise InputError(
            f"`against`={file.path}: gives the logits of the last token alone, and the artifact "
            f"those of all. Export one with `logits`='last'."
        )
    return session


def layer_beside(
    file: OnnxFile, spec: AttentionSpec, ours: Interface, maps: Mapping[str, str], runtime: str
) -> Session:
    """A session on one layer, which takes the calls of an artifact with that interface as far as
    the file's inputs do.

    Raises: InputError for a file with another cache, dtype or no mask; UnavailableError for what
        cannot be matched, or a runtime that cannot run it.
    """
    matched = match_layer(file, spec, maps)
    kept = "fixed" if matched.fixed else "growing"
    cache = kept if matched.caches else "none"
    dtype = matched.inputs["hidden_states"].dtype
    for what, theirs, own in (("cache", cache, ours.cache), ("dtype", dtype, spec.dtype)):
        if theirs != own:
            raise InputError(
                f"`against`={file.path}: its {what} is {theirs}, that of the artifact {own}. "
                f"Export the artifact with `{what}`={theirs}."
            )
    if ours.mask is not None and "attention_mask" not in matched.inputs:
        raise InputError(
            f"`against`={file.path}: takes no attention_mask, as the artifact does. Export that "
            f"without `padding`."
        )
    return layer_session(start(file, runtime), matched, spec, ours, {})


def layer_session(
    inner: Any,
    matched: MatchedLayer,
    spec: AttentionSpec,
    interface: Interface,
    source: Mapping[str, Any],
) -> Session:
    """A session on a file with one layer. inner: onnxruntime's. interface: by our names."""
    facts = FileFacts(
        interface=interface,
        dtype=spec.dtype,
        source=source,
        layers=(0,),
        vocabulary=None,
        logits="all",
        first_position=spec.first_position,
    )
    return Session(facts, _LayerCalls(LayerRunner(inner, matched, spec), matched, spec))


def sizes_of(matched: MatchedLayer) -> tuple[int | None, int | None]:
    """Batch and sequence of a file with one layer, where it fixes them."""
    return matched.inputs["hidden_states"].sizes


def by_position(matched: MatchedLayer) -> bool:
    """Whether a file with one layer takes positions, or the angles that are made of them."""
    return bool({"position_ids", "cos"} & matched.inputs.keys())


class _LayerCalls(Runner):
    """A runner that refuses calls that the file's inputs cannot take."""

    def __init__(self, inner: LayerRunner, matched: MatchedLayer, spec: AttentionSpec) -> None:
        self._inner, self._matched, self._spec = inner, matched, spec

    def run(
        self, inputs: "Mapping[str, Array]", axes: Mapping[str, int], into: "Mapping[str, Array]"
    ) -> "dict[str, Array]":
        """Raises: ProfileError for a call of other sizes, or other positions where there are no
        positions."""
        check_sizes(self._matched.inputs["hidden_states"], axes)
        values = {name: to_numpy(x) for name, x in inputs.items()}
        check_caches(self._matched, values, axes)
        positions, lengths = values.get("position_ids"), values.get(LENGTHS)
        if positions is not None and self._spec.uses_positions and not by_position(self._matched):
            starts = np.full(axes["batch"], axes.get("past", 0)) if lengths is None else lengths
            own = starts[:, None] + np.arange(axes["sequence"])
            if not np.all(positions == own):
                raise ProfileError("there are no positions: each token's is its slot.")
        return self._inner.run(inputs, axes, into)

    def close(self) -> None:
        self._inner.close()
