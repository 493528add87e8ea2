"""Weights of transformers' model found in files that others made."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.nemotron.modeling_nemotron import NemotronLayerNorm1P

from rope_export.parity.onnx_file.file import OnnxFile
from rope_export.parity.onnx_file.weights import fill

WIDTH, TOKENS = 6, 10


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def written(path: Path, nodes: list[Any], weights: dict[str, np.ndarray]) -> OnnxFile:
    """A file with these weights; what it computes is not looked at."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (None, WIDTH))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(x, name) for name, x in weights.items()],
    )
    onnx.save(helper.make_model(graph), str(path / "m.onnx"))
    return OnnxFile.read(path / "m.onnx")


def test_a_tied_weight_that_lies_there_both_ways_is_found(tmp_path: Path) -> None:
    """torch's exporter keeps (out, in) for the embedding, and what its Transpose gave."""
    value = drawn(TOKENS, WIDTH)
    nodes = [
        helper.make_node("Gather", ["lm_head.weight", "ids"], ["e"], "embed_tokens"),
        helper.make_node("MatMul", ["x", "val_1"], ["y"], "lm_head"),
    ]
    file = written(tmp_path, nodes, {"lm_head.weight": value, "val_1": value.T.copy()})
    model = nn.ModuleDict({"lm_head": nn.Linear(WIDTH, TOKENS, bias=False)})
    fill(model, file, layers=0)
    np.testing.assert_array_equal(model["lm_head"].weight.detach(), value)


@pytest.mark.parametrize(
    ("norm", "added"),
    [(nn.LayerNorm(WIDTH), 0), (NemotronLayerNorm1P(WIDTH), 1), (GemmaRMSNorm(WIDTH), 1)],
    ids=["layer norm", "Nemotron", "Gemma"],
)
def test_norms_that_add_one_are_told_from_those_with_a_bias(
    tmp_path: Path, norm: nn.Module, added: int
) -> None:
    """The file holds what is multiplied with."""
    names = [name for name, _ in norm.named_parameters()]
    weights = {f"norm.{name}": drawn(WIDTH) for name in names}
    node = helper.make_node("LayerNormalization", ["x", *weights], ["y"], "norm")
    for parameter in norm.parameters():  # as those of a model whose weights are drawn
        parameter.data = torch.from_numpy(drawn(WIDTH))
    fill(nn.ModuleDict({"norm": norm}), written(tmp_path, [node], weights), layers=0)
    expected = {name: weights[f"norm.{name}"] for name in names}
    expected["weight"] = expected["weight"] - added
    for name, parameter in norm.named_parameters():
        np.testing.assert_array_equal(parameter.detach(), expected[name], err_msg=name)
