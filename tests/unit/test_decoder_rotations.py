"""Rotations that follow the length of a call, around the layers of a traced model."""

import onnx_ir as ir
import pytest
from torch import nn

from rope_export.decoder.rotations import DOMAIN, OPERATOR, refuse_marked, without_length
from rope_export.errors import SpecError


class Rotary(nn.Module):
    def __init__(self, rope_type: object) -> None:
        super().__init__()
        self.rope_type = rope_type

    def forward(self) -> None:
        """Never called here."""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("dynamic", "default"),
        ("longrope", "default"),
        ("yarn", "yarn"),
        ({"full": "longrope", "sliding": "linear"}, {"full": "default", "sliding": "linear"}),
        ({"full": "yarn"}, {"full": "yarn"}),
    ],
)
def test_only_rotations_that_follow_the_length_are_marked(before: object, after: object) -> None:
    model = nn.Sequential(Rotary(before))
    without_length(model)
    assert model[0].rope_type == after
    assert ("forward" in vars(model[0])) == (before != after)


def test_a_model_that_takes_what_is_marked_is_refused() -> None:
    x = ir.Value(name="x")
    node = ir.Node(DOMAIN, OPERATOR, [x])
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 23, DOMAIN: 1})
    model = ir.Model(graph, ir_version=10)
    with pytest.raises(SpecError, match="rotations that follow the length"):
        refuse_marked(model)
    graph.outputs.clear()
    graph.remove(node)
    refuse_marked(model)
    assert DOMAIN not in model.opset_imports
