"""What an adapter adds to the parameters of a model, by their names there, as PEFT merges it."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from rope_export.checkpoints.adapter import SUPPORTED, Adapter, Delta
from rope_export.errors import CheckpointError


class Adapted:
    """An adapter's changes, by the names of the parameters.

    deltas: of each parameter that it changes.
    """

    def __init__(
        self,
        adapter: Adapter,
        names: Iterable[str],
        outer: Callable[[str], str],
        all_names: set[str],
    ) -> None:
        """names: of the causal LM's parameters. outer: a parameter's name in the model that the
        checkpoint holds; all_names: of every parameter of that model.

        Raises: CheckpointError for an adapter that changes what the model does not have, or
            otherwise than by LoRA's A and B.
        """
        self.adapter = adapter
        if adapter.others:
            raise CheckpointError(f"{adapter.where}: has {adapter.others[0]!r}; {SUPPORTED}")
        by_alias = {alias: name for name in names for alias in (outer(name), name)}
        self.deltas: dict[str, Delta] = {}
        for module in adapter.modules:
            weight = f"{module}.weight"
            if weight in by_alias:
                self.deltas[by_alias[weight]] = adapter.delta(module)
            elif weight not in all_names:
                raise CheckpointError(
                    f"{adapter.where}: adapts {module!r}, which this model does not have; it was "
                    f"made for another one. {SUPPORTED}"
                )

    def merged(self, name: str, value: Tensor) -> Tensor:
        """A parameter with what the adapter adds, W + scale · B·A in float32 or wider."""
        if name not in self.deltas:
            return value
        dtype = torch.promote_types(value.dtype, torch.float32)
        added = self.adapter.product(self.deltas[name], dtype)
        if added.shape != value.shape:
            raise CheckpointError(
                f"{self.adapter.where}: adds {tuple(added.shape)} to {name!r} of shape "
                f"{tuple(value.shape)}; it was made for another model."
            )
        return value.to(dtype) + added
