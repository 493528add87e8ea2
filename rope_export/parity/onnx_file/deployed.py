"""Weights of transformers' model as a file deploys them, where it has quantized them, and how far
they are from the source's."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor as TorchTensor
from torch import nn

from rope_export.arrays import to_numpy, to_torch
from rope_export.errors import UnavailableError
from rope_export.parity.metrics import errors
from rope_export.parity.onnx_file.file import OnnxFile
from rope_export.parity.onnx_file.tensors import Tensor, tensors_in
from rope_export.parity.onnx_file.weights import Found, find
from rope_export.parity.rows import Row

STEPS = "steps from the source, root mean square"
"""The metric of a quantized weight: how far it is from the source's, in steps of its own levels."""

APART = 1.0
"""What that may be. A number that lies between two levels is less than one step from either, so a
weight that is further off on the average is not the source's, whichever way it was quantized."""

CHANNEL = "difference from the source in one channel, relative L2"
"""The metric that a few ruined rows or columns of a large weight show in."""

RUINED = 0.5
"""What that may be where a channel is more than APART steps off as well. Rounding to four bits
takes a tenth of a channel's norm, to two bits four; to clip outliers or to make up for other
numbers' rounding moves single numbers by several steps, but no half of the norm. One that is zero
in the file is off by 1, the channel of another place by about the root of 2."""

SAMPLE = 4096
"""Numbers of a weight by which it is recognised."""

ROWS, TOKENS = 2, 32
"""Of the text whose logits tell what quantization does."""


def quantized_tensors(file: OnnxFile, layers: int) -> list[Tensor]:
    """The quantized weights of a file."""
    return [x for x in tensors_in(file, layers) if x.quantized is not None]


def deploy(
    model: Any, file: OnnxFile, layers: int, seed: int, *, from_source: bool
) -> tuple[list[Row], dict[str, float] | None]:
    """Puts what quantization has left of each weight in its place in transformers' model.

    from_source: whether the model has the weights of the source, of which the rows tell how far
    those of the file are from them, and the figures what this does to the logits.
    Returns: these; nothing where no weight is quantized.
    Raises: UnavailableError for a quantized weight that is none of the model's.
    """
    tensors = quantized_tensors(file, layers)
    if not tensors:
        return [], None
    drawn = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.config.get_text_config().vocab_size, (ROWS, TOKENS), generator=drawn)
    before = _logits(model, ids) if from_source else None
    rows: list[Row] = []
    distances: list[float] = []
    places = list(_quantized(model, tensors, file, from_source=from_source))
    for path, module, found in places:
        value = to_torch(found.values()).to(module.weight.dtype)
        if from_source:
            name = f"{path}.weight"
            apart, distance = distance_rows(name, module.weight, value, found.steps(), seed)
            rows += apart
            distances.append(distance)
        module.weight = nn.Parameter(value, requires_grad=False)
    if before is None:
        return rows, None
    figures = errors(_logits(model, ids) - before, before)
    return rows, {**figures, "weights": max(distances)}


def distance_rows(
    name: str, source: TorchTensor, value: TorchTensor, steps: np.ndarray, seed: int
) -> tuple[list[Row], float]:
    """How far a quantized weight is from the source's: in steps, in its worst channel, and as a
    share of its norm.

    steps: how far two neighbouring levels are apart, by number; 0 where there is only one.
    """
    exact = to_numpy(source.detach().double())
    difference = to_numpy(value.double()) - exact
    found = {
        STEPS: (steps_apart(difference, steps), APART),
        CHANNEL: (worst_channel(difference, exact, steps), RUINED),
    }
    rows = [
        Row(
            case="weights in the file",
            seed=seed,
            runtime="file",
            output=name,
            metric=metric,
            error=error,
            eager_error=0.0,
            tolerance=allowed,
            status="passed" if error <= allowed else "failed",
        )
        for metric, (error, allowed) in found.items()
    ]
    norm = np.linalg.norm(exact)
    return rows, float(np.linalg.norm(difference) / norm) if norm else 0.0


