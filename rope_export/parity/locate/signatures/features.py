"""A feature of the spec that is left out or wrong: the counterfactuals by which `verify` shows that
each of them is visible."""

from collections.abc import Iterator

from rope_export.parity.layer.counterfactuals import Counterfactual, counterfactuals_of
from rope_export.parity.locate.suspect import Alternative, Suspect
from rope_export.spec import Feature

RANK = 20


def alternatives(suspect: Suspect) -> Iterator[Alternative]:
    limits = suspect.limits_of_file
    beyond = [Feature(kind="lengths", name="lengths beyond", value=limit) for limit in limits]
    for feature in (*suspect.layer.spec.features(), *beyond):
        for fault in counterfactuals_of(suspect.layer, feature):
            yield _alternative(suspect, fault)


def _alternative(suspect: Suspect, fault: Counterfactual) -> Alternative:
    return Alternative(
        text=fault.fault, value=lambda: suspect.of(fault.layer, fault.inputs(suspect.inputs))
    )
