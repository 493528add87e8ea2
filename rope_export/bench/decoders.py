"""Times decoders: the steps of a text that grows, and prompts up to their first token."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rope_export.arrays import numpy_dtype
from rope_export.artifacts.decoder import DecoderArtifact
from rope_export.artifacts.folder import Folder
from rope_export.bench.decoder_work import DecoderWork
from rope_export.bench.machine import BackgroundLoad
from rope_export.bench.proof import Proof, timed_on
from rope_export.bench.result import Row
from rope_export.bench.roofline import Limits
from rope_export.bench.shapes import Shape
from rope_export.bench.timing import Call, Plan, measure
from rope_export.errors import InputError, RopeExportError, UnavailableError
from rope_export.interface import Interface
from rope_export.sessions import Session, open_session


def is_decoder(artifact: Folder) -> bool:
    """Whether a folder is a decoder's, or an engine of one."""
    return isinstance(artifact.artifact, DecoderArtifact)


def all_decoders(artifacts: Mapping[str, Folder]) -> bool:
    """Whether all of them are decoders.

    Raises: InputError if some are and some are not.
    """
    kinds = {name: is_decoder(artifact) for name, artifact in artifacts.items()}
    if len(set(kinds.values())) > 1:
        decoder = next(name for name, own in kinds.items() if own)
        layer = next(name for name, own in kinds.items() if not own)
        raise InputError(
            f"{decoder} is a decoder and {layer} an attention layer; they are not compared. Give "
            f"those of one kind."
        )
    return all(kinds.values())


@dataclass(frozen=True, kw_only=True)
class _Entrant:
    """An open decoder. capacity: slots of a fixed cache; as many as a shape fills unless given."""

    session: Session
    work: DecoderWork
    capacity: int | None

    def call(self, shape: Shape, seed: int) -> Call:
        """A call of the shape on drawn tokens and a cache of zeros, the same each time: what lies
        in a cache takes no time.

        Raises: RopeExportError for a shape that the decoder does not take.
        """
        facts, session = self.session.manifest, self.session
        stream = np.random.default_rng(seed)
        vocabulary = facts.vocabulary
        ids = stream.integers(0, vocabulary, (shape.batch, shape.sequence))
        if session.interface.cache != "fixed":
            feeds = _feeds(session.interface, shape, ids)
            return lambda: session.run(feeds, check_values=False)
        capacity = session.capacity or self.capacity or shape.total
        text = session.start(batch=shape.batch, capacity=capacity)
        at = np.full(shape.batch, shape.past, np.int64)

        def step() -> object:
            text.assume_lengths(at)
            return text.step(ids)

        return step


def _feeds(interface: Interface, shape: Shape, ids: np.ndarray) -> dict[str, np.ndarray]:
    """The inputs of one call with a growing cache."""
    axes = {"batch": shape.batch, "past": shape.past}
    feeds = {
        interface.main_input: ids,
        "attention_mask": np.ones((shape.batch, shape.total), np.int64),
    }
    if interface.positions is not None:
        positions = np.arange(shape.past, shape.total)
        feeds[interface.positions] = np.tile(positions, (shape.batch, 1))
    for pair in interface.caches:
        tensor = interface.input(pair.input)
        feeds[pair.input] = np.zeros(tensor.sized(axes), numpy_dtype(tensor.dtype))
    return feeds


def decoder_rows(
    artifacts: Mapping[str, Folder],
    proofs: Mapping[str, Proof],
    shapes: Sequence[Shape],
    *,
    limits: Limits,
    plan: Plan,
    threads: int | None,
    capacity: int | None,
    background: BackgroundLoad,
    progress: Callable[[str, float | None], None],
) -> list[Row]:
    """Every decoder at every shape, in blocks that alternate.

    proofs: of the decoders that take part.
    """
    entrants: dict[str, _Entrant] = {}
    refused: dict[str, dict[str, Any]] = {}
    rows: list[Row] = []
    with ExitStack() as stack:
        for name, proof in proofs.items():
            if proof.status != "passed":
                status = "wrong" if proof.status == "failed" else "cannot"
                refused[name] = {"status": status, "reason": proof.reason}
                continue
            decoder = artifacts[name].artifact
            assert isinstance(decoder, DecoderArtifact)
            try:
                place = timed_on(artifacts[name])
                session = open_session(artifacts[name], place, threads=threads)
            except UnavailableError as error:
                refused[name] = {"status": "cannot", "reason": str(error)}
                continue
            stack.callback(session.close)
            work = DecoderWork(decoder)
            entrants[name] = _Entrant(session=session, work=work, capacity=capacity)
        for at, shape in enumerate(shapes):
            progress(shape.name, at / len(shapes))
            common: dict[str, Any] = {"shape": shape, "layer": 0, "torch": False}
            rows += [Row(contender=name, **common, **why) for name, why in refused.items()]
            rows += _shape_rows(entrants, common, limits, plan, background)
    return rows


def _shape_rows(
    entrants: Mapping[str, _Entrant],
    common: Mapping[str, Any],
    limits: Limits,
    plan: Plan,
    background: BackgroundLoad,
) -> list[Row]:
    shape, rows = common["shape"], {}
    calls: dict[str, Call] = {}
    for name, entrant in entrants.items():
        work = entrant.work(shape)
        limit = None if work is None else limits.seconds(work)
        facts = {**common, "contender": name, "work": work, "limit": limit}
        try:
            call = entrant.call(shape, plan.seed)
            call()
        except RopeExportError as error:
            rows[name] = Row(status="cannot", reason=str(error), **facts)
        else:
            rows[name] = Row(status="measured", **facts)
            calls[name] = call
    with background.watched():
        timings = measure(calls, plan)
    return [replace(row, timing=timings.get(name)) for name, row in rows.items()]
