"""One call, which may be run by any process on any machine, and its answer."""

import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rope_export.jobs.store import Store


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a call takes of a machine while it runs. memory: in bytes."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0


@dataclass(frozen=True, kw_only=True)
class Call:
    """`function(**options)`, which answers one item or several.

    name: for people. function: of a module, not nested, so that another process can import it;
    returns a value for each item. options: plain JSON and functions like that. keys: of the items,
    under which their values are kept.
    """

    name: str
    function: Callable[..., Mapping[str, Any]]
    options: Mapping[str, Any]
    keys: Mapping[str, str]
    needs: Needs = Needs()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of a call. values: by item; none where there is an `error`, in one line, and
    perhaps its traceback."""

    name: str
    values: Mapping[str, Any]
    error: str | None = None
    traceback: str = ""


def answered(call: Call, store: Store | None) -> Answer:
    """Makes the call, in the process that is to run it.

    store: keeps the values, so that nothing done is lost with the process that waits for them;
    none where this machine does not have its folder.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            values = call.function(**call.options)
    except Exception as error:
        line = f"{type(error).__name__}: {' '.join(str(error).split())}"
        text = traceback.format_exc()
        return Answer(name=call.name, values={}, error=line, traceback=text)
    if store is not None:
        keep(call, values, store)
    return Answer(name=call.name, values=values)


def keep(call: Call, values: Mapping[str, Any], store: Store) -> None:
    """Puts each value under its item's key."""
    for name, value in values.items():
        store.put(call.keys[name], value)
