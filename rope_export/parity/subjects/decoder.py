"""A whole decoder as a subject: eager and the reference are transformers' own model."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

from torch import Tensor

from rope_export.artifacts import companions
from rope_export.artifacts.decoder import DecoderArtifact
from rope_export.artifacts.folder import Folder, model_hashes
from rope_export.checkpoints.stored import deployed
from rope_export.decoder.weights import DecoderWeights
from rope_export.errors import ArtifactError, InputError, UnavailableError
from rope_export.interface import Interface
from rope_export.parity.decoder.cases import (
    Text,
    chosen_texts,
    generates,
    not_visible,
    regular_texts,
)
from rope_export.parity.decoder.cut import Cutter
from rope_export.parity.decoder.greedy import Greedy, NoText
from rope_export.parity.decoder.passage import Passage
from rope_export.parity.decoder.prompts import drawn_prompts, generated, text_prompts
from rope_export.parity.decoder.proof import Decoder, Proof
from rope_export.parity.decoder.read_back import weight_rows
from rope_export.parity.decoder.recorded import RecordedText, replayed_texts
from rope_export.parity.decoder.running import layer_runner
from rope_export.parity.decoder.theirs import Theirs, their_model, their_model_of_file
from rope_export.parity.decoder.verdicts import Verdicts
from rope_export.parity.locate.decoder import DecoderLocator
from rope_export.parity.locate.outer import OuterLocator
from rope_export.parity.onnx_file.file import OnnxFile
from rope_export.parity.onnx_file.opened import decoder_beside
from rope_export.parity.report.result import Report
from rope_export.parity.sessions import open_on
from rope_export.parity.subject import Progress, Record, Request, Side, Streamed
from rope_export.parity.subjects.opening import origin_path
from rope_export.reading.models import quiet
from rope_export.reading.verdict import Reading
from rope_export.sessions import Session
from rope_export.spec import AttentionSpec, DType

TOKENIZER = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges")
"""How the names of a tokenizer's files begin."""


