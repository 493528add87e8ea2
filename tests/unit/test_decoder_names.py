"""A decoder's artifact runs in sessions and streams of onnxruntime: the small model of
`decoder_model`, whose rows are worked out one by one in `expected_logits`."""

import numpy as np
import pytest
import torch

from rope_export import open_session
from rope_export.errors import TensorError
from tests.support.decoder_folder import decoder_folder
from tests.support.decoder_model import EMBEDDING, expected_logits

KINDS = {
    "growing": {"cache": "growing"},
    "fixed": {"cache": "fixed"},
    "static mask": {"cache": "fixed", "static_mask": True},
}
ROWS = [[3, 15, 7, 1, 9], [2, 2, 9, 4, 0]]


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    """Sessions on the decoder of a kind, each opened once."""
    opened = {}
    base = tmp_path_factory.mktemp("decoders")

    def make(kind: str, logits: str = "last"):
        if (kind, logits) not in opened:
            path = base / f"{kind} {logits}"
            opened[kind, logits] = open_session(
                decoder_folder(path, logits=logits, **KINDS[kind]), threads=1
            )
        return opened[kind, logits]

    yield make
    for session in opened.values():
        session.close()


def ids(*rows: list[int]) -> np.ndarray:
    return np.array(rows, np.int64)


def rows_logits(*rows: list[int], last: int) -> np.ndarray:
    """Logits of the last tokens of each row, which begins at position 0."""
    return np.stack([expected_logits(row)[-last:] for row in rows])


