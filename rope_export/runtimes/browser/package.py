"""The npm package onnxruntime-web: of a folder that the user names, or fetched once by npm."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from rope_export import paths
from rope_export.errors import UnavailableError

NAME, VERSION = "onnxruntime-web", "1.30.0"

SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Of the package as npm packs it: what `npm view onnxruntime-web@1.30.0 dist.integrity` prints."""

VARIABLE = "ROPE_EXPORT_ONNXRUNTIME_WEB"
"""Names the folder of an unpacked package, such as node_modules/onnxruntime-web."""

FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""What a page needs of its folder dist/ to compute in WebAssembly."""

NUMBERS = re.compile(r"\d+\.\d+")
"""How a version begins."""

SECONDS = 600
"""Until npm is given up."""


def missing() -> str | None:
    """Why the package cannot be had, without asking the network; nothing if it lies here, or npm
    could fetch it."""
    named = os.environ.get(VARIABLE)
    if named:
        return _incomplete(Path(named)) or _without_version(Path(named))
    folder = _cached()
    if folder is None:
        return f"there is no folder to keep {NAME} in; name an unpacked package by {VARIABLE}"
    if _incomplete(folder) is None or shutil.which("npm") is not None:
        return None
    return (
        f"{NAME} is not here, and npm, which would fetch it, is not installed; install Node.js, "
        f"or name the folder of an unpacked package by {VARIABLE}"
    )


def folder() -> Path:
    """The package's folder, with the FILES in its dist/; fetched if it is not here yet.

    Raises: UnavailableError if it cannot be had.
    """
    reason = missing()
    if reason is not None:
        raise UnavailableError(f"runtime 'web': {reason}.")
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    cached = _cached()
    assert cached is not None
    if _incomplete(cached) is not None:
        try:
            _fetch(cached)
        except OSError as error:
            raise UnavailableError(
                f"runtime 'web': {NAME} cannot be kept in {paths.shown(cached)} ({error.strerror})."
            ) from error
    return cached


def version() -> str:
    """The version of the package that lies here or would be fetched."""
    named = os.environ.get(VARIABLE)
    if not named:
        return VERSION
    return _version(Path(named))


def _version(package: Path) -> str:
    """Raises: ValueError, KeyError or TypeError if its package.json does not tell it."""
    facts = json.loads((package / "package.json").read_text(encoding="utf-8"))
    text = str(facts["version"])
    if NUMBERS.match(text) is None:
        raise ValueError(text)
    return text


def _cached() -> Path | None:
    base = paths.cache_folder()
    return None if base is None else base / f"{NAME}-{VERSION}"


def _incomplete(package: Path) -> str | None:
    for name in ("package.json", *(f"dist/{name}" for name in FILES)):
        if not (package / name).is_file():
            return f"{paths.shown(package)}: has no {name}; {VARIABLE} names a folder of {NAME}"
    return None


def _without_version(package: Path) -> str | None:
    try:
        _version(package)
    except (ValueError, KeyError, TypeError):
        return (
            f"{paths.shown(package)}: its package.json tells no version; {VARIABLE} names a folder "
            f"of {NAME}"
        )
    return None


def _fetch(place: Path) -> None:
    """Fetch the package by npm, with the user's own settings of it, and unpack what a page needs.

    Processes that do it at once unpack the same.
    Raises: UnavailableError if npm fails, or the package is not the one that is known.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{place.name}-", dir=place.parent) as temporary:
        archive = _packed(Path(temporary))
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if digest != SHA512:
            raise UnavailableError(
                f"runtime 'web': npm brought a {NAME} {VERSION} with the sha512 {digest}; it must "
                f"be {SHA512}. Name the folder of a package that you trust by {VARIABLE}."
            )
        unpacked = Path(temporary) / "unpacked"
        (unpacked / "dist").mkdir(parents=True)
        with tarfile.open(archive) as members:
            for name in ("package.json", *(f"dist/{name}" for name in FILES)):
                file = members.extractfile(f"package/{name}")
                assert file is not None  # the archive is the one that is known
                (unpacked / name).write_bytes(file.read())
        try:
            unpacked.rename(place)
        except OSError:
            if _incomplete(place) is not None:
                raise


def _packed(where: Path) -> Path:
    """The package's archive, as npm brings it."""
    npm = shutil.which("npm")
    assert npm is not None
    command = [npm, "pack", f"{NAME}@{VERSION}", "--silent", "--ignore-scripts"]
    try:
        done = subprocess.run(
            command, cwd=where, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        wrong = f"it took more than {SECONDS} seconds"
    else:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        wrong = lines[0] if lines else f"status {done.returncode}"
    archives = list(where.glob("*.tgz"))
    if not archives:
        raise UnavailableError(
            f"runtime 'web': npm pack {NAME}@{VERSION} failed: {wrong}. Let npm reach its registry "
            f"once, or name the folder of an unpacked package by {VARIABLE}."
        )
    return archives[0]
