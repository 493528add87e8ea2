"""Long runs, short ones of them in CI: decoding into a fixed cache, and threads on one artifact."""

import numpy as np
import pytest

from rope_export.runtimes.onnxruntime import OnnxRuntimeRunner
from scripts.benchmarks import soak


@pytest.mark.parametrize(
    ("steps", "seconds"),
    [(100, 0.3), pytest.param(10_000, 60.0, marks=pytest.mark.long)],
    ids=["short", "long"],
)
def test_nothing_goes_wrong(smollm2, steps: int, seconds: float) -> None:
    found = list(soak.long_runs(smollm2, steps, seconds))
    assert [one.wrong for one in found] == [0, 0, 0, 0]
    assert all(one.calls > soak.THREADS for one in found)
    assert found[0].grown < soak.SMALL


def test_a_wrong_answer_is_counted(smollm2, monkeypatch) -> None:
    plain = OnnxRuntimeRunner.prepare

    def forgetful(self, kept, into):
        """A fixed cache that is read but never written."""
        return plain(self, kept, {n: np.empty_like(x) for n, x in into.items()})

    monkeypatch.setattr(OnnxRuntimeRunner, "prepare", forgetful)
    decoding = next(iter(soak.long_runs(smollm2, 100, 0.0)))
    assert decoding.wrong > 90
