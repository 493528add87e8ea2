"""An adapter merged into transformers' own module by PEFT."""

import warnings
from typing import Any

from torch import nn

from rope_export.reading.models import Unread, reason
from rope_export.reading.skeleton import Skeleton


def merge(skeleton: Skeleton, adapter: str) -> None:
    """Merges the adapter into the attention, whose weights are loaded, and into nothing else.

    adapter: its folder or hub id.
    Raises: Unread without peft, and for what its code raises.
    """
    try:
        from peft import PeftModel
        from peft.tuners.lora import LoraLayer
    except ImportError as error:
        why = "the adapter is not merged by PEFT, which is not installed; pip install peft"
        raise Unread(why) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            PeftModel.from_pretrained(skeleton.model, adapter)
            for name, module in list(skeleton.model.named_modules()):
                if isinstance(module, LoraLayer):
                    _unwrap(skeleton.model, name, module, ours=skeleton.holds(f"{name}.weight"))
    except Exception as error:
        raise Unread(f"PEFT cannot merge the adapter ({reason(error)})") from error


def _unwrap(model: nn.Module, name: str, layer: Any, ours: bool) -> None:
    """Puts back the module that PEFT has put its own around, merged if it is the attention's."""
    if ours:
        layer.merge()
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer.get_base_layer())
