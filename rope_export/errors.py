"""What can go wrong, each with the exit status that the command line gives it.

A message is one line: the value, the rule it breaks, and the way out.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class RopeExportError(Exception):
    """Anything this package refuses or fails at."""

    status = 4


class InputError(RopeExportError):
    """Bad input or usage: a value that breaks a rule, or a feature not supported."""

    status = 2


class SpecError(InputError):
    """Facts about a model that contradict each other or that we do not implement."""


class CheckpointError(InputError):
    """A checkpoint that is missing, damaged, or not in a layout we read."""


class ArtifactError(InputError):
    """An artifact folder that is not one, is damaged, or is not what its manifest says."""


class TensorError(InputError):
    """A tensor that does not fit the interface of the artifact whose session it is given to."""


class ProfileError(TensorError):
    """A call whose sizes lie outside of those that an engine was built for."""


class UnavailableError(RopeExportError):
    """The runtime asked for, or the extra it needs, is not on this machine."""

    status = 3


@contextmanager
def extra(name: str, purpose: str) -> Iterator[None]:
    """Report a missing import in one line that names the extra to install.

    Raises: UnavailableError in place of ModuleNotFoundError, unless it is one of our own modules.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "rope_export":
            raise
        raise UnavailableError(
            f"{purpose} needs the package {error.name!r}, which is not installed. "
            f"Install it with: pip install 'rope_export[{name}]'"
        ) from error


@contextmanager
def failures(what: str) -> Iterator[None]:
    """Report what a library raises in one line that names what failed.

    Raises: RopeExportError in place of any other Exception.
    """
    try:
        yield
    except RopeExportError:
        raise
    except Exception as error:  # each library has kinds of its own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise RopeExportError(f"{what} failed: {lines[0]}") from error
