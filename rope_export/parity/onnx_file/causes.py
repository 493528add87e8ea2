"""Why a file is wrong: what, if it were done to the reference, would give what the file gives."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch

from rope_export.arrays import numpy_dtype, to_numpy
from rope_export.errors import RopeExportError
from rope_export.interface import LENGTHS
from rope_export.parity.decoder.calls import Calls
from rope_export.parity.decoder.passage import Passage
from rope_export.parity.decoder.theirs import Theirs
from rope_export.parity.metrics import METRICS, errors
from rope_export.parity.onnx_file.altered import Alteration, alterations
from rope_export.parity.report.result import Report
from rope_export.parity.rows import CALLS_FAILED, Row
from rope_export.sessions import Session

BOTH = 2.0
"""Tolerances that a row alone may be off by: it is another call than the text's, whose roundings
the text's tolerance does not know."""

Answers = list[np.ndarray]
"""The logits of each call of a text, (rows, sequence, vocabulary), in float64."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Failure:
    """A text whose logits failed on a runtime. tolerances: of each call by metric. first: the
    first call that failed. answers: of the file, up to that call."""

    passage: Passage
    tolerances: Sequence[Mapping[str, float]]
    first: int
    answers: Answers


class Causes:
    """Looks for what explains the texts that failed on one runtime.

    A cause explains a text if the file's logits are within the tolerance of the altered reference,
    in every call up to the first that failed: what follows builds upon a wrong cache.

    failed: the names of those texts.
    """

    def __init__(self, theirs: Theirs, session: Session, *, last: bool, vocabulary: int, seed: int):
        self.theirs, self.session, self.last = theirs, session, last
        self.vocabulary, self.seed = vocabulary, seed
        self.interface = session.interface
        self._altered: dict[str, Theirs] = {}
        self.failed: set[str] = set()

    def add(
        self, report: Report, passages: Sequence[Passage], runtime: str, known: Collection[str] = ()
    ) -> None:
        """Write the causes of every text that failed into the report, and a line for each.

        known: texts that failed elsewhere too, so that their causes were looked for already.
        """
        causes: dict[tuple[str, str], list[str]] = defaultdict(list)
        for passage in passages:
            if passage.text.name in known:
                continue
            failure = self._failure(report, passage, runtime)
            if failure is None:
                continue
            self.failed.add(passage.text.name)
            for both in self._explained(failure):
                causes[both].append(passage.text.name)
        for (cause, fault), texts in causes.items():
            report.causes.append(
                {"runtime": runtime, "cause": cause, "fault": fault, "texts": ", ".join(texts)}
            )
            line = f"cause on {runtime}: {cause}, {fault}: {', '.join(texts)}."
            report.problems.append(line)

    def _failure(self, report: Report, passage: Passage, runtime: str) -> Failure | None:
        """What failed of a text, if its logits did."""
        tolerances: list[dict[str, float]] = []
        first = None
        for call in range(len(passage.text.counts)):
            rows = {
                row.metric: row
                for row in report.rows
                if (row.case, row.runtime, row.output) == (passage.case(call), runtime, "logits")
            }
            if not rows.keys() >= set(METRICS):
                break
            tolerances.append({name: rows[name].tolerance for name in METRICS})
            if first is None and any(_failed(x) for x in rows.values()):
                first = call
        if first is None:
            return None
        answers = self._answers(passage)[: first + 1]
        return Failure(passage=passage, tolerances=tolerances, first=first, answers=answers)

    def _answers(self, passage: Passage) -> Answers:
        calls = Calls(self.session, passage)
        answers: Answers = []
        for call in range(len(passage.text.counts)):
            try:
                answers.append(calls.run(call)[1]["logits"].astype(np.float64))
            except RopeExportError:
                break
        return answers

    def _explained(self, failure: Failure) -> Iterator[tuple[str, str]]:
        """The causes of one failure, with the fault in words."""
        passage = failure.passage
        if passage.text.rows > 1:
            alone = self._alone(passage, failure.first)
            if alone is not None and not self._near(failure, failure.answers, alone):
                if passage.text.left:
                    yield "padding", "a row is another one without the padding before it"
                else:
                    yield "batch", "a row is another one when it is alone"
                exact = passage.logits("exact", self.last)
                if self._near(failure, alone, exact, times=BOTH):
                    return
                failure = Failure(passage=passage, tolerances=failure.tolerances,
                                  first=failure.first, answers=alone)  # fmt: skip
        for several in self._candidates():
            answers = self._exact(passage, several)
            if answers is not None and self._near(failure, failure.answers, answers):
                yield from ((x.cause, x.fault) for x in several)
                return
        yield "unknown", "no altered reference explains it"

    def _candidates(self) -> Iterator[tuple[Alteration, ...]]:
        """Each alteration, then two of different causes together."""
        every = list(alterations(self.theirs))
        yield from ((x,) for x in every)
        for pair in combinations(every, 2):
            if pair[0].cause != pair[1].cause:
                yield pair

    def _theirs(self, several: tuple[Alteration, ...]) -> Theirs | None:
        """The reference with all of them; none if transformers cannot make it."""
        key = "; ".join(x.fault for x in several)
        if key not in self._altered:
            theirs = self.theirs
            try:
                for one in several:
                    again = next(x for x in alterations(theirs) if x.fault == one.fault)
                    theirs = again.theirs(theirs)
            except Exception:  # transformers' own code may raise anything on such a config
                return None
            self._altered[key] = theirs
        return self._altered[key]

    def _exact(self, passage: Passage, several: tuple[Alteration, ...]) -> Answers | None:
        """The logits of an altered reference in float64; none if there is no such reference, or it
        cannot read the text."""
        theirs = self._theirs(several)
        if theirs is None:
            return None
        other = Passage(passage.text, theirs, self.vocabulary, self.seed, self.interface)
        for group in other.groups:
            walk = group.exact
            try:
                walk.start()
                while walk.call is not None:
                    call = walk.call
                    with torch.no_grad(), walk.mode():
                        output = theirs.layers[call.layer](*call.args, **call.kwargs)
                    walk.go_on(output)
                    theirs.widened.forget()  # or every altered model keeps its weights in float64
            except Exception:  # as where it is made
                return None
            finally:
                walk.stop()
        return other.logits("exact", self.last)

    def _near(
        self, failure: Failure, values: Answers, others: Answers, *, times: float = 1.0
    ) -> bool:
        """Whether two answers are within so many times the tolerance of one another where they are
        judged."""
        passage = failure.passage
        for call, (value, other) in enumerate(zip(values, others, strict=False)):
            if call > failure.first:
                break
            new = passage.new(call)
            judged = new.any(axis=1, keepdims=True) if self.last else new
            if value.shape != other.shape:
                return False
            a, b = value[judged], other[judged]
            unit = np.linalg.norm(b, axis=-1, keepdims=True)
            found = errors((a - b) / unit, b / unit)
            if not all(found[x] <= times * failure.tolerances[call][x] for x in METRICS):
                return False
        return True

    def _alone(self, passage: Passage, last_call: int) -> Answers | None:
        """Each row as a batch of its own, without the padding before it, laid out as in the text.

        None if the file cannot run it."""
        text = passage.text
        rows: list[list[np.ndarray]] = []
        try:
            for row in range(text.rows):
                rows.append(self._row(passage, row, last_call))
        except RopeExportError:
            return None
        return [np.concatenate([x[call] for x in rows]) for call in range(last_call + 1)]

    def _row(self, passage: Passage, row: int, last_call: int) -> list[np.ndarray]:
        text, interface = passage.text, self.interface
        left = (text.left or (0,) * text.rows)[row]
        sizes = {"batch": 1, "past": 0, "capacity": text.capacity}
        caches: dict[str, Any] = {}
        for pair in interface.caches:
            tensor = interface.input(pair.input)
            caches[pair.input] = np.zeros(tensor.sized(sizes), numpy_dtype(tensor.dtype))
        answers = []
        for call in range(last_call + 1):
            start, end = (int(x[row]) for x in passage.bounds(call))
            start = max(start, left)
            inputs: dict[str, Any] = {
                "input_ids": passage.ids[row : row + 1, start:end],
                "position_ids": passage.positions[row : row + 1, start:end],
                "attention_mask": self._mask(end - left, text.capacity),
                LENGTHS: np.array([start - left]),
            }
            names = {x.name for x in interface.inputs}
            inputs = {k: np.ascontiguousarray(v) for k, v in inputs.items() if k in names}
            outputs = self.session.run({**inputs, **caches})
            caches = {pair.input: outputs[pair.output] for pair in interface.caches}
            logits = to_numpy(outputs["logits"]).astype(np.float64)
            if not self.last:
                starts, ends = passage.bounds(call)
                before = start - int(starts[row])
                after = int((ends - starts).max()) - before - (end - start)
                logits = np.pad(logits, ((0, 0), (before, after), (0, 0)))
            answers.append(logits)
        return answers

    def _mask(self, tokens: int, capacity: int) -> np.ndarray:
        """Of a row without padding, (1, slots)."""
        mask = np.ones((1, tokens), np.int64)
        name = self.interface.mask
        if name is not None and self.interface.input(name).shape[1] == "capacity":
            return np.pad(mask, ((0, 0), (0, capacity - tokens)))
        return mask


def _failed(row: Row) -> bool:
    return row.status == "failed" and row.metric != CALLS_FAILED
