"""Sessions and streams over a fake Runner, on an interface with a decoder's names."""

from dataclasses import replace

import numpy as np
import pytest

from rope_export.errors import InputError, TensorError
from rope_export.sessions import Session, Stream
from tests.support.fake_runner import FakeManifest, FakeRunner
from tests.support.interfaces import decoder_interface

AXES = [1, 2, 3]
"""On which the slots of a cache of four axes may lie."""


def session(cache: str, *, axis: int = 2, **options) -> tuple[FakeRunner, Session]:
    interface = decoder_interface(cache, axis=axis)
    runner = FakeRunner(interface, **options)
    return runner, Session(FakeManifest(interface=interface), runner)


def ids(*rows: list[int]) -> np.ndarray:
    return np.array(rows, np.int64)


def sums(tokens: np.ndarray) -> np.ndarray:
    """What tokens that see all before them see in the first cache."""
    return np.cumsum(tokens + 1, axis=1)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("cache", ["growing", "fixed"])
def test_a_decoders_steps_see_what_came_before(cache, axis) -> None:
    """past_key_values.N.key becomes present.N.key, wherever its slots lie."""
    tokens = ids([5, 3, 9, 2, 7], [1, 1, 4, 6, 0])
    runner, opened = session(cache, axis=axis)
    stream = opened.start(batch=2, capacity=6)
    logits = [stream.step(tokens[:, a:b]) for a, b in ((0, 2), (2, 3), (3, 5))]
    found = np.concatenate(logits, axis=1)
    np.testing.assert_array_equal(found[..., 0], sums(tokens))
    np.testing.assert_array_equal(found[..., 1], np.tile(np.arange(5), (2, 1)))
    assert stream.lengths.tolist() == [5, 5]
    caches = stream._caches.tensors
    for at, part in enumerate(("0.key", "0.value", "1.key", "1.value")):
        slots = np.moveaxis(caches[f"past_key_values.{part}"], axis, 1)
        assert slots.shape == (2, 5 if cache == "growing" else 6, 2, 4)
        np.testing.assert_array_equal(slots[:, :5, 1, 3], tokens + 1 + 100 * at)
    assert runner.prepared == (cache == "fixed")
    assert runner.calls[0].keys() == {tensor.name for tensor in opened.inputs}


@pytest.mark.parametrize("axis", AXES)
def test_rows_of_a_fixed_cache_go_their_own_way(axis) -> None:
    """Padding on the right is overwritten, and every slot beyond a row's length is zero."""
    runner, opened = session("fixed", axis=axis)
    stream = opened.start(batch=2, capacity=5)
    tokens = ids([5, 3, 9], [4, 8, 8])
    first = stream.step(tokens, new=[3, 1])
    assert runner.calls[0]["input_ids"].tolist() == [[5, 3, 9], [4, 0, 0]]
    assert first[1, 0, 0] == 5
    second = stream.step(ids([2], [6]))
    assert second[..., 0].tolist() == [[6 + 4 + 10 + 3], [5 + 7]]
    assert second[..., 1].tolist() == [[3], [1]]
    stream.reset([0])
    assert stream.lengths.tolist() == [0, 2]
    third = stream.step(ids([1], [0]))
    assert third[..., 0].tolist() == [[2], [5 + 7 + 1]]
    for cache in stream._caches.tensors.values():
        slots = np.moveaxis(cache, axis, 1)
        for row, length in zip(slots, stream.lengths, strict=True):
            assert np.all(row[length:] == 0)
            assert np.all(row[:length] != 0)


@pytest.mark.parametrize("cache", ["growing", "fixed"])
def test_a_mask_covers_the_slots_of_earlier_calls(cache) -> None:
    runner, opened = session(cache)
    stream = opened.start(batch=2, capacity=5)
    stream.step(ids([7, 3], [4, 8]), attention_mask=ids([0, 1], [1, 1]))
    assert runner.calls[0]["input_ids"].tolist() == [[0, 3], [4, 8]]
    second = stream.step(ids([2], [6]))
    assert second[..., 0].tolist() == [[4 + 3], [5 + 9 + 7]]
    mask = runner.calls[1]["attention_mask"]
    assert mask[:, :3].tolist() == [[0, 1, 1], [1, 1, 1]]
    assert mask.shape == (2, 3 if cache == "growing" else 5)
    stream.reset()
    assert stream.step(ids([2], [6]))[..., 0].tolist() == [[3], [7]]


