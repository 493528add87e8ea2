"""Arrays whose bytes are not what they mean: read for what they mean, or refused by name."""

import gc
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rope_export import open_session
from rope_export.arrays import plain
from rope_export.errors import TensorError
from tests.conftest import taking_turns
from tests.unit.test_exporter import call


def unaligned(x: np.ndarray) -> np.ndarray:
    room = np.zeros(x.nbytes + 1, np.uint8)
    moved = room[1:].view(x.dtype).reshape(x.shape)
    moved[...] = x
    assert not moved.flags.aligned
    return moved


def on_disk(x: np.ndarray, folder: Path) -> np.ndarray:
    kept = np.memmap(folder / "x", x.dtype, "w+", shape=x.shape)
    kept[...] = x
    return kept


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


SAME: dict[str, Callable[[np.ndarray], Any]] = {
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "big-endian, read-only": lambda x: read_only(x.astype(x.dtype.newbyteorder(">"))),
    "negative strides": lambda x: np.flip(np.flip(x).copy()),
    "Fortran order": np.asfortranarray,
    "every second element": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "unaligned": unaligned,
    "read-only": read_only,
    "from bytes": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "of a structure": lambda x: np.array(
        [(v,) for v in x.ravel()], [("pad", "u1"), ("v", x.dtype)][1:]
    )["v"].reshape(x.shape),
}


@pytest.fixture(scope="module")
def session(tiny, runtime):
    with runtime.open(tiny()) as opened:
        yield opened


def test_arrays_are_read_for_what_they_mean(session) -> None:
    """All inputs, positions too, in another form: the same bits come out."""
    inputs = call(2, 3, 4)
    wanted = session.run(inputs)
    for kind, form in SAME.items():
        found = session.run({name: form(x) for name, x in inputs.items()})
        for name, value in wanted.items():
            np.testing.assert_array_equal(found[name], value, err_msg=kind)


def test_a_memmap_and_a_broadcast_array_are_read(session, tmp_path) -> None:
    inputs = call(2, 3, 4)
    inputs["position_ids"] = np.broadcast_to(np.arange(3), (2, 3))
    plainly = inputs | {"position_ids": inputs["position_ids"].copy()}
    inputs["hidden_states"] = on_disk(inputs["hidden_states"], tmp_path)
    inputs["position_ids"] = inputs["position_ids"].view(np.matrix)
    for name, value in session.run(plainly).items():
        np.testing.assert_array_equal(session.run(inputs)[name], value)


def lazily_negated(x: torch.Tensor) -> torch.Tensor:
    """As conj().imag gives it, but contiguous: nothing else would make a copy of it."""
    lazy = torch._neg_view(-x)
    assert lazy.is_neg()
    assert lazy.is_contiguous()
    return lazy


SAME_TENSORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "negative bit": lambda x: lazily_negated(x) if x.is_floating_point() else x,
    "requires_grad": lambda x: x.requires_grad_() if x.is_floating_point() else x,
    "a parameter": lambda x: torch.nn.Parameter(x, requires_grad=False),
    "a buffer": lambda x: torch.nn.Buffer(x),
    "of a graph": lambda x: x.requires_grad_() * 1 if x.is_floating_point() else x,
    "strides": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "offset": lambda x: torch.cat((x[:1], x))[1:],
    "inference": lambda x: torch.inference_mode()(x.clone)(),
}


def test_tensors_are_read_for_what_they_mean(session) -> None:
    inputs = {name: torch.from_numpy(x) for name, x in call(2, 3, 4).items()}
    wanted = session.run(inputs)
    for kind, form in SAME_TENSORS.items():
        found = session.run({n: form(x.clone()) for n, x in inputs.items()})
        for name, value in wanted.items():
            assert not found[name].requires_grad, kind
            assert torch.equal(found[name], value), kind


class Metres(np.ndarray):
    """As libraries of units have them."""


class Mine(torch.Tensor):
    """As quantizing libraries have them."""


