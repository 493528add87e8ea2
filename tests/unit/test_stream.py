"""Streams: calls that share a cache, and rows that start and end when they like."""

import numpy as np
import pytest
import torch

from rope_export import open_session
from rope_export.errors import InputError, TensorError
from tests.conftest import TINY, taking_turns

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
def test_steps_add_up_to_one_pass(tiny, whole, lowering, cache, runtime) -> None:
    x = tokens(2, 12)
    with runtime.open(tiny(lowering, "float32", cache)) as session:
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
        before = {name: value.ctypes.data for name, value in stream._caches.tensors.items()}
        kept = {name: value.copy() for name, value in stream._caches.tensors.items()}
        stream.step(tokens(2, 1, seed=1))
        assert {name: value.ctypes.data for name, value in stream._caches.tensors.items()} == before
        for name, value in stream._caches.tensors.items():
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
    "lengths not written": (
        lambda s: setattr(stepped(s), "lengths", [3]),
        TensorError,
        "row 0 of the cache holds 2 entries, not 3",
    ),
    "half an entry": (lambda s: setattr(stepped(s), "lengths", [1.5]), TensorError, "lengths=.1.5"),
    "a bool as length": (lambda s: setattr(stepped(s), "lengths", [True]), TensorError, "True"),
    "no lengths": (lambda s: setattr(stepped(s), "lengths", None), TensorError, "lengths=None"),
    "one length": (lambda s: setattr(stepped(s), "lengths", 1), TensorError, "lengths=1: want 1"),
    "two lengths": (lambda s: setattr(stepped(s), "lengths", [1, 1]), TensorError, "want 1 whole"),
    "half a token": (lambda s: stepped(s, new=[0.5]), TensorError, "new=.0.5.: want 1 whole"),
    "half tokens": (lambda s: stepped(s, new=np.array([0.5])), TensorError, "new of dtype float64"),
    "whole floats": (lambda s: stepped(s, new=[1.0]), TensorError, "new=.1.0.: want 1 whole"),
    "a bool": (lambda s: stepped(s, new=[True]), TensorError, "new=.True.: want 1 whole"),
    "bools": (lambda s: stepped(s, new=np.array([True])), TensorError, "new of dtype bool"),
    "one number": (lambda s: stepped(s, new=1), TensorError, "new=1: want 1 whole numbers"),
    "rows of new": (lambda s: stepped(s, new=np.array([[1]])), TensorError, "shape .1, 1."),
    "a huge count": (lambda s: stepped(s, new=[2**63]), TensorError, "want 1 whole numbers"),
    "masked counts": (
        lambda s: stepped(s, new=np.ma.masked_array([1], [True])),
        TensorError,
        "'new' is a numpy.ma.MaskedArray",
    ),
    "text": (lambda s: stepped(s, new="1"), TensorError, "new='1'"),
    "half a row": (lambda s: s.start(1, 4).reset([0.0]), TensorError, "rows=.0.0.: want whole"),
    "rows as bools": (lambda s: s.start(1, 4).reset([True]), TensorError, "rows=.True."),
    "a mask of rows": (lambda s: s.start(1, 4).reset(np.array([True])), TensorError, "rows of dty"),
    "a row alone": (lambda s: s.start(1, 4).reset(0), TensorError, "rows=0: want whole numbers"),
    "a negative row": (lambda s: s.start(1, 4).reset([-1]), InputError, "row -1 does not exist"),
    "half a batch": (lambda s: s.start(1.5, 4), InputError, "batch=1.5"),
    "a bool as batch": (lambda s: s.start(True, 4), InputError, "batch=True"),
    "half a capacity": (lambda s: s.start(1, 4.5), InputError, "capacity=4.5"),
    "a list": (lambda s: s.start(1, 4).step([[[1.0]]]), TensorError, "'hidden_states' is a list"),
    "nothing": (lambda s: s.start(1, 4).step(None), TensorError, "'hidden_states' is a NoneType"),
    "positions as a list": (
        lambda s: s.start(1, 4).step(tokens(1, 1), [[0]]),
        TensorError,
        "'position_ids' is a list",
    ),
    "positions of the other kind": (
        lambda s: s.start(1, 4).step(tokens(1, 1), torch.zeros(1, 1, dtype=torch.int64)),
        TensorError,
        "inputs mix",
    ),
    "positions of float": (
        lambda s: s.start(1, 4).step(tokens(1, 1), np.zeros((1, 1))),
        TensorError,
        "'position_ids' is float64; it must be int64",
    ),
}


def stepped(session, **options):
    """A stream of one row that holds two entries."""
    stream = session.start(1, 4)
    stream.step(tokens(1, 2), **options)
    return stream


@pytest.fixture(scope="module")
def fixed(tiny):
    with open_session(tiny("ort", "float32", "fixed")) as session:
        yield session


