"""A whole decoder in an ONNX file that somebody else made, as a subject."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from rope_export.arrays import numpy_dtype
from rope_export.checkpoints import Model, open_model
from rope_export.decoder.source import config_of
from rope_export.errors import InputError, RopeExportError
from rope_export.interface import LENGTHS, Interface
from rope_export.parity.decoder.cases import chosen_texts, generates
from rope_export.parity.decoder.exact import Widened
from rope_export.parity.decoder.passage import Passage
from rope_export.parity.decoder.prompts import drawn_prompts, generated
from rope_export.parity.decoder.theirs import Theirs, their_model
from rope_export.parity.onnx_file.causes import Causes
from rope_export.parity.onnx_file.decoder import (
    FileProof,
    FileVerdicts,
    file_decoder,
    logits_error,
)
from rope_export.parity.onnx_file.deployed import deploy
from rope_export.parity.onnx_file.facts import (
    FileFacts,
    cache_shapes,
    file_dtype,
    file_interface,
)
from rope_export.parity.onnx_file.file import OnnxFile
from rope_export.parity.onnx_file.greedy import RowGreedy
from rope_export.parity.onnx_file.int8 import rounds_to_int8, without_rounding
from rope_export.parity.onnx_file.names import Matched, match_decoder
from rope_export.parity.onnx_file.runner import FileRunner, start
from rope_export.parity.onnx_file.shared import SHARED, with_shared_buffers
from rope_export.parity.onnx_file.texts import Judged, file_texts, lines
from rope_export.parity.onnx_file.weights import fill
from rope_export.parity.report.result import Report
from rope_export.parity.rows import Row
from rope_export.parity.subject import Progress, Request, Streamed
from rope_export.parity.subjects.onnx_file_layer import FileLayerSubject
from rope_export.reading.models import quiet
from rope_export.sessions import Session

READ_BACK = "of the config; its weights are read from the file"

PROBED = 3
"""Tokens of the call that tells whether the file gives the logits of all of them."""


class FileSubject(Streamed):
    """Its reference and eager are transformers' model of the source.

    Raises: UnavailableError if the file's tensors cannot be matched.
    """

    def __init__(self, file: OnnxFile, request: Request) -> None:
        self.file, self.request = file, request
        self.path = str(request.source or request.spec)
        source = open_model(self.path, seed=request.seed, adapter=request.adapter)
        self.specs = [layer.spec for layer in source.layers]
        self.shapes = cache_shapes(self.specs)
        self.vocabulary, self.positions = _sizes(source)
        self.matched = match_decoder(file, self.shapes, dict(request.maps), self.vocabulary)
        self.dtype = file_dtype(file, self.matched)
        self.source = dict(source.layers[0].facts)
        self._rows: list[Row] = []
        self._quantization_error: dict[str, float] | None = None

    @property
    def interface(self) -> Interface:
        return self._facts(self.matched, "all").interface

    @property
    def runtimes(self) -> Sequence[str]:
        return ("onnxruntime",)

    @cached_property
    def judged(self) -> Judged:
        """The texts, and those that the file cannot take."""
        return file_texts(self.matched, self.specs, self.positions)

    def report(self) -> Report:
        reading = self._theirs.reading
        return Report(
            weights="unproven" if self.request.source is None else "proven",
            reading=reading,
            rows=list(self._rows),
            problems=list(_wrong_weights(self._rows)),
            quantization_error=self._quantization_error,
            not_visible=list(self.judged.hidden),
            left_out=[*lines(self.judged), *_unjudged(self.matched)],
        )

    def open(self, runtime: str) -> Session:
        inner = start(without_rounding(self.file), runtime)
        return self._session(FileRunner(inner, self.matched, self._heads), self.matched)

    def _session(self, runner: FileRunner, matched: Matched) -> Session:
        """Of a runner, after a call that tells whether it gives all logits or the last ones."""
        session = Session(self._facts(matched, "all"), runner)
        try:
            result = session.run(_probe(session.interface))
            if result["logits"].shape[1] == 1:
                session = Session(self._facts(matched, "last"), runner)
        except RopeExportError:  # told by the rows of every call
            pass
        return session

    def _with_shared_buffers(self, sessions: Mapping[str, Session]) -> dict[str, Session]:
        """Beside each session one of the same file whose caches are buffers that are written in
        place, where the file can do that."""
        shared = with_shared_buffers(self.file, self.matched)
        if shared is None:
            return dict(sessions)
        every = {}
        for name, session in sessions.items():
            every[name] = session
            if isinstance(session.runner, FileRunner):
                runner = FileRunner(session.runner.inner, shared, self._heads, shared=True)
                every[f"{name}, {SHARED}"] = self._session(runner, shared)
        return every

    @property
    def _heads(self) -> dict[str, Any]:
        return {name: shape[1] for name, shape in self.shapes.items()}

    def prove(
        self, sessions: Mapping[str, Session], report: Report, seed: int, progress: Progress
    ) -> None:
        if not sessions:
            return
        sessions = self._with_shared_buffers(sessions)
        theirs, first = self._theirs, next(iter(sessions.values()))
        last = first.interface.output("logits").shape[1] == 1
        decoder = file_decoder(sessions, self.dtype, len(self.specs), last=last)
        passages = [
            Passage(text, theirs, self.vocabulary, seed, decoder.interface)
            for text in chosen_texts(self.judged.texts, self.request.cases)
        ]
        prompts = drawn_prompts(self.vocabulary, seed)
        bounds = [x for x in (self.positions, self.matched.capacity) if x is not None]
        tokens = generated(self.specs, min(bounds, default=None), prompts)
        generating = self.matched.caches and generates(self.request.cases)
        greedy = RowGreedy(theirs, prompts, tokens) if generating else None
        verdicts = FileVerdicts(report, self.dtype, seed)
        FileProof(decoder, theirs, passages, greedy, verdicts).run(progress)
        report.problems = list(_together(report.problems))
        failed: set[str] = set()
        for runtime, session in sessions.items():
            progress(f"causes on {runtime}", 1.0)
            causes = Causes(theirs, session, last=last, vocabulary=self.vocabulary, seed=seed)
            causes.add(report, passages, runtime, known=failed)
            failed |= causes.failed
        for runtime in sessions if rounds_to_int8(self.file) else ():
            if SHARED not in runtime:
                report.left_out.append(self._as_it_is(runtime, passages, last=last))

    def record(self, evidence: Mapping[str, Any]) -> str | None:
        """Nothing is kept beside a file that is not ours."""
        return None

    def _as_it_is(self, runtime: str, passages: Sequence[Passage], *, last: bool) -> str:
        """What rounding activations to int8 does to the logits, in a sentence."""
        inner = start(self.file, runtime, exact=False)
        with self._session(FileRunner(inner, self.matched, self._heads), self.matched) as session:
            off = logits_error(session, passages, last=last)
        figures = ", ".join(f"{name} {x:.1e}" for name, x in off.items())
        return (
            f"on {runtime} the file as it is rounds activations to int8, for which the logits of a "
            f"whole decoder have no bounds: it was judged with accuracy_level 1. As it is, its "
            f"logits are off by {figures}."
        )

    def _facts(self, matched: Matched, logits: Literal["last", "all"]) -> FileFacts:
        return FileFacts(
            interface=file_interface(matched, self.shapes, self.vocabulary, logits),
            dtype=self.dtype,
            source=self.source,
            layers=tuple(range(len(self.specs))),
            vocabulary=self.vocabulary,
            logits=logits,
        )

    @cached_property
    def _theirs(self) -> Theirs:
        """Raises: UnavailableError if transformers' model cannot be had."""
        facts = self._facts(self.matched, "all")
        theirs, layers = their_model(facts, self.path, self.request.adapter), len(self.specs)
        from_source = self.request.source is not None
        if not from_source:
            fill(theirs.model, self.file, layers)
            theirs = replace(theirs, reading=replace(theirs.reading, reason=READ_BACK))
        with quiet():
            self._rows, self._quantization_error = deploy(
                theirs.model, self.file, layers, self.request.seed, from_source=from_source
            )
        return replace(theirs, widened=Widened(theirs.model.parameters()))


