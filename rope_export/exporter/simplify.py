"""What the exported graph says twice, said once."""

import onnx_ir as ir


def drop_undone_reshapes(model: ir.Model) -> None:
    """Heads that are split and joined again with nothing between: the tensor itself.

    Lowerings split (B, S, heads * D) by the shape [0, 0, heads, D] and join by [0, 0, heads * D].
    """
    for node in model.graph:
        joined = _said(node)
        split = node.inputs[0].producer() if joined and node.inputs[0] is not None else None
        said = _said(split) if split is not None else None
        if split is None or said is None or joined is None:
            continue
        if said[:2] == joined[:2] == [0, 0] and [said[2] * said[-1]] == joined[2:] and said[3:]:
            whole = split.inputs[0]
            assert whole is not None
            ir.convenience.replace_all_uses_with(node.outputs[0], whole)


def _said(node: ir.Node) -> list[int] | None:
    """The constant shape that a Reshape asks for."""
    if node.op_type != "Reshape" or node.inputs[1] is None:
        return None
    shape = ir.convenience.get_const_tensor(node.inputs[1])
    return None if shape is None else [int(size) for size in shape.numpy()]