@pytest.mark.parametrize("cache", ["growing", "fixed"])
def test_a_call_that_fails_changes_nothing(cache) -> None:
    runner, opened = session(cache)
    stream = opened.start(batch=1, capacity=4)
    stream.step(ids([5]))
    kept = {name: value.copy() for name, value in stream._caches.tensors.items()}
    runner.fails = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        stream.step(ids([9, 9]), attention_mask=ids([0, 1]))
    assert stream.lengths.tolist() == [1]
    for name, value in stream._caches.tensors.items():
        np.testing.assert_array_equal(value, kept[name])
    assert stream.step(ids([2, 1]))[..., 0].tolist() == [[9, 11]]


def test_the_main_input_is_taken_by_position_or_by_its_name() -> None:
    _, opened = session("growing")
    stream = opened.start()
    assert stream.step(input_ids=ids([4]))[0, 0, 0] == 5
    assert stream.step(ids([4]), ids([9]))[0, 0].tolist()[:2] == [10, 9]
    for wrong in ({"hidden_states": ids([4])}, {"input_ids": ids([4]), "x": 1}):
        with pytest.raises(TypeError, match="input_ids once"):
            stream.step(**wrong)
    with pytest.raises(TypeError, match="input_ids once"):
        stream.step(ids([4]), input_ids=ids([4]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.step(ids([1], [2], [3])), r"'input_ids' has shape \(3, 1\); .*batch = 2"),
        (lambda s: s.step(np.ones((2, 1, 4))), r"'input_ids' has shape \(2, 1, 4\)"),
        (lambda s: s.step(np.ones((2, 1))), "'input_ids' is float64; it must be int64"),
        (lambda s: s.step(None), "'input_ids' is a NoneType"),
        (lambda s: s.step(ids([1], [2]), [[0], [0]]), "'position_ids' is a list"),
        (lambda s: s.step(ids([1], [2]), None, ids([2], [1])), "'attention_mask' holds 2"),
        (lambda s: s.step(np.zeros((2, 5), np.int64)), "row 0 of the cache is full"),
    ],
)
def test_what_does_not_fit_is_named_as_the_interface_names_it(call, message) -> None:
    runner, opened = session("fixed")
    stream = opened.start(batch=2, capacity=4)
    with pytest.raises(TensorError, match=message):
        call(stream)
    assert stream.lengths.tolist() == [0, 0]
    assert not runner.calls


def test_a_runner_may_know_one_capacity_alone() -> None:
    runner, opened = session("fixed", capacity=8)
    assert opened.capacity == 8
    assert opened.start().capacity == 8
    with pytest.raises(InputError, match="built for a cache of 8"):
        opened.start(capacity=9)
    opened.close()
    assert runner.closed


def call(cache: str, *, lengths: tuple[int, ...] = (2, 1)) -> dict[str, np.ndarray]:
    interface = decoder_interface(cache)
    axes = {"batch": 2, "sequence": 1, "past": 2, "capacity": 4, "total": 3}
    inputs = {t.name: np.ones(t.sized(axes), t.dtype) for t in interface.inputs}
    if cache == "fixed":
        inputs["cache_lengths"] = np.array(lengths)
    return inputs


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("whole", [False, True])
def test_stale_slots_are_looked_at_where_every_slot_is_computed(axis, whole) -> None:
    """Of any axis, by the row and the slot; a buffer that was refused is refused again."""
    _, opened = session("fixed", axis=axis, whole_capacity=whole)
    inputs = call("fixed")
    for name in (pair.input for pair in opened.interface.caches):
        inputs[name] = np.moveaxis(inputs[name], 2, axis).copy()
    held = inputs["past_key_values.1.key"]
    np.moveaxis(held, axis, 1)[1, 2, 0, 3] = np.nan  # row 1 holds one slot and writes another
    if not whole:
        opened.run(inputs)
        return
    for _ in range(2):
        with pytest.raises(TensorError, match=r"past_key_values\.1\.key': row 1 .* slot 2"):
            opened.run(inputs)
    opened.run(inputs, check_values=False)
    np.moveaxis(held, axis, 1)[1, 2, 0, 3] = 0
    opened.run(inputs)


