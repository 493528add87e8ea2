"""A whole decoder in an ONNX file that somebody else made, as a subject."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

from rope_export.checkpoints import Model, open_model
from rope_export.decoder.source import config_of
from rope_export.errors import InputError
from rope_export.interface import Interface
from rope_export.parity.decoder.cases import chosen_texts, generates
from rope_export.parity.decoder.exact import Widened
from rope_export.parity.decoder.passage import Passage
from rope_export.parity.decoder.prompts import drawn_prompts, generated
from rope_export.parity.decoder.recorded import replayed_texts
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
from rope_export.parity.onnx_file.opened import decoder_beside, probed
from rope_export.parity.onnx_file.runner import FileRunner, start
from rope_export.parity.onnx_file.shared import SHARED, with_shared_buffers
from rope_export.parity.onnx_file.texts import Judged, file_texts, lines
from rope_export.parity.onnx_file.weights import fill
from rope_export.parity.report.result import Report
from rope_export.parity.rows import Row
from rope_export.parity.subject import Progress, Record, Request, Side, Streamed
from rope_export.parity.subjects.onnx_file_layer import FileLayerSubject
from rope_export.reading.models import quiet
from rope_export.sessions import Session

READ_BACK = "of the config; its weights are read from the file"


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
        self._last = False  # told by the first session

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
        inner = start(without_rounding(self.file), runtime, self.request.threads)
        session = self._session(FileRunner(inner, self.matched, self._heads), self.matched)
        self._last = session.interface.output("logits").shape[1] == 1
        return session

    def beside(self, file: OnnxFile, runtime: str) -> Session:
        return decoder_beside(file, self.specs, self.vocabulary, {}, runtime, last=self._last)

    def _session(self, runner: FileRunner, matched: Matched) -> Session:
        """Of a runner, after a call that tells whether it gives all logits or the last ones."""
        return probed(runner, lambda logits: self._facts(matched, logits))

    def _with_shared_buffers(self, sessions: Mapping[str, Session]) -> dict[str, Session]:
        """Beside each session one of the same file whose caches are buffers that are written in
        place, where the file can do that."""
        shared = with_shared_buffers(self.file, self.matched)
        if shared is None:
            return dict(sessions)
        every: dict[str, Session] = {}
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
        self,
        sessions: Mapping[str, Side],
        report: Report,
        seed: int,
        progress: Progress,
        *,
        against: Sequence[str] = (),
        record: Record | None = None,
    ) -> None:
        if not sessions:
            return
        ours = {
            name: session
            for name, session in sessions.items()
            if name not in against and isinstance(session, Session)
        }
        own = self._with_shared_buffers(ours)
        sessions = {**own, **sessions}
        theirs, last = self._theirs, self._last
        decoder = file_decoder(
            self._facts(self.matched, "last" if last else "all").interface,
            sessions,
            self.dtype,
            len(self.specs),
            last=last,
            against=against,
            record=record,
        )
        recorded = replayed_texts(self.request, self.interface, self.vocabulary, report)
        passages = [
            Passage(text, theirs, self.vocabulary, seed, decoder.interface)
            for text in chosen_texts(recorded or self.judged.texts, self.request.cases)
        ]
        if not passages:
            return  # its inputs take none of them
        prompts = drawn_prompts(self.vocabulary, seed)
        bounds = [x for x in (self.positions, self.matched.capacity) if x is not None]
        tokens = generated(self.specs, min(bounds, default=None), prompts)
        generating = self.matched.caches and recorded is None and generates(self.request.cases)
        greedy = RowGreedy(theirs, prompts, tokens) if generating else None
        verdicts = FileVerdicts(report, self.dtype, seed)
        FileProof(decoder, theirs, passages, greedy, verdicts).run(progress)
        report.problems = list(_together(report.problems))
        failed: set[str] = set()
        for runtime, session in own.items() if recorded is None else ():
            progress(f"causes on {runtime}", 1.0)
            causes = Causes(theirs, session, last=last, vocabulary=self.vocabulary, seed=seed)
            causes.add(report, passages, runtime, known=failed)
            failed |= causes.failed
        for runtime in own if rounds_to_int8(self.file) else ():
            if SHARED not in runtime:
                report.left_out.append(self._as_it_is(runtime, passages, last=last))

    def record(self, evidence: Mapping[str, Any]) -> str | None:
        """Nothing is kept beside a file that is not ours."""
        return None

    def _as_it_is(self, runtime: str, passages: Sequence[Passage], *, last: bool) -> str:
        """What rounding activations to int8 does to the logits, in a sentence."""
        inner = start(self.file, runtime, self.request.threads, exact=False)
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
    wrong = list(dict.fromkeys(row.output for row in rows if row.status == "failed"))
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
