"""A fault in the shared block, wrong in eager and in the artifact alike, must not pass."""

import dataclasses
from itertools import product

import pytest
import torch

from rope_export import RotaryAttention, export, verify
from rope_export.attention import operators
from rope_export.lowerings import ort, standard
from rope_export.lowerings.portable import Portable
from tests.conftest import taking_turns

pytestmark = pytest.mark.usefixtures("short_prompts")

ROTATE = operators.rotate
PROJECT = RotaryAttention.project
ATTEND = operators.attend
PORTABLE_ATTEND = Portable.attend


def keys_without_sin(x, cos, sin, rope):
    if x.shape[1] != 2:  # the tiny config has 2 key heads and 4 query heads
        return ROTATE(x, cos, sin, rope)
    cos_part = ROTATE(x, cos, torch.zeros_like(sin), rope)
    return cos_part + ROTATE(x, torch.zeros_like(cos), torch.ones_like(sin), rope)


def other_pairs(x, cos, sin, rope):
    return ROTATE(x, cos, sin, dataclasses.replace(rope, layout="interleaved"))


def negated_keys(self, hidden_states):
    q, k, v = PROJECT(self, hidden_states)
    return q, -k, v


def mask_off_by_one(sequence, total, attention_mask, spec, device, lengths=None):
    slots, own = torch.arange(total), torch.arange(sequence) + (total - sequence)
    return (slots <= own[:, None] - 1)[None, None]


def half_angles(self, position_ids, dtype):
    angles = (position_ids[..., None].half() * self.inv_freq.half()).float()
    return angles.cos().to(dtype), angles.sin().to(dtype)


def eager_unscaled(q, k, v, allowed, spec, sinks, tap):
    return ATTEND(q, k, v, allowed, dataclasses.replace(spec, scale=1.0), sinks, tap)


def portable_unscaled(self, request):
    spec = dataclasses.replace(request.spec, scale=1.0)
    return PORTABLE_ATTEND(self, dataclasses.replace(request, spec=spec))


FAULTS = {
    "* sin dropped on k": [(operators, "rotate", keys_without_sin)],
    "pairing swapped": [(operators, "rotate", other_pairs)],
    "k negated": [(RotaryAttention, "project", negated_keys)],
    "causal mask off by one": [(operators, "allowed_slots", mask_off_by_one)],
    "angles in float16": [(RotaryAttention, "cos_sin", half_angles)],
    "1 / sqrt(d) forgotten": [
        (operators, "attend", eager_unscaled),
        (Portable, "attend", portable_unscaled),
    ],
}


@pytest.mark.parametrize(("fault", "dtype"), taking_turns(product(FAULTS, ["float32", "float16"])))
def test_a_shared_fault_fails(fault, dtype, tiny_config, tmp_path, monkeypatch) -> None:
    for place, name, broken in FAULTS[fault]:
        monkeypatch.setattr(place, name, broken)
    artifact = export(tiny_config, out=tmp_path / "x", lowering="portable", dtype=dtype)
    report = verify(artifact)
    assert report.status == "failed"
    by = {row.runtime for row in report.rows if row.status == "failed"}
    assert by == {"eager", "onnxruntime"}


def one_entry_less(*arguments):
    used, bound, new = COUNTS(*arguments)
    return used - 1, bound, new


def one_entry_more(q, k, v, used, spec):
    return OVER_USED(q, k, v, used + 1, spec)


COUNTS, OVER_USED = ort._counts, standard._over_used
FIXED_FAULTS = {
    "an entry less than are in use": ("ort", ort, "_counts", one_entry_less),
    "an entry more than are in use": ("standard", standard, "_over_used", one_entry_more),
    "written where the cache starts": (
        "standard",
        standard.Standard,
        "keep",
        lambda self, past, new, lengths: KEEP(self, past, new, lengths * 0),
    ),
}
KEEP = standard.Standard.keep


@pytest.mark.parametrize("fault", FIXED_FAULTS)
def test_a_fault_in_a_fixed_cache_fails(fault, tiny_config, tmp_path, monkeypatch) -> None:
    lowering, place, name, broken = FIXED_FAULTS[fault]
    monkeypatch.setattr(place, name, broken)
    report = verify(export(tiny_config, out=tmp_path / "x", lowering=lowering, cache="fixed"))
    assert {row.runtime for row in report.rows if row.status == "failed"} == {"onnxruntime"}
