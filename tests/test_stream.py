"""Streams: calls that share a cache, and rows that start and end when they like."""

import numpy as np
import pytest
import torch

from rope_export import open_session
from rope_export.errors import InputError, TensorError
from tests.conftest import TINY

HIDDEN = TINY["hidden_size"]
KINDS = [("standard", "growing"), ("ort", "growing"), ("standard", "fixed"), ("ort", "fixed")]
FIXED = [("standard", "fixed"), ("ort", "fixed")]
ATOL = 64 * 2**-23
"""Longest sum of the tiny layer times float32's spacing at 1: outputs are of order 1."""


def tokens(batch: int, count: int, seed: int = 0) -> np.ndarray:
    stream = np.random.default_rng(seed)
    return stream.standard_normal((batch, count, HIDDEN), dtype=np.float32)


@pytest.fixture
def whole(tiny):
    """One pass over all tokens, without a cache, in the other lowering."""
    with open_session(tiny("portable", "float32", "none")) as session:
        yield lambda x, first=0: session.run(
            {
                "hidden_states": np.ascontiguousarray(x),
                "position_ids": np.tile(first + np.arange(x.shape[1]), (x.shape[0], 1)),
            }
        )["attention_output"]


@pytest.mark.parametrize(("lowering", "cache"), KINDS)
@pytest.mark.parametrize("runtime", ["onnxruntime", "eager"])
def test_steps_add_up_to_one_pass(tiny, whole, lowering, cache, runtime) -> None:
    x = tokens(2, 12)
    with open_session(tiny(lowering, "float32", cache), runtime) as session:
        stream = session.start(batch=2, capacity=12)
        parts = [stream.step(x[:, a:b]) for a, b in ((0, 7), (7, 8), (8, 11), (11, 12))]
        assert stream.lengths.tolist() == [12, 12]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole(x), rtol=0, atol=ATOL)


@pytest.mark.parametrize(("lowering", "cache"), FIXED)
def test_rows_of_different_length_are_rows_of_their_own(tiny, whole, lowering, cache) -> None:
    """Right padding is overwritten; a row that is reset starts anew beside one that goes on."""
    x, counts = tokens(3, 6), [6, 2, 4]
    with open_session(tiny(lowering, "float32", cache)) as session:
        stream = session.start(batch=3, capacity=20)
        first = stream.step(x, new=counts)
        assert stream.lengths.tolist() == counts
        y = tokens(3, 2, seed=1)
        second = stream.step(y)
        for row, count in enumerate(counts):
            both = np.concatenate((x[row : row + 1, :count], y[row : row + 1]), axis=1)
            found = np.concatenate((first[row : row + 1, :count], second[row : row + 1]), axis=1)
            np.testing.assert_allclose(found, whole(both), rtol=0, atol=ATOL)
        stream.reset([1])
        assert stream.lengths.tolist() == [8, 0, 6]
        z = tokens(3, 1, seed=2)
        third = stream.step(z)
        np.testing.assert_allclose(third[1:2], whole(z[1:2]), rtol=0, atol=ATOL)
        both = np.concatenate((x[:1], y[:1], z[:1]), axis=1)
        np.testing.assert_allclose(third[:1], whole(both)[:, -1:], rtol=0, atol=ATOL)


@pytest.mark.parametrize(("lowering", "cache"), FIXED)
def test_a_fixed_cache_is_written_in_place(tiny, lowering, cache) -> None:
    with open_session(tiny(lowering, "float32", cache)) as session:
        stream = session.start(batch=2, capacity=9)
        stream.step(tokens(2, 3))
        before = {name: value.ctypes.data for name, value in stream._cache.items()}
        kept = {name: value.copy() for name, value in stream._cache.items()}
        stream.step(tokens(2, 1, seed=1))
        assert {name: value.ctypes.data for name, value in stream._cache.items()} == before
        for name, value in stream._cache.items():
            np.testing.assert_array_equal(value[:, :, :3], kept[name][:, :, :3])
            assert np.all(value[:, :, 3] != 0)
            np.testing.assert_array_equal(value[:, :, 4:], 0)


@pytest.mark.parametrize(("lowering", "cache"), FIXED)
def test_run_leaves_the_callers_cache_alone(tiny, lowering, cache) -> None:
    inputs = {
        "hidden_states": tokens(2, 2),
        "position_ids": np.array([[3, 4], [0, 1]]),
        "key_cache": np.ones((2, 2, 6, 16), np.float32),
        "value_cache": np.ones((2, 2, 6, 16), np.float32),
        "cache_lengths": np.array([3, 0]),
    }
    with open_session(tiny(lowering, "float32", cache)) as session:
        outputs = session.run(inputs)
    assert np.all(inputs["key_cache"] == 1)
    np.testing.assert_array_equal(outputs["key_cache_out"][0, :, :3], 1)
    assert np.all(outputs["key_cache_out"][0, :, 3:5] != 1)
    assert np.all(outputs["value_cache_out"][1, :, :2] != 1)


