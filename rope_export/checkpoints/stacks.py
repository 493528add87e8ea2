"""Which of a checkpoint's stacks of layers is meant, by the prefix of the names of its tensors."""

import re
from collections.abc import Iterable

from rope_export.errors import CheckpointError

TOWERS = {
    "vision": ("visual", "vision", "image"),
    "audio": ("audio", "speech"),
}
"""Words by which a tower's tensors are told from the text decoder's of the same layout."""
EVERY_TOWER = tuple(word for words in TOWERS.values() for word in words)
BESIDE = frozenset({"mtp", "draft_model", "eagle_module", "speculator", "ema", "teacher"})
"""Stacks saved beside a model that transformers does not load with it."""
STANDARD = frozenset(
    {"", "model.", "transformer.", "model.language_model.", "language_model.", "backbone_model."}
)
"""What transformers' models have before their only stack, with and without their head."""
WRAPPERS = {
    r"(^|\.)_orig_mod\.": "torch.compile",
    r"^module\.": "torch's DataParallel",
    r"(^|\.)_fsdp_wrapped_module\.": "torch's FSDP",
}
"""What a wrapper puts into the names, under which transformers finds no tensor."""
PEFT = re.compile(
    r"\.(base_layer|lora_(A|B|E|embedding_[AB]|magnitude_vector)|ia3_l|vera_lambda_[bd]|"
    r"lokr_w\w+|hada_[wt]\w+|b?oft_[Rs])(\.|$)"
)
"""Names that PEFT gives in a model whose adapter is not merged."""


class StacksError(CheckpointError):
    """The layer's stack is not there, or cannot be told from others."""


def prefix_of(names: Iterable[str], path: str, example: str, part: str | None) -> str:
    """What stands before the layers' path in the checkpoint.

    Any prefix counts, since models saved with and without their head differ in it; of several
    stacks, the one that `part` names, or that a model of one stack has.
    path: of a layer's attention. example: one of its tensors, after the path. part: of a model of
    several towers, the key of its config.
    Raises: StacksError if there is no such stack, or if they cannot be told apart; CheckpointError
        for names that a wrapper or PEFT gave.
    """
    sorted_names = sorted(names)
    _refuse_wrapped(sorted_names, path)
    suffix = path + example
    with_suffix = [name for name in sorted_names if name == suffix or name.endswith("." + suffix)]
    all_prefixes = {name.removesuffix(suffix) for name in with_suffix}
    prefixes = {prefix for prefix in all_prefixes if not BESIDE & set(prefix.split("."))}
    if part is not None:
        prefixes = _of_part(prefixes, part)
    if len(prefixes) > 1:
        prefixes = prefixes & STANDARD or prefixes
    if len(prefixes) != 1:
        stacks = f"{len(prefixes)} stacks {sorted(prefixes)}" if prefixes else "none"
        if all_prefixes and not prefixes:
            stacks = f"only those of {sorted(all_prefixes)}, which is another stack,"
        raise StacksError(
            f"tensors called '…{path}*': {stacks} found; the model's layout has them once, "
            f"as 'model.{suffix}' and so on."
        )
    return prefixes.pop()


def _refuse_wrapped(names: list[str], path: str) -> None:
    """Refuses names that a wrapper around the model gave.

    Raises: CheckpointError naming the wrapper and the tensor.
    """
    for name in names:
        for pattern, tool in WRAPPERS.items():
            match = re.search(pattern, name)
            if match:
                raise CheckpointError(
                    f"tensor {name!r}: {tool} put {match[0].lstrip('.')!r} into its name, and "
                    f"transformers finds no tensor so. Save the model inside of it."
                )
        unmerged = PEFT.search(name) and f".{path}" in f".{name}"
        if unmerged or name.startswith("base_model.model."):
            raise CheckpointError(
                f"tensor {name!r}: its name is that of a PEFT model, whose adapter is not merged "
                f"into the weights. Save the model that PEFT's merge_and_unload() returns; or give "
                f"the model as it was before as SOURCE, and the adapter as `adapter`."
            )


def shared_names(names: Iterable[str], stack: str) -> tuple[str, ...]:
    """Names of the tensors of a model that are no layer's, such as its embedding and head.

    stack: what the names of its layers begin with, up to their number. Those of other towers, of
    other layers and of stacks saved beside the model are left out.
    """
    own_tower = is_of_tower(stack)
    before = stack[: stack.rstrip(".").rfind(".") + 1]

    def belongs(name: str) -> bool:
        words = name.split(".")
        if name.startswith(stack) or BESIDE & set(words):
            return False
        if own_tower:
            return name.startswith(before)
        within = bool(before) and name.startswith(before)
        return not is_of_tower(name) and (within or not any(word.isdigit() for word in words))

    return tuple(sorted(filter(belongs, names)))


def is_of_tower(name: str) -> bool:
    """Whether a tensor's name or prefix is that of a tower for images or sound."""
    return any(word in name for word in EVERY_TOWER)


def _of_part(prefixes: set[str], part: str) -> set[str]:
    """The prefixes that have the part's name; for the text decoder, those that have no tower's.

    The words of a dotted part narrow them one after the other.
    """
    *outer, tower = (key.removesuffix("_config") for key in part.split("."))
    for word in outer:
        prefixes = {prefix for prefix in prefixes if word in prefix} or prefixes
    words = TOWERS.get(tower, (tower,))
    named = {prefix for prefix in prefixes if any(word in prefix for word in words)}
    if tower in TOWERS:
        return named or prefixes
    named = named or prefixes
    return {prefix for prefix in named if not is_of_tower(prefix)}
