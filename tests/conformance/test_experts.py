"""Mixtures of experts: both forms give transformers' logits, each for so many tokens."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import AutoModelForCausalLM, GptOssConfig, MixtralConfig

from rope_export.decoder.pipeline import export_decoder

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
    "initializer_range": 0.3, "num_local_experts": 5, "num_experts_per_tok": 2,
}  # fmt: skip
CONFIGS = {
    "mixtral": MixtralConfig(**SIZES),
    "gpt_oss": GptOssConfig(**SIZES, head_dim=16),  # biases, transposed, a gate of its own
}
TOKENS = {1: "by token", 2: "by token", 3: "by expert", 24: "by expert"}
"""Two experts each: up to five gathered pairs of matrices are fewer than all experts'."""


@pytest.fixture(scope="module", params=CONFIGS)
def mixture(request, tmp_path_factory):
    """transformers' model, and the sessions of ours: as it is, with its forms exchanged, and with a
    fault in the form by expert."""
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval()
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    artifact = export_decoder(path, out=path / "out", cache="growing")
    files = [onnx.load(artifact.path / "model.onnx") for _ in range(3)]
    for node in _choices(files[1]):
        for attribute in node.attribute:
            names = {"then_branch": "else_branch", "else_branch": "then_branch"}
            attribute.name = names[attribute.name]
    for node in _choices(files[2]):
        for loop in (x for a in node.attribute for x in a.g.node if x.op_type == "Loop"):
            (body,) = (x.g for x in loop.attribute)
            scatter = next(x for x in body.node if x.op_type == "ScatterND")
            scatter.attribute[0].s = b"none"  # the last expert of a token alone
    sessions = [onnxruntime.InferenceSession(x.SerializeToString()) for x in files]
    return model, sessions


def _choices(model):
    found = [node for node in model.graph.node if node.name.endswith("/experts")]
    assert len(found) == SIZES["num_hidden_layers"]
    return found


@pytest.mark.parametrize("tokens", TOKENS)
def test_both_forms_give_transformers_logits(mixture, tokens):
    model, (session, exchanged, faulty) = mixture
    ids = np.random.default_rng(tokens).integers(1, 64, (1, tokens))
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits[:, -1:].numpy()
    for each in (session, exchanged):
        # Two layers of width 32 in float32; a wrong expert moves logits by more than 0.1.
        np.testing.assert_allclose(_logits(each, ids), expected, rtol=0, atol=1e-4)
    moved = np.abs(_logits(faulty, ids) - expected).max()
    assert (moved > 1e-2) == (TOKENS[tokens] == "by expert")


def _logits(session, ids):
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    feeds["position_ids"] = np.arange(ids.shape[1])[None]
    feeds |= {
        x.name: np.zeros((1, x.shape[1], 0, x.shape[3]), np.float32)
        for x in session.get_inputs()
        if x.name not in feeds
    }
    return session.run(["logits"], feeds)[0]
