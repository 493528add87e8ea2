"""The facts in an artifact's manifest.json."""

from collections.abc import Mapping
from typing import Any, Final, Literal, Protocol

from msgspec import Struct

from rope_export.interface import Interface, TensorType
from rope_export.quantization import Quantization
from rope_export.typed_json import brief

FORMAT_VERSION: Final = 2
"""The format version of manifests and evidence of every kind; see `upgrade` for older ones."""

KIND: Final = "attention"


class File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file that a manifest lists: its hash and its size."""

    sha256: str
    bytes: int


class Weight(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A tensor of the layer: where it is from, and where it lies in the model.

    source_tensor: its name in the source. source_form: how the source has it, if not as plain
    numbers. initializer: the one that holds it, transposed or not. sha256: of its bytes as
    deployed, in the source's orientation.

    Of a quantized one, scales, zero_points, offsets: the initializers that hold these. inputs: its
    width. block_size: inputs that share a scale. stored: how its values came about, see
    `quantization.Stored`.

    columns: the first of its own and the one after its last, where the initializer holds several
    tensors side by side.
    """

    source_tensor: str
    initializer: str
    transposed: bool
    sha256: str
    source_form: str | None = None
    scales: str | None = None
    inputs: int | None = None
    block_size: int | None = None
    stored: str | None = None
    zero_points: str | None = None
    offsets: str | None = None
    columns: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.scales is not None and self.inputs is None:
            raise ValueError("a quantized weight states its inputs")


class Facts(Protocol):
    """What every kind of manifest has."""

    @property
    def files(self) -> Mapping[str, File]: ...


class ModelFacts(Facts, Protocol):
    """What the manifest of an ONNX model has, of a layer as of a decoder; see `Manifest`.

    positions: how many the model has, if it does not go on with any number of them. vocabulary:
    how many tokens a decoder knows.
    """

    @property
    def dtype(self) -> str: ...
    @property
    def lowering(self) -> str: ...
    @property
    def cache(self) -> str: ...
    @property
    def interface(self) -> Interface: ...
    @property
    def inputs(self) -> tuple[TensorType, ...]: ...
    @property
    def outputs(self) -> tuple[TensorType, ...]: ...
    @property
    def source(self) -> Mapping[str, Any]: ...
    @property
    def weights(self) -> Mapping[str, Weight]: ...
    @property
    def quantization(self) -> Quantization | None: ...
    @property
    def runtimes(self) -> tuple[str, ...]: ...
    @property
    def needs(self) -> Mapping[str, str]: ...
    @property
    def stale_slots(self) -> Literal["any", "finite"]: ...
    @property
    def first_position(self) -> int | None: ...
    @property
    def padding(self) -> bool: ...
    @property
    def positions(self) -> int | None: ...
    @property
    def vocabulary(self) -> int | None: ...


class _Source(Struct):
    """What every source states; the others of its facts are free."""

    kind: str
    layer: int
    seed: int = 0
    part: str | None = None


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is true of an artifact.

    spec: an AttentionSpec as plain values. source: kind, layer, seed, hash of the config.
    weights: each tensor of the layer, by its name in the spec. quantization: how projections are
    quantized. needs: oldest version of a package that runs it. files: of the ONNX model.
    stale_slots: what those slots of a fixed cache may hold that a call neither reads nor writes:
        "any" bits; or only what is "finite", and in size at most 1/64 of the dtype's largest
        number, where an operator computes over them.
    first_position: the lowest position that the layer is defined at, or none if every one is.
    Raises: ValueError for facts that contradict each other.
    """

    format_version: Literal[2] = FORMAT_VERSION
    kind: Literal["attention"] = KIND
    spec: dict[str, Any]
    lowering: str
    opset: int
    cache: Literal["none", "growing", "fixed"]
    padding: bool
    interface: Interface
    source: dict[str, Any]
    weights: dict[str, Weight]
    versions: dict[str, str]
    runtimes: tuple[str, ...]
    needs: dict[str, str]
    quantization: Quantization | None
    stale_slots: Literal["any", "finite"]
    first_position: int | None
    files: dict[str, File] = {}

    def __post_init__(self) -> None:
        if not isinstance(self.spec.get("dtype"), str):
            raise ValueError(f"spec['dtype']={brief(self.spec.get('dtype'))}: it must be a name")
        if self.interface.cache != self.cache:
            raise ValueError(f"cache={self.cache!r}: its tensors have {self.interface.cache!r}")
        if (self.interface.mask is not None) != self.padding:
            raise ValueError(f"padding={self.padding}: its tensors have it otherwise")
        axes = {axis for tensor in self.inputs for axis in _axes(tensor)}
        for tensor in self.outputs:
            if not axes.issuperset(_axes(tensor)):
                raise ValueError(f"output {tensor}: it has an axis that no input has")

    @property
    def dtype(self) -> str:
        return str(self.spec["dtype"])

    @property
    def positions(self) -> None:
        """A layer goes on with any number of positions."""

    @property
    def vocabulary(self) -> None:
        """A layer knows no tokens."""

    @property
    def inputs(self) -> tuple[TensorType, ...]:
        return self.interface.inputs

    @property
    def outputs(self) -> tuple[TensorType, ...]:
        return self.interface.outputs


def _axes(tensor: TensorType) -> set[str]:
    """The names of a tensor's dynamic axes."""
    return {name for axis in tensor.shape if isinstance(axis, str) for name in axis.split(" + ")}
