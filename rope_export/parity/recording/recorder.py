"""Writes every call of a run into a .npz file: what went in, what each runtime made of it.

numpy reads it: `numpy.load(FILE)["1x7, past 0/inputs/hidden_states"]`. The names of arrays:
CASE/inputs/NAME, CASE/outputs/RUNTIME/NAME, and CASE/tolerances/NAME with what the error of a
runtime could be, by each metric in the order of `METRICS`.
"""

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from rope_export import paths
from rope_export.artifacts import swap
from rope_export.errors import InputError
from rope_export.parity.metrics import METRICS
from rope_export.version import VERSION

MARK = "rope_export.npy"
"""The first array of every such file, with the version that wrote it; without it a file is not
replaced."""

Arrays = Mapping[str, np.ndarray]


class Recorder:
    """Adds calls to an open archive, one after the other, so that none is kept in memory."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._add(MARK, np.array(VERSION))

    def add(
        self,
        case: str,
        inputs: Arrays,
        answers: Mapping[str, Arrays],
        tolerances: Mapping[str, Mapping[str, float]],
    ) -> None:
        """One call. answers: the outputs by name, by the runtime. tolerances: what the errors of a
        runtime may be, by output and metric."""
        for name, value in inputs.items():
            self._add(f"{case}/inputs/{name}.npy", value)
        for runtime, outputs in answers.items():
            for name, value in outputs.items():
                self._add(f"{case}/outputs/{runtime}/{name}.npy", value)
        for name, allowed in tolerances.items():
            values = np.array([allowed[metric] for metric in METRICS])
            self._add(f"{case}/tolerances/{name}.npy", values)

    def _add(self, name: str, value: np.ndarray) -> None:
        with self._archive.open(name, "w", force_zip64=True) as file:
            np.lib.format.write_array(file, np.ascontiguousarray(value), allow_pickle=False)


def check_recording(path: str | Path) -> Path:
    """The real place of a recording that is to be written.

    Raises: InputError and OSError where it cannot be.
    """
    if Path(path).suffix.lower() != ".npz":
        raise InputError(f"`record`={path}: its name ends in .npz.")
    return paths.file_target(path, "a recording", MARK.encode())


@contextmanager
def recording(place: Path) -> Iterator[Recorder]:
    """A recorder whose file takes its place as a whole once the block has ended."""
    with swap.writing(place) as new, zipfile.ZipFile(new, "x", zipfile.ZIP_STORED) as archive:
        yield Recorder(archive)
