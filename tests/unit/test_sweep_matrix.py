"""A matrix: what is refused before anything runs, and the cells that it comes to."""

import json
from pathlib import Path

import pytest

from rope_export.errors import CheckpointError, InputError
from rope_export.sweep import Plan, planned, read_matrix

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture
def folder(tmp_path: Path, tiny_config: Path) -> Path:
    """Two configs; the layers of the second take turns."""
    config = json.loads(tiny_config.read_text())
    (tmp_path / "tiny.json").write_text(json.dumps(config))
    mixed = {"model_type": "qwen2", "max_window_layers": 0, "num_hidden_layers": 4}
    mixed |= {"use_sliding_window": True, "sliding_window": 8, "vocab_size": 64}
    mixed |= {"layer_types": ["full_attention", "sliding_attention"] * 2}
    (tmp_path / "mixed.json").write_text(json.dumps(config | mixed))
    return tmp_path


def plan(folder: Path, text: str) -> Plan:
    path = folder / "matrix.toml"
    path.write_text(text)
    return planned(read_matrix(path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sources = ", ["is not TOML"]),
        ("lowerings = ['ort']", ["has no 'sources'", "list paths"]),
        ("sources = []", ["sources is empty"]),
        ("sources = ['tiny.json']\nlowering = ['ort']", ["'lowering' is no key", "lowerings"]),
        ("sources = ['tiny.json']\nlowerings = ['fast']", ["'fast' does not exist", "portable"]),
        ("sources = ['tiny.json']\nruntimes = ['gpu']", ["'gpu' does not exist", "onnxruntime"]),
        ("sources = ['tiny.json']\ncaches = ['static']", ["caches: 'static'", "growing"]),
        ("sources = ['tiny.json']\ndtypes = 'float32'", ["dtypes='float32'", "array"]),
        ("sources = ['tiny.json']\nlayers = 'some'", ["layers: 'some'", "kinds"]),
        ("sources = ['tiny.json']\nlayers = [0.5]", ["layers[0]=0.5"]),
        ("sources = ['tiny.json']\nweights = ['int2']", ["weights: 'int2'", "int4"]),
        ("sources = ['tiny.json']\nseed = -1", ["seed=-1"]),
        ("sources = [{path = 'tiny.json', layer = 1}]", ["layer"]),
        ("sources = ['*.yaml']", ["nothing matches '*.yaml'"]),
        ("sources = ['tiny.json']\n[[exclude]]", ["exclude[0] has no key"]),
        ("sources = ['tiny.json']\n[[exclude]]\ncaches = 'none'", ["caches"]),
        (
            "sources = ['tiny.json']\n[[exclude]]\nlowering = 'otr'",
            ["exclude[0].lowering='otr'", "none of this matrix's lowerings: auto"],
        ),
        (
            "sources = ['tiny.json', 'mixed.json']\n[[exclude]]\nsource = ['mixed.json', 'mixt*']",
            ["exclude[0].source='mixt*' matches none", "tiny.json"],
        ),
        ("sources = ['tiny.json']\n[[exclude]]\ncache = 'growing'", ["no cells"]),
        ("sources = ['tiny.json']\nlayers = []", ["no cells: `layers` is empty"]),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(folder: Path, text: str, words: list[str]) -> None:
    with pytest.raises(InputError) as refusal:
        plan(folder, text)
    assert "\n" not in str(refusal.value)
    for word in words:
        assert word in str(refusal.value)


def test_a_source_that_is_not_there_is_an_error_and_no_refused_cell(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.json: no such folder or file"):
        plan(folder, "sources = ['tiny.json', 'absent.json']")


def test_cells_are_the_product_without_what_is_refused_or_excluded(folder: Path) -> None:
    found = plan(
        folder,
        """
        sources = ["*.json"]
        layers = "kinds"
        lowerings = ["portable", "ort"]
        caches = ["growing", "fixed"]
        runtimes = ["onnxruntime", "reference"]
        [[exclude]]
        lowering = "ort"
        runtime = "reference"
        [[exclude]]
        source = "mixed.json"
        layer = 1
        cache = "growing"
        """,
    )
    titles = [cell.title for cell in found.cells]
    tiny = [title for title in titles if title.startswith("tiny")]
    assert tiny == [
        "tiny layer 0, portable, growing, float32 on onnxruntime",
        "tiny layer 0, portable, growing, float32 on reference",
        "tiny layer 0, ort, growing, float32 on onnxruntime",
        "tiny layer 0, ort, fixed, float32 on onnxruntime",
    ]
    layers = {cell.export.layer for cell in found.cells if cell.export.name == "mixed"}
    assert layers == {0, 1}  # 2 and 3 are of the same kinds
    assert not any("mixed layer 1" in x and "growing" in x for x in titles)
    reasons = {cell.title: reason for cell, reason in found.refused.items()}
    assert "no cache 'fixed'" in reasons["tiny layer 0, portable, fixed, float32 on onnxruntime"]
    assert len(titles) == len(set(titles))


def test_auto_is_the_lowering_that_it_takes_and_no_second_artifact(folder: Path) -> None:
    found = plan(folder, 'sources = ["tiny.json"]\nlowerings = ["auto", "standard"]')
    assert [cell.export.lowering for cell in found.cells] == ["standard"]
    assert found.notes == ("1 artifacts are the same as others of the matrix, and are made once.",)


def test_decoders_have_a_cache_and_layers_only_where_they_are_named(folder: Path) -> None:
    found = plan(
        folder,
        """
        sources = ["mixed.json", {path = "tiny.json", layers = [1, 7], decoder = false}]
        decoder = true
        caches = ["growing", "none"]
        padding = [false, true]
        """,
    )
    kept = [export.title for export in found.exports]
    assert [x for x in kept if x.startswith("mixed")] == ["mixed decoder, ort, growing, float32"]
    assert sum(x.startswith("tiny layer 1") for x in kept) == 4
    refused = {cell.export.title: reason for cell, reason in found.refused.items()}
    assert refused["mixed decoder, auto, none, float32"] == (
        "a decoder has a cache; use growing or fixed"
    )
    assert "7" in refused["tiny layer 7, auto, growing, float32"]


def test_a_family_that_is_not_supported_is_refused_and_the_others_are_not(folder: Path) -> None:
    config = json.loads((folder / "tiny.json").read_text())
    (folder / "other.json").write_text(json.dumps(config | {"model_type": "made_up"}))
    found = plan(folder, 'sources = ["*.json"]\nlayers = "all"')
    assert {cell.export.name for cell in found.refused} == {"other"}
    assert {export.name for export in found.exports} == {"mixed", "tiny"}
    assert len(found.exports) == 6


def test_paths_begin_at_the_matrix_whatever_its_folder_is_called(folder: Path) -> None:
    within = folder / "runs [2]"
    within.mkdir()
    for name in ("one.json", "tw[o].json"):
        (within / name).write_text((folder / "tiny.json").read_text())
    (within / "lora").mkdir()
    (within / "matrix.toml").write_text(
        "sources = ['*.json', 'tw[o].json', {path = 'one.json', adapter = 'lora'},"
        " {path = 'one.json', adapter = 'none'}]"
    )
    first, second, third, *merged = read_matrix(within / "matrix.toml").sources
    assert (first, second, third) == tuple(
        str(within / x) for x in ("one.json", "tw[o].json", "tw[o].json")
    )
    assert [x.adapter for x in merged] == [str(within / "lora"), "none"]


def test_sources_that_end_alike_are_told_apart(folder: Path) -> None:
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text((folder / "tiny.json").read_text())
    found = plan(folder, 'sources = ["*/config.json", "tiny.json"]')
    assert [export.name for export in found.exports] == ["one/config", "two/config", "tiny"]


def test_a_source_in_the_working_folder_has_a_name_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    found = plan(Path(), "sources = ['tiny.json']")
    assert [export.name for export in found.exports] == ["tiny"]
