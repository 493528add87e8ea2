"""How far rounding moves values apart, against derivatives that torch takes."""

import numpy as np
import pytest
import torch

from rope_export import AttentionSpec
from rope_export.parity.layer.carried import normed
from rope_export.parity.layer.reference import ReferenceLayer
from rope_export.spec import NormSpec
from tests.properties.test_visible import PLAIN, layer_of


def by_derivatives(layer: ReferenceLayer, norm: NormSpec, x: np.ndarray, error: float):
    """Variance of the norm's outputs where each of its inputs has this variance."""

    def normed(x: torch.Tensor) -> torch.Tensor:
        if norm.kind == "layer":
            x = x - x.mean()
        return x * (x.square().mean() + norm.eps).rsqrt() * torch.from_numpy(weight)

    weight = norm.offset + layer.weights["q_norm.weight"]
    jacobian = torch.autograd.functional.jacobian(normed, torch.from_numpy(x))
    return (jacobian.square().sum(-1) * error).numpy()


@pytest.mark.parametrize(("kind", "means"), [("rms", 1), ("layer", 2)])
def test_what_a_norm_carries_is_a_narrow_bound(kind: str, means: int) -> None:
    """What moves with a mean is subtracted, and added in the bound. Of 16 numbers between 0.9 and
    1.1 it is at most 1.21 / 16 of all, for each mean that is taken."""
    norm = NormSpec(kind=kind)
    layer = layer_of(AttentionSpec(**PLAIN, q_norm=norm))
    stream = np.random.default_rng(0)
    x = stream.uniform(0.9, 1.1, 16) * stream.permutation([1.0, -1.0] * 8)
    error, share = 1e-6, means * 1.21 / 16
    found = normed(layer, "q_norm", norm, x[None], np.full((1, 16), error), 0.0)[0]
    wanted = by_derivatives(layer, norm, x, error)
    assert (found >= wanted).all()
    assert (found <= wanted * (1 + share) / (1 - share)).all()
