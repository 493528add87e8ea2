"""An ONNX model with a decoder's names runs in sessions and streams of onnxruntime."""

import numpy as np
import pytest
import torch

from rope_export.errors import TensorError
from rope_export.runtimes.onnxruntime import RUNTIMES, OnnxRuntimeRunner
from rope_export.sessions import Session
from tests.support.decoder_folder import manifest
from tests.support.decoder_model import EMBEDDING, decoder_model, expected_logits
from tests.support.fake_runner import FakeManifest

TOKENS = np.array([[3, 15, 7, 1], [2, 2, 9, 4]])


@pytest.fixture(scope="module", params=["growing", "fixed"])
def session(request):
    """On onnxruntime's CPU provider, by way of the same runner as artifacts."""
    cpu, interface = RUNTIMES[0], manifest(request.param, static_mask=True).interface
    inner = cpu.start(decoder_model(interface).SerializeToString(), cpu.options())
    with Session(FakeManifest(interface=interface), OnnxRuntimeRunner(interface, inner, cpu)) as x:
        yield x


def logits(tokens: np.ndarray, at: int, first: int = 0) -> np.ndarray:
    """Of the token at column `at`, which sees those from column `first` on."""
    positions = np.arange(first, at + 1).tolist()
    rows = [expected_logits(row[first : at + 1].tolist(), positions)[-1:] for row in tokens]
    return np.stack(rows)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_a_decoder_steps_through_its_caches(session, kind) -> None:
    stream = session.start(batch=2, capacity=5)
    for at in range(TOKENS.shape[1]):
        found = stream.step(kind(TOKENS[:, at : at + 1].copy()))
        assert type(found) is type(kind(TOKENS))
        np.testing.assert_array_equal(np.asarray(found), logits(TOKENS, at))
    assert stream.lengths.tolist() == [4, 4]
    caches = {name: np.asarray(value) for name, value in stream._caches.tensors.items()}
    expected = EMBEDDING[TOKENS].reshape(2, 4, 2, 4).transpose(0, 2, 1, 3)
    for layer in range(2):
        key, value = (caches[f"past_key_values.{layer}.{part}"] for part in ("key", "value"))
        np.testing.assert_array_equal(key[:, :, :4], expected)
        np.testing.assert_array_equal(value[:, :, :4], -expected)
        assert not key[:, :, 4:].any()


def test_a_masked_token_is_seen_by_none(session) -> None:
    stream = session.start(batch=2, capacity=5)
    stream.step(TOKENS[:, :1].copy(), attention_mask=np.zeros((2, 1), np.int64))
    found = stream.step(TOKENS[:, 1:2].copy())
    np.testing.assert_array_equal(found, logits(TOKENS, 1, first=1))


def test_one_call_gives_every_output_by_its_name(session) -> None:
    fixed = session.interface.cache == "fixed"
    axes = {"batch": 2, "sequence": 1, "past": 0, "total": 1, "capacity": 3}
    inputs = {t.name: np.zeros(t.sized(axes), t.dtype) for t in session.inputs}
    inputs["input_ids"] = TOKENS[:, :1].copy()
    inputs["attention_mask"] += 1
    outputs = session.run(inputs)
    assert list(outputs) == [tensor.name for tensor in session.outputs]
    np.testing.assert_array_equal(outputs["logits"], logits(TOKENS, 0))
    assert outputs["present.1.value"].shape == (2, 2, 3 if fixed else 1, 4)
    assert not inputs["past_key_values.1.value"].any()
    del inputs["past_key_values.1.value"]
    with pytest.raises(TensorError, match=r"'past_key_values\.1\.value' is missing"):
        session.run(inputs)
