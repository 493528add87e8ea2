"""ONNX's own test vectors for RotaryEmbedding, computed by our rotation."""

import numpy as np
import pytest
import torch
from onnx.backend.test.case import node
from onnx.backend.test.case.node import rotaryembedding

from rope_export.attention.operators import rotate
from rope_export.rope.default import DefaultRope

# Importing an operator's module computes its vectors; those of all operators take seconds.
assert rotaryembedding
CASES = {
    case.name: case
    for case in node._NodeTestCases
    if case.name.startswith("test_rotary_embedding") and "expanded" not in case.name
}


def test_all_kinds_of_vectors_are_there() -> None:
    assert len(CASES) >= 8
    for kind in ("interleaved", "rotary_dim", "no_position_ids", "3d_input"):
        assert any(kind in name for name in CASES), kind


@pytest.mark.parametrize("name", CASES)
def test_vector(name: str) -> None:
    case = CASES[name]
    given = {a.name: a.i for a in case.model.graph.node[0].attribute}
    ((inputs, outputs),) = case.data_sets
    x, cos, sin, *position_ids = (torch.from_numpy(np.array(value)) for value in inputs)
    expected = np.array(outputs[0])
    if position_ids:
        cos, sin = cos[position_ids[0]], sin[position_ids[0]]
    heads = x
    if x.ndim == 3:
        heads = x.unflatten(-1, (given["num_heads"], -1)).transpose(1, 2)
    rope = DefaultRope(
        rotary_dim=given.get("rotary_embedding_dim", 0) or heads.shape[-1],
        layout="interleaved" if given.get("interleaved") else "half_split",
    )
    found = rotate(heads, cos, sin, rope)
    if x.ndim == 3:
        found = found.transpose(1, 2).flatten(2)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-6)
