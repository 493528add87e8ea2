"""The files of a folder that nothing has to name: each module of a package, found by looking."""

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType


def modules_of(package: str) -> Iterator[ModuleType]:
    """Every module that lies in the folder of a package, imported, in the order of their names.

    package: its full name, such as `__package__` of the module that looks beside itself.
    """
    for name in sorted(module.name for module in iter_modules(import_module(package).__path__)):
        yield import_module(f"{package}.{name}")
