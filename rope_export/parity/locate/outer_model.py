"""transformers' model without its layers: what it computes before the first and after the last."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rope_export.decoder.forwards import gives_tuple
from rope_export.decoder.stamping import RESIDUAL
from rope_export.parity.decoder.passage import called
from rope_export.parity.decoder.roundings import Roundings
from rope_export.parity.decoder.theirs import Theirs
from rope_export.parity.decoder.walk import LayerCall, Stopped, with_stubs
from rope_export.parity.locate.modules import ModuleValues
from rope_export.parity.locate.watch import Watched, watched

LOGITS = "logits"


@dataclass(frozen=True, kw_only=True, eq=False)
class Outer:
    """What was computed around the layers, in the order of computation.

    before, after: by the paths of the modules, the last ones being the hidden states that enter the
    first layer and the logits. inputs: what norms take.
    """

    before: dict[str, ModuleValues] = field(default_factory=dict)
    after: dict[str, ModuleValues] = field(default_factory=dict)
    inputs: dict[str, np.ndarray] = field(default_factory=dict)


class OuterModel:
    """Runs the model with nothing in the place of its layers. dtype: of the artifact."""

    def __init__(self, theirs: Theirs, dtype: str) -> None:
        self.theirs, self.dtype = theirs, dtype
        self.entering = RESIDUAL.format(0)
        self.as_tuple = gives_tuple(theirs.layers[0])
        self.path = next(name for name, x in theirs.model.named_modules() if x is theirs.layers)

    def module(self, path: str) -> nn.Module | None:
        """The module of that path, if it is one."""
        try:
            found: nn.Module = self.theirs.model.get_submodule(path)
        except AttributeError:
            return None
        return found

    def run(self, ids: np.ndarray, positions: np.ndarray, left: Tensor | None = None) -> Outer:
        """ids, positions (rows, sequence). left (rows, sequence, hidden): what the last layer
        gives, in the artifact's dtype; without it nothing is computed after the layers."""
        seen = Watched()
        blocks = self.theirs.int8_blocks
        wide = None if left is None else left.double()
        self._forward(seen, Roundings(self.theirs.widened, self.dtype), ids, positions, wide)
        if blocks:
            rough = Roundings(self.theirs.widened, self.dtype, blocks)
            self._forward(seen, rough, ids, positions, wide)
        self._forward(seen, nullcontext(), ids, positions, left)
        self.theirs.widened.forget()
        return self._arranged(seen)

    def _forward(
        self,
        seen: Watched,
        mode: AbstractContextManager[Any],
        ids: np.ndarray,
        positions: np.ndarray,
        left: Tensor | None,
    ) -> None:
        last = len(self.theirs.layers) - 1

        def at_layer(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = LayerCall(layer=index, args=args, kwargs=kwargs).hidden_states
            if index == 0:
                seen.note(self.entering, hidden)
                if left is None:
                    raise Stopped
            if index == last:
                assert left is not None
                hidden = left
            return (hidden,) if self.as_tuple else hidden

        model = with_stubs(self.theirs, at_layer)
        modules = {
            name: module
            for name, module in model.named_modules()
            if name and not f"{name}.".startswith(f"{self.path}.")
        }
        with torch.no_grad(), watched(modules, seen), mode:
            try:
                logits = called(model, ids, np.ones_like(ids), positions, None)
            except Stopped:
                return
            seen.note(LOGITS, logits)

    def _arranged(self, seen: Watched) -> Outer:
        outer = Outer()
        part = outer.before
        for name in seen.exact:
            exact, eager, squares, rough = (
                seen.of_all(kind, name) for kind in ("exact", "eager", "squares", "rough")
            )
            if exact is None or eager is None:
                continue
            if name.endswith(".input"):
                outer.inputs[name.removesuffix(".input")] = exact
                continue
            part[name] = ModuleValues(exact=exact, eager=eager, squares=squares, rough=rough)
            if name == self.entering:
                part = outer.after
        return outer
