"""A function that is killed in a process of its own, at each boundary between system calls."""

import os
import signal
import sys
from collections.abc import Callable, Iterator

from rope_export.artifacts import exchange

SEEN = ("open", "os.", "shutil.", "tempfile.", "exchange")


def killed_everywhere(
    before: Callable[[], object], work: Callable[[], object], every: int = 1
) -> Iterator[int]:
    """Runs `before` here and `work` in a fork that dies before its first call, then before its
    second, or that of so many later, and so on; yields after each death, and ends when the work was
    done.

    The interpreter tells of each call it makes; the swap of two paths, which it does not know, is
    told of here.
    """
    at = 1 - every
    while True:
        before()
        at += every
        child = os.fork()
        if child == 0:
            _die_at(at, work)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, "the work failed by itself"
            return
        assert os.WTERMSIG(status) == signal.SIGKILL
        yield at


def _die_at(at: int, work: Callable[[], object]) -> None:
    left = at

    def count(event: str, _: object) -> None:
        nonlocal left
        if event.startswith(SEEN):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    swapped = exchange.exchange_paths

    def told(*paths: object) -> bool:
        sys.audit("exchange")
        done = swapped(*paths)
        sys.audit("exchange")
        return done

    exchange.exchange_paths = told  # type: ignore[assignment]
    sys.addaudithook(count)
    try:
        work()
    except BaseException:
        os._exit(1)
    os._exit(0)