class DecoderSubject(Streamed):
    """One exported decoder. opened: the folder whose sessions are judged.

    Raises: ArtifactError if a file of its tokenizer was changed: what it makes of a text is then
        not what was exported.
    """

    def __init__(self, artifact: DecoderArtifact, request: Request) -> None:
        for name in companions.changed(artifact.path, artifact.companions):
            if name.startswith(TOKENIZER):
                raise ArtifactError(
                    f"{artifact.path / name}: was changed since the export, and a tokenizer is "
                    f"part of what is proven. Put it back, or export again."
                )
        self.artifact, self.request, self.facts = artifact, request, artifact.facts
        self.opened: Folder = artifact
        self.specs = [AttentionSpec.from_json(spec) for spec in self.facts.specs]

    @property
    def interface(self) -> Interface:
        return self.facts.interface

    @property
    def runtimes(self) -> Sequence[str]:
        return self.facts.runtimes

    def report(self) -> Report:
        try:
            theirs = self._theirs
        except UnavailableError as error:
            return Report(
                weights="unproven",
                reading=Reading(status="unproven", reason=str(error)),
            )
        return Report(
            weights="unproven" if self._source is None else "proven",
            reading=theirs.reading,
            not_visible=list(not_visible(self.specs, self.facts)),
            notes=list(self.artifact.warnings),
        )

    def open(self, runtime: str) -> Session:
        self._theirs  # noqa: B018, without which nothing is compared
        return open_on(self.opened, runtime, self.request.threads)

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
        facts, theirs = self.facts, self._theirs
        self._compare_weights(report, seed)
        cutter = Cutter(self.artifact.read(), len(facts.layers))
        if cutter.missing is not None:
            report.left_out.append(f"layers were not judged one by one: {cutter.missing}.")
        locator = self._locator(theirs, cutter) if cutter.missing is None else None
        outer = None if locator is None else OuterLocator(locator, last=facts.logits == "last")
        threads = self.request.threads
        runs = {name: x for name in sessions if (x := layer_runner(name, threads)) is not None}
        whole = [name for name in sessions if name not in runs]
        if whole and cutter.missing is None:
            report.left_out.append(f"layers were not judged one by one on {', '.join(whole)}.")
        decoder = Decoder(
            interface=facts.interface,
            dtype=facts.dtype,
            layers=len(facts.layers),
            last=facts.logits == "last",
            sessions=sessions,
            cutter=cutter if cutter.missing is None else None,
            layer_sessions=runs,
            locate=None if locator is None else locator.look,
            locate_outer=None if outer is None else outer.look,
            against=against,
            record=record,
        )
        recorded = self._recorded(report)
        passages = [
            Passage(text, theirs, facts.vocabulary, seed, facts.interface)
            for text in chosen_texts(recorded or self.texts(), self.request.cases)
        ]
        greedy: Greedy = NoText()
        if recorded is None and generates(self.request.cases):
            prompts = self._prompts(report, seed)
            greedy = Greedy(theirs, prompts, generated(self.specs, facts.positions, prompts))
        verdicts = Verdicts(report, facts.dtype, seed)
        Proof(decoder, theirs, passages, greedy, verdicts).run(progress)
        if locator is not None:
            report.located += tuple(found for _, found in locator.located.values())
            report.left_out += locator.notes

    def _recorded(self, report: Report) -> list[RecordedText] | None:
        """The texts of the calls that are replayed, if some are."""
        return replayed_texts(self.request, self.interface, self.facts.vocabulary, report)

    def _locator(self, theirs: Theirs, cutter: Cutter) -> DecoderLocator:
        """What looks for the first wrong tensor."""
        facts = self.facts
        specs = {at: self.specs[x] for at, x in enumerate(facts.layers) if x is not None}

        def weights(layer: int) -> dict[str, Tensor]:
            if theirs.source is None:
                assert theirs.read_back is not None
                return theirs.read_back.attention(layer)
            weights = DecoderWeights(theirs.model, theirs.source, cast(DType, facts.dtype))
            opened = weights.layer(layer)
            return deployed(opened.weights(), opened.integers(), facts.quantization)

        dtype, threads = facts.dtype, self.request.threads
        return DecoderLocator(theirs, cutter, facts.interface, specs, weights, dtype, threads)

    def _compare_weights(self, report: Report, seed: int) -> None:
        """The file's weights with the source's, bit for bit, where there is a source."""
        theirs = self._theirs
        if theirs.source is None:
            return
        try:
            with quiet():
                rows = weight_rows(self.artifact, theirs.source, theirs.model, seed)
        except InputError as error:
            report.left_out.append(f"weights were not compared bit for bit: {error}")
            return
        report.rows += rows
        wrong = [row.output for row in rows if row.status == "failed"]
        if wrong:
            report.problems.append(
                f"weights of the file that are not the source's: {len(wrong)}, the first "
                f"{wrong[0]}."
            )

    def _prompts(self, report: Report, seed: int) -> Sequence[Sequence[int]]:
        """Of the greedy text: real ones where there is a tokenizer."""
        vocabulary = self.facts.vocabulary
        prompts, reason = text_prompts(self.artifact.path, vocabulary)
        if reason:
            report.left_out.append(f"the greedy text goes on from drawn tokens: {reason}.")
        return drawn_prompts(vocabulary, seed) if prompts is None else prompts

    def texts(self) -> Iterable[Text]:
        """The texts that it is judged on."""
        return regular_texts(self.specs, self.facts)

    def beside(self, file: OnnxFile, runtime: str) -> Session:
        layers = [self.specs[at] for at in self.facts.layers if at is not None]
        if len(layers) < len(self.facts.layers):
            raise InputError(
                f"`against`={file.path}: the artifact has layers that do not attend, of which "
                f"files of others are not judged."
            )
        return decoder_beside(
            file,
            layers,
            self.facts.vocabulary,
            dict(self.request.maps),
            runtime,
            last=self.facts.logits == "last",
        )

    def record(self, evidence: Mapping[str, Any]) -> str | None:
        if self.request.replay is not None:
            return None  # evidence is about whole runs
        return self.artifact.record(parity={**evidence, "files": model_hashes(self.artifact)})

    @cached_property
    def _theirs(self) -> Theirs:
        """Raises: UnavailableError if transformers' model cannot be had."""
        if self._source is None:
            return their_model_of_file(self.artifact)
        path, adapter = self._source
        return their_model(self.facts, path, adapter)

    @cached_property
    def _source(self) -> tuple[str, str | None] | None:
        """Where the source is and the adapter that was merged into it; none if one is gone."""
        path, adapter = (origin_path(x, self.request, self.artifact) for x in ("source", "adapter"))
        if path is None or ("adapter" in self.facts.source and adapter is None):
            return None
        return path, adapter


def fits(opened: Folder) -> bool:
    """Whether this file has the subject of what was opened."""
    return isinstance(opened, DecoderArtifact)


make_subject = DecoderSubject
