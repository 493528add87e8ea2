"""Proves every model family of transformers, as `python -m scripts.prove_families`.

Each family's tiny models are run by transformers in eager attention, every rotary attention module
is compared with ours in float64, then exported and compared in onnxruntime. What was proven is
kept under build/families and not done again until the code changes.
"""

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import rope_export
from scripts.prove_families.capture import captures
from scripts.prove_families.compare import Outcome, compared
from scripts.prove_families.report import SAMPLE, Verdict, verdict, write_report
from scripts.prove_families.tiny import PROBLEMS, rotary_families, tiny_models

KEPT = Path("build/families")
LIMIT = 600
"""Seconds for one family."""


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 if nothing is wrong or crashed, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m scripts.prove_families", description=__doc__)
    parser.add_argument("families", nargs="*", help="directories of transformers/models; all else")
    parser.add_argument("--sample", action="store_true", help="the families that CI runs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--again", action="store_true", help="also what has been proven already")
    parser.add_argument("--json", type=Path, help="also write every outcome to this file")
    parser.add_argument("--write", action="store_true", help="write docs/families.md")
    options = parser.parse_args(arguments)
    names = options.families or (SAMPLE if options.sample else rotary_families())
    verdicts = sorted(run(names, options.jobs, options.again), key=lambda x: x.family)
    if options.json:
        found = [dataclasses.asdict(x) for x in verdicts]
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.write:
        write_report(verdicts, Path("docs/families.md"))
    return _summary(verdicts)


def _summary(verdicts: list[Verdict]) -> int:
    console = Console(stderr=True)
    bad = [x for x in verdicts if x.status in ("wrong", "crashed")]
    for found in bad:
        console.print(f"{found.family}: {found.status}: {'; '.join(found.reasons)}", markup=False)
    counts = {name: sum(x.status == name for x in verdicts) for name in ("proven", "refused")}
    console.print(
        f"{len(verdicts)} families: {counts['proven']} proven, {counts['refused']} refused by "
        f"name, {len(bad)} wrong or crashed"
    )
    return 1 if bad else 0


def run(names: Iterable[str], jobs: int, again: bool = False) -> Iterator[Verdict]:
    """Verdicts as they come, the kept ones first."""
    stamp = code_stamp()
    left = []
    for name in names:
        kept = None if again else _kept(name, stamp)
        if kept is None:
            left.append(name)
        else:
            yield kept
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress,
        ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("forkserver")) as pool,
    ):
        task = progress.add_task("families", total=len(left))
        futures = {pool.submit(prove, name): name for name in left}
        for future in as_completed(futures):
            found = future.result()
            _keep(found, stamp)
            progress.update(task, advance=1, description=f"{found.family}: {found.status}")
            yield found


def code_stamp() -> str:
    """Changes with our code, the proof's and transformers' version."""
    digest = hashlib.sha256(transformers.__version__.encode())
    digest.update(torch.__version__.encode())
    for root in (Path(rope_export.__file__).parent, Path(__file__).parent):
        for path in sorted(root.rglob("*.py")) + sorted(root.rglob("*.json")):
            if "cli" not in path.parts and path.name not in ("report.py", "run.py"):
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _kept(family: str, stamp: str) -> Verdict | None:
    try:
        facts = json.loads((KEPT / f"{family}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if facts.pop("stamp", None) != stamp:
        return None
    outcomes = [Outcome(**{k: _tuple(v) for k, v in x.items()}) for x in facts.pop("outcomes")]
    return Verdict(**{k: _tuple(v) for k, v in facts.items()}, outcomes=tuple(outcomes))


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _keep(found: Verdict, stamp: str) -> None:
    KEPT.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dataclasses.asdict(found) | {"stamp": stamp})
    path = KEPT / f"{found.family}.json"
    path.with_suffix(".tmp").write_text(text, encoding="utf-8")
    path.with_suffix(".tmp").replace(path)


def prove(family: str, every_way: bool = False) -> Verdict:
    """The verdict on one family; a worker's whole work. every_way: see `compared`."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    started = time.perf_counter()

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {LIMIT} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    outcomes: list[Outcome] = []
    problems: list[str] = []
    try:
        for tiny in tiny_models(family):
            outcomes += _outcomes(tiny, problems, every_way)
        problems += PROBLEMS.get(family, [])
    except Exception as error:
        problems.append(f"{type(error).__name__}: {error}")
    finally:
        signal.alarm(0)
    return verdict(family, outcomes, problems, time.perf_counter() - started)


def _outcomes(tiny: Any, problems: list[str], every_way: bool) -> list[Outcome]:
    found: list[Outcome] = []
    done: dict[str, Outcome] = {}
    try:
        every = captures(tiny)
    except Exception as error:
        problems.append(f"{tiny.name}: {error}")
        return found
    for capture in every:
        with tempfile.TemporaryDirectory() as folder:
            try:
                found.append(compared(capture, Path(folder), done, every_way))
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                found.append(
                    Outcome(
                        module=capture.module_class,
                        path=capture.module_path,
                        variant=capture.variant,
                        status="crashed",
                        reason=reason,
                    )
                )
    return found
