"""Decoders for calls without padding: right for these, and loud for all others."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from rope_export import export_decoder, open_session, verify
from rope_export.errors import InputError, TensorError
from rope_export.sessions.generation import Plan, answer_prompts
from tests.support.planted_decoder import planted, scaled
from tests.unit.test_two_forms import CACHES, CALLS, CAPACITY, POSITIONS, model, run_calls

__all__ = ["model"]


@pytest.fixture(scope="module", params=CACHES)
def decoder(request, model, tmp_path_factory):
    lm, path = model
    out = tmp_path_factory.mktemp("out") / request.param
    artifact = export_decoder(path, out=out, cache=request.param, lowering="ort", padding=False)
    return lm, artifact


@pytest.fixture
def session(decoder):
    with open_session(decoder[1].path) as session:
        yield session


def _stream(session, rows=1):
    capacity = CAPACITY if session.interface.cache == "fixed" else None
    return session.start(batch=rows, capacity=capacity)


@pytest.mark.parametrize("name", CALLS)
def test_other_clients_get_the_right_logits_or_none(decoder, name):
    """By onnxruntime alone, which checks nothing of ours."""
    lm, artifact = decoder
    inner = onnxruntime.InferenceSession(artifact.path / "model.onnx")
    assert "position_ids" not in {x.name for x in inner.get_inputs()}
    if name == "other positions":
        pytest.skip("it takes no positions")
    if CALLS[name].plain:
        expected, logits = run_calls(lm, inner, artifact.manifest.cache, CALLS[name])
        np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-4)
    elif CALLS[name].padding:
        _, logits = run_calls(lm, inner, artifact.manifest.cache, CALLS[name])
        assert np.isnan(logits).all()
    else:  # the operator refuses it
        with pytest.raises(Exception, match="GroupQueryAttention"):
            run_calls(lm, inner, artifact.manifest.cache, CALLS[name])


def test_attention_is_chosen_nowhere(decoder):
    nodes = onnx.load(decoder[1].path / "model.onnx", load_external_data=False).graph.node
    assert "If" not in {node.op_type for node in nodes}
    assert "RotaryEmbedding" not in {node.op_type for node in nodes}


def test_our_own_sessions_refuse_what_it_does_not_compute(session):
    ids = np.array([[3, 4, 5], [6, 7, 8]])
    stream = _stream(session, rows=2)
    with pytest.raises(TensorError, match="'attention_mask' holds a 0; it was exported without"):
        stream.step(ids, attention_mask=np.array([[0, 1, 1], [1, 1, 1]]))
    with pytest.raises(TensorError, match="without padding each token is at the position of its"):
        stream.step(ids, position_ids=np.array([[3, 4, 5]] * 2))
    stream.step(ids)
    with pytest.raises(TensorError, match="2 rows of 3 new tokens each go on from a cache"):
        stream.step(ids)
    stream.step(ids[:, :1])


def test_the_last_position_is_taken_and_no_further(session):
    stream = _stream(session)
    stream.step(np.ones((1, POSITIONS - 1), np.int64))
    assert np.isfinite(stream.step(np.array([[1]]))).all()
    with pytest.raises(TensorError, match=f"the model has {POSITIONS} positions"):
        stream.step(np.array([[1]]))


def test_single_calls_are_checked_as_well(decoder, session):
    if session.interface.cache == "fixed":
        pytest.skip("the same check, by the lengths")
    cache = {pair.input: np.zeros((1, 2, 0, 16), np.float32) for pair in session.interface.caches}
    call = {"input_ids": np.array([[3, 4]]), "attention_mask": np.array([[0, 1]]), **cache}
    with pytest.raises(TensorError, match="'attention_mask' holds a 0"):
        session.run(call)


def test_prompts_of_unequal_length_are_answered_one_by_one(decoder, session):
    lm, _ = decoder
    prompts = [[3, 4, 5, 6], [9], [1, 2]]
    heard: dict[int, list[int | None]] = {row: [] for row in range(len(prompts))}

    def receive(row: int, token: int | None) -> bool:
        heard[row].append(token)
        return False

    answers, speed = answer_prompts(session, prompts, frozenset(), Plan(max_tokens=4), receive)
    for prompt, answer, tokens in zip(prompts, answers, heard.values(), strict=True):
        text = torch.tensor([prompt])
        for _ in range(4):
            text = torch.cat([text, lm(text).logits[:, -1:].argmax(-1)], 1)
        assert answer.ids == text[0, len(prompt) :].tolist()
        assert tokens == [*answer.ids, None]
    assert speed.tokens == 9


def test_it_is_verified_without_what_it_does_not_take(decoder, short_prompts):
    _, artifact = decoder
    if artifact.manifest.cache == "growing":
        pytest.skip("a wrong table is looked for in that one")
    report = verify(artifact.path)
    assert report.status == "passed", report.problems
    cases = {row.case for row in report.rows}
    assert not any("padding" in case for case in cases)
    assert any(case.startswith("at the last positions") for case in cases)
    assert any("greedy" in case for case in cases)


def test_a_wrong_table_at_the_last_positions_is_found(decoder, tmp_path, short_prompts):
    """Nothing but the text at the last positions looks at it."""
    _, artifact = decoder
    if artifact.manifest.cache == "fixed":
        pytest.skip("that one is verified as it is")
    graph = onnx.load(artifact.path / "model.onnx").graph
    (table,) = {x.name for x in graph.initializer if x.name.startswith("cos")}
    faulty = planted(artifact, tmp_path / "faulty", scaled(table, 0.5, (POSITIONS - 2,)))
    report = verify(faulty)
    assert report.status == "failed"
    wrong = {row.case for row in report.rows if row.status == "failed"}
    assert {case.partition(",")[0] for case in wrong} == {"at the last positions"}


def test_other_lowerings_have_one_form(model, tmp_path):
    with pytest.raises(InputError, match="`padding`=False: lowering 'standard' has one form"):
        export_decoder(model[1], out=tmp_path / "out", lowering="standard", padding=False)
    assert not (tmp_path / "out").exists()