@pytest.mark.parametrize(("lowering", "cache"), KINDS)
def test_left_padding_and_positions_of_ones_own(tiny, whole, lowering, cache) -> None:
    x, y = tokens(2, 5), tokens(2, 1, seed=1)
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    with open_session(tiny(lowering, "float32", cache, True)) as session:
        stream = session.start(batch=2, capacity=8)
        positions = np.array([[0, 0, 0, 1, 2], [7, 8, 9, 10, 11]])
        first = stream.step(x, positions, mask)
        second = stream.step(y, np.array([[3], [12]]))
    for row, pad, start in ((0, 2, 0), (1, 0, 7)):
        both = np.concatenate((x[row : row + 1, pad:], y[row : row + 1]), axis=1)
        found = np.concatenate((first[row : row + 1, pad:], second[row : row + 1]), axis=1)
        np.testing.assert_allclose(found, whole(both, start), rtol=0, atol=ATOL)


@pytest.mark.parametrize(("lowering", "cache"), KINDS)
def test_torch_tensors_stay_torch_tensors(tiny, lowering, cache) -> None:
    x = tokens(1, 4)
    with open_session(tiny(lowering, "float32", cache)) as session:
        arrays, tensors = session.start(capacity=8), session.start(capacity=8)
        for at in range(4):
            expected = arrays.step(x[:, at : at + 1])
            found = tensors.step(torch.from_numpy(x[:, at : at + 1]))
            assert isinstance(found, torch.Tensor)
            np.testing.assert_array_equal(found.numpy(), expected)
        with pytest.raises(TensorError, match="other kind"):
            tensors.step(x[:, :1])


def test_a_full_row_is_named_and_nothing_changes(tiny) -> None:
    with open_session(tiny("ort", "float32", "fixed")) as session:
        stream = session.start(batch=2, capacity=5)
        stream.step(tokens(2, 4), new=[4, 1])
        with pytest.raises(TensorError, match=r"row 0 .* full: 4 entries and 2 new.*capacity 5"):
            stream.step(tokens(2, 2))
        assert stream.lengths.tolist() == [4, 1]
        stream.step(tokens(2, 1))
        assert stream.lengths.tolist() == [5, 2]
        stream.reset()
        assert stream.lengths.tolist() == [0, 0]


WRONG = {
    "no capacity": (lambda s: s.start(), InputError, "capacity is missing"),
    "capacity 0": (lambda s: s.start(capacity=0), InputError, "capacity=0"),
    "no rows": (lambda s: s.start(0, 4), InputError, "batch=0"),
    "another batch": (lambda s: s.start(2, 4).step(tokens(1, 1)), TensorError, "batch = 2"),
    "a width": (lambda s: s.start(1, 4).step(tokens(1, 1)[..., :8]), TensorError, "hidden_states"),
    "a mask": (
        lambda s: s.start(1, 4).step(tokens(1, 1), attention_mask=np.ones((1, 1), np.int64)),
        TensorError,
        "takes none",
    ),
    "counts": (lambda s: s.start(1, 4).step(tokens(1, 2), new=[3]), TensorError, "0 to 2"),
    "a row": (lambda s: s.start(1, 4).reset([1]), InputError, "row 1 does not exist"),
    "lengths": (lambda s: setattr(s.start(1, 4), "lengths", [5]), TensorError, "row 0"),
    "negative": (lambda s: setattr(s.start(1, 4), "lengths", [-1]), TensorError, "-1"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_a_fixed_stream_refuses(tiny, fault) -> None:
    act, kind, named = WRONG[fault]
    with (
        open_session(tiny("ort", "float32", "fixed")) as session,
        pytest.raises(kind, match=named),
    ):
        act(session)


def test_what_a_growing_stream_refuses(tiny) -> None:
    with open_session(tiny()) as session:
        stream = session.start(batch=2)
        stream.step(tokens(2, 3))
        with pytest.raises(InputError, match="cache 'fixed' for rows of different length"):
            stream.step(tokens(2, 2), new=[1, 2])
        with pytest.raises(InputError, match="reset together"):
            stream.reset([0])
        with pytest.raises(InputError, match="row by row"):
            stream.lengths = [1, 3]
        stream.reset()
        assert stream.step(tokens(2, 1)).shape == (2, 1, HIDDEN)
    with (
        open_session(tiny("standard", "float32", "none")) as session,
        pytest.raises(InputError, match="no cache"),
    ):
        session.start()


def test_sessions_on_one_artifact_share_their_weights(tiny) -> None:
    with open_session(tiny()) as one, open_session(tiny()) as other:
        assert one._inner is other._inner
        with open_session(tiny(), threads=1) as alone:
            assert alone._inner is not one._inner
    with pytest.raises(InputError, match="threads=0"):
        open_session(tiny(), threads=0)


def test_an_older_onnxruntime_is_told_what_is_needed(tiny, monkeypatch) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "1.31.2")
    with pytest.raises(Exception, match=r"needs onnxruntime 1\.32 or newer; this is 1\.31\.2"):
        open_session(tiny("ort", "float32", "fixed"))
    open_session(tiny()).close()
