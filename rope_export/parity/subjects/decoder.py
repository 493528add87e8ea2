"""A whole decoder as a subject: eager and the reference are transformers' own model."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from rope_export.artifacts import companions
from rope_export.artifacts.decoder import DecoderArtifact
from rope_export.artifacts.folder import Folder, model_hashes
from rope_export.checkpoints.stored import deployed
from rope_export.decoder.weights import DecoderWeights
from rope_export.errors import ArtifactError, UnavailableError
from rope_export.parity.decoder.cases import Text, not_visible, regular_texts
from rope_export.parity.decoder.cut import Cutter
from rope_export.parity.decoder.greedy import Greedy
from rope_export.parity.decoder.passage import Passage
from rope_export.parity.decoder.proof import Decoder, Proof
from rope_export.parity.decoder.running import layer_runner
from rope_export.parity.decoder.theirs import Theirs, source_of, their_model
from rope_export.parity.decoder.verdicts import Verdicts
from rope_export.parity.locate.decoder import DecoderLocator
from rope_export.parity.report.result import Report
from rope_export.parity.subject import Progress, Request, Streamed
from rope_export.parity.subjects.opening import open_on
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
            weights="proven",
            reading=theirs.reading,
            not_visible=list(not_visible(self.specs)),
            notes=list(self.artifact.warnings),
        )

    def open(self, runtime: str) -> Session:
        self._theirs  # noqa: B018, without which nothing is compared
        return open_on(self.opened, runtime)

    def prove(
        self, sessions: Mapping[str, Session], report: Report, seed: int, progress: Progress
    ) -> None:
        if not sessions:
            return
        facts, theirs = self.facts, self._theirs
        cutter = Cutter(self.artifact.read(), len(facts.layers))
        if cutter.missing is not None:
            report.left_out.append(f"layers were not judged one by one: {cutter.missing}.")
        locator = self._locator(theirs, cutter) if cutter.missing is None else None
        decoder = Decoder(
            interface=facts.interface,
            dtype=facts.dtype,
            layers=len(facts.layers),
            last=facts.logits == "last",
            sessions=sessions,
            cutter=cutter if cutter.missing is None else None,
            layer_sessions={
                name: run for name in sessions if (run := layer_runner(name)) is not None
            },
            locate=None if locator is None else locator.look,
        )
        passages = [
            Passage(text, theirs, facts.vocabulary, seed, facts.interface) for text in self.texts()
        ]
        greedy = Greedy(theirs, facts.vocabulary, seed)
        verdicts = Verdicts(report, facts.dtype, seed)
        Proof(decoder, theirs, passages, greedy, verdicts).run(progress)
        if locator is not None:
            report.located += tuple(found for _, found in locator.located.values())
            report.left_out += locator.notes

    def _locator(self, theirs: Theirs, cutter: Cutter) -> DecoderLocator:
        """What looks for the first wrong tensor."""
        facts = self.facts
        specs = {at: self.specs[x] for at, x in enumerate(facts.layers) if x is not None}

        def weights(layer: int) -> dict[str, Tensor]:
            path, adapter = (self._where(name) for name in ("source", "adapter"))
            source = source_of(facts, str(path), adapter)
            opened = DecoderWeights(theirs.model, source, cast(DType, facts.dtype)).layer(layer)
            return deployed(opened.weights(), opened.integers(), facts.quantization)

        return DecoderLocator(theirs, cutter, facts.interface, specs, weights, facts.dtype)

    def texts(self) -> Iterable[Text]:
        """The texts that it is judged on."""
        return regular_texts(self.specs, self.facts.cache, self.facts.positions)

    def record(self, evidence: Mapping[str, Any]) -> str | None:
        return self.artifact.record(parity={**evidence, "files": model_hashes(self.artifact)})

    @cached_property
    def _theirs(self) -> Theirs:
        """Raises: UnavailableError if transformers' model cannot be had."""
        path, adapter = (self._where(name) for name in ("source", "adapter"))
        source = self.facts.source
        if path is None or ("adapter" in source and adapter is None):
            raise UnavailableError("the source is gone; give it with `source`")
        return their_model(self.facts, path, adapter)

    def _where(self, name: str) -> str | None:
        """Where the source or its adapter is now, if it is still there."""
        requested: str | None = getattr(self.request, name)
        if requested is not None:
            return requested
        path = self.artifact.evidence.get(name)
        return path if path is not None and Path(path).exists() else None


def fits(opened: Folder) -> bool:
    """Whether this file has the subject of what was opened."""
    return isinstance(opened, DecoderArtifact)


make_subject = DecoderSubject