class Exchanged:
    """An array of another library, which numpy and torch can take."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value

    def __dlpack__(self, **_: Any) -> Any:
        return self.value.__dlpack__()

    def __dlpack_device__(self) -> Any:
        return self.value.__dlpack_device__()


def fake(x: np.ndarray) -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(x.shape)


def in_vmap(x: np.ndarray) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    torch.vmap(lambda y: (seen.append(y), y)[1])(torch.from_numpy(x)[None])
    return seen[0]


def quiet(make: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], Any]:
    """torch warns of what it calls a prototype."""

    def made(x: np.ndarray) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make(x)

    return made


NOT_PLAIN: dict[str, tuple[Callable[[np.ndarray], Any], str]] = {
    "none": (lambda x: None, "NoneType"),
    "a list": (lambda x: x.tolist(), "is a list"),
    "a number": (lambda x: 1.0, "is a float"),
    "numpy's number": (lambda x: np.float32(1), "numpy.float32"),
    "DLPack alone": (Exchanged, r"Exchanged; give a numpy array .*np\.from_dlpack"),
    "masked": (lambda x: np.ma.masked_array(x, x > 0), r"MaskedArray.*filled"),
    "with a unit": (lambda x: x.view(Metres), "Metres"),
    "structured": (lambda x: np.zeros(x.shape, [("v", "f4")]), "is void32"),
    "objects": (lambda x: x.astype(object), "is object"),
    "text": (lambda x: x.astype(str), "is str"),
    "dates": (lambda x: np.zeros(x.shape, "M8[s]"), "datetime64"),
    "complex": (lambda x: x.astype(complex), "is complex128"),
    "float64": (lambda x: x.astype(float), "is float64"),
    "big-endian float64": (lambda x: x.astype(">f8"), "is float64"),
    "bfloat16": (lambda x: x.astype(ml_dtypes.bfloat16), "is bfloat16"),
    "float8": (lambda x: x.astype(ml_dtypes.float8_e4m3fn), "is float8_e4m3fn"),
    "no axes": (lambda x: np.zeros((), np.float32), r"has shape \(\)"),
    "no features": (lambda x: x[..., :0], r"has shape \(2, 3, 0\)"),
    "a subclass of Tensor": (lambda x: torch.from_numpy(x).as_subclass(Mine), "Mine"),
    "a fake tensor": (fake, "FakeTensor"),
    "meta": (lambda x: torch.empty(x.shape, device="meta"), "device meta"),
    "sparse": (lambda x: torch.from_numpy(x).to_sparse(), "layout torch.sparse_coo"),
    "sparse rows": (quiet(lambda x: torch.from_numpy(x[0]).to_sparse_csr()), "sparse_csr"),
    "mkldnn": (lambda x: torch.from_numpy(x).to_mkldnn(), "layout torch._mkldnn"),
    "nested": (quiet(lambda x: torch.nested.nested_tensor(list(torch.from_numpy(x)))), "nested"),
    "jagged": (
        quiet(lambda x: torch.nested.nested_tensor(list(torch.from_numpy(x)), layout=torch.jagged)),
        "NestedTensor",
    ),
    "quantized": (
        quiet(lambda x: torch.quantize_per_tensor(torch.from_numpy(x), 0.1, 0, torch.qint8)),
        "quantized",
    ),
    "masked tensor": (
        quiet(lambda x: torch.masked.masked_tensor(torch.from_numpy(x), torch.from_numpy(x) > 0)),
        "MaskedTensor",
    ),
    "zeros by definition": (lambda x: torch._efficientzerotensor(x.shape), "no memory of its own"),
    "functional": (lambda x: torch._to_functional_tensor(torch.from_numpy(x)), "no memory"),
    "in a transform": (in_vmap, "no memory of its own"),
    "not filled": (lambda x: torch.nn.parameter.UninitializedParameter(), "UninitializedParameter"),
    "conjugate": (lambda x: torch.from_numpy(x.astype("c8")).conj(), "is complex64"),
}


def answer(act: Callable[[], object]) -> str:
    """What a call is refused with."""
    try:
        act()
    except TensorError as error:
        return str(error)
    return "taken"


def test_what_is_no_plain_tensor_is_refused_in_one_line(session) -> None:
    for kind, (make, named) in NOT_PLAIN.items():
        inputs: dict[str, Any] = call(2, 3, 4)
        value = make(inputs["hidden_states"])
        if isinstance(value, torch.Tensor):
            inputs = {name: torch.from_numpy(x) for name, x in inputs.items()}
        inputs["hidden_states"] = value
        refused = answer(lambda inputs=inputs: session.run(inputs))
        assert re.search(named, refused), (kind, refused)
        assert "\n" not in refused
        assert "'hidden_states'" in refused


def test_a_stream_refuses_the_same(session) -> None:
    for kind, (make, _) in NOT_PLAIN.items():
        value = make(call(2, 3, 0)["hidden_states"])
        refused = answer(lambda value=value: session.start(2).step(value))
        assert "'hidden_states'" in refused, (kind, refused)


def test_inputs_are_a_mapping(session) -> None:
    with pytest.raises(TensorError, match="inputs is a list; give a dict"):
        session.run(list(call(1, 1, 0).values()))


def test_a_tensor_on_another_device_is_named() -> None:
    with pytest.raises(TensorError, match="device meta"):
        plain("x", torch.empty(2, device="meta"))


@pytest.mark.parametrize("lowering", ["standard", "ort"])
def test_lengths_and_masks_are_read_for_what_they_mean(tiny, lowering) -> None:
    """A length of 3 is 3 in either byte order, and in a strided array."""
    stream = np.random.default_rng(0)
    inputs = {
        "hidden_states": stream.standard_normal((2, 2, 64), dtype=np.float32),
        "position_ids": np.array([[3, 4], [1, 2]]),
        "key_cache": stream.standard_normal((2, 2, 8, 16), dtype=np.float32),
        "value_cache": stream.standard_normal((2, 2, 8, 16), dtype=np.float32),
        "cache_lengths": np.array([3, 1]),
        "attention_mask": np.array([[0, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]]),
    }
    with open_session(tiny(lowering, "float32", "fixed", True)) as session:
        wanted = session.run(inputs)
        for kind in ("big-endian", "every second element", "read-only"):
            found = session.run({name: SAME[kind](x) for name, x in inputs.items()})
            for name, value in wanted.items():
                np.testing.assert_array_equal(found[name], value)
        one = inputs["key_cache"]
        shared = session.run({**inputs, "value_cache": one})  # one memory, given twice
        apart = session.run({**inputs, "value_cache": one.copy()})
        for name, value in apart.items():
            np.testing.assert_array_equal(shared[name], value)
        for wrong in (2, -1, 256):
            mask = np.where(inputs["attention_mask"] == 0, wrong, 1)
            with pytest.raises(TensorError, match=f"'attention_mask' holds {wrong}"):
                session.run({**inputs, "attention_mask": mask})
        for wrong in (np.array([3, 8]), np.array([-1, 0])):
            with pytest.raises(TensorError, match=r"row 1|-1"):
                session.run({**inputs, "cache_lengths": wrong})


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("lowering", ["standard", "ort"])
def test_slots_that_are_not_in_use_never_reach_a_result(tiny, runtime, lowering, padding) -> None:
    """Where an operator computes over them they are refused, by row and slot; elsewhere they may
    hold anything."""
    artifact = tiny(lowering, "float32", "fixed", padding)
    assert artifact.manifest.stale_slots == ("finite" if lowering == "standard" else "any")
    inputs = fixed_call(padding)
    with runtime.open(artifact) as session:
        computed = lowering == "standard" or runtime.name in ("eager", "reference")
        wanted = session.run(inputs)["attention_output"]
        for held in (np.nan, np.inf, -3e38):
            stale = inputs["key_cache"].copy()
            stale[1, :, 5:] = held
            for _ in range(2 * computed):  # what was refused once is refused again
                with pytest.raises(TensorError, match=r"'key_cache': row 1 .* slot 5.* zeros"):
                    session.run({**inputs, "key_cache": stale})
            with np.errstate(all="ignore"):  # onnx's evaluator computes with what it is given
                found = session.run({**inputs, "key_cache": stale}, check_values=not computed)
            if not computed:
                np.testing.assert_array_equal(found["attention_output"], wanted)


def fixed_call(padding: bool) -> dict[str, np.ndarray]:
    stream = np.random.default_rng(1)
    inputs = {
        "hidden_states": stream.standard_normal((2, 2, 64), dtype=np.float32),
        "position_ids": np.array([[3, 4], [3, 4]]),
        "key_cache": stream.standard_normal((2, 2, 8, 16), dtype=np.float32),
        "value_cache": stream.standard_normal((2, 2, 8, 16), dtype=np.float32),
        "cache_lengths": np.array([3, 3]),
    }
    if padding:
        inputs["attention_mask"] = np.ones((2, 8), np.int64)
    return inputs


def test_a_buffer_is_looked_at_once_while_it_lives(tiny) -> None:
    inputs = fixed_call(False)
    with open_session(tiny("standard", "float32", "fixed")) as session:
        session.run(inputs)
        inputs["key_cache"][:, :, 6] = np.nan
        session.run(inputs)
        again = {**inputs, "key_cache": inputs["key_cache"].copy()}
        with pytest.raises(TensorError, match="slot 6"):
            session.run(again)
        again["key_cache"] = np.zeros_like(inputs["key_cache"])
        session.run(again)
        kept = len(session._values._seen._seen)
        del again
        gc.collect()
        assert len(session._values._seen._seen) == kept - 1


PADDED = [
    ("portable", "none"),
    ("portable", "growing"),
    ("standard", "growing"),
    ("standard", "fixed"),
    ("ort", "growing"),
    ("ort", "fixed"),
    ("tensorrt", "growing"),
    ("tensorrt", "fixed"),
]


@pytest.mark.parametrize(
    ("lowering", "cache", "dtype"),
    taking_turns((*kind, dtype) for kind in PADDED for dtype in ("float32", "float16")),
)
def test_what_padded_tokens_hold_never_reaches_a_result(tiny, lowering, cache, dtype) -> None:
    """Left padding of NaN, infinity and the largest number, in `run`; and in the cache, refused."""
    kind = np.dtype(dtype)
    stream = np.random.default_rng(2)
    hidden = stream.standard_normal((2, 4, 64)).astype(kind)
    inputs = {"hidden_states": hidden, "position_ids": np.tile(np.arange(4), (2, 1))}
    past, total = 0, 4
    if cache != "none":
        past, total = 2, 6 if cache == "growing" else 9
        slots = past if cache == "growing" else total
        names = ("past_key", "past_value") if cache == "growing" else ("key_cache", "value_cache")
        inputs |= {n: stream.standard_normal((2, 2, slots, 16)).astype(kind) for n in names}
    if cache == "fixed":
        inputs["cache_lengths"] = np.array([past, past])
    mask = np.ones((2, total), np.int64)
    mask[0, : past + 2] = 0
    inputs["attention_mask"] = mask
    with open_session(tiny(lowering, dtype, cache, True)) as session:
        wanted = session.run(inputs)["attention_output"]
        for held in (np.nan, np.inf, np.finfo(kind).max):
            spoiled = hidden.copy()
            spoiled[0, :2] = held
            found = session.run({**inputs, "hidden_states": spoiled})["attention_output"]
            np.testing.assert_array_equal(found[0, 2:], wanted[0, 2:])
            np.testing.assert_array_equal(found[1], wanted[1])
            for name in names if cache != "none" else ():
                wrong = inputs[name].copy()
                wrong[0, :, 1] = held
                with pytest.raises(TensorError, match=f"'{name}': row 0 .* slot 1"):
                    session.run({**inputs, name: wrong})
