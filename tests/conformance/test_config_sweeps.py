"""Every family's config keys, against transformers: `scripts/test --long` runs it."""

import json
from typing import Any

import pytest
from transformers import logging as transformers_logging

from rope_export import AttentionSpec
from rope_export.checkpoints.config import select, spec_of
from rope_export.checkpoints.families import every_family, keys_read
from rope_export.errors import SpecError
from tests.conformance.families.config_defaults import config_classes
from tests.conformance.families.rotary_classes import rotary_families
from tests.conformance.families.tiny import tiny_models
from tests.support.layer_of import layer_of

UNMODIFIED = 2e-6
"""transformers has softmax and norms in float32, in float64 modules too: some 2**-24 each."""

READ = sorted(name for name, family in every_family().items() if family.missing is None)


@pytest.fixture(autouse=True)
def quiet():
    transformers_logging.set_verbosity_error()


def tiny_configs(family: str) -> list[dict[str, Any]]:
    """The family's tiny configs whose masks look at is_causal, as files."""
    found = []
    for tiny in tiny_models(family):
        model_type = tiny.config.model_type
        theirs = keys_read(model_type) or {"attention": {}}
        if tiny.variant != "plain" or "is_causal" not in theirs["attention"]:
            continue
        if model_type in READ:
            facts = json.loads(tiny.config.to_json_string(use_diff=False))
            drop = ("dtype", "architectures")
            found.append({k: v for k, v in facts.items() if k[0] != "_" and k not in drop})
    return found


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_is_causal_off_in_every_family() -> None:
    """Chunks stay causal: create_chunked_causal_mask does not look. Families that AutoModel cannot
    run from token ids alone are passed over."""
    proven = set()
    for family in rotary_families():
        for config in tiny_configs(family):
            for layer in (0, 1):
                try:
                    both = layer_of({**config, "is_causal": False}, layer)
                except Exception:  # a model of another kind, or a layer that is refused
                    continue
                name = f"{config['model_type']}, layer {layer}"
                assert both.spec.causal is (both.spec.chunk is not None), name
                assert both.error() <= UNMODIFIED, name
                proven.add(config["model_type"])
    assert len(proven) >= 100


def changed(value: Any) -> list[Any]:
    """Other values of a key."""
    if isinstance(value, bool):
        return [not value]
    return [2, 3] if isinstance(value, int) else [2, True] if value is None else []


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", READ)
def test_what_a_key_changes_elsewhere_is_what_the_config_class_derives(model_type: str) -> None:
    """A file with one key, and all that transformers' config class derives from it, mean the same;
    or the short one is refused."""
    cls, theirs = config_classes().get(model_type), keys_read(model_type)
    if cls is None or theirs is None:
        pytest.skip("transformers has no config class of that model_type of its own")
    for key, default in {**theirs["attention"], **theirs["around"]}.items():
        for value in changed(default):
            short = {"model_type": model_type, key: value, "num_hidden_layers": 6}
            try:
                whole = cls(**{k: v for k, v in short.items() if k != "model_type"}).to_dict()
                meant = [_spec(whole, layer) for layer in range(4)]
            except Exception:  # each class refuses in its own way
                continue
            for layer, spec in enumerate(meant):
                ours = _spec(short, layer)
                assert ours is None or spec is None or ours == spec, (key, value, layer)


def _spec(config: dict[str, Any], layer: int) -> AttentionSpec | None:
    """The spec, or none where it is refused."""
    try:
        return spec_of(select(config), layer)
    except SpecError:
        return None
