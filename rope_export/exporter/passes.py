"""Graph passes that onnx_ir and onnxscript do not have."""

import onnx_ir as ir


class CancelReshapesPass(ir.passes.InPlacePass):
    """Removes pairs of Reshapes that cancel out: heads that are split and joined again.

    Lowerings split (B, S, heads * D) by the shape [0, 0, heads, D] and join by [0, 0, heads * D].
    onnxscript's rule for two Reshapes in a row leaves one. The Reshapes themselves are left for
    RemoveUnusedNodesPass.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in model.graph:
            joined = _constant_shape(node)
            split = node.inputs[0].producer() if joined and node.inputs[0] is not None else None
            heads = _constant_shape(split) if split is not None else None
            if split is None or heads is None or joined is None:
                continue
            if len(heads) == 4 and heads[:2] == [0, 0] and joined == [0, 0, heads[2] * heads[3]]:
                whole = split.inputs[0]
                assert whole is not None
                ir.convenience.replace_all_uses_with(node.outputs[0], whole)
                modified = True
        return ir.passes.PassResult(model, modified)


def _constant_shape(node: ir.Node) -> list[int] | None:
    """The constant shape that a Reshape asks for."""
    if node.op_type != "Reshape" or node.inputs[1] is None:
        return None
    shape = ir.convenience.get_const_tensor(node.inputs[1])
    return None if shape is None else [int(size) for size in shape.numpy()]
