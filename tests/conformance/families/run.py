"""Proves every model family of transformers, as `python -m scripts.prove_families`.

Each family's tiny models are saved by transformers as a user's model is: config.json and
model.safetensors in a folder. transformers loads that folder and runs it in eager attention; we
read that folder, layer by layer and part by part, compare every rotary attention module in
float64, export it, and compare the artifact in onnxruntime. What is done is kept under
build/conformance, artifacts by the facts of the layer, as long as the code that makes it is the
same.
"""

import argparse
import dataclasses
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

from rope_export.checkpoints import open_model
from rope_export.errors import CheckpointError, SpecError
from tests.conformance import runner
from tests.conformance.families.building import TinyModel
from tests.conformance.families.capture import captures
from tests.conformance.families.compare import Outcome, compared
from tests.conformance.families.report import SAMPLE, Verdict, verdict, write_report
from tests.conformance.families.rotary_classes import rotary_attention_classes, rotary_families
from tests.conformance.families.tiny import PROBLEMS, tiny_models

LIMIT = 600
"""Seconds for one family."""


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 if nothing is wrong or crashed, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m scripts.prove_families", description=__doc__)
    parser.add_argument("families", nargs="*", help="directories of transformers/models; all else")
    parser.add_argument("--sample", action="store_true", help="the families that CI runs")
    parser.add_argument(
        "--float64", action="store_true", help="only read and compare in float64: seconds a family"
    )
    parser.add_argument("--json", type=Path, help="also write every outcome to this file")
    parser.add_argument("--write", action="store_true", help="write docs/families.md")
    runner.add_options(parser)
    options = parser.parse_args(arguments)
    if options.write and options.float64:
        parser.error("--write needs the artifacts that --float64 leaves out")
    names = options.families or (SAMPLE if options.sample else rotary_families())
    every = {name: {"family": name, "artifacts": not options.float64} for name in sorted(names)}
    finished = runner.run(
        prove,
        every,
        Verdict,
        jobs=options.jobs,
        fresh=options.fresh,
        line=lambda verdict: f"{verdict.family}: {verdict.status}",
    )
    verdicts = list(finished.results.values())
    if options.json:
        found = [dataclasses.asdict(x) for x in verdicts]
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.write:
        write_report(verdicts, Path("docs/families.md"))
    return _summary(verdicts) or int(bool(finished.errors))


def _summary(verdicts: list[Verdict]) -> int:
    console = Console(stderr=True)
    bad = [x for x in verdicts if x.status in ("unread", "wrong", "crashed")]
    for found in bad:
        console.print(f"{found.family}: {found.status}: {'; '.join(found.reasons)}", markup=False)
    counts = {name: sum(x.status == name for x in verdicts) for name in ("proven", "refused")}
    console.print(
        f"{len(verdicts)} families: {counts['proven']} proven, {counts['refused']} refused by "
        f"name, {len(bad)} unread, wrong or crashed"
    )
    return 1 if bad else 0


def prove(
    family: str, every_way: bool = False, artifacts: bool = True, quick: bool = False
) -> Verdict:
    """The verdict on one family; a worker's whole work. The options are those of `compared`."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    started = time.perf_counter()
    outcomes: list[Outcome] = []
    problems: list[str] = []
    try:
        with runner.time_limit(LIMIT):
            for tiny in tiny_models(family):
                outcomes += _outcomes(tiny, problems, every_way, artifacts, quick)
        problems += PROBLEMS.get(family, [])
    except Exception as error:
        problems.append(f"{type(error).__name__}: {error}")
    return verdict(family, outcomes, problems, time.perf_counter() - started)


def _outcomes(tiny: Any, problems: list[str], *options: bool) -> list[Outcome]:
    found: list[Outcome] = []
    done: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            every = captures(tiny, Path(folder) / "model")
        except Exception as error:
            problems.append(f"{tiny.name}: {error}")
            return _refused_unseen(tiny, Path(folder) / "model")
        for at, capture in enumerate(every):
            try:
                found.append(compared(capture, Path(folder) / str(at), done, *options))
            except Exception as error:
                refused = isinstance(error, SpecError)  # by export, of a key that we do not read
                reason = str(error) if refused else f"{type(error).__name__}: {error}"
                found.append(
                    Outcome(
                        module=capture.module_class,
                        path=capture.module_path,
                        variant=capture.variant,
                        status="refused" if refused else "crashed",
                        reason=reason.splitlines()[0],
                    )
                )
    return found


def _refused_unseen(tiny: TinyModel, folder: Path) -> list[Outcome]:
    """The refusal of a model that the proof cannot run, where our reading refuses it by name."""
    try:
        open_model(folder).layer()
    except SpecError as error:
        module = ", ".join(sorted(rotary_attention_classes(tiny.family)))
        return [
            Outcome(
                module=module, path="", variant=tiny.variant, status="refused", reason=str(error)
            )
        ]
    except CheckpointError:
        pass
    return []
