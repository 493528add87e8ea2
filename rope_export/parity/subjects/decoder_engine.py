"""A TensorRT engine of a whole decoder as a subject: its model, at its own corners too."""

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

from rope_export.artifacts.decoder import DecoderArtifact
from rope_export.artifacts.folder import model_hashes
from rope_export.engines.plan import Engine
from rope_export.parity.decoder.cases import Text
from rope_export.parity.engine.corners import corner_texts
from rope_export.parity.engine.numbers import compared_numbers, structure_rows
from rope_export.parity.report.result import Report
from rope_export.parity.subject import Progress, Record, Request, Side
from rope_export.parity.subjects.decoder import DecoderSubject

AFFORDABLE = 2**23
"""Numbers of one call that are compared unless asked for more: of its logits, or of the scores of
one layer, of which the float64 reference and its bounds hold several copies. Sixteen times as many
may be cached, which are only kept."""

CACHED = 16


class DecoderEngineSubject(DecoderSubject):
    """Its reference and eager are the model's."""

    def __init__(self, engine: Engine, artifact: DecoderArtifact, request: Request) -> None:
        super().__init__(artifact, request)
        self.opened = self.engine = engine
        texts = corner_texts(engine.facts.profiles)
        self.corners = [x for x in texts if request.large or self._numbers(x) <= AFFORDABLE]
        self.left_out = [
            f"{text.name} of profile {profile} was not compared: its {self._numbers(text):.1e} "
            f"numbers are more than {AFFORDABLE:.1e}; add `large`."
            for text, profile in texts.items()
            if text not in self.corners
        ]

    @property
    def runtimes(self) -> Sequence[str]:
        return self.engine.runtimes

    def report(self) -> Report:
        report = super().report()
        report.left_out += self.left_out
        report.rows += structure_rows(self.engine, self.request.seed)
        return report

    def texts(self) -> Iterable[Text]:
        return [*super().texts(), *self.corners]

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
        super().prove(sessions, report, seed, progress, against=against, record=record)
        if not self.request.cases and self.request.replay is None:
            report.numbers = compared_numbers(self.engine, report)

    def record(self, evidence: Mapping[str, Any]) -> str | None:
        if self.request.replay is not None:
            return None
        return self.engine.record(parity={**evidence, "files": model_hashes(self.engine)})

    def _numbers(self, text: Text) -> int:
        """What the reference holds of one call, in numbers."""
        tokens, interface = text.rows * max(text.counts[0]), self.facts.interface
        scores = max(spec.heads for spec in self.specs) * tokens * text.total
        tensors = (interface.input(pair.input) for pair in interface.caches)
        sizes = {"batch": text.rows, "past": text.total, "capacity": text.total}
        cached = sum(prod(tensor.sized(sizes)) for tensor in tensors)
        return max(scores, tokens * self.facts.vocabulary, cached // CACHED)
