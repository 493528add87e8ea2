"""The two forms of attention in one file: each is right where it is taken, against transformers."""

from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rope_export.decoder.pipeline import export_decoder

POSITIONS = 24
"""Of the model, and so of its tables of cos and sin."""
CAPACITY = 30
CACHES = ("growing", "fixed")


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call after a prefill. padding: tokens of the first row that the mask hides, from `hidden`
    on. shift: of the positions. plain: whether the plain form is right for it."""

    rows: int = 1
    past: int = 4
    new: int = 1
    hidden: int = 0
    padding: int = 0
    shift: int = 0
    plain: bool

    def inputs(self) -> dict[str, np.ndarray]:
        """Of all tokens."""
        stream = np.random.default_rng(7)
        total = self.past + self.new
        mask = np.ones((self.rows, total), np.int64)
        mask[0, self.hidden : self.hidden + self.padding] = 0
        positions = np.clip(mask.cumsum(1) - 1, 0, None) + self.shift
        tokens = stream.integers(1, 64, (self.rows, total))
        return {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}


CALLS = {
    "one row, one token": Call(plain=True),
    "one row, a chunk": Call(new=3, plain=True),
    "rows, one token": Call(rows=2, plain=True),
    "rows, from nothing": Call(rows=2, past=0, new=5, plain=True),
    "to the end of the tables": Call(past=20, new=4, plain=True),
    "beyond the tables": Call(past=21, new=4, plain=False),
    "rows, a chunk": Call(rows=2, new=3, plain=False),
    "left padding": Call(rows=2, padding=2, plain=False),
    "a hole": Call(hidden=2, padding=1, plain=False),
    "other positions": Call(shift=3, plain=False),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=POSITIONS,
        initializer_range=0.3,
    )  # fmt: skip
    lm = LlamaForCausalLM(config).eval()
    path = tmp_path_factory.mktemp("model")
    lm.save_pretrained(path)
    return lm, path


@pytest.fixture(scope="module", params=CACHES)
def files(request, model, tmp_path_factory):
    """The model, what transformers computes, and the file with a fault in each plain form."""
    lm, path = model
    out = tmp_path_factory.mktemp("out") / request.param
    artifact = export_decoder(path, out=out, cache=request.param, lowering="ort")
    faulty = onnx.load(artifact.path / "model.onnx")
    count = 0
    for node in faulty.graph.node:
        for attribute in (x for x in node.attribute if x.name == "then_branch"):
            for inner in (x for x in attribute.g.node if x.op_type == "GroupQueryAttention"):
                next(x for x in inner.attribute if x.name == "scale").f *= 0.5
                count += 1
    assert count == len(lm.model.layers)
    sessions = [
        onnxruntime.InferenceSession(x.SerializeToString())
        for x in (onnx.load(artifact.path / "model.onnx"), faulty)
    ]
    return lm, request.param, sessions


@pytest.mark.parametrize("name", CALLS)
def test_each_form_is_right_where_it_is_taken(files, name):
    lm, cache, (session, faulty) = files
    call = CALLS[name]
    expected, logits = run_calls(lm, session, cache, call)
    # Two layers of width 64 in float32; a wrong scale, mask or position moves them by more than 1.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-4)
    moved = np.abs(run_calls(lm, session, cache, call, faulty)[1] - expected).max()
    assert (moved > 1e-2) == call.plain


def run_calls(lm, session, cache, call, last=None):
    """What transformers and the last of two calls give; last: what runs that one, if another."""
    whole = call.inputs()
    with torch.no_grad():
        tensors = {key: torch.from_numpy(value) for key, value in whole.items()}
        expected = lm(**tensors).logits[:, -1:].numpy()
    before = _run(session, cache, {key: value[:, : call.past] for key, value in whole.items()}, {})
    new = {key: value[:, call.past :] for key, value in whole.items()}
    new["attention_mask"] = whole["attention_mask"]
    return expected, _run(last or session, cache, new, before)["logits"]


def _run(session, cache, inputs, before):
    """Outputs by name. before: those of the call before; none ran on an empty cache."""
    if inputs["input_ids"].shape[1] == 0:
        return {}
    slots = CAPACITY if cache == "fixed" else 0
    empty = np.zeros((len(inputs["input_ids"]), 2, slots, 16), np.float32)
    taken = {tensor.name for tensor in session.get_inputs()}
    feeds = {name: value for name, value in inputs.items() if name in taken}
    for tensor in session.get_inputs():
        if tensor.name.startswith("past_key_values"):
            name = tensor.name.replace("past_key_values", "present")
            feeds[tensor.name] = before.get(name, empty)
    names = [x.name for x in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))