def _quantized(
    model: Any, tensors: Sequence[Tensor], file: OnnxFile, *, from_source: bool
) -> Iterator[tuple[str, Any, Found]]:
    """Every module whose weight the file has quantized, with its path; those that share a weight
    in the model need not in the file. Where no name tells, the source's values do."""
    left = {x.name: x for x in tensors}
    others: dict[str, Any] = {}
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        found = find(f"{path}.weight", tuple(module.weight.shape), tensors)
        if found is None:
            others[path] = module
            continue
        for tensor, _ in found.parts:
            left.pop(tensor.name, None)
        yield path, module, found
    for tensor in left.values():
        place = _nearest(tensor, others) if from_source else None
        if place is None:
            raise UnavailableError(
                f"{file.path}: {tensor.name} {tensor.shape} is quantized, and it is not known "
                f"which weight of the model it is."
            )
        found = Found(shape=tensor.shape, parts=((tensor, slice(None)),))
        yield place, others.pop(place), found


def _nearest(tensor: Tensor, modules: Mapping[str, Any]) -> str | None:
    """The path of the module whose weight, in a sample of its numbers, is nearest to a quantized
    one; none if all are further off than quantization takes them."""
    every = slice(None, None, max(1, math.prod(tensor.shape) // SAMPLE))
    value, steps = (x.ravel()[every] for x in (tensor.laid(), tensor.steps()))
    best, smallest = None, APART
    for path, module in modules.items():
        if tuple(module.weight.shape) == tensor.shape:
            source = to_numpy(module.weight.detach().ravel()[every].double())
            apart = steps_apart(value - source, steps)
            if apart <= smallest:
                best, smallest = path, apart
    return best


def steps_apart(difference: np.ndarray, steps: np.ndarray) -> float:
    """A difference in steps, in the root mean square."""
    return math.sqrt(float(np.mean(_squared(difference, steps)))) if difference.size else 0.0


def worst_channel(difference: np.ndarray, source: np.ndarray, steps: np.ndarray) -> float:
    """The largest relative L2 difference of a row or column that is over APART steps off in the
    root mean square; 0 if none is."""
    squared, worst = _squared(difference, steps), 0.0
    for axis in (0, 1) if difference.size else ():
        off = np.mean(squared, axis=axis) > APART**2
        norms = np.linalg.norm(source, axis=axis)[off]
        shares = np.linalg.norm(difference, axis=axis)[off] / np.where(norms > 0, norms, 1.0)
        worst = max(worst, *np.where(norms > 0, shares, np.inf), 0.0)
    return float(worst)


def _squared(difference: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The squares of a difference in steps. A block that has only one level, as one of zeros does,
    is measured by the smallest step of the others."""
    unit = np.where(steps > 0, steps, np.min(steps, where=steps > 0, initial=np.inf))
    if np.isinf(unit).all():
        return np.where(difference != 0, np.inf, 0.0)
    squared: np.ndarray = (difference / unit) ** 2
    return squared


def _logits(model: Any, ids: TorchTensor) -> np.ndarray:
    with torch.no_grad():
        return to_numpy(model(ids).logits.double())


Weights = dict[str, TorchTensor]


def deployed_layer(
    weights: Weights, file: OnnxFile, seed: int
) -> tuple[Weights, list[Row], dict[str, int]]:
    """The weights of one layer as its file deploys them.

    Returns: them; how far the quantized ones are from those given; and of each projection that
        rounds its input to int8 the features that share a scale, by its name without "_proj".
    Raises: UnavailableError for a quantized weight that is none of the layer's.
    """
    tensors = quantized_tensors(file, 0)
    left = {x.name: x for x in tensors}
    result, rows, blocks = dict(weights), [], {}
    for name, value in weights.items():
        found = find(name, tuple(value.shape), tensors) if value.ndim == 2 else None
        if found is None:
            continue
        result[name] = to_torch(found.values()).to(value.dtype)
        rows += distance_rows(name, value, result[name], found.steps(), seed)[0]
        for tensor, _ in found.parts:
            left.pop(tensor.name, None)
            if tensor.quantized is not None and tensor.quantized.int8_block is not None:
                blocks[name.removesuffix("_proj.weight")] = tensor.quantized.int8_block
    for tensor in left.values():
        raise UnavailableError(
            f"{file.path}: {tensor.name} {tensor.shape} is quantized, and it is not known which "
            f"weight of the layer it is."
        )
    return result, rows, blocks
