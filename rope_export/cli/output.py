"""What the commands print: results on stdout, progress on stderr."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from rope_export.cli.flags import flags_of, spelled

PASSED = {"passed": 0, "failed": 1, "nothing compared": 3}
"""Exit status of each verdict."""


def out() -> Console:
    """stdout; as wide as a report needs when it is not a terminal."""
    console = Console(highlight=False, markup=False)
    wide = Console(highlight=False, markup=False, width=150)
    return console if console.is_terminal else wide


def error(sentence: str) -> None:
    """Print on stderr, in one line, why the exit status is not 0 though there is a verdict."""
    print(f"rope-export: {' '.join(sentence.split())}", file=sys.stderr)


def notes(sentences: Iterable[str]) -> None:
    """Print what a user should know and need not act on, a line each on stderr."""
    console = Console(stderr=True, highlight=False, markup=False)
    for sentence in sentences:
        console.print(f"note: {sentence}", soft_wrap=True)


def warn(notes: Iterable[str]) -> None:
    """Print warnings that change no verdict, a line each on stderr."""
    for note in notes:
        print(f"rope-export: warning: {' '.join(note.split())}", file=sys.stderr)


def print_report(report: Any, title: str, context: typer.Context, *, every_row: bool) -> None:
    """Print a report on stdout: the verdict and the worst rows, or every row."""
    from rope_export.parity.report.tables import summary, table

    show = table if every_row else summary
    out().print(show(report, title, speller(context)))
    if not every_row and report.rows:
        own = any(parameter.name == "all_rows" for parameter in context.command.params)
        command = context.info_name if own else "verify"
        every = "case" if report.cells is None else "artifact"
        out().print(f"rope-export {command} --all shows every {every}.")


def report_json(report: Any, context: typer.Context) -> dict[str, Any]:
    """A report as one JSON object, its sentences with the flags of the command line."""
    spell, facts = speller(context), report.to_json()
    for name in ("problems", "left_out"):
        facts[name] = [spell(line) for line in facts[name]]
    for name in ("skipped", "cells"):
        facts[name] = facts[name] and [{**x, "reason": spell(x["reason"])} for x in facts[name]]
    reason = facts["reading"]["reason"]
    facts["reading"]["reason"] = reason and spell(reason)
    return dict(facts)


def speller(context: typer.Context) -> Callable[[str], str]:
    """A function that rewrites messages with the flags of the command that runs."""
    flags = flags_of(context.command.params)
    return lambda message: spelled(message, flags)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


@contextmanager
def native_silenced() -> Iterator[None]:
    """Silences what native code writes to stderr by itself, such as TensorRT's builder beside the
    logger that it is given; Python's own stderr goes where it went."""
    try:
        ours = sys.stderr.fileno() == 2
    except (OSError, ValueError, AttributeError):
        ours = False  # Python's stderr is something else already
    before, kept = sys.stderr, os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        if ours:
            sys.stderr.flush()
            sys.stderr = os.fdopen(os.dup(kept), "w", buffering=1, encoding="utf-8")
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        for handle in (null, kept):
            os.close(handle)
        if ours:
            with suppress(OSError):
                sys.stderr.close()
            sys.stderr = before


@contextmanager
def progress() -> Iterator[Callable[[str, float | None], None]]:
    """A bar on stderr: called with what is done now and, where known, the share done so far."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    shown = console.is_terminal  # in a log, errors alone
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task("", total=None)

        def step(name: str, done: float | None = None) -> None:
            bar.update(task, description=name, total=None if done is None else 1.0, completed=done)

        yield step
