"""A decoder's attention as a layer of its own: its inputs, and tensors over its slots."""

from collections.abc import Mapping

import numpy as np

from rope_export.interface import Interface, attention_interface
from rope_export.parity.locate.stage import Stage
from rope_export.spec import AttentionSpec


def attention_inputs(
    spec: AttentionSpec,
    interface: Interface,
    layer: int,
    inputs: Mapping[str, np.ndarray],
    hidden: np.ndarray,
) -> dict[str, np.ndarray]:
    """By the names that a layer gives them.

    interface: of the decoder. layer: index. inputs: of the decoder's call. hidden: what enters the
    attention, (B, S, hidden_size).
    """
    given = {"hidden_states": hidden}
    positions = inputs.get(str(interface.positions))
    ours = attention_interface(spec, cache=interface.cache, padding=True)
    if ours.positions is not None and positions is not None:
        axes = 1 if spec.rope is None else spec.rope.axes
        shape = (axes, *positions.shape) if axes > 1 else positions.shape
        given[ours.positions] = np.ascontiguousarray(np.broadcast_to(positions, shape))
    theirs = [x.input for x in interface.caches if x.input.split(".")[1] == str(layer)]
    for pair, name in zip(ours.caches, theirs, strict=True):
        cache = inputs[name]
        given[pair.input] = cache[:, 0] if spec.latent is not None else cache
    if ours.lengths is not None:
        lengths = inputs[str(interface.lengths)]
        given[ours.lengths] = np.broadcast_to(lengths, (len(hidden),)).copy()
    if ours.mask is not None:
        mask = inputs[str(interface.mask)]
        slots = given[ours.caches[0].input].shape[-2]
        total = slots if ours.lengths is not None else slots + hidden.shape[1]
        given[ours.mask] = np.pad(mask, ((0, 0), (0, max(total - mask.shape[1], 0))))
    return given


def cropped(value: np.ndarray, stage: Stage) -> np.ndarray:
    """Scores over no more slots than the mask covers, filled up."""
    if "slot" not in stage.axes or value.shape[-1] >= stage.expected.shape[-1]:
        return value
    missing = stage.expected.shape[-1] - value.shape[-1]
    return np.pad(value, [(0, 0)] * (value.ndim - 1) + [(0, missing)])
