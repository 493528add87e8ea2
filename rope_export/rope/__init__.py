"""The variants of rotary position embedding, found by looking into this folder."""

from importlib import import_module
from pkgutil import iter_modules

from rope_export.errors import SpecError
from rope_export.spec import RopeSpec


def variants() -> dict[str, type[RopeSpec]]:
    """Every variant by its rope_type: one file of this folder each."""
    found: dict[str, type[RopeSpec]] = {}
    for module in sorted(m.name for m in iter_modules(__path__)):
        for value in vars(import_module(f"{__name__}.{module}")).values():
            if isinstance(value, type) and issubclass(value, RopeSpec) and value is not RopeSpec:
                found[value.rope_type] = value
    return found


def variant(rope_type: str) -> type[RopeSpec]:
    """The variant called `rope_type`.

    Raises: SpecError naming the variants there are.
    """
    known = variants()
    if rope_type not in known:
        raise SpecError(
            f"rope_type={rope_type!r} is not implemented; supported: {', '.join(sorted(known))}."
        )
    return known[rope_type]
