"""What the tests share: real weights, and tiny artifacts made once."""

import functools
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from rope_export import Artifact, export

TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
}


def taking_turns(combinations: Iterable[tuple[object, ...]]) -> list[object]:
    """One of every two combinations, the first of a pair and then the second of the next; the
    others are behind the long marker."""
    return [
        one if (at + at // 2) % 2 == 0 else pytest.param(*one, marks=pytest.mark.long)
        for at, one in enumerate(combinations)
    ]


@pytest.fixture(scope="session", autouse=True)
def operators_read_once() -> None:
    """torch's exporter reads its table of a thousand operators anew for every export, which is a
    third of the time that a small one takes; here there are hundreds."""
    from torch.onnx._internal.exporter import _registration

    scripts = _registration.onnxscript_apis
    scripts.get_torchlib_ops = functools.cache(scripts.get_torchlib_ops)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M's real weights, fetched into the ignored folder `checkpoints/` if not there."""
    from scripts.fetch_smollm2 import DEFAULT_OUT, fetch

    return fetch(DEFAULT_OUT)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The GGUF file that those weights are taken from, beside them."""
    from scripts.fetch_smollm2 import DEFAULT_GGUF, fetch_gguf

    return fetch_gguf(DEFAULT_GGUF)


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.json"
    path.write_text(json.dumps(TINY))
    return path


@pytest.fixture(scope="session")
def tiny(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """Artifacts of the tiny config, each made once; copy one before changing it.

    Processes that run tests side by side share them: an artifact is there as a whole or not at all.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny"
    folder.mkdir(exist_ok=True)

    def make(
        lowering: str = "standard",
        dtype: str = "float32",
        cache: str = "growing",
        padding: bool = False,
    ) -> Artifact:
        out = folder / f"{lowering}-{dtype}-{cache}-{padding}"
        if out.exists():
            return Artifact.open(out)
        return export(
            tiny_config, out=out, lowering=lowering, dtype=dtype, cache=cache, padding=padding
        )

    return make
