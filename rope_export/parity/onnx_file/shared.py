"""Files whose caches may be given as one buffer each, input and output: onnxruntime-genai's."""

from dataclasses import replace

from rope_export.parity.onnx_file.file import OnnxFile
from rope_export.parity.onnx_file.names import Matched

SHARED = "shared buffers"
"""What is added to the name of a runtime whose rows are about such buffers."""


def with_shared_buffers(file: OnnxFile, matched: Matched) -> Matched | None:
    """The file as one with fixed caches, where each cache goes into a GroupQueryAttention as its
    past and comes out of it: the operator writes into a buffer that is both, and knows how much of
    it is filled. None for another file."""
    if matched.fixed or not matched.caches or "attention_mask" not in matched.inputs:
        return None
    pairs = {
        pair
        for node in file.graph.node
        if node.op_type == "GroupQueryAttention" and len(node.output) >= 3
        for pair in zip(node.input[3:5], node.output[1:3], strict=False)
    }
    every = [(x.before.name, x.after.name) for x in matched.caches.values()]
    return replace(matched, fixed=True) if pairs.issuperset(every) else None
