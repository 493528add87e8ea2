"""Which keys of a config transformers' code reads for one layer's attention.

Attribute reads on the config objects are recorded while transformers builds and runs the model,
and kept where they happen inside the attention, a rotary embedding, or the making of a mask.
"""

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from rope_export.checkpoints.config import read_config, select, spec_of
from rope_export.reading.captures import Arguments, arguments
from rope_export.reading.folders import config_folder
from rope_export.reading.models import configured, quiet
from rope_export.reading.skeleton import Skeleton, is_rotary, skeleton_of, width

_RECORDING = threading.Lock()


@dataclass
class Reads:
    """Reads of config keys as they happened: the object, the key under the name it is stored by,
    and the modules and functions on the way to it."""

    seen: list[tuple[Any, str, tuple[Any, ...]]] = field(default_factory=list)

    def of(self, skeleton: Skeleton) -> dict[str, Any]:
        """The keys that bear on the skeleton's attention, with the config object they are of."""
        ours = {id(x) for part in skeleton.parts for x in _modules(skeleton, part)}
        configs: dict[str, Any] = {}
        for config, key, places in self.seen:
            if any(_bears(place, ours) for place in places):
                configs.setdefault(key, config)
        return configs


def _modules(skeleton: Skeleton, path: str) -> list[nn.Module]:
    return list(skeleton.model.get_submodule(path).modules())


def _bears(place: Any, ours: set[int]) -> bool:
    if isinstance(place, str):
        return True
    return id(place) in ours or is_rotary(place)


def _place(frame: FrameType) -> Any:
    """The place of a read that the frame shows: a module, or the making of a mask."""
    code = frame.f_code
    if code.co_filename.endswith("masking_utils.py") or (
        "mask" in code.co_name and "modeling_" in code.co_filename
    ):
        return "mask"
    module = frame.f_locals.get("self") if code.co_argcount else None
    return module if isinstance(module, nn.Module) else None


@contextmanager
def recorded() -> Iterator[Reads]:
    """Records the reads of every config object by this thread."""
    import transformers

    kind: Any = transformers.PreTrainedConfig
    reads, thread = Reads(), threading.get_ident()
    original = kind.__getattribute__

    def note(self: Any, key: str) -> Any:
        if key[0] != "_" and threading.get_ident() == thread:
            fields = original(self, "__dict__")
            name = type(self).attribute_map.get(key, key)
            if name in fields or not hasattr(type(self), name):
                reads.seen.append((self, name, _places()))
        return original(self, key)

    with _RECORDING:
        kind.__getattribute__ = note
        try:
            yield reads
        finally:
            kind.__getattribute__ = original


def _places() -> tuple[Any, ...]:
    places = []
    frame = sys._getframe(2)
    while frame is not None:
        place = _place(frame)
        if place is not None:
            places.append(place)
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(places)


def config_reads(config: Any, *, layer: int = 0, part: str | None = None) -> frozenset[str]:
    """Keys of a config that transformers' code reads for one layer's attention.

    Nothing is loaded: model, attention and its one call are on meta. The call is a prefill of
    eight tokens.
    config, layer, part: see `AttentionSpec.from_hf`; a path or the contents of a config.json.
    Raises: Unread if transformers cannot be asked; UnavailableError if it is not installed.
    """
    facts = read_config(config)
    read = select(facts, part)
    with quiet(), config_folder(facts) as folder, recorded() as reads:
        skeleton = skeleton_of(configured(folder), read, spec_of(read, layer), layer)
        run_on_meta(skeleton, tokens=8)
    return frozenset(reads.of(skeleton))


def run_on_meta(skeleton: Skeleton, tokens: int) -> None:
    """One forward of the model to the attention, and that called without numbers."""
    call = arguments(skeleton, torch.zeros(1, tokens, width(skeleton), dtype=skeleton.dtype))
    called_on_meta(skeleton, call)


@torch.no_grad()
def called_on_meta(skeleton: Skeleton, call: Arguments) -> None:
    for name, value in list(call.bound.arguments.items()):
        call.bound.arguments[name] = _on_meta(value)
    cache = call.cache and call.value(call.cache)
    if cache:
        call.put(call.cache or "", None)
    module: Any = skeleton.module.to("meta")
    module(*call.bound.args, **call.bound.kwargs)


def _on_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, Mapping) and type(value) is dict:
        return {k: _on_meta(v) for k, v in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_on_meta(x) for x in value)
    return value
