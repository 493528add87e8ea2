"""The command line: one file a command, each a thin call into the package.

Results go to stdout, progress and errors to stderr. Exit status: 0 done and true; 1 a comparison
failed; 2 bad input or usage; 3 the runtime asked for is not here, or nothing could be compared;
4 our own or the environment's failure; 130 interrupted.
"""

import sys
import traceback
from collections.abc import Sequence

import typer

from rope_export import __version__
from rope_export.cli import bench, build, doctor, export, inspect, verify
from rope_export.errors import RopeExportError

app = typer.Typer(
    name="rope-export",
    help=f"Rotary attention from PyTorch to ONNX, with proof (version {__version__}). "
    "Tracebacks of errors are shown with --debug.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(export.export)
app.command()(verify.verify)
app.command()(inspect.inspect)
app.command()(build.build)
app.command()(bench.bench)
app.command()(doctor.doctor)


def run(arguments: Sequence[str]) -> int:
    """The exit status of one command line; errors are one line on stderr."""
    debug = "--debug" in arguments
    try:
        arguments = [a for a in arguments if a != "--debug"]
        status = app(args=arguments, prog_name="rope-export", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except KeyboardInterrupt:
        return _fail("interrupted", 130, debug)
    except RopeExportError as error:
        return _fail(str(error), error.status, debug)
    except OSError as error:
        return _fail(f"{error.filename or 'the system'}: {error.strerror or error}", 4, debug)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of the command line's library
            return _fail(error.format_message(), 2, debug) if str(error) else 2
        if type(error).__name__ == "Abort":
            return _fail("interrupted", 130, debug)
        return _fail(
            f"{type(error).__name__}: {error} (our own fault; --debug tells where)", 4, debug
        )


def _fail(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"rope-export: {' '.join(message.split())}", file=sys.stderr)
    return status


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))
