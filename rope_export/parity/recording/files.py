"""Reads recorded calls: our own .npz files, plain ones, and Polygraphy's JSON."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rope_export import paths
from rope_export.arrays import dtype_name, numpy_dtype
from rope_export.errors import InputError
from rope_export.interface import Interface, TensorType
from rope_export.parity.metrics import METRICS
from rope_export.parity.recording import polygraphy_json
from rope_export.parity.recording.recorder import MARK

SUFFIXES = (".npz", ".json")

PLAIN = "recorded call"
"""What the one call of a plain .npz is called."""

RECORDED = "recorded"
"""The runtime of outputs whose file does not name it."""

NUMBERS = "fiub"
"""Kinds of dtypes, beside bfloat16, that arrays have."""

Arrays = dict[str, np.ndarray]


def is_recording(path: str | Path) -> bool:
    """Whether a path is that of a file with recorded calls, by its name."""
    return Path(path).suffix.lower() in SUFFIXES and not Path(path).is_dir()


class Recording:
    """The calls of one file.

    interface: of what is called; a plain file needs it, to tell inputs from outputs. cases: the
    names of the calls. runtimes: that have outputs.
    Raises: InputError for what is no such file; UnavailableError where Polygraphy is missing.
    """

    def __init__(self, path: str | Path, interface: Interface | None = None) -> None:
        self.path, self.shown = paths.existing_file(path), paths.shown(path)
        self.interface = interface
        arrays = self._npz() if self.path.suffix.lower() == ".npz" else self._json()
        self._keys: dict[tuple[str, str, str], dict[str, str]] = {}
        self._arrays = arrays
        for key in arrays:
            if key == MARK.removesuffix(".npy"):
                continue
            case, part, runtime, name = self._parts(key)
            self._keys.setdefault((case, part, runtime), {})[name] = key
        self.cases = list(dict.fromkeys(case for case, _, _ in self._keys))
        self.runtimes = list(
            dict.fromkeys(runtime for _, part, runtime in self._keys if part == "outputs")
        )
        if not self.cases:
            raise InputError(f"{self.shown}: holds no calls.")

    def inputs(self, case: str) -> Arrays:
        """The inputs of one call, by name; empty where only outputs were recorded."""
        return self._read(case, "inputs", "")

    def outputs(self, case: str, runtime: str) -> Arrays | None:
        """The outputs of one call, by name; nothing where the runtime has none."""
        return self._read(case, "outputs", runtime) or None

    def tolerances(self, case: str) -> Arrays:
        """What the error of each output could be, where that was recorded, by name."""
        allowed = self._read(case, "tolerances", "")
        for name, value in allowed.items():
            if value.shape != (len(METRICS),):
                raise InputError(
                    f"{self.shown}: {case}/tolerances/{name} holds {value.shape} numbers, not one "
                    f"for each of {', '.join(METRICS)}."
                )
        return allowed

    def _read(self, case: str, part: str, runtime: str) -> Arrays:
        keys = self._keys.get((case, part, runtime), {})
        return {name: self._array(key) for name, key in keys.items()}

    def _array(self, key: str) -> np.ndarray:
        """An array with its own dtype: numpy's files know bfloat16 as two bytes alone."""
        try:
            value = np.asarray(self._arrays[key])
        except Exception as error:  # numpy, zipfile and zlib have many kinds for what is damaged
            raise InputError(f"{self.shown}: {key!r} cannot be read ({error}).") from error
        if value.dtype in (np.dtype("V2"), numpy_dtype("bfloat16")):
            return value.view(numpy_dtype("bfloat16"))
        if value.dtype.kind not in NUMBERS:
            raise InputError(
                f"{self.shown}: {key!r} holds {value.dtype}; arrays are of real numbers or bools."
            )
        return value

    def _parts(self, key: str) -> tuple[str, str, str, str]:
        """Case, part, runtime and tensor of a name in the file."""
        words = key.split("/", 2)
        if len(words) == 3 and words[1] in ("inputs", "tolerances"):
            return words[0], words[1], "", words[2]
        if len(words) == 3 and words[1] == "outputs" and "/" in words[2]:
            runtime, _, name = words[2].partition("/")
            return words[0], "outputs", runtime, name
        return PLAIN, *self._plain(key)

    def _plain(self, key: str) -> tuple[str, str, str]:
        if self.interface is None:
            raise InputError(
                f"{self.shown}: {key!r} is not named as in a recording; compare plain files with "
                f"an artifact, which tells inputs from outputs."
            )
        if any(tensor.name == key for tensor in self.interface.inputs):
            return "inputs", "", key
        if any(tensor.name == key for tensor in self.interface.outputs):
            return "outputs", RECORDED, key
        raise InputError(
            f"{self.shown}: {key!r} is no tensor of the artifact; inputs are "
            f"{_names(self.interface.inputs)}, outputs {_names(self.interface.outputs)}."
        )

    def _npz(self) -> Mapping[str, Any]:
        try:
            loaded = np.load(self.path, allow_pickle=False)
        except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
            raise InputError(f"{self.shown}: is no .npz file ({error}).") from error
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise InputError(f"{self.shown}: holds one array; a recording is a .npz file.")
        return loaded

    def _json(self) -> Mapping[str, Any]:
        return polygraphy_json.arrays(self.path, self.shown)


def checked_inputs(recording: Recording, case: str, interface: Interface) -> Arrays:
    """The inputs of one call as an artifact takes them.

    Raises: InputError naming the file and the call, and what does not fit.
    """
    inputs = recording.inputs(case)
    try:
        axes = interface.bind_axes({n: (dtype_name(x), x.shape) for n, x in inputs.items()})
        if interface.lengths is not None and interface.lengths in inputs:
            lengths = [int(x) for x in inputs[interface.lengths]]
            interface.check_lengths(lengths, axes["sequence"], axes["capacity"])
        if not np.isfinite(inputs[interface.main_input].astype(np.float64)).all():
            raise InputError(
                f"input {interface.main_input!r} holds numbers that are not finite, of which "
                f"nothing can be told."
            )
    except InputError as error:
        raise InputError(f"{recording.shown}, {case}: {error}") from error
    return inputs


def _names(tensors: tuple[TensorType, ...]) -> str:
    return ", ".join(tensor.name for tensor in tensors)
