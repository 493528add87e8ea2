"""A whole decoder in an ONNX file that somebody else made, as a subject."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from rope_export.checkpoints import Model, open_model
from rope_export.decoder.source import config_of
from rope_export.errors import InputError, RopeExportError
from rope_export.interface import Interface
from rope_export.parity.decoder.cases import chosen_texts, generates
from rope_export.parity.decoder.exact import Widened
from rope_export.parity.decoder.passage import Passage
from rope_export.parity.decoder.prompts import drawn_prompts, generated
from rope_export.parity.decoder.theirs import Theirs, their_model
from rope_export.parity.onnx_file.causes import Causes
from rope_export.parity.onnx_file.decoder import FileProof, FileVerdicts, file_decoder
from rope_export.parity.onnx_file.facts import (
    FileFacts,
    cache_shapes,
    file_dtype,
    file_interface,
)
from rope_export.parity.onnx_file.file import OnnxFile
from rope_export.parity.onnx_file.greedy import RowGreedy
from rope_export.parity.onnx_file.names import Matched, match_decoder
from rope_export.parity.onnx_file.runner import FileRunner, start
from rope_export.parity.onnx_file.texts import Judged, file_texts, lines
from rope_export.parity.onnx_file.weights import fill
from rope_export.parity.report.result import Report
from rope_export.parity.subject import Progress, Request, Streamed
from rope_export.parity.subjects.onnx_file_layer import FileLayerSubject
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

    @property
    def interface(self) -> Interface:
        return self._facts("all").interface

    @property
    def runtimes(self) -> Sequence[str]:
        return ("onnxruntime",)

    @cached_property
    def judged(self) -> Judged:
        """The texts, and those that the file cannot take."""
        return file_texts(self.matched, self.specs, self.positions)

    def report(self) -> Report:
        return Report(
            weights="unproven" if self.request.source is None else "proven",
            reading=self._theirs.reading,
            not_visible=list(self.judged.hidden),
            left_out=[*lines(self.judged), *_unjudged(self.matched)],
        )

    def open(self, runtime: str) -> Session:
        inner = start(self.file, runtime)
        heads = {name: shape[1] for name, shape in self.shapes.items()}
        runner = FileRunner(inner, self.matched, heads)
        facts = self._facts("all")
        try:
            ids = np.ones((1, PROBED), np.int64)
            probed = _probe(facts, ids)
            result = runner.run(probed, {"batch": 1, "past": 0, "sequence": PROBED}, {})
            if result["logits"].shape[1] == 1:
                facts = self._facts("last")
        except RopeExportError:  # told by the rows of every call
            pass
        return Session(facts, runner)

    def prove(
        self, sessions: Mapping[str, Session], report: Report, seed: int, progress: Progress
    ) -> None:
        if not sessions:
            return
        theirs, first = self._theirs, next(iter(sessions.values()))
        last = first.interface.output("logits").shape[1] == 1
        decoder = file_decoder(sessions, self.dtype, len(self.specs), last=last)
        passages = [
            Passage(text, theirs, self.vocabulary, seed, decoder.interface)
            for text in chosen_texts(self.judged.texts, self.request.cases)
        ]
        prompts = drawn_prompts(self.vocabulary, seed)
        tokens = generated(self.specs, self.positions, prompts)
        generating = self.matched.caches and generates(self.request.cases)
        greedy = RowGreedy(theirs, prompts, tokens) if generating else None
        verdicts = FileVerdicts(report, self.dtype, seed)
        FileProof(decoder, theirs, passages, greedy, verdicts).run(progress)
        report.problems = list(_together(report.problems))
        for runtime, session in sessions.items():
            progress(f"causes on {runtime}", 1.0)
            causes = Causes(theirs, session, last=last, vocabulary=self.vocabulary, seed=seed)
            causes.add(report, passages, runtime)

    def record(self, evidence: Mapping[str, Any]) -> str | None:
        """Nothing is kept beside a file that is not ours."""
        return None

    def _facts(self, logits: Literal["last", "all"]) -> FileFacts:
        return FileFacts(
            interface=file_interface(self.matched, self.shapes, self.vocabulary, logits),
            dtype=self.dtype,
            source=self.source,
            layers=tuple(range(len(self.specs))),
            vocabulary=self.vocabulary,
            logits=logits,
        )

    @cached_property
    def _theirs(self) -> Theirs:
        """Raises: UnavailableError if transformers' model cannot be had."""
        theirs = their_model(self._facts("all"), self.path, self.request.adapter)
        if self.request.source is None:
            fill(theirs.model, self.file, len(self.specs))
            reading = replace(theirs.reading, reason=READ_BACK)
            return replace(theirs, reading=reading, widened=Widened(theirs.model.parameters()))
        return theirs


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


def _unjudged(matched: Matched) -> Iterator[str]:
    if matched.others:
        yield f"outputs that were not looked at: {', '.join(matched.others)}."
    if not matched.caches:
        yield "the file takes no cache: every text is read in one call, and none is generated."


def _probe(facts: FileFacts, ids: np.ndarray) -> dict[str, Any]:
    """The inputs of a first call."""
    sizes = {"batch": 1, "past": 0}
    inputs: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(ids.shape[1])[None],
    }
    for pair in facts.interface.caches:
        tensor = facts.interface.input(pair.input)
        inputs[pair.input] = np.zeros(tensor.sized(sizes), np.dtype(tensor.dtype))
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
