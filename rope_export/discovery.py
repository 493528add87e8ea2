"""The files of a folder that nothing has to name: each module of a package, found by looking."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType


def modules_of(package: str) -> tuple[ModuleType, ...]:
    """Every module that lies in the folder of a package, imported, in the order of their names.

    package: its full name, such as `__package__` of the module that looks beside itself.
    """
    return _modules(package, tuple(import_module(package).__path__))


@cache
def _modules(package: str, folders: tuple[str, ...]) -> tuple[ModuleType, ...]:
    names = sorted(module.name for module in iter_modules(folders))
    return tuple(import_module(f"{package}.{name}") for name in names)
