"""The proof of a whole decoder in a file that somebody else made: from token to logit."""

from collections.abc import Mapping, Sequence

from rope_export.parity.decoder.greedy import Greedy, NoText
from rope_export.parity.decoder.passage import Passage
from rope_export.parity.decoder.proof import Decoder, Proof
from rope_export.parity.decoder.theirs import Theirs
from rope_export.parity.decoder.verdicts import Verdicts
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
    sessions: Mapping[str, Session], dtype: str, layers: int, *, last: bool
) -> Decoder:
    """The file as `Proof` takes it."""
    return Decoder(
        interface=next(iter(sessions.values())).interface,
        dtype=dtype,
        layers=layers,
        last=last,
        sessions=sessions,
        cutter=None,
        layer_sessions={},
    )