def test_stale_slots_are_looked_at_where_the_manifest_says_so() -> None:
    interface = decoder_interface("fixed")
    manifest = FakeManifest(interface=interface, stale_slots="finite")
    inputs = call("fixed")
    inputs["past_key_values.0.value"][0, 0, 3] = np.inf
    with pytest.raises(TensorError, match=r"row 0 .* slot 3"):
        Session(manifest, FakeRunner(interface)).run(inputs)


def test_padding_in_the_cache_is_looked_at_on_every_runner() -> None:
    _, opened = session("growing")
    inputs = call("growing")
    inputs["attention_mask"][1, 0] = 0
    opened.run(inputs)
    inputs = {name: value.copy() for name, value in inputs.items()}
    inputs["past_key_values.0.key"][1, 0, 0, 0] = np.nan
    with pytest.raises(TensorError, match=r"'past_key_values\.0\.key': row 1 .* slot 0"):
        opened.run(inputs)


def test_lengths_and_first_positions_are_checked_before_a_call() -> None:
    runner, opened = session("fixed")
    with pytest.raises(TensorError, match="row 0 of the cache is full: 4 entries"):
        opened.run(call("fixed", lengths=(4, 0)))
    manifest = FakeManifest(interface=opened.interface, first_position=2)
    late = Session(manifest, runner)
    with pytest.raises(TensorError, match=r"'position_ids' holds 1; .* defined from 2 on"):
        late.run(call("fixed"))
    with pytest.raises(TensorError, match=r"'position_ids' holds 0; .* defined from 2 on"):
        late.start(capacity=4).step(ids([1]))
    assert not runner.calls


def test_an_artifact_without_a_cache_has_no_streams() -> None:
    decoder = decoder_interface("growing")
    bare = replace(decoder, inputs=decoder.inputs[:3], outputs=decoder.outputs[:1], caches=())
    with pytest.raises(InputError, match="no cache"):
        Stream(FakeManifest(interface=bare), FakeRunner(bare), batch=1, capacity=None)


def test_padding_on_the_right_leaves_the_next_mask_whole() -> None:
    """The mask tells padding in the call that brings it; afterwards it lies beyond the row's
    length, and what reads the mask finds ones alone."""
    runner, opened = session("fixed")
    stream = opened.start(batch=2, capacity=5)
    stream.step(ids([5, 3, 9], [4, 8, 8]), new=[3, 1])
    assert runner.calls[0]["attention_mask"][:, :3].tolist() == [[1, 1, 1], [1, 0, 0]]
    stream.step(ids([2], [6]))
    assert runner.calls[1]["attention_mask"].all()


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (np.zeros((1, 0), np.int64), {}, "sequence = 0"),
        (np.zeros((1, 2)), {}, "'input_ids' is float64; it must be int64"),
        (np.array([["a"]]), {}, "'input_ids' is str"),
        (ids([1, 2]), {"position_ids": ids([])}, "'position_ids' has shape"),
    ],
)
def test_what_is_no_token_is_refused_by_name(tokens, options, message) -> None:
    interface = decoder_interface("growing")
    manifest = FakeManifest(interface=interface, vocabulary=16, positions=64, first_position=0)
    stream = Session(manifest, FakeRunner(interface)).start()
    with pytest.raises(TensorError, match=message):
        stream.step(tokens, **options)
    assert stream.lengths.tolist() == [0]