def _sizes(source: Model) -> tuple[int, int | None]:
    """Width of the logits, and the positions that the model was made for, if it does not go on."""
    config = config_of(source).get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    kinds = {getattr(layer.spec.rope, "rope_type", None) for layer in source.layers}
    return config.vocab_size, None if "dynamic" in kinds else positions


def _together(problems: Sequence[str]) -> Iterator[str]:
    """What went wrong in several texts for one reason, in one line."""
    texts: dict[str, list[str]] = {}
    for line in problems:
        text, _, reason = line.partition(" on ")
        texts.setdefault(reason, []).append(text)
    for reason, where in texts.items():
        yield f"{'; '.join(where)} on {reason}" if reason else where[0]


def _wrong_weights(rows: Sequence[Row]) -> Iterator[str]:
    wrong = [row.output for row in rows if row.status == "failed"]
    if wrong:
        yield (
            f"quantized weights of the file that are not the source's: {len(wrong)}, the first "
            f"{wrong[0]}."
        )


def _unjudged(matched: Matched) -> Iterator[str]:
    if matched.others:
        yield f"outputs that were not looked at: {', '.join(matched.others)}."
    if not matched.caches:
        yield "the file takes no cache: every text is read in one call, and none is generated."


def _probe(interface: Interface) -> dict[str, Any]:
    """The inputs of a first call."""
    ids = np.ones((1, PROBED), np.int64)
    sizes = {"batch": 1, "past": 0, "capacity": PROBED}
    inputs: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(ids.shape[1])[None],
        LENGTHS: np.zeros(1, np.int64),
    }
    inputs = {name: x for name, x in inputs.items() if name in {y.name for y in interface.inputs}}
    for pair in interface.caches:
        tensor = interface.input(pair.input)
        inputs[pair.input] = np.zeros(tensor.sized(sizes), numpy_dtype(tensor.dtype))
    return inputs


def fits(opened: object) -> bool:
    """Whether this file has the subject of what was opened."""
    return isinstance(opened, OnnxFile)


def make_subject(file: OnnxFile, request: Request) -> FileSubject | FileLayerSubject:
    """Raises: InputError without a source; UnavailableError if the file's tensors cannot be
    matched."""
    if (request.source is None) == (request.spec is None):
        raise InputError(
            f"{file.path}: is no artifact of ours, and does not tell what it should compute. Give "
            f"the checkpoint that it was made of as `source`, or its config alone as `spec`."
        )
    if request.layer is not None:
        return FileLayerSubject(file, request, request.layer)
    return FileSubject(file, request)
