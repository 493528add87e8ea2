"""The program: its commands, and what becomes of their errors.

Results go to stdout, progress and errors to stderr. Exit status: 0 done and true; 1 a comparison
failed; 2 bad input or usage; 3 the runtime asked for is not here, or nothing could be compared;
4 our own or the environment's failure; 130 interrupted.
"""

import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from rope_export.cli import (
    bench,
    build,
    doctor,
    export,
    fuzz,
    generate,
    inspect,
    output,
    sweep,
    verify,
)
from rope_export.cli.flags import flags_of, spelled
from rope_export.errors import RopeExportError
from rope_export.version import VERSION

INTERRUPTED = 130


def _print_version(requested: bool) -> None:
    if requested:
        print(f"rope-export {VERSION}")
        raise typer.Exit


app = typer.Typer(
    name="rope-export",
    help=f"Rotary attention from PyTorch to ONNX, with proof (version {VERSION}). "
    "Tracebacks of errors are shown with --debug.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Options of the program itself."""


COMMANDS: dict[str, Callable[..., int]] = {
    "export": export.export_layer,
    "verify": verify.verify_artifact,
    "sweep": sweep.sweep_matrix,
    "inspect": inspect.inspect_path,
    "build": build.build_plan,
    "bench": bench.bench_artifacts,
    "generate": generate.generate_text,
    "fuzz": fuzz.fuzz_lowerings,
    "doctor": doctor.show_machine,
}
"""What each command calls, in the order of the help."""

for name, function in COMMANDS.items():
    app.command(name)(function)


def run(arguments: Sequence[str], interrupted: Callable[[], object] = lambda: False) -> int:
    """The exit status of one command line; errors are one line on stderr, and with --json one
    object on stdout as well. interrupted: whether an error is what native code made of an
    interrupt."""
    debug, as_json = "--debug" in arguments, "--json" in arguments
    try:
        arguments = [a for a in arguments if a != "--debug"]
        status = app(args=arguments, prog_name="rope-export", standalone_mode=False)
        if status == INTERRUPTED:  # which the command line's library makes of it, without a word
            raise KeyboardInterrupt
        return status if isinstance(status, int) else 0
    except (KeyboardInterrupt, Exception) as error:
        message, status = _meaning(KeyboardInterrupt() if interrupted() else error)
        if debug:
            traceback.print_exc()
        return fail(spelled(message, _flags(arguments)), status, as_json)


def _flags(arguments: Sequence[str]) -> dict[str, str]:
    """The flag of every option of the command that was given, by its parameter's name."""
    group = typer.main.get_command(app)
    command = getattr(group, "commands", {}).get(next(iter(arguments), ""))
    return {} if command is None else flags_of(command.params)


def _meaning(error: BaseException) -> tuple[str, int]:
    """What an error is to the user: a message, empty where it has been printed, and a status."""
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        return "interrupted", INTERRUPTED
    if isinstance(error, RopeExportError):
        return str(error), error.status
    if isinstance(error, OSError):
        return f"{error.filename or 'the system'}: {error.strerror or error}", 4
    if isinstance(error, MemoryError):
        return f"there is not enough memory: {str(error) or 'none is left'}", 4
    if hasattr(error, "format_message"):  # a usage error of the command line's library
        return error.format_message() if str(error) else "", 2
    return f"{type(error).__name__}: {error} (our own fault; --debug tells where)", 4


def fail(message: str, status: int, as_json: bool = False) -> int:
    """Print an error: one line on stderr, and with --json an object on stdout."""
    line = " ".join(message.split())
    if line and sys.stderr is not None:
        print(f"rope-export: {line}", file=sys.stderr)
    if as_json:
        output.print_json({"error": line, "status": status})
    return status
