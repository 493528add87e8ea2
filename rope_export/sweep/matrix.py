"""MATRIX.toml: which sources are exported how and verified on what, and what is left out."""

import glob
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from rope_export import paths
from rope_export.errors import InputError
from rope_export.lowerings import lowerings
from rope_export.runtimes import all_runtimes
from rope_export.sweep.exclusion import Exclusion, check_exclusions, check_sources
from rope_export.typed_json import typed

Cache = Literal["none", "growing", "fixed"]
DType = Literal["float32", "float16", "bfloat16"]
Weights = Literal["plain", "int8", "int4"]
Logits = Literal["last", "all"]
Layers = list[int] | Literal["kinds", "all"]

WORDS = {
    "layers": ("kinds", "all"),
    "caches": get_args(Cache),
    "dtypes": get_args(DType),
    "weights": get_args(Weights),
    "logits": get_args(Logits),
}
"""Keys whose values are words, and these."""

PLAIN = "plain"
"""The word for weights that are not quantized."""


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A source with options of its own.

    path: a checkpoint folder, a GGUF file, a config file, or a hub id. layers, decoder: in place of
    the matrix's own. part, adapter: as for `export`.
    """

    path: str
    layers: Layers | None = None
    decoder: bool | None = None
    part: str | None = None
    adapter: str | None = None


class Matrix(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every combination of these is a cell, but for those that a rule of `exclude` names.

    sources: paths, which may have * and ? in them and begin at the matrix's folder, hub ids, or
    tables with options of a source. layers: their numbers, "kinds" for the first of each kind, or
    "all". decoder: whether whole decoders are exported; then layers only if they are named.
    lowerings, caches, dtypes, weights ("plain", "int8", "int4"), padding (of layers), runtimes:
    lists. seed: of drawn weights and inputs. block_size, accuracy_level: with quantized weights.
    logits: of decoders.
    """

    sources: tuple[str | Source, ...]
    layers: Layers | None = None
    decoder: bool = False
    lowerings: tuple[str, ...] = ("auto",)
    caches: tuple[Cache, ...] = ("growing",)
    dtypes: tuple[DType, ...] = ("float32",)
    weights: tuple[Weights, ...] = ("plain",)
    padding: tuple[bool, ...] = (False,)
    runtimes: tuple[str, ...] = ("onnxruntime",)
    seed: int = 0
    block_size: int = 32
    accuracy_level: int = 4
    logits: Logits = "last"
    exclude: tuple[Exclusion, ...] = ()


def read_matrix(path: Path) -> Matrix:
    """The matrix in a file, its sources with whole paths.

    Raises: InputError naming the key, its value and what it must be, in one line.
    """
    where = paths.shown(path)
    try:
        facts = tomllib.loads(paths.existing_file(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: is not TOML ({error}).") from error
    _check_keys(facts, where)
    matrix = typed(facts, Matrix, where, InputError)
    _check(matrix, where)
    sources = [found for source in matrix.sources for found in _found(source, path.parent, where)]
    check_sources(matrix, [x if isinstance(x, str) else x.path for x in sources], where)
    return msgspec.structs.replace(matrix, sources=tuple(sources))


def _check_keys(facts: dict[str, Any], where: str) -> None:
    """Raises: InputError for a key that there is not, which tells those that there are."""
    for key in facts:
        if key not in Matrix.__struct_fields__:
            keys = ", ".join(Matrix.__struct_fields__)
            raise InputError(f"{where}: {key!r} is no key of a matrix; use {keys}.")
    for key, words in WORDS.items():
        values = facts.get(key, [])
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, str) and value not in words:
                raise InputError(f"{where}: {key}: {value!r}: use any of {', '.join(words)}.")
    if "sources" not in facts:
        raise InputError(f"{where}: has no 'sources'; list paths, hub ids or config files.")


def _check(matrix: Matrix, where: str) -> None:
    every: dict[str, Sequence[object]] = {
        "lowerings": ("auto", *lowerings()),
        "runtimes": tuple(all_runtimes()),
    }
    for key in ("sources", "lowerings", "caches", "dtypes", "weights", "padding", "runtimes"):
        values = getattr(matrix, key)
        if not values:
            raise InputError(f"{where}: {key} is empty; list one value at least.")
        for value in values if key in every else ():
            if value not in every[key]:
                names = ", ".join(map(str, every[key]))
                raise InputError(f"{where}: {key}: {value!r} does not exist; use any of {names}.")
    if matrix.seed < 0:
        raise InputError(f"{where}: seed={matrix.seed}: it must be 0 or more.")
    check_exclusions(matrix, where)


def _found(source: "str | Source", folder: Path, where: str) -> Iterator[str | Source]:
    """The sources that an entry names: those that a pattern matches, or the one.

    Raises: InputError for a pattern that matches nothing.
    """
    name = source if isinstance(source, str) else source.path
    for path in _matching(name, folder, where):
        if isinstance(source, str):
            yield path
        else:
            adapter = None if source.adapter is None else _beside(source.adapter, folder)
            yield msgspec.structs.replace(source, path=path, adapter=adapter)


def _matching(name: str, folder: Path, where: str) -> list[str]:
    if glob.has_magic(name) and not (folder / name).exists():
        matching = sorted(str(folder / x) for x in glob.glob(name, root_dir=folder))
        if not matching:
            raise InputError(f"{where}: sources: nothing matches {name!r} in {folder}.")
        return matching
    return [_beside(name, folder)]


def _beside(name: str, folder: Path) -> str:
    """A path that begins at the matrix's folder, if there is one; else what it is, as a hub id."""
    return str(folder / name) if (folder / name).exists() else name
