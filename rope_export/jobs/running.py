"""Runs calls in a pool, with progress, and takes from the store what an earlier run has done."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from rope_export.jobs.call import Answer, Call
from rope_export.jobs.store import Store, finished

T = TypeVar("T")


class Pool(Protocol):
    """Where calls are run."""

    def answers(self, calls: Sequence[Call], store: Store) -> Iterator[Answer]:
        """The answer of each call, as they come; their values are in the store by then."""
        ...


@dataclass(frozen=True, kw_only=True)
class Finished(Generic[T]):
    """The values by item, in the order of the calls, and the errors of the items without one."""

    results: dict[str, T]
    errors: dict[str, str]


def run(
    calls: Sequence[Call],
    kind: type[T],
    *,
    pool: Pool,
    store: Store,
    fresh: bool = False,
    line: Callable[[Answer], str],
    tracebacks: bool = False,
) -> Finished[T]:
    """Makes every call whose items are not all in the store.

    kind: the type of a value, a dataclass or what else msgspec converts. fresh: make every call.
    line: an answer in one line, for the progress. tracebacks: print those of errors. An item whose
    call raises has an error in place of a value, and is tried again by the next run.
    """
    keys = {name: key for call in calls for name, key in call.keys.items()}
    results = {} if fresh else finished(keys, kind, store)
    todo = [call for call in calls if not call.keys.keys() <= results.keys()]
    if results:
        told = Console(stderr=True)
        told.print(f"{len(results)} of {len(keys)} are in {store.folder}", markup=False)
    errors: dict[str, str] = {}
    items = {call.name: tuple(call.keys) for call in todo}
    for answer in _shown(pool.answers(todo, store), items, line):
        results |= answer.values
        if answer.error is not None:
            print(answer.traceback if tracebacks else "", end="", file=sys.stderr)
            errors |= dict.fromkeys(items[answer.name], answer.error)
    ordered = {name: results[name] for name in keys if name in results}
    return Finished(results=ordered, errors=errors)


def _shown(
    arriving: Iterator[Answer],
    items: dict[str, tuple[str, ...]],
    line: Callable[[Answer], str],
) -> Iterator[Answer]:
    """Passes answers on and shows them: a bar in a terminal, a line each elsewhere."""
    console = Console(stderr=True)
    column = Column(ratio=1, no_wrap=True)
    what = TextColumn("{task.description}", table_column=column, markup=False)
    columns = (
        what,
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, expand=True) as progress:
        task = progress.add_task("", total=sum(map(len, items.values())))
        for answer in arriving:
            text = line(answer) if answer.error is None else f"{answer.name}: {answer.error}"
            if not console.is_terminal or answer.error is not None:
                console.print(text, markup=False, highlight=False, soft_wrap=True)
            progress.update(task, advance=len(items[answer.name]), description=text)
            yield answer
