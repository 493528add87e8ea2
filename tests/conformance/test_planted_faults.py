"""Faults planted in the file alone are found, and sound artifacts of every kind pass.

All of them: `python -m scripts.plant_faults`, which writes docs/faults.md.
"""

from itertools import product

import pytest

from tests.conformance.faults import decoders
from tests.conformance.faults.faults import LISTED
from tests.conformance.faults.run import DTYPES, judged, work

ONCE_PASSED = [
    (name, fault, way, dtype)
    for name, fault in LISTED
    for way, dtype in product(("portable", "standard", "ort", "tensorrt"), DTYPES)
]


def slice_of(every: list[tuple[object, ...]], step: int) -> list[object]:
    """Every so many; the rest is behind the long marker."""
    return [
        one if at % step == 0 else pytest.param(*one, marks=pytest.mark.long)
        for at, one in enumerate(every)
    ]


@pytest.mark.usefixtures("short_prompts")
@pytest.mark.parametrize(
    ("name", "fault", "lowering", "dtype"),
    slice_of(ONCE_PASSED, 3),
    ids=lambda x: getattr(x, "name", x),
)
def test_what_passed_once_is_found(name, fault, lowering, dtype) -> None:
    """Unit normal inputs at positions below 131,072 over 2,000 slots show none of these."""
    found = judged(name, fault, lowering, dtype)
    assert found.status == "failed"
    assert found.error > 2 * found.tolerance


BELOW_ROUNDING = {"scale off by 2^-22", "theta off by 2^-22", "epsilon off by a thousandth"}
BELOW_ROUNDING |= {"softcap off by 2^-20", ("cos and sin cast to bfloat16", "float16")}
"""By the fault's name, or with the dtype."""
FAULTY = [one for one in work() if one[1] is not None and one not in ONCE_PASSED]
SOUND = [one for one in work() if one[1] is None]
OF_DECODERS = list(decoders.work())
OF_A_KIND = [
    ("past keys negated", "ort"),
    ("hidden states in bfloat16", "standard"),
    ("epsilon outside of the root, in eager too", "ort"),
]
"""One of each kind of fault that no other test of few minutes has."""


@pytest.mark.usefixtures("short_prompts")
@pytest.mark.parametrize(
    ("name", "fault", "lowering", "dtype"),
    [
        one if (one[1].name, one[2]) in OF_A_KIND else pytest.param(*one, marks=pytest.mark.long)
        for one in FAULTY
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_every_fault_is_found(name, fault, lowering, dtype) -> None:
    found = judged(name, fault, lowering, dtype)
    below = fault.name in BELOW_ROUNDING or (fault.name, dtype) in BELOW_ROUNDING
    assert found.status == ("passed" if below else "failed")
    assert below or found.named, (found.tensor, found.expected)


@pytest.mark.long
@pytest.mark.parametrize("options", OF_DECODERS, ids=decoders.title)
def test_every_fault_of_a_decoder_is_found(options) -> None:
    found = decoders.judged(**options)
    assert found.status == ("failed" if options["fault"] else "passed")
    assert not options["fault"] or found.named, (found.tensor, found.expected)


@pytest.mark.parametrize(
    ("name", "fault", "lowering", "dtype", "cache", "padding"), slice_of(SOUND, 40)
)
def test_sound_artifacts_raise_no_alarm(name, fault, lowering, dtype, cache, padding) -> None:
    assert judged(name, fault, lowering, dtype, cache, padding).status == "passed"


def test_there_are_as_many_as_are_asked_for() -> None:
    for way in ("portable", "standard", "ort", "tensorrt"):
        kinds = {(name, fault.name) for name, fault, lowering, _ in FAULTY if lowering == way}
        in_decoders = {x["fault"] for x in OF_DECODERS if x["lowering"] == way} - {""}
        assert len(kinds) >= 90
        assert len(in_decoders) >= 30
    assert len(SOUND) + sum(not x["fault"] for x in OF_DECODERS) >= 300
