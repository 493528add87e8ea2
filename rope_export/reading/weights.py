"""The attention's weights as transformers' own loading code puts them into its module."""

import inspect
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rope_export.checkpoints.files import open_tensors
from rope_export.reading.models import Unread, reason
from rope_export.reading.skeleton import Skeleton
from rope_export.spec import AttentionSpec

MANY = 4_096
"""Tensors beyond which those of other layers are left out before they are renamed."""
LARGE = 2**26
"""Numbers beyond which drawn weights are saved in bfloat16."""


class WrongWeights(Exception):
    """transformers' module and the files do not go together: a tensor, and what is wrong."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name


def weight_paths(folder: Path, config: Any) -> list[Path]:
    """The weight files that transformers opens for this folder; never pickles.

    Raises: Unread if it finds none.
    """
    from transformers import modeling_utils

    choose: Any = modeling_utils._get_resolved_checkpoint_files
    options: dict[str, Any] = {
        "pretrained_model_name_or_path": str(folder),
        "variant": None,
        "gguf_file": None,
        "use_safetensors": True,
        "user_agent": None,
        "is_remote_code": False,
        "transformers_explicit_filename": getattr(config, "transformers_weights", None),
        "download_kwargs": {"local_files_only": True},
        "local_files_only": True,
    }
    parameters = inspect.signature(choose).parameters
    try:
        files, _ = choose(**{k: v for k, v in options.items() if k in parameters})
    except Exception as error:
        raise Unread(f"transformers finds no weights ({reason(error)})") from error
    # Of a hub's files, those are there that have been needed.
    return [path for path in map(Path, files or ()) if path.is_file()]


def loaded(skeleton: Skeleton, folder: Path, config: Any) -> None:
    """Puts the folder's weights into the attention, and into nothing else.

    Raises: WrongWeights for a tensor that the module lacks or does not know; Unread for what
        transformers' own code raises.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(open_tensors(x)) for x in weight_paths(folder, config)]
        holder = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        chosen = [name for name in holder if skeleton.is_ours(name)] if len(holder) <= MANY else []
        chosen = chosen or [x for x in holder if "expert" not in x and skeleton.is_ours(x)]
        tensors = {name: holder[name].get_tensor(name) for name in chosen}
    put(skeleton, tensors)


def put(skeleton: Skeleton, tensors: Mapping[str, Tensor], **more: Any) -> None:
    """Converts and loads tensors called as in a checkpoint. more: of transformers' loader.

    Raises: as `loaded`.
    """
    from transformers import modeling_utils

    model: Any = skeleton.model
    settings = modeling_utils.LoadStateDictConfig(
        dtype=skeleton.dtype,
        weight_mapping=skeleton.mapping,
        ignore_mismatched_sizes=True,
        **more,
    )
    for name in set(skeleton.names.values()) - set(tensors):
        raise WrongWeights(name, "transformers does not load it into this attention")
    try:
        outcome = model._load_pretrained_model(model, dict(tensors), None, settings)
        info = outcome[0] if isinstance(outcome, tuple) else outcome  # the oldest give it alone
        _without_ignored(model, info)
    except Exception as error:
        raise Unread(f"transformers cannot load the weights ({reason(error)})") from error
    for name, *shapes in sorted(info.mismatched_keys):
        raise WrongWeights(name, f"it has shape {shapes[0]}, the module has {shapes[1]}")
    for name in sorted(info.unexpected_keys):
        if skeleton.holds(name):
            raise WrongWeights(name, "transformers' module has no such tensor")
    for name in sorted(info.missing_keys):
        if skeleton.holds(name):
            raise WrongWeights(name, "transformers' module needs it and the files lack it")
    problems = [*getattr(info, "conversion_errors", ()), *info.error_msgs]
    if problems:
        raise Unread(f"transformers cannot convert the weights ({str(problems[0])[:160]})")
    _narrowed(skeleton, tensors)
    left = [n for n, p in _parameters(skeleton) if p.device.type == "meta"]
    if left:
        raise WrongWeights(left[0], "transformers' module needs it and the files lack it")


def _without_ignored(model: Any, info: Any) -> None:
    """Leaves out the missing and unexpected tensors that the model's class names to ignore."""
    adjust = model._adjust_missing_and_unexpected_keys
    if len(inspect.signature(adjust).parameters) == 1:
        adjust(info)
    else:  # the oldest take the two sets and give them back
        info.missing_keys, info.unexpected_keys = adjust(info.missing_keys, info.unexpected_keys)


def _narrowed(skeleton: Skeleton, tensors: Mapping[str, Tensor]) -> None:
    """The layer's parameters in float32 where the files have no more than that."""
    if any(tensor.dtype is torch.float64 for tensor in tensors.values()):
        return
    for _, value in _parameters(skeleton):
        if value.device.type != "meta":
            value.data = value.data.float()


def _parameters(skeleton: Skeleton) -> Iterable[tuple[str, nn.Parameter]]:
    for part in skeleton.parts:
        for name, value in skeleton.model.get_submodule(part).named_parameters():
            yield f"{part}.{name}", value


@torch.no_grad()
def drawn(skeleton: Skeleton, spec: AttentionSpec, seed: int) -> None:
    """Fills the attention's parameters as `drawn_weights` does ours: unit normal q, k and v."""
    stream = torch.Generator().manual_seed(seed)
    offset = next((x.offset for x in map(_norm(spec), ("q", "k", "v", "o")) if x), 0.0)
    for name, value in _parameters(skeleton):
        values = torch.randn(value.shape, generator=stream, dtype=torch.float32)
        if "sink" in name:
            spread, mean = 1.0, 0.0
        elif name.endswith("bias"):
            spread, mean = 0.5, 0.0
        elif value.ndim < 2 or "norm" in name:
            spread, mean = 0.25, 1.0 - offset
        else:
            spread, mean = value.shape[-1] ** -0.5, 0.0
        path, _, last = name.rpartition(".")
        fresh = values.mul_(spread).add_(mean).to(skeleton.dtype)
        setattr(skeleton.model.get_submodule(path), last, nn.Parameter(fresh, requires_grad=False))


def _norm(spec: AttentionSpec) -> Any:
    return lambda part: getattr(spec, f"{part}_norm")


def saved(skeleton: Skeleton, folder: Path) -> None:
    """The attention's tensors as transformers' save_pretrained writes them, one file.

    Raises: Unread for what its code raises.
    """
    model: Any = skeleton.model
    state = {k: v for k, v in model.state_dict().items() if skeleton.holds(k)}
    many = sum(x.numel() for x in state.values()) > LARGE
    dtype = torch.bfloat16 if many else torch.float32
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    try:
        model.save_pretrained(folder, state_dict=state)
    except Exception as error:
        raise Unread(f"transformers cannot save the attention ({reason(error)})") from error
