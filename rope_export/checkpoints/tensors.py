"""Reads single tensors from safetensors files, sharded or not, without loading the others."""

from collections.abc import Callable, Iterable, Mapping

import torch
from safetensors import SafetensorError
from torch import Tensor

from rope_export.checkpoints.files import open_tensors
from rope_export.checkpoints.layout import Piece, TensorLayout
from rope_export.checkpoints.locators import Locator
from rope_export.checkpoints.stacks import prefix_of
from rope_export.errors import CheckpointError
from rope_export.spec import AttentionSpec


def layer_tensors(
    files: Mapping[str, str],
    layer: int,
    spec: AttentionSpec,
    layout: TensorLayout,
    part: str | None,
    idle: Callable[[str], bool] = lambda name: False,
) -> dict[str, Piece]:
    """Where each of one layer's attention tensors is, by their names in the spec.

    part: of a model of several towers, the key of its config, which tells the towers apart. idle:
    whether a tensor that the config does not mention changes nothing.
    Raises: CheckpointError for a tensor that is missing, or one that the config does not mention.
    """
    pieces = layout.pieces(spec)
    path = layout.path(layer)
    prefix = prefix_of(files, path, next(iter(pieces.values())).name, part) + path
    located = {
        name: Piece(names=tuple(prefix + end for end in piece.names), take=piece.take)
        for name, piece in pieces.items()
    }
    expected = {name for piece in located.values() for name in piece.names}
    for name in sorted(expected):
        if name not in files:
            raise CheckpointError(f"tensor {name!r} is missing from the checkpoint.")
    for name in sorted(files):
        ignored = name.endswith(layout.ignored)
        unexpected = name.startswith(prefix) and name not in expected and not ignored
        if unexpected and not idle(name):
            raise CheckpointError(
                f"tensor {name!r} is in the checkpoint, but the config says nothing of it: "
                f"refused, since leaving it out would change the output."
            )
    return located


Reader = Callable[[str], Tensor]
"""Reads a tensor by its full name in the checkpoint, in the checkpoint's dtype."""


def reader(locator: Locator, files: Mapping[str, str]) -> Reader:
    """Reads single tensors from the files that hold them; `files`: name to file.

    The reader raises CheckpointError for a file that is missing or damaged.
    """

    def read(name: str) -> Tensor:
        path = locator.find(files[name])
        if path is None:
            raise CheckpointError(
                f"{locator}: the file {files[name]} with {name!r} is missing. Fetch it, or save "
                f"the model again."
            )
        try:
            with open_tensors(path) as tensors:
                return tensors.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: tensor {name!r} cannot be read ({error}).") from error

    return read


def read_layer(read: Reader, pieces: Mapping[str, Piece], spec: AttentionSpec) -> dict[str, Tensor]:
    """One layer's tensors, checked and rounded to the spec's dtype.

    Raises: CheckpointError for a damaged file, a wrong shape or dtype, NaN or infinite values, and
        values that the dtype cannot hold.
    """
    weights: dict[str, Tensor] = {}
    for name, piece in pieces.items():
        shape = spec.weight_shapes[name]
        try:
            tensor = piece.out_of(read, spec)
        except RuntimeError as error:  # torch's: the rows do not divide as the layout needs
            raise CheckpointError(
                f"tensor {piece.name!r}: {shape} cannot be taken from it as the config says "
                f"({error})."
            ) from error
        weights[name] = deployed(piece.name, tensor, shape, spec.dtype)
    return weights


STORED = 2**-20
"""What a stored frequency may differ by from the config's, relatively: both are float32."""


def check_rotation(
    read: Reader, names: Iterable[str], layout: TensorLayout, spec: AttentionSpec
) -> None:
    """Checks that the rotation that the checkpoint stores is the one that the config describes.

    transformers takes it from the file where the layout has a `rotation`: inverse frequencies
    (pairs), or a table of sines, then cosines (positions, 2 * pairs).
    Raises: CheckpointError naming the tensor and the largest difference.
    """
    if layout.rotation is None or spec.rope is None:
        return
    inv_freq = spec.rope.inv_freq().double()
    stored_rotations = [name for name in names if name.endswith(layout.rotation)]
    for name in stored_rotations:
        stored = read(name).double()
        if stored.ndim == 1:
            expected, allowed = inv_freq, STORED * inv_freq
        else:
            angles = torch.arange(len(stored), dtype=torch.float64)[:, None] * inv_freq
            expected = torch.cat((angles.sin(), angles.cos()), dim=-1)
            allowed = STORED * (1 + angles.repeat(1, 2))
        same_shape = stored.shape == expected.shape
        if not same_shape or not bool(((stored - expected).abs() <= allowed).all()):
            difference = "in shape"
            if same_shape:
                difference = f"by {float((stored - expected).abs().max()):.3g}"
            raise CheckpointError(
                f"tensor {name!r} differs {difference} from what the config says, and transformers "
                f"rotates by the tensor: refused. Save the model with the rotation of its config."
            )


def deployed(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: str) -> Tensor:
    """`tensor` as it will be deployed: of the given shape, finite, rounded to `dtype`.

    Raises: CheckpointError naming the tensor and what is wrong with it.
    """
    if tuple(tensor.shape) != shape:
        raise CheckpointError(
            f"tensor {name!r} has shape {tuple(tensor.shape)}, the config asks for {shape}."
        )
    if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        raise CheckpointError(
            f"tensor {name!r} has dtype {tensor.dtype}; supported: float64, float32, float16, "
            f"bfloat16. Dequantize the checkpoint first."
        )
    target: torch.dtype = getattr(torch, dtype)
    ends = torch.stack(torch.aminmax(tensor)) if tensor.numel() else tensor  # NaN is at both
    if not torch.isfinite(ends).all():
        not_finite = int((~torch.isfinite(tensor)).sum())
        raise CheckpointError(f"tensor {name!r} has {not_finite} values that are NaN or infinite.")
    if not torch.isfinite(ends.to(target)).all():
        raise CheckpointError(
            f"tensor {name!r} has values up to {float(ends.abs().max()):.3g}, beyond {dtype}. "
            f"Use bfloat16 or float32."
        )
    return tensor.to(target).contiguous()
