"""The console script, and `python -m rope_export`: the process around one command line.

Imports nothing heavy before an interrupt can be answered in one line.
"""

import codecs
import gc
import io
import os
import signal
import sys
from types import FrameType
from typing import IO, Any, NoReturn

COLLECT_AFTER = 100_000
"""Objects until garbage is looked for: imports and traces make many that live on, and looking
through them every few hundred takes a tenth of an export."""


ENVIRONMENT = 4
"""The status of what the machine, or this program, fails at."""


def main() -> NoReturn:
    """Run the command line of this process and exit with its status."""
    gc.set_threshold(COLLECT_AFTER)
    interrupts: list[int] = []
    status = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    try:
        signal.signal(signal.SIGINT, interrupt)
        _occupy_standard_handles()
        _prepare_stdout()
        status = _run(sys.argv[1:], interrupts)
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        status = _line("interrupted", 130)
    except OSError as error:  # stdout is a full disk
        if status != ENVIRONMENT:  # which has been told
            status = _line(f"stdout: {error.strerror or error}", ENVIRONMENT)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the outcome stands; only the exit is left
    _flush_quietly()
    if interrupts:
        # Where the interrupt met Python code that native code had called, the interpreter would
        # end itself by the signal in place of the status.
        os._exit(status)
    sys.exit(status)


def _run(arguments: list[str], interrupts: list[int]) -> int:
    try:
        from rope_export.cli import run
    except ImportError:
        if interrupts:  # native code made an error of its own of the interrupt
            raise KeyboardInterrupt from None
        raise
    return run(arguments, lambda: interrupts)


def _line(message: str, status: int) -> int:
    if sys.stderr is not None:
        print(f"rope-export: {message}", file=sys.stderr)
    return status


def _flush_quietly() -> None:
    """Leave nothing that the interpreter's own flush at exit would fail on."""
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except OSError:
        sys.stdout = None


def _occupy_standard_handles() -> None:
    """Open the null device where stdin, stdout or stderr is closed, so that no file of an artifact
    gets their number and native code's messages with it."""
    for handle in (0, 1, 2):
        try:
            os.fstat(handle)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


class _Reader(io.FileIO):
    """stdout whose reader may leave: what is written after that goes nowhere, so that the exit
    status stays that of the command, as in `rope-export verify DIR | head`."""

    def write(self, written: Any, /) -> int:
        try:
            return super().write(written)
        except BrokenPipeError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return len(written)


def _prepare_stdout() -> None:
    """Make stdout outlive its reader, and take every character: a terminal that cannot show one
    shows "?", and the bytes of a path's name that are not UTF-8 come out as they are."""
    if sys.stdout is None:
        return
    codecs.register_error("rope_export", _replaced)
    raw = _Reader(sys.stdout.fileno(), "w", closefd=False)
    buffer: IO[bytes] = io.BufferedWriter(raw)
    sys.stdout = io.TextIOWrapper(
        buffer,
        encoding=sys.stdout.encoding,
        errors="rope_export",
        line_buffering=bool(sys.stdout.line_buffering),
    )


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    code = ord(error.object[error.start])
    undecoded = 0xDC80 <= code <= 0xDCFF
    return (bytes([code - 0xDC00]) if undecoded else "?"), error.start + 1


if __name__ == "__main__":
    main()
