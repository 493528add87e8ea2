"""The rule by which a row passes, where figures are not finite."""

import math

import numpy as np
import pytest

from rope_export.parity.bounds import Bounds
from rope_export.parity.layer.chain import bounds_of
from rope_export.parity.metrics import errors
from rope_export.parity.rows import judged
from tests.conformance.faults.layers import layer


def statuses(error: dict, eager_error: dict, bounds: Bounds) -> set[str]:
    rows = judged(
        case="c",
        seed=0,
        runtime="onnxruntime",
        output="o",
        errors=error,
        eager_errors=eager_error,
        bounds=bounds,
    )
    return {row.status for row in rows}


@pytest.mark.parametrize(
    ("value", "status"), [(0.0, "passed"), (0.5, "failed"), (math.nan, "failed")]
)
def test_what_should_be_zero_may_be_nothing_else(value, status) -> None:
    """Bounds are a share of what was expected: of zeros they are infinite, as any error is."""
    zeros = np.zeros((1, 2, 64))
    bounds = bounds_of(layer("plain", "float32"), 2, (zeros + 1e-9, zeros + 1e-9), zeros)
    assert statuses(errors(zeros + value, zeros), errors(zeros, zeros), bounds) == {status}


@pytest.mark.parametrize("size", [math.inf, math.nan])
@pytest.mark.parametrize("own", [1e-9, math.inf])
def test_an_answer_of_eager_that_is_no_number_allows_nothing(size, own) -> None:
    """Also where eager has no ceiling, as of a decoder's logits."""
    names = errors(np.ones(1), np.ones(1))
    bounds = Bounds(ceilings=dict.fromkeys(names, math.inf), floors=dict.fromkeys(names, 1e-6))
    assert statuses(dict.fromkeys(names, own), dict.fromkeys(names, size), bounds) == {"failed"}