@pytest.mark.parametrize("fault", WRONG)
def test_what_a_fixed_stream_refuses(fixed, fault) -> None:
    act, kind, named = WRONG[fault]
    with pytest.raises(kind, match=named):
        act(fixed)


WRONG_MASKS = {
    "a 2": (np.array([[2, 1]]), "holds 2"),
    "negative": (np.array([[-1, 1]]), "holds -1"),
    "what is added to scores": (np.array([[0.0, -np.inf]]), "is float64; it must be int64"),
    "a list": ([[1, 1]], "'attention_mask' is a list"),
    "another width": (np.ones((1, 3), np.int64), "one for each new token"),
    "masked": (np.ma.masked_array([[1, 1]], [[True, False]]), "MaskedArray"),
    "of float": (torch.ones(1, 2), "is float32; it must be int64"),
}


@pytest.mark.parametrize("cache", ["growing", "fixed"])
def test_masks_hold_nothing_but_0_and_1(tiny, cache) -> None:
    with open_session(tiny("standard", "float32", cache, True)) as session:
        stream = session.start(1, 8)
        for mask, named in WRONG_MASKS.values():
            with pytest.raises(TensorError, match=named):
                stream.step(tokens(1, 2), attention_mask=mask)
        assert stream.lengths.tolist() == [0]
        stream.step(tokens(1, 2), attention_mask=np.array([[0, 1]], ">i8"))
        stream.step(tokens(1, 2), attention_mask=np.array([[False, True]]))


def test_counts_of_any_whole_kind_are_taken(tiny) -> None:
    with open_session(tiny("ort", "float32", "fixed")) as session:
        for new in ([2, 1], (2, 1), np.array([2, 1], ">i4"), torch.tensor([2, 1]), [np.int8(2), 1]):
            stream = session.start(2, 8)
            stream.step(tokens(2, 2), new=new)
            assert stream.lengths.tolist() == [2, 1]
            stream.lengths = np.array([1, 1], np.uint64)
            stream.reset(range(1))
            assert stream.lengths.tolist() == [0, 1]


SPOILING = {"float32": [np.nan, np.inf, 3e38], "float16": [np.nan, -np.inf, 6e4]}
ZEROED = [
    ("standard", False),
    ("standard", True),
    ("ort", False),
    ("ort", True),
    ("tensorrt", False),
]


@pytest.mark.parametrize(
    ("lowering", "padding", "dtype"),
    taking_turns((*kind, dtype) for kind in ZEROED for dtype in SPOILING),
)
def test_what_a_row_gave_up_never_reaches_a_result(tiny, lowering, padding, dtype) -> None:
    """A row that held NaN, infinity or the largest number is as good as new once it is reset or
    shortened; so is one whose padding on the right held them. Slots beyond a length are zero."""
    kind = np.dtype(dtype)
    x, y = (tokens(2, n, seed).astype(kind) for n, seed in ((5, 0), (2, 1)))
    with open_session(tiny(lowering, dtype, "fixed", padding)) as session:
        for held in SPOILING[dtype]:
            bad = x.copy()
            bad[0, 2:] = held
            wanted, streams = session.start(2, 12), [session.start(2, 12) for _ in range(3)]
            first = wanted.step(x, new=[2, 5])
            padded, lowered, anew = streams
            found = padded.step(bad, new=[2, 5])
            np.testing.assert_array_equal(found[0, :2], first[0, :2])
            np.testing.assert_array_equal(found[1], first[1])
            lowered.step(bad)
            lowered.lengths = [2, 5]
            anew.step(bad)
            anew.reset([0])
            again = anew.step(x, new=[2, 0])  # the second row waits
            np.testing.assert_array_equal(again[0, :2], first[0, :2])
            second = wanted.step(y)
            for stream in streams[:2]:
                np.testing.assert_array_equal(stream.step(y)[1], second[1])
            for stream in streams[:1]:
                assert stream.lengths.tolist() == [4, 7]
            for stream in (wanted, *streams):
                for value in stream._caches.tensors.values():
                    for row, length in zip(value, stream.lengths, strict=True):
                        assert np.all(row[..., length:, :] == 0)
            np.testing.assert_array_equal(
                *(stream.step(y)[0] for stream in (wanted, padded)), err_msg=str(held)
            )


@pytest.mark.parametrize("cache", ["growing", "fixed"])
@pytest.mark.parametrize("lowering", ["standard", "ort"])
def test_what_padded_tokens_hold_never_reaches_a_result(tiny, lowering, cache) -> None:
    x, y = tokens(2, 4), tokens(2, 1, seed=1)
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 1]])
    with open_session(tiny(lowering, "float32", cache, True)) as session:
        wanted = session.start(2, 8)
        first, second = wanted.step(x, attention_mask=mask), wanted.step(y)
        for held in SPOILING["float32"]:
            bad = x.copy()
            bad[0, :2] = held
            for given in (bad, torch.from_numpy(bad)):
                stream = session.start(2, 8)
                as_given = (lambda v: v) if given is bad else torch.from_numpy
                found = np.asarray(stream.step(given, attention_mask=mask))
                np.testing.assert_array_equal(found[0, 2:], first[0, 2:])
                np.testing.assert_array_equal(found[1], first[1])
                np.testing.assert_array_equal(np.asarray(stream.step(as_given(y))), second)
            np.testing.assert_array_equal(bad[0, :2], np.full((2, HIDDEN), held, np.float32))


