"""A fixed cache without cache_lengths: other clients tell the length by the mask alone."""

import numpy as np
import onnxruntime
import pytest

from rope_export import export_decoder
from tests.unit.test_two_forms import CAPACITY, model

__all__ = ["model"]

PROMPT, STEP = np.array([[3, 4, 5], [6, 7, 8]]), np.array([[9], [1]])


@pytest.mark.parametrize("lowering", ["ort", "standard"])
def test_they_are_as_many_as_the_mask_covers_before_the_new_tokens(model, tmp_path, lowering):
    _, path = model
    artifact = export_decoder(path, out=tmp_path / "out", lowering=lowering, cache="fixed")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(artifact.path / "model.onnx", options)
    given, left_out = (_answers(session, x) for x in (True, False))
    assert np.abs(given[1]).max() > 1e-2
    for one, other in zip(given, left_out, strict=True):
        np.testing.assert_array_equal(one, other)


def _answers(session, with_lengths):
    """The logits of a prompt and of a step upon its cache."""
    names = [tensor.name for tensor in session.get_outputs()]
    pasts = [x.name for x in session.get_inputs() if x.name.startswith("past_key_values")]
    caches = {name: np.zeros((2, 2, CAPACITY, 16), np.float32) for name in pasts}
    start, logits = 0, []
    for ids in (PROMPT, STEP):
        total = start + ids.shape[1]
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones((2, total), np.int64),
            "position_ids": np.tile(np.arange(start, total), (2, 1)),
            **({"cache_lengths": np.array([start, start])} if with_lengths else {}),
        }
        outputs = dict(zip(names, session.run(names, feeds | caches), strict=True))
        caches = {name: outputs[name.replace("past_key_values", "present")] for name in pasts}
        logits.append(outputs["logits"])
        start = total
    return logits
