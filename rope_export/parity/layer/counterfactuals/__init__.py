"""What a layer would compute without one of its features: layers that a verdict must tell apart.

One function for each kind of feature names the fault and makes a reference layer that has it;
`visible` looks for the calls on which it shows. A kind without a function has no verdict.
"""

from rope_export.parity.layer.counterfactuals import attention, projections, rotation
from rope_export.parity.layer.counterfactuals.base import (
    COUNTERFACTUALS,
    Counterfactual,
    counterfactuals_of,
)

__all__ = [
    "COUNTERFACTUALS",
    "Counterfactual",
    "attention",
    "counterfactuals_of",
    "projections",
    "rotation",
]
