"""The modules of an adapter that are in one layer's attention, by their names."""

import re
from collections.abc import Collection, Iterable, Mapping

from rope_export.checkpoints.adapter import SUPPORTED, Adapter, Delta
from rope_export.checkpoints.stacks import is_of_tower
from rope_export.errors import CheckpointError

DECODER = frozenset({"model", "language_model", "text_model"})
"""Words that stand before a text decoder's layers and tell it from no other stack."""
ATTENTION = re.compile(r"att|(^|[._])[qkvo]_?proj|qkv|query|(^|\.)(key|value)\b", re.IGNORECASE)


def layer_deltas(
    adapter: Adapter, used: Collection[str], path: str, files: Collection[str]
) -> dict[str, Delta]:
    """What the adapter adds to one layer's tensors, by their full names in the checkpoint.

    used: the layer's tensors. path: what their names have in common after the checkpoint's prefix.
    files: every tensor of the checkpoint.
    Raises: CheckpointError for an adapter of another model, one that changes the layer otherwise,
        and modules of which it cannot be told whether they are this layer's.
    """
    first = next(iter(used))
    prefix = first[: first.rindex(path)]
    deltas = {}
    elsewhere = 0
    for module in adapter.modules:
        stacks, rest = _stacks(module, path, files)
        tensor = f"{prefix}{rest}.weight"
        if stacks == {prefix} and tensor in used:
            deltas[tensor] = adapter.delta(module)
        elif prefix not in stacks and (stacks or (not rest and _is_known(module, files))):
            elsewhere += 1
        elif rest or ATTENTION.search(module):
            raise CheckpointError(
                f"{adapter.where}: adapts {module!r}, and it cannot be told whether that is in "
                f"this layer: the checkpoint has no such name, or several like it. Was the adapter "
                f"made for this model? {SUPPORTED}"
            )
    if not deltas and not elsewhere:
        raise CheckpointError(
            f"{adapter.where}: none of the modules that it adapts is in this checkpoint: "
            f"{', '.join(sorted(adapter.modules)[:3]) or 'it names none'}. It is another model's."
        )
    for name in adapter.others:
        stacks, rest = _stacks(name.rpartition(".")[0], path, files)
        if rest and (prefix in stacks or not stacks):
            raise CheckpointError(f"{adapter.where}: has {name!r} for this layer; {SUPPORTED}")
    _check_targets(adapter, used, deltas)
    return deltas


def _stacks(module: str, path: str, files: Iterable[str]) -> tuple[set[str], str]:
    """The prefixes in the checkpoint under which an adapted module may be, and the rest of its
    name; neither for a module that is not on the layer's path."""
    at = f".{module}.".rfind(f".{path}")
    return (set(), "") if at < 0 else (_prefixes(module[:at], module[at:], files), module[at:])


def _prefixes(stack: str, rest: str, files: Iterable[str]) -> set[str]:
    """The prefix that a module has itself, if the checkpoint has its weight there; else all that
    may stand for the same stack."""
    ends = f".{rest}.weight"
    prefixes = {name[: 1 - len(ends)] for name in files if f".{name}".endswith(ends)}
    if stack in prefixes:
        return {stack}
    return {prefix for prefix in prefixes if _is_same_stack(stack, prefix)}


def every_delta(adapter: Adapter, files: Collection[str]) -> dict[str, Delta]:
    """What the adapter adds to the checkpoint's tensors, by their full names there.

    Raises: CheckpointError for a module that the checkpoint does not have, or has several like, and
        for what is no LoRA pair.
    """
    if adapter.others:
        raise CheckpointError(f"{adapter.where}: has {adapter.others[0]!r}; {SUPPORTED}")
    deltas = {}
    for module in adapter.modules:
        before, rest = _parts(module)
        prefixes = _prefixes(before, rest, files)
        if len(prefixes) != 1:
            raise CheckpointError(
                f"{adapter.where}: adapts {module!r}, of which the checkpoint has "
                f"{len(prefixes)}. Was the adapter made for this model? {SUPPORTED}"
            )
        deltas[f"{prefixes.pop()}{rest}.weight"] = adapter.delta(module)
    return deltas


def _is_known(module: str, files: Iterable[str]) -> bool:
    """Whether the checkpoint has the weight of a module that is not on the layer's path."""
    return bool(_prefixes(*_parts(module), files))


def _parts(module: str) -> tuple[str, str]:
    """What stands before the stack in a module's name, and the rest of it."""
    parts = module.split(".")
    numbers = [at for at, part in enumerate(parts) if part.isdigit()]
    at = max(0, numbers[0] - 1) if numbers else len(parts) - 1
    return "".join(f"{part}." for part in parts[:at]), ".".join(parts[at:])


def _is_same_stack(one: str, other: str) -> bool:
    """Whether two prefixes stand for one stack of layers.

    One has the other's end, as models with and without their head have it; or they differ in words
    for the text decoder alone, as models of several towers were renamed, and as adapters are
    trained on their decoder by itself.
    """
    if is_of_tower(one) != is_of_tower(other):
        return False
    words = [[word for word in name.split(".") if word] for name in (one, other)]
    short, long = sorted(words, key=len)
    if long[len(long) - len(short) :] == short:
        return True
    first, second = ([word for word in part if word not in DECODER] for part in words)
    return first == second


def _check_targets(adapter: Adapter, used: Iterable[str], deltas: Mapping[str, Delta]) -> None:
    """Refuses an adapter whose config adapts more of this layer than it has tensors for."""
    config = adapter.config
    targets = config.get("target_modules")
    limits = ("exclude_modules", "layers_to_transform")
    if not isinstance(targets, list) or any(config.get(key) is not None for key in limits):
        return
    for name in sorted(used):
        module, _, kind = name.rpartition(".")
        adapted = any(f".{module}".endswith(f".{target}") for target in targets)
        if kind == "weight" and adapted and name not in deltas:
            raise CheckpointError(
                f"{adapter.where}: its target_modules have {module.rpartition('.')[2]!r}, but it "
                f"has no tensors for {module!r}. Fetch or save the adapter again."
            )
