"""Processes that generate, each in its own environment, asked one at a time."""

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.benchmarks.peers.environments import ENVIRONMENTS, ROOT
from scripts.benchmarks.peers.exports import program

WORKER = Path(__file__).with_name("worker.py")


class WorkerError(Exception):
    """A process that generates nothing; the message says why, in one line."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to generate: what tables call it, a kind of `worker.KINDS`, the environment it runs
    in (the project's own unless given), and the folder that it opens."""

    name: str
    kind: str
    environment: str | None = None
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Tokens, and the seconds until each: of the first from the start, of others from the one
    before."""

    ids: list[int]
    seconds: list[float]

    @property
    def rate(self) -> float:
        """Tokens a second after the first."""
        return (len(self.seconds) - 1) / sum(self.seconds[1:])


class Worker:
    """A process that has opened one way to generate.

    Raises: WorkerError with the last line that it wrote, if it does not answer.
    """

    def __init__(self, way: Way, threads: int, log: Path) -> None:
        environment = ENVIRONMENTS[way.environment] if way.environment else None
        command = [program("python", environment), str(WORKER), way.kind, str(way.folder)]
        variables = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
        variables["PYTHONPATH"] = "" if environment else str(ROOT)
        self.way, self._log = way, log
        with log.open("w", encoding="utf-8") as words:
            self._process = subprocess.Popen(
                [*command, str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                env=variables,
                cwd=log.parent,
                text=True,
            )
        try:
            self._answer()
        except WorkerError:
            self.close()
            raise

    def generate(self, ids: Sequence[int], new: int, ends: Sequence[int] = ()) -> Answer:
        """`new` greedy tokens after `ids`; ours end with one of `ends`. Raises: WorkerError."""
        if self._process.stdin is None or self._process.poll() is not None:
            raise WorkerError(self._reason())
        self._process.stdin.write(
            json.dumps({"ids": list(ids), "new": new, "ends": list(ends)}) + "\n"
        )
        self._process.stdin.flush()
        return Answer(**self._answer())

    def close(self) -> None:
        with self._process as process:  # closes its pipes as well
            process.terminate()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            self._process.wait()
            raise WorkerError(self._reason())
        return dict(json.loads(line))

    def _reason(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return (lines or [f"exit status {self._process.returncode}"])[-1].strip()


@contextmanager
def opened(
    ways: Sequence[Way], threads: int, folder: Path
) -> Iterator[tuple[dict[str, Worker], dict[str, str]]]:
    """A worker for every way, by its name, and why others did not start."""
    workers: dict[str, Worker] = {}
    refused: dict[str, str] = {}
    with ExitStack() as stack:
        for at, way in enumerate(ways):
            try:
                worker = Worker(way, threads, folder / f"worker{at}.log")
            except WorkerError as error:
                refused[way.name] = str(error)
            else:
                stack.callback(worker.close)
                workers[way.name] = worker
        yield workers, refused
