"""Model families: read with transformers' defaults, refused by name, extended by one file."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import logging as transformers_logging

from rope_export import AttentionSpec
from rope_export.checkpoints.config import select, spec_of
from rope_export.checkpoints.families import Family, class_defaults, every_family
from rope_export.errors import SpecError
from tests.conformance.families.config_defaults import config_classes
from tests.conftest import TINY

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
README = Path(__file__).parents[2] / "README.md"
READ = sorted(name for name, family in every_family().items() if family.missing is None)
MISSING = sorted(name for name, family in every_family().items() if family.missing is not None)


@pytest.fixture(autouse=True)
def quiet():
    transformers_logging.set_verbosity_error()


@pytest.fixture(scope="module")
def classes() -> dict[str, Any]:
    return config_classes()


def read(config: dict[str, Any], layer: int) -> AttentionSpec | str:
    """The spec, or the refusal."""
    try:
        return spec_of(select(config), layer)
    except SpecError as error:
        return str(error)


ADDED = [
    {},
    {"rope_theta": 12_345.0},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("added", ADDED, ids=["nothing", "rope_theta", "rope_scaling"])
@pytest.mark.parametrize("model_type", READ)
def test_what_a_file_leaves_out_is_what_transformers_fills_in(
    model_type: str, added: dict[str, Any], classes: dict[str, Any]
) -> None:
    """A config.json with next to nothing in it, and all of transformers' config made of it, mean
    the same; or the short one is refused."""
    if model_type not in classes:
        pytest.skip("transformers has no config class of that model_type of its own")
    try:
        whole = classes[model_type](**json.loads(json.dumps(added))).to_dict()
    except Exception as error:  # each class refuses in its own way
        pytest.skip(f"transformers refuses it: {error}")
    for layer in (0, 1, 3, 5):
        short = read({"model_type": model_type, **added}, layer)
        if isinstance(short, AttentionSpec):
            assert short == read(whole, layer)


@pytest.mark.parametrize("model_type", MISSING)
def test_what_is_missing_is_named(model_type: str) -> None:
    with pytest.raises(SpecError) as error:
        AttentionSpec.from_hf({"model_type": model_type})
    assert f"model_type={model_type!r}" in str(error.value)
    assert str(every_family()[model_type].missing) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_family_is_refused_with_its_neighbours() -> None:
    with pytest.raises(SpecError, match=r"model_type='qwen9'.*qwen2.*docs/families\.md"):
        AttentionSpec.from_hf({**TINY, "model_type": "qwen9"})


def test_every_family_says_where_its_facts_are_from() -> None:
    for family in every_family().values():
        assert isinstance(family, Family)
        assert family.source
    assert set(class_defaults()) >= {"llama", "gemma3_text", "qwen2_vl"}


def test_the_pages_say_the_same() -> None:
    """The README's number is the generated page's."""
    page = PAGE.read_text(encoding="utf-8")
    proven = int(re.search(r"^- proven: (\d+)$", page, re.M)[1])
    assert proven >= 150
    assert "save_pretrained" in page
    assert "transformers 5.24" in page
    for status in ("unread", "wrong", "crashed"):
        assert f"\n- {status}: 0\n" in page
    families_there = re.search(r"^Of (\d+) families:$", page, re.M)[1]
    assert f"{proven} of {families_there}" in README.read_text(encoding="utf-8")