@pytest.mark.parametrize("of_kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("logits", ["last", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_steps_through_its_caches(decoders, kind, logits, of_kind) -> None:
    stream = decoders(kind, logits).start(batch=2, capacity=6)
    tokens = ids(*ROWS)
    for first, after in ((0, 3), (3, 4), (4, 5)):
        found = stream.step(of_kind(tokens[:, first:after].copy()))
        assert type(found) is type(of_kind(tokens))
        expected = [row[:after] for row in ROWS]
        last = after - first if logits == "all" else 1
        np.testing.assert_array_equal(np.asarray(found), rows_logits(*expected, last=last))
    assert stream.lengths.tolist() == [5, 5]
    caches = {name: np.asarray(value) for name, value in stream._caches.tensors.items()}
    expected = EMBEDDING[tokens].reshape(2, 5, 2, 8).transpose(0, 2, 1, 3)
    for layer in range(2):
        key, value = (caches[f"past_key_values.{layer}.{part}"] for part in ("key", "value"))
        np.testing.assert_array_equal(key[:, :, :5], expected)
        np.testing.assert_array_equal(value[:, :, :5], -expected)
        assert not key[:, :, 5:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_left_padded_rows_are_rows_of_their_own(decoders, kind) -> None:
    """Positions that nobody gives count the ones of the mask; what padding holds reaches none."""
    stream = decoders(kind).start(batch=2, capacity=8)
    mask = ids([0, 0, 1, 1], [1, 1, 1, 1])
    found = stream.step(ids([14, 13, 3, 15], [2, 9, 4, 4]), attention_mask=mask)
    np.testing.assert_array_equal(found, rows_logits([3, 15], [2, 9, 4, 4], last=1))
    found = stream.step(ids([7, 1], [6, 5]))
    np.testing.assert_array_equal(found, rows_logits([3, 15, 7, 1], [2, 9, 4, 4, 6, 5], last=1))
    found = stream.step(ids([8], [0]))
    np.testing.assert_array_equal(
        found, rows_logits([3, 15, 7, 1, 8], [2, 9, 4, 4, 6, 5, 0], last=1)
    )


@pytest.mark.parametrize("logits", ["last", "all"])
@pytest.mark.parametrize("kind", ["fixed", "static mask"])
def test_right_padded_rows_go_on_from_their_own_length(decoders, kind, logits) -> None:
    stream = decoders(kind, logits).start(batch=2, capacity=8)
    found = stream.step(ids([3, 15, 12], [2, 9, 4]), new=[2, 3])
    if logits == "all":
        found = np.stack([found[0, 1:2], found[1, 2:3]])
    np.testing.assert_array_equal(found, rows_logits([3, 15], [2, 9, 4], last=1))
    assert stream.lengths.tolist() == [2, 3]
    found = stream.step(ids([7], [6]))
    np.testing.assert_array_equal(found, rows_logits([3, 15, 7], [2, 9, 4, 6], last=1))


@pytest.mark.parametrize("kind", ["fixed", "static mask"])
def test_lengths_that_are_lowered_take_tokens_back(decoders, kind) -> None:
    stream = decoders(kind, "all").start(batch=2, capacity=8)
    stream.step(ids([0, 3, 15, 12, 5], [2, 9, 4, 1, 1]), attention_mask=ids([0, *[1] * 4], [1] * 5))
    stream.lengths = [3, 4]
    found = stream.step(ids([7, 6], [6, 8]))
    np.testing.assert_array_equal(found, rows_logits([3, 15, 7, 6], [2, 9, 4, 1, 6, 8], last=2))
    for name, cache in stream._caches.tensors.items():
        assert not cache[0, :, 5:].any(), name


@pytest.mark.parametrize("kind", ["growing", "fixed"])
def test_a_reset_stream_begins_anew(decoders, kind) -> None:
    stream = decoders(kind).start(batch=2, capacity=8)
    stream.step(ids([1, 2], [3, 4]), attention_mask=ids([0, 1], [1, 1]))
    stream.reset()
    found = stream.step(ids([5, 6], [7, 8]))
    np.testing.assert_array_equal(found, rows_logits([5, 6], [7, 8], last=1))


def whole_call(session, tokens: np.ndarray, **sizes: int) -> dict[str, np.ndarray]:
    """Every input of a first call on a fixed cache, with a mask of ones."""
    axes = {"batch": len(tokens), "sequence": tokens.shape[1], "total": tokens.shape[1]}
    axes |= {"capacity": 8, "past": 0} | sizes
    inputs = {t.name: np.zeros(t.sized(axes), t.dtype) for t in session.inputs}
    inputs["input_ids"] = tokens
    inputs["attention_mask"] += 1
    inputs["position_ids"] += np.arange(tokens.shape[1])
    return inputs


@pytest.mark.parametrize("kind", KINDS)
def test_one_call_gives_every_output_by_its_name(decoders, kind) -> None:
    session = decoders(kind)
    inputs = whole_call(session, ids([3, 15], [2, 9]))
    outputs = session.run(inputs)
    assert list(outputs) == [tensor.name for tensor in session.outputs]
    np.testing.assert_array_equal(outputs["logits"], rows_logits([3, 15], [2, 9], last=1))
    assert outputs["present.1.value"].shape == (2, 2, 2 if kind == "growing" else 8, 8)
    assert not inputs["past_key_values.1.value"].any()
    for name in ("past_key_values.1.value", "attention_mask"):
        with pytest.raises(TensorError, match=f"'{name}' is missing"):
            session.run({n: x for n, x in inputs.items() if n != name})


def test_lengths_that_are_left_out_are_what_the_mask_covers(decoders) -> None:
    """As a client does that has one buffer for the whole cache and tells its length by the mask."""
    session = decoders("fixed")
    first = whole_call(session, ids([3, 15], [2, 9]))
    del first["cache_lengths"]
    outputs = session.run(first)
    second = whole_call(session, ids([7], [6]), total=3)
    second["position_ids"] += 2
    del second["cache_lengths"]
    second |= {pair.input: outputs[pair.output] for pair in session.interface.caches}
    found = session.run(second)["logits"]
    np.testing.assert_array_equal(found, rows_logits([3, 15, 7], [2, 9, 6], last=1))
    with pytest.raises(TensorError, match="row 0 has 3 entries and 1 new ones"):
        session.run(second | {"cache_lengths": np.array([3, 1])})


def test_what_a_decoder_cannot_do_is_one_line(decoders) -> None:
    session = decoders("fixed")
    stream = session.start(batch=1, capacity=80)
    for token in (-1, 16):
        with pytest.raises(TensorError, match=rf"holds {token}; .* tokens 0 to 15"):
            stream.step(ids([token]))
        with pytest.raises(TensorError, match=rf"holds {token}; .* tokens 0 to 15"):
            session.run(whole_call(session, ids([token])))
    with pytest.raises(TensorError, match=r"holds 64; the model has 64 positions, 0 to 63"):
        stream.step(np.zeros((1, 65), np.int64))
    stream.step(np.zeros((1, 64), np.int64))
    with pytest.raises(TensorError, match="holds 64; the model has 64 positions"):
        stream.step(ids([0]))
    short = session.start(batch=1, capacity=4)
    with pytest.raises(TensorError, match=r"row 0 .* full: 0 entries and 5 new ones, capacity 4"):
        short.step(ids([1, 2, 3, 4, 5]))
