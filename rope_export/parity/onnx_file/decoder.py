"""The proof of a whole decoder in a file that somebody else made: from token to logit."""

from collections.abc import Mapping, Sequence

import numpy as np

from rope_export.errors import RopeExportError
from rope_export.interface import Interface
from rope_export.parity.decoder.calls import Calls
from rope_export.parity.decoder.greedy import Greedy, NoText
from rope_export.parity.decoder.passage import Passage
from rope_export.parity.decoder.proof import Decoder, Proof
from rope_export.parity.decoder.theirs import Theirs
from rope_export.parity.decoder.verdicts import Verdicts
from rope_export.parity.metrics import errors
from rope_export.parity.subject import Record, Side
from rope_export.sessions import Session


class FileVerdicts(Verdicts):
    """No layer of the file is judged alone, so none is the first that is wrong."""

    def finish(self) -> None:
        """Nothing is known beyond the rows; causes are looked for afterwards."""


class FileProof(Proof):
    """The layers of the reference tell what rounding may do; of the file only logits, caches and
    text are judged."""

    def __init__(
        self,
        decoder: Decoder,
        theirs: Theirs,
        passages: Sequence[Passage],
        greedy: Greedy | None,
        verdicts: FileVerdicts,
    ) -> None:
        super().__init__(decoder, theirs, passages, greedy or NoText(), verdicts)


def file_decoder(
    interface: Interface,
    sessions: Mapping[str, Side],
    dtype: str,
    layers: int,
    *,
    last: bool,
    against: Sequence[str] = (),
    record: Record | None = None,
) -> Decoder:
    """The file as `Proof` takes it."""
    return Decoder(
        interface=interface,
        dtype=dtype,
        layers=layers,
        last=last,
        sessions=sessions,
        cutter=None,
        layer_sessions={},
        against=against,
        record=record,
    )


def logits_error(session: Session, passages: Sequence[Passage], *, last: bool) -> dict[str, float]:
    """How far a session's logits are from the reference's, at most, by metric; calls that fail are
    left out."""
    largest: dict[str, float] = {}
    for passage in passages:
        calls = Calls(session, passage)
        for call, exact in enumerate(passage.logits("exact", last)):
            try:
                value = calls.run(call)[1]["logits"].astype(np.float64)
            except RopeExportError:
                break
            new = passage.new(call)
            judged = new.any(axis=1, keepdims=True) if last else new
            for name, error in errors((value - exact)[judged], exact[judged]).items():
                largest[name] = max(largest.get(name, 0.0), error)
    return largest
