"""The families there are, found by looking into this folder."""

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from types import ModuleType

from rope_export.checkpoints.families.base import Family
from rope_export.discovery import modules_of
from rope_export.errors import SpecError


def every_family() -> dict[str, Family]:
    """Every family by its model_type: constants of this folder's files, alone or in tuples."""
    return dict(_families(modules_of(__package__)))


@cache
def _families(modules: tuple[ModuleType, ...]) -> dict[str, Family]:
    families: dict[str, Family] = {}
    for module in modules:
        for value in vars(module).values():
            for entry in value if isinstance(value, tuple) else (value,):
                if isinstance(entry, Family):
                    families[entry.model_type] = entry
    return families


def towers_of(model_type: object) -> Mapping[str, str]:
    """The stacks that one config of the family describes; see `Family.towers`."""
    family = every_family().get(str(model_type))
    return {} if family is None else family.towers


def family(model_type: object) -> Family:
    """The family called `model_type`.

    Raises: SpecError naming the families that it may have meant.
    """
    families = every_family()
    if model_type is None:
        raise SpecError('the config has no model_type; add the family\'s, such as "llama".')
    if not isinstance(model_type, str) or model_type not in families:
        near = get_close_matches(str(model_type), families, n=4, cutoff=0.5)
        raise SpecError(
            f"model_type={model_type!r} is not supported"
            + (f"; near to it: {', '.join(sorted(near))}" if near else "")
            + f"; docs/families.md lists the {len(families)} that are known."
        )
    return families[model_type]
