"""The artifact of a whole decoder: its ONNX model, and beside it the files that its clients read.

Those companions, such as a tokenizer, are people's to edit: they are listed with their hashes apart
from the model's files, and one that was changed is reported and kept, not refused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, ClassVar, Final, Literal, Self

from msgspec import Struct, structs

from rope_export.artifacts import companions, saving
from rope_export.artifacts.manifest import FORMAT_VERSION, File, Weight
from rope_export.artifacts.model_folder import ModelFolder
from rope_export.interface import Interface, TensorType
from rope_export.quantization import Quantization

KIND: Final = "decoder"


class DecoderManifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is true of a decoder's artifact.

    specs: the distinct AttentionSpecs of its layers as plain values. layers: of each layer the
    place of its spec in `specs`; none if it has no cache of its own, since it shares another's keys
    or does not attend. logits: of each row's last new token or of all of them. positions: how many
    the model was made for, if it does not go on with any number of them. padding: whether tokens
    may be padding or be at other positions than their slots. source: kind, seed, hash
    of the config, files. weights: by their names in the model. weights_for: parts whose weights are
    quantized. companions: the files beside the model as they were written. The others are as in
    `Manifest`.
    Raises: ValueError for facts that contradict each other.
    """

    format_version: Literal[2] = FORMAT_VERSION
    kind: Literal["decoder"] = KIND
    specs: tuple[dict[str, Any], ...]
    layers: tuple[int | None, ...]
    vocabulary: int
    dtype: str
    logits: Literal["last", "all"]
    positions: int | None
    padding: bool = True
    lowering: str
    opset: int
    cache: Literal["growing", "fixed"]
    interface: Interface
    source: dict[str, Any]
    weights: dict[str, Weight]
    weights_for: tuple[str, ...] = ()
    versions: dict[str, str]
    runtimes: tuple[str, ...]
    needs: dict[str, str]
    quantization: Quantization | None
    stale_slots: Literal["any", "finite"]
    first_position: int | None = None
    files: dict[str, File] = {}
    companions: dict[str, File] = {}

    def __post_init__(self) -> None:
        if self.interface.cache != self.cache:
            raise ValueError(f"cache={self.cache!r}: its tensors have {self.interface.cache!r}")
        if (self.interface.positions is not None) != self.padding:
            raise ValueError(f"padding={self.padding}: its tensors have it otherwise")
        for index, spec in enumerate(self.layers):
            if spec is not None and not 0 <= spec < len(self.specs):
                raise ValueError(f"layers[{index}]={spec}: there are {len(self.specs)} specs")
        for name in self.companions:
            if PurePath(name).name != name or name.startswith(".") or name in companions.OURS:
                raise ValueError(f"companions[{name!r}]: no name of a file beside the model")

    @property
    def inputs(self) -> tuple[TensorType, ...]:
        return self.interface.inputs

    @property
    def outputs(self) -> tuple[TensorType, ...]:
        return self.interface.outputs


@dataclass(frozen=True)
class DecoderArtifact(ModelFolder[DecoderManifest]):
    """The artifact of a decoder."""

    kind: ClassVar[str] = KIND
    title: ClassVar[str] = "a decoder"
    facts_type: ClassVar[type] = DecoderManifest

    @classmethod
    def listed(
        cls, facts: DecoderManifest, files: Mapping[str, File], new: Path, old: Self | None
    ) -> DecoderManifest:
        """What was changed of the old companions takes the place of the new ones, but keeps the
        hash of what was written: so it is still known as changed."""
        beside = companions.written(new)
        if old is not None:
            beside = companions.keep(old.path, old.companions, new) | beside
        return structs.replace(facts, files=dict(files), companions=beside)

    @property
    def companions(self) -> Mapping[str, File]:
        return self.facts.companions

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence on each companion that is not what was exported."""
        return companions.warnings(self.path, self.companions)


def save_decoder(
    path: Path,
    manifest: DecoderManifest,
    write_files: Callable[[Path], None],
    measured: Mapping[str, Any],
) -> DecoderArtifact:
    """Write a decoder to `path`, as a whole or not at all; see `saving.save`.

    write_files: writes model.onnx, model.onnx.data if large, and the companions into the folder it
    is given. A companion that was changed in the decoder that is replaced is kept as it is; the
    result's `warnings` say so.
    """
    saved = saving.save(path, DecoderArtifact, manifest, write_files, measured)
    assert isinstance(saved, DecoderArtifact)
    return saved