def test_a_step_can_be_measured_at_a_length_again_and_again(tiny) -> None:
    """Entries that were never written are zeros."""
    x = tokens(1, 1)
    with open_session(tiny("standard", "float32", "fixed")) as session:
        stream = session.start(1, 9)
        for _ in range(2):
            stream.assume_lengths([8])
            found = stream.step(x)
        zeros = np.zeros((1, 2, 9, 16), np.float32)
        inputs = {"hidden_states": x, "position_ids": np.array([[8]])}
        inputs |= {"key_cache": zeros, "value_cache": zeros, "cache_lengths": np.array([8])}
        np.testing.assert_array_equal(found, session.run(inputs)["attention_output"])
        with pytest.raises(TensorError, match="capacity 9"):
            stream.assume_lengths([10])


def test_a_row_of_nan_leaves_the_others_alone(tiny) -> None:
    """What real tokens hold is the row's own affair, until it is reset."""
    x = tokens(2, 3)
    bad = x.copy()
    bad[0] = np.nan
    for lowering, cache in KINDS:
        with open_session(tiny(lowering, "float32", cache)) as session:
            wanted, found = session.start(2, 8), session.start(2, 8)
            np.testing.assert_array_equal(found.step(bad)[1], wanted.step(x)[1])
            np.testing.assert_array_equal(found.step(x)[1], wanted.step(x)[1])
            found.reset()
            wanted.reset()
            np.testing.assert_array_equal(found.step(x), wanted.step(x))


def test_a_call_that_fails_leaves_nothing_behind(tiny, monkeypatch) -> None:
    x = tokens(1, 2)
    with open_session(tiny("standard", "float32", "fixed")) as session:
        stream, wanted = session.start(1, 8), session.start(1, 8)
        stream.step(x), wanted.step(x)
        held = stream._caches._prepared

        def fails(inputs, axes):
            held(inputs, axes)
            for value in stream._caches.tensors.values():
                value[:, :, 3] = np.nan
            raise KeyboardInterrupt

        monkeypatch.setattr(stream._caches, "_prepared", fails)
        with pytest.raises(KeyboardInterrupt):
            stream.step(x)
        monkeypatch.setattr(stream._caches, "_prepared", held)
        assert stream.lengths.tolist() == [2]
        np.testing.assert_array_equal(stream.step(x), wanted.step(x))


@pytest.mark.parametrize("cache", ["growing", "fixed"])
def test_a_stream_goes_on_outside_of_inference_mode(tiny, cache) -> None:
    x = torch.from_numpy(tokens(1, 2))
    with open_session(tiny("standard", "float32", cache)) as session:
        wanted, stream = session.start(1, 12), session.start(1, 12)
        for step in range(2):
            with torch.inference_mode(step == 0):
                found = stream.step(x)
            assert torch.equal(found, wanted.step(x))
        stream.reset()
        wanted.reset()
        assert torch.equal(stream.step(x), wanted.step(x))


def test_arrays_of_any_form_give_the_same_steps(tiny) -> None:
    x = tokens(2, 3)
    forms = [x.astype(">f4"), np.asfortranarray(x), np.flip(np.flip(x).copy())]
    forms += [np.repeat(x, 2, axis=2)[..., ::2]]
    positions = np.array([[4, 5, 6], [0, 1, 2]])
    for lowering, cache in KINDS:
        with open_session(tiny(lowering, "float32", cache)) as session:
            wanted = session.start(2, 12)
            expected = [wanted.step(x, positions), wanted.step(x)]
            stream = session.start(2, 12)
            for form in forms:
                stream.reset()
                swapped = positions.astype(">i8")
                found = [stream.step(form, swapped), stream.step(form)]
                np.testing.assert_array_equal(found, expected)


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
        assert one.runner._inner is other.runner._inner
        with open_session(tiny(), threads=1) as alone:
            assert alone.runner._inner is not one.runner._inner
    with pytest.raises(InputError, match="`threads`=0"):
        open_session(tiny(), threads=0)


def test_an_older_onnxruntime_is_told_what_is_needed(tiny, monkeypatch) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "1.31.2")
    with pytest.raises(Exception, match=r"needs onnxruntime 1\.32 or newer; this is 1\.31\.2"):
        open_session(tiny("ort", "float32", "fixed"))
    open_session(tiny()).close()
