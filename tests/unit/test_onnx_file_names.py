"""Which tensor of a file that others made is which of ours, and what is refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rope_export.errors import ArtifactError, InputError, UnavailableError
from rope_export.parity.onnx_file.caches import FLAT, HEADS_FIRST, SLOTS_FIRST, cache_name
from rope_export.parity.onnx_file.constants import Constants
from rope_export.parity.onnx_file.file import OnnxFile
from rope_export.parity.onnx_file.names import match_decoder

SHAPES: dict[str, tuple[int | str, ...]] = {
    f"{layer}.{kind}": ("batch", 2, "slots", 16) for layer in (0, 1) for kind in ("key", "value")
}
TOKENS = ("input_ids", TensorProto.INT64, ("batch", "sequence"))
LOGITS = ("logits", TensorProto.FLOAT, ("batch", "sequence", 128))
Tensor = tuple[str, int, tuple[int | str, ...]]


def written(path: Path, inputs: list[Tensor], outputs: list[Tensor]) -> OnnxFile:
    """A file with these inputs and outputs; what it computes is not looked at."""
    nodes = [helper.make_node("Identity", [inputs[0][0]], [name]) for name, _, _ in outputs]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*x) for x in inputs],
        [helper.make_tensor_value_info(*x) for x in outputs],
    )
    onnx.save(helper.make_model(graph), str(path))
    return OnnxFile.read(path)


def caches(form: str, shape: tuple[int | str, ...]) -> list[Tensor]:
    return [
        (form.format(layer=layer, kind=kind, short=kind[0]), TensorProto.FLOAT, shape)
        for layer in (0, 1)
        for kind in ("key", "value")
    ]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("past_key_values.0.key", "0.key"),  # optimum, genai, mobius
        ("past_key_values.11.value", "11.value"),
        ("present.3.key", "3.key"),
        ("past_key_3", "3.key"),
        ("present_3_value", "3.value"),
        ("cache.3.k", "3.key"),
        ("past_key_values_key_cache_0", "0.key"),  # torch.export's name of a DynamicCache's part
        ("v12", "12.value"),
        ("past_key_values.0.decoder.key", "0.key"),
        ("past_key_values_0", None),  # of both
        ("logits", None),
        ("key.1.head.2", None),  # two numbers
    ],
)
def test_a_cache_is_known_by_its_name(theirs: str, ours: str | None) -> None:
    assert cache_name(theirs) == ours


@pytest.mark.parametrize(
    ("form", "shape", "layout"),
    [
        ("past_key_values.{layer}.{kind}", ("batch", 2, "past", 16), HEADS_FIRST),
        ("past_{kind}_{layer}", ("batch", "past", 2, 16), SLOTS_FIRST),
        ("cache_{layer}_{short}", ("batch", "past", 32), FLAT),
        ("past_key_values.{layer}.{kind}", ("batch", 2, "past", "width"), HEADS_FIRST),
    ],
)
def test_a_decoder_is_matched(
    tmp_path: Path, form: str, shape: tuple[int | str, ...], layout: str
) -> None:
    inputs = [TOKENS, ("mask", TensorProto.BOOL, ("batch", "total")), *caches(form, shape)]
    outputs = [LOGITS, *caches(f"present_{form}", shape)]
    matched = match_decoder(written(tmp_path / "m.onnx", inputs, outputs), SHAPES, {}, 128)
    assert {name: x.name for name, x in matched.inputs.items()} == {
        "input_ids": "input_ids",
        "attention_mask": "mask",
    }
    assert matched.caches.keys() == SHAPES.keys()
    assert {x.layout for x in matched.caches.values()} == {layout}
    assert matched.others == ()


def test_what_is_not_known_can_be_named(tmp_path: Path) -> None:
    inputs = [
        ("a", TensorProto.INT64, ("batch", "sequence")),
        ("b", TensorProto.INT64, ("batch", "sequence")),
    ]
    file = written(tmp_path / "m.onnx", inputs, [("scores", TensorProto.FLOAT, ("b", "s", 128))])
    with pytest.raises(UnavailableError, match=r"nothing is matched to input_ids among a int64.*"):
        match_decoder(file, {}, {}, 128)
    with pytest.raises(UnavailableError, match=r"takes b int64\(batch, sequence\).*not known"):
        match_decoder(file, {}, {"input_ids": "a"}, 128)
    matched = match_decoder(file, {}, {"input_ids": "a", "position_ids": "b"}, 128)
    assert matched.inputs["position_ids"].name == "b"
    assert matched.logits.name == "scores"


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ({"input_ids": "c"}, "`maps`=input_ids=c: the file has no input 'c' left"),
        ({"tokens": "input_ids"}, "`maps`=tokens=input_ids: 'tokens' is no name of ours"),
    ],
)
def test_a_map_to_nothing_is_refused(tmp_path: Path, maps: dict[str, str], message: str) -> None:
    file = written(tmp_path / "m.onnx", [TOKENS], [LOGITS])
    with pytest.raises(InputError, match=message):
        match_decoder(file, {}, maps, 128)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (("batch", 4, 512, 16), "is no cache of 2 heads of 16 features"),
        (("batch", 4, "past", 16), "is no cache of 2 heads of 16 features"),
        (("batch", 2, 512, 16), "none of its inputs tells how many slots of its fixed caches"),
    ],
)
def test_a_cache_of_another_form_is_refused(
    tmp_path: Path, shape: tuple[int | str, ...], message: str
) -> None:
    form = "past_key_values.{layer}.{kind}"
    outputs = [LOGITS, *caches("present.{layer}.{kind}", shape)]
    file = written(tmp_path / "m.onnx", [TOKENS, *caches(form, shape)], outputs)
    with pytest.raises(UnavailableError, match=message):
        match_decoder(file, SHAPES, {}, 128)


MASK = ("attention_mask", TensorProto.INT64, ("batch", "total"))
INDICES = ("write_indices", TensorProto.INT64, ("batch",))
VALID = ("nonpad_kv_seqlen", TensorProto.INT64, ("batch",))
POSITION = ("cache_position", TensorProto.INT64, ("sequence",))


@pytest.mark.parametrize(
    ("shape", "inputs", "fixed", "capacity", "by_row"),
    [
        (("batch", 2, 512, 16), [MASK], True, 512, False),
        (("batch", 512, 32), [INDICES, VALID], True, 512, True),  # mobius' static cache
        (("batch", "max_seq_len", 32), [INDICES, VALID], True, None, True),
        (("batch", 2, "capacity", 16), [MASK], True, None, False),
        (("batch", 2, 512, 16), [POSITION], True, 512, False),  # of transformers' StaticCache
        (("batch", 2, "past", 16), [MASK], False, None, False),  # one name by mistake
        (("batch", 512, 2, 16), [POSITION], True, 512, False),
    ],
)
def test_fixed_caches_are_told_by_their_slots(
    tmp_path: Path,
    shape: tuple[int | str, ...],
    inputs: list[Tensor],
    fixed: bool,
    capacity: int | None,
    by_row: bool,
) -> None:
    after = caches("updated_{kind}_cache.{layer}", shape)
    before = caches("{kind}_cache.{layer}", shape)
    file = written(tmp_path / "m.onnx", [TOKENS, *inputs, *before], [LOGITS, *after])
    matched = match_decoder(file, SHAPES, {}, 128)
    assert (matched.fixed, matched.capacity, matched.by_row) == (fixed, capacity, by_row)


def test_a_mask_over_the_whole_capacity_is_known(tmp_path: Path) -> None:
    shape = ("batch", 2, 512, 16)
    for width, whole in ((512, 512), ("total", None)):
        mask = ("attention_mask", TensorProto.INT64, ("batch", width))
        before = caches("past_key_values.{layer}.{kind}", shape)
        outputs = [LOGITS, *caches("present.{layer}.{kind}", shape)]
        file = written(tmp_path / "m.onnx", [TOKENS, mask, *before], outputs)
        assert match_decoder(file, SHAPES, {}, 128).mask_slots == whole


def test_caches_of_several_sizes_are_refused(tmp_path: Path) -> None:
    long, short = ("batch", 2, 512, 16), ("batch", 2, 64, 16)
    before, after = (
        [*caches(form, long)[:2], *caches(form, short)[2:]]
        for form in ("{kind}_cache.{layer}", "present.{layer}.{kind}")
    )
    file = written(tmp_path / "m.onnx", [TOKENS, MASK, *before], [LOGITS, *after])
    with pytest.raises(UnavailableError, match="different numbers of slots"):
        match_decoder(file, SHAPES, {}, 128)


def test_a_past_of_one_length_is_refused(tmp_path: Path) -> None:
    form = "past_key_values.{layer}.{kind}"
    outputs = [LOGITS, *caches("present.{layer}.{kind}", ("batch", 2, 8, 16))]
    inputs = [TOKENS, MASK, *caches(form, ("batch", 2, 7, 16))]
    with pytest.raises(
        UnavailableError, match=r"has 7 slots and present\.0\.key .* 8, so its past"
    ):
        match_decoder(written(tmp_path / "m.onnx", inputs, outputs), SHAPES, {}, 128)


@pytest.mark.parametrize("inside", ["function", "branch"])
@pytest.mark.parametrize("operator", ["DynamicQuantizeLinear", "MatMulNBits"])
def test_what_is_refused_is_found_inside(tmp_path: Path, operator: str, inside: str) -> None:
    """In a function, or in the branch of a condition within it."""
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node(operator, ["x"], ["y"])
    if inside == "branch":
        branch = helper.make_graph([node], "branch", [], [y])
        node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    opset = helper.make_opsetid("", 21)
    function = helper.make_function("own", "f", ["x"], ["y"], [node], [opset])
    x = helper.make_tensor_value_info("x", TensorProto.BOOL, None)
    call = helper.make_node("f", ["x"], ["y"], domain="own")
    graph = helper.make_graph([call], "graph", [x], [y])
    opsets = [opset, helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, functions=[function], opset_imports=opsets)
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(UnavailableError, match=operator):
        OnnxFile.read(tmp_path / "m.onnx")


@pytest.mark.parametrize("operator", ["DynamicQuantizeLinear", "MatMulInteger", "QMoE"])
def test_what_has_no_bounds_is_refused_by_its_operator(tmp_path: Path, operator: str) -> None:
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1,))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1,))],
    )
    onnx.save(helper.make_model(graph), str(tmp_path / "m.onnx"))
    with pytest.raises(UnavailableError, match=operator):
        OnnxFile.read(tmp_path / "m.onnx")


def test_a_cache_without_its_output_is_named(tmp_path: Path) -> None:
    shape = ("batch", 2, "past", 16)
    form = "past_key_values.{layer}.{kind}"
    outputs = [LOGITS, *caches("present.{layer}.{kind}", shape)[:-1]]
    file = written(tmp_path / "m.onnx", [TOKENS, *caches(form, shape)], outputs)
    with pytest.raises(
        UnavailableError, match=r"no output is matched to the cache present\.1\.val"
    ):
        match_decoder(file, SHAPES, {}, 128)


def external(path: Path, location: str) -> None:
    """A model whose weight lies in another file."""
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "weight")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, (4,))
    node = helper.make_node("Identity", ["weight"], ["y"])
    graph = helper.make_graph([node], "graph", [], [output], [tensor])
    path.write_bytes(helper.make_model(graph).SerializeToString())


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "a/../../secret", "..\\secret"])
def test_external_data_stays_inside_its_folder(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(16))
    (tmp_path / "inner").mkdir()
    external(tmp_path / "inner" / "m.onnx", location)
    with pytest.raises(ArtifactError, match="leads out of its folder"):
        OnnxFile.read(tmp_path / "inner" / "m.onnx")


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "data").write_bytes(bytes(16))
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    external(folder / "m.onnx", "linked/data")
    (folder / "linked").symlink_to(outside)
    with pytest.raises(ArtifactError, match="leads out of its folder"):
        OnnxFile.read(folder / "m.onnx")
    external(folder / "m.onnx", "data")
    (folder / "data").symlink_to(outside / "data")
    with pytest.raises(ArtifactError, match="is a link to"):
        OnnxFile.read(folder / "m.onnx")


def test_external_data_beside_the_model_is_read(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    external(tmp_path / "m.onnx", "data")
    file = OnnxFile.read(tmp_path / "m.onnx")
    assert np.array_equal(np.frombuffer(file.data["data"], np.float32), np.arange(4))


def test_a_weight_that_is_cut_off_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(10))
    external(tmp_path / "m.onnx", "data")
    with pytest.raises(ArtifactError, match=r"m\.onnx: weight cannot be read"):
        Constants(OnnxFile.read(tmp_path / "m.onnx")).read("weight")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    with pytest.raises(ArtifactError, match="is not an ONNX model"):
        OnnxFile.read(tmp_path / "m.onnx")
