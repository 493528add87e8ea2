"""From a matrix to its cells: which there are, which are refused and why, before anything runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path

from rope_export.checkpoints import Model, open_model
from rope_export.errors import CheckpointError, InputError
from rope_export.lowerings import lowering_for, lowering_for_all
from rope_export.quantization import quantization_of
from rope_export.spec import AttentionSpec
from rope_export.sweep.cell import Cell, Export
from rope_export.sweep.matrix import PLAIN, DType, Layers, Matrix, Source


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a matrix comes to, in its order.

    exports: each artifact with the runtimes that it is to be verified on. refused: cells that no
    lowering expresses, or whose layer is not supported, with the reason. notes: a sentence each.
    """

    exports: dict[Export, tuple[str, ...]]
    refused: dict[Cell, str]
    notes: tuple[str, ...] = ()

    @property
    def cells(self) -> Iterator[Cell]:
        """Those that are to be run."""
        for export, runtimes in self.exports.items():
            yield from (Cell(export=export, runtime=runtime) for runtime in runtimes)


def planned(matrix: Matrix) -> Plan:
    """Every cell of a matrix. Artifacts that come to the same, as "auto" and the lowering that it
    takes, are one.

    Raises: CheckpointError for a source that cannot be opened; InputError if no cell is left.
    """
    exports: dict[Export, tuple[str, ...]] = {}
    refused: dict[Cell, str] = {}
    same = 0
    for export, outcome in _every(matrix):
        runtimes = tuple(
            name
            for name in dict.fromkeys(matrix.runtimes)
            if not any(rule.leaves_out(export.facts(name)) for rule in matrix.exclude)
        )
        if isinstance(outcome, Export):
            same += outcome in exports
            if runtimes:
                exports[outcome] = tuple(dict.fromkeys((*exports.get(outcome, ()), *runtimes)))
        else:
            refused |= {Cell(export=export, runtime=name): outcome for name in runtimes}
    if not exports and not refused:
        raise InputError(
            "the matrix has no cells: `layers` is empty, or `exclude` leaves out all of them."
        )
    notes = (f"{same} artifacts are the same as others of the matrix, and are made once.",)
    return Plan(exports=exports, refused=refused, notes=notes if same else ())


def _every(matrix: Matrix) -> Iterator[tuple[Export, Export | str]]:
    """Each artifact as the matrix has it, with what it comes to, or why it is refused."""
    every = [Source(path=x) if isinstance(x, str) else x for x in matrix.sources]
    names = _names([source.path for source in every])
    for source in every:
        opened = _Opened(matrix, source)
        forms = product(matrix.lowerings, matrix.caches, matrix.dtypes, matrix.weights)
        for layer, (lowering, cache, dtype, weights) in product(opened.indices(), list(forms)):
            for padding in (False,) if layer is None else dict.fromkeys(matrix.padding):
                export = Export(
                    name=names[source.path],
                    path=source.path,
                    layer=layer,
                    lowering=lowering,
                    cache=cache,
                    dtype=dtype,
                    weights=weights,
                    padding=padding,
                    part=source.part,
                    adapter=source.adapter,
                    seed=matrix.seed,
                    block_size=matrix.block_size,
                    accuracy_level=matrix.accuracy_level,
                    logits=matrix.logits,
                )
                if not any(rule.leaves_out(export.facts()) for rule in matrix.exclude):
                    yield export, opened.resolved(export)


class _Opened:
    """A source, opened once for each dtype.

    Raises: CheckpointError for one that cannot be opened.
    """

    def __init__(self, matrix: Matrix, source: Source) -> None:
        self.matrix, self.source = matrix, source
        self._models = {dtype: self._open(dtype) for dtype in matrix.dtypes}
        self._specs: dict[tuple[int, DType], AttentionSpec | str] = {}

    def indices(self) -> Sequence[int | None]:
        """The layers that are exported, none for the whole decoder."""
        source, matrix = self.source, self.matrix
        decoder = matrix.decoder if source.decoder is None else source.decoder
        asked = matrix.layers if source.layers is None else source.layers
        layers: Layers = [] if decoder and asked is None else asked if asked is not None else [0]
        numbers = layers if isinstance(layers, list) else self._some(layers)
        return [*([None] if decoder else []), *dict.fromkeys(numbers)]

    def resolved(self, export: Export) -> Export | str:
        """The artifact with the lowering that it gets, or why it is refused."""
        if export.decoder and export.cache == "none":
            return "a decoder has a cache; use growing or fixed"
        try:
            weights = None if export.weights == PLAIN else export.weights
            quantization = quantization_of(weights, export.block_size, export.accuracy_level)
            if export.layer is not None:
                spec = self._spec(export.layer, export.dtype)
                if isinstance(spec, str):
                    return spec
                chosen = lowering_for(export.lowering, spec, export.cache, quantization)
            else:
                specs = []
                for layer in range(self._count):
                    spec = self._spec(layer, export.dtype)
                    if isinstance(spec, str):
                        return spec
                    specs.append(spec)
                chosen = lowering_for_all(export.lowering, specs, export.cache, quantization)
        except InputError as error:
            return str(error)
        return replace(export, lowering=chosen.name)

    def _open(self, dtype: DType) -> Model:
        return open_model(
            self.source.path,
            part=self.source.part,
            dtype=dtype,
            seed=self.matrix.seed,
            adapter=self.source.adapter,
        )

    def _spec(self, layer: int, dtype: DType) -> AttentionSpec | str:
        """A layer's facts, or why it is refused."""
        key = layer, dtype
        if key not in self._specs:
            try:
                self._specs[key] = self._models[dtype].layer(layer).spec
            except InputError as error:
                self._specs[key] = str(error)
        return self._specs[key]

    @cached_property
    def _count(self) -> int:
        """Of layers. Raises: InputError for a model that is not supported."""
        return len(self._models[self.matrix.dtypes[0]].layers)

    def _some(self, which: str) -> list[int]:
        """Layers that attend, all or the first of each kind; layer 0 where none does."""
        try:
            count = self._count
        except CheckpointError:
            raise
        except InputError:
            return [0]  # which tells why it is refused
        specs = {at: self._spec(at, self.matrix.dtypes[0]) for at in range(count)}
        attend = [at for at, spec in specs.items() if not isinstance(spec, str)]
        if which == "kinds":
            first = {specs[at]: at for at in reversed(attend)}
            attend = [at for at in attend if first[specs[at]] == at]
        return attend or [0]


def _names(paths: Sequence[str]) -> dict[str, str]:
    """A short name of each source: the end of its path by which it differs from the others."""
    parts = {path: Path(path.removesuffix(".json")).parts for path in paths}

    def name(path: str) -> str:
        for length in range(1, len(parts[path]) + 1):
            end = parts[path][-length:]
            if sum(x[-length:] == end for x in parts.values()) == 1:
                return Path(*end).as_posix()
        return path

    return {path: name(path) for path in parts}
