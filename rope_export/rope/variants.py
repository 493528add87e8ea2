"""The variants of rotary position embedding, found by looking into this folder."""

from rope_export.discovery import modules_of
from rope_export.errors import SpecError
from rope_export.rope.base import RopeSpec


def every_variant() -> dict[str, type[RopeSpec]]:
    """Every variant by its rope_type: one file of this folder each.

    Raises: SpecError if two of them have one rope_type.
    """
    variants: dict[str, type[RopeSpec]] = {}
    for module in modules_of(__package__):
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, RopeSpec) and value is not RopeSpec:
                other = variants.setdefault(value.rope_type, value)
                if other is not value:
                    raise SpecError(
                        f"{other.__module__} and {value.__module__} both have rope_type "
                        f"{value.rope_type!r}; give one of them another."
                    )
    return variants


def variant(rope_type: str) -> type[RopeSpec]:
    """The variant called `rope_type`.

    Raises: SpecError naming the variants there are.
    """
    variants = every_variant()
    if rope_type not in variants:
        raise not_published(rope_type)
    return variants[rope_type]


def not_published(rope_type: str) -> SpecError:
    """The refusal of a rope_type that a config may not name."""
    published = sorted(name for name, cls in every_variant().items() if cls.published)
    return SpecError(
        f"rope_type={rope_type!r} is not implemented; supported: {', '.join(published)}."
    )
