"""What takes the time of verifying one layer: `python -m scripts.benchmarks.verifying [--write]`.

The layer is exported once; then `rope-export verify` runs on it in processes of its own, as it is
and without what came with the second reading and with visibility, and once more in a process that
counts the CPU seconds of each phase. --write writes docs/benchmarks/verifying.md.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from rope_export.bench.markdown import table_lines
from rope_export.environment import cores, cpu_name, versions

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "verifying.md"
SOURCE = ROOT / "checkpoints" / "smollm2-135m"
TIMES = 3
PACKAGES = ("torch", "transformers", "onnxruntime", "numpy")

IMPORTS = "importing torch, onnxruntime and the package"
THEIRS = "importing transformers and its code of the model"
READING = "the second reading, by transformers"
VISIBLE = "visibility: looking for calls that show each feature"
REST = "everything else"

PHASES = {
    "weights of the source and of the file": "rope_export.parity.subjects.layer:true_weights",
    READING: "rope_export.parity.subjects.layer:ask_transformers",
    VISIBLE: "rope_export.parity.subjects.layer:revealing_calls",
    "inputs": "rope_export.parity.subjects.layer:layer_inputs",
    "the float64 reference": "rope_export.parity.layer.reference:ReferenceLayer.__call__",
    "bounds of what rounding may do": "rope_export.parity.layer.call:LayerExpected.bounds",
    "eager": "rope_export.parity.subjects.layer:LayerSubject.eager",
    "runtimes": "rope_export.sessions.session:Session.run",
    "opening a session": "rope_export.parity.subjects.layer:open_on",
}
"""What is counted, and where it is called; of nested ones the inner is not counted to the outer."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Seconds of one command: by the clock, and of the CPU in all of its threads."""

    clock: float
    cpu: float


class Stopwatch:
    """CPU seconds of this process by phase; what is inside of another is not counted twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._phases = [REST]
        self._since = time.process_time()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._turn()
        self._phases.append(name)
        try:
            yield
        finally:
            self._turn()
            self._phases.pop()

    def watch(self, name: str, place: str) -> None:
        """Count calls of a function, module:name, as a phase."""
        import importlib

        module, _, path = place.partition(":")
        owner: Any = importlib.import_module(module)
        *outer, last = path.split(".")
        for part in outer:
            owner = getattr(owner, part)
        setattr(owner, last, self._watched(name, getattr(owner, last)))

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        return call

    def finish(self) -> dict[str, float]:
        self._turn()
        return dict(self.seconds)

    def _turn(self) -> None:
        now = time.process_time()
        self.seconds[self._phases[-1]] += now - self._since
        self._since = now


def import_theirs(source: Path) -> None:
    """What the second reading imports, if the source is a checkpoint's folder."""
    from rope_export.reading.models import configured, model_class

    if source.is_dir():
        model_class(configured(source))


def counted(artifact: Path, source: Path) -> dict[str, float]:
    """CPU seconds of each phase of `verify` in this process, which has imported nothing yet."""
    watch = Stopwatch()
    with watch.phase(IMPORTS):
        from rope_export.cli import run

        for name, place in PHASES.items():
            watch.watch(name, place)
    with watch.phase(THEIRS):
        import_theirs(source)
    with open(os.devnull, "w") as nowhere:
        kept, sys.stdout = sys.stdout, nowhere
        try:
            status = run(["verify", str(artifact)])
        finally:
            sys.stdout = kept
    if status:
        raise SystemExit(f"verify ended with status {status}")
    return watch.finish()


def plain(artifact: Path, source: Path) -> int:
    """`verify` without the second reading, but for what it imports, and without looking for calls
    that show a feature."""
    from rope_export.cli import run
    from rope_export.parity.subject import Revealing
    from rope_export.parity.subjects import layer
    from rope_export.reading.verdict import Reading

    import_theirs(source)
    layer.ask_transformers = lambda *_, **__: Reading(status="unproven")
    layer.revealing_calls = lambda *_, **__: Revealing()
    return run(["verify", str(artifact)])


def spent(source: Path, *arguments: str) -> Spent:
    """One run of this module in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(_own(source, *arguments), cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    clock = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Spent(
        clock=clock,
        cpu=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    )


def _own(source: Path, *arguments: str) -> list[str]:
    own = [sys.executable, "-m", "scripts.benchmarks.verifying", "--source", str(source)]
    return [*own, *arguments]


def phases(artifact: Path, source: Path) -> dict[str, float]:
    command = _own(source, "--count", str(artifact))
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def page(
    whole: list[Spent], less: list[Spent], by_phase: dict[str, float], load: float
) -> Iterator[str]:
    """load: processes that wanted to run when the record was begun."""
    best, before = (min(x, key=lambda y: y.clock) for x in (whole, less))
    installed = ", ".join(f"{name} {text}" for name, text in versions(PACKAGES).items())
    yield "# What takes the time of verifying a layer"
    yield ""
    yield (
        f"Reprinted by `python -m scripts.benchmarks.verifying --write`. {date.today()}, "
        f"{cpu_name()}, {cores()} cores, {installed}. Layer 0 of SmolLM2-135M, lowering and cache "
        f"as `export` chooses them, in a process of its own, imports included; the fastest of "
        f"{len(whole)} runs."
    )
    if load > cores():
        yield ""
        yield (
            f"{load:.0f} other processes wanted to run at the same time, so the seconds tell "
            f"nothing, and CPU seconds are more than on a quiet machine."
        )
    yield ""
    yield from table_lines(
        ("`rope-export verify`", "seconds", "CPU seconds"),
        [
            ("as it is", f"{best.clock:.1f}", f"{best.cpu:.1f}"),
            (
                "without the second reading and visibility, transformers imported all the same",
                f"{before.clock:.1f}",
                f"{before.cpu:.1f}",
            ),
            ("ratio", f"{best.clock / before.clock:.2f}", f"{best.cpu / before.cpu:.2f}"),
        ],
    )
    yield ""
    yield "CPU seconds by phase, in all threads; what is inside of another phase is counted there."
    yield ""
    rows = sorted(by_phase.items(), key=lambda item: -item[1])
    yield from table_lines(("phase", "CPU seconds"), [(name, f"{x:.2f}") for name, x in rows])


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmarks.verifying", description=__doc__
    )
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    parser.add_argument("--times", type=int, default=TIMES, help="runs of each")
    parser.add_argument("--source", type=Path, default=SOURCE, help="a checkpoint or a config")
    for name in ("--count", "--plain", "--verify"):
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.count:
        print(json.dumps(counted(options.count, options.source)))
        return 0
    if options.plain:
        return plain(options.plain, options.source)
    if options.verify:
        from rope_export.cli import run

        return run(["verify", str(options.verify)])
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        artifact = str(Path(folder) / "layer")
        export = [sys.executable, "-m", "rope_export", "export", str(options.source)]
        export += ["--out", artifact, "--no-verify"]
        subprocess.run(export, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        runs = [
            tuple(spent(options.source, name, artifact) for name in ("--verify", "--plain"))
            for _ in range(options.times)
        ]
        counts = phases(Path(artifact), options.source)
        lines = page([x for x, _ in runs], [x for _, x in runs], counts, load)
        text = "\n".join(lines) + "\n"
    print(text, end="")
    if options.write:
        PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
