"""Proves whole decoders of every model of transformers that has one with rotary attention, as
`python -m scripts.prove_decoders`.

Each is a tiny random model that transformers saves, as a user's model is saved. transformers loads
the folder and answers a prefill and decode steps in float64; the same folder is exported with
`export --decoder` and answers the same calls in onnxruntime, with and without left padding, with a
growing cache and a fixed one. What is done is kept under build/conformance.
"""

import argparse
import re
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

from rope_export import open_session
from rope_export.decoder.pipeline import Cache, Logits, export_decoder
from rope_export.errors import InputError
from rope_export.parity.bounds import UNIT_ROUNDOFF, tolerance
from rope_export.reading.models import quiet
from tests.conformance import runner
from tests.conformance.decoders.calls import (
    PADDED,
    Calls,
    answered,
    expected,
    largest_error,
    together,
)
from tests.conformance.decoders.models import decoders, rotates, tiny_decoder
from tests.conformance.decoders.report import SAMPLE, Verdict, write_report
from tests.conformance.families import saved

LIMIT = 900
"""Seconds for one model."""
AGREES = 1e-4
"""What transformers in float32 may differ from itself in float64, with padding and without."""
CACHES: dict[Cache, Logits] = {"growing": "all", "fixed": "last"}
"""The caches that are proven, each with the logits that its artifact gives."""


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 if nothing is wrong or crashed, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m scripts.prove_decoders", description=__doc__)
    parser.add_argument("models", nargs="*", help="classes of transformers, or families; all else")
    parser.add_argument("--sample", action="store_true", help="those that CI proves")
    parser.add_argument("--list", action="store_true", help="print the models and stop")
    parser.add_argument("--write", action="store_true", help="write docs/decoders.md")
    runner.add_options(parser)
    options = parser.parse_args(arguments)
    asked = set(options.models or (SAMPLE if options.sample else ()))
    items = {
        name: dict(item)
        for name, item in decoders().items()
        if not asked or asked & {name, item["family"]}
    }
    if options.list:
        for name, item in items.items():
            print(f"{item['kind']}: {item['family']}: {name}")
        return 0
    finished = runner.run(
        prove,
        items,
        Verdict,
        jobs=options.jobs,
        fresh=options.fresh,
        line=lambda verdict: f"{verdict.family}: {verdict.name}: {verdict.status} {verdict.reason}",
    )
    verdicts = list(finished.results.values())
    if options.write:
        write_report(verdicts, Path("docs/decoders.md"))
    return _summary(verdicts) or int(bool(finished.errors))


def _summary(verdicts: list[Verdict]) -> int:
    console = Console(stderr=True)
    bad = [x for x in verdicts if x.status in ("wrong", "crashed")]
    for found in bad:
        line = f"{found.family}: {found.name}: {found.status}: {found.reason}"
        console.print(line, markup=False)
    counts = {name: sum(x.status == name for x in verdicts) for name in ("proven", "refused")}
    console.print(
        f"{len(verdicts)} models: {counts['proven']} proven, {counts['refused']} refused by "
        f"name, {len(bad)} wrong or crashed"
    )
    return 1 if bad else 0


def prove(family: str, name: str, kind: str, caches: tuple[Cache, ...] = tuple(CACHES)) -> Verdict:
    """The verdict on one model; a worker's whole work."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    started = time.perf_counter()
    facts: dict[str, Any] = {"family": family, "name": name, "kind": kind}
    try:
        with runner.time_limit(LIMIT), tempfile.TemporaryDirectory() as folder:
            found = _compared(family, model_class(family, name), kind, Path(folder), caches)
    except InputError as error:
        line = str(error).replace(f"{folder}/model", "model")
        found = {"status": "refused", "reason": line.splitlines()[0]}
    except Exception as error:
        found = {"status": "crashed", "reason": _first_line(error)}
    return Verdict(**facts, **found, seconds=time.perf_counter() - started)


def model_class(family: str, name: str) -> Any:
    """A model's class of transformers."""
    from importlib import import_module

    from transformers.models.auto import modeling_auto

    del modeling_auto
    found = getattr(transformers, name, None)
    if found is None:
        found = getattr(import_module(f"transformers.models.{family}.modeling_{family}"), name)
    return found


def _compared(
    family: str, cls: Any, kind: str, folder: Path, caches: tuple[Cache, ...]
) -> dict[str, Any]:
    """Status, reason and figures of a model."""
    try:
        tiny = tiny_decoder(family, cls)
        if not rotates(tiny, kind):
            return {"status": "no rotary attention", "reason": ""}
        with quiet():
            saved.save(tiny, folder / "model")
            exact, single = (
                saved.load(cls, folder / "model", dtype) for dtype in (torch.float64, torch.float32)
            )
        every = [Calls(vocabulary(exact), padding) for padding in (0, PADDED)]
        wanted = [expected(exact, calls) for calls in every]
        eager = [
            largest_error(together(single, calls), x, calls)
            for calls, x in zip(every, wanted, strict=True)
        ]
    except Exception as error:  # of transformers' own code
        line = re.sub(rf"\S*{re.escape(str(folder))}/", "", _first_line(error))
        return {"status": "not built", "reason": line}
    figures: dict[str, Any] = {"eager": max(eager), "errors": {}, "used": 0.0}
    for cache in caches:
        artifact = export_decoder(
            folder / "model", out=folder / cache, cache=cache, logits=CACHES[cache]
        )
        with open_session(artifact, "onnxruntime") as session:
            answers = [answered(session, calls) for calls in every]
        errors = [
            largest_error(found, x, calls)
            for found, x, calls in zip(answers, wanted, every, strict=True)
        ]
        figures["errors"][cache] = max(errors)
        figures["lowering"] = artifact.manifest.lowering
        for found, own in zip(errors, eager, strict=True):
            allowed = tolerance(min(own, AGREES), floor(exact))
            figures["used"] = max(figures["used"], found / allowed)
    if figures["used"] <= 1:
        return {"status": "proven", "reason": "", **figures}
    return {"status": "wrong", "reason": "differs from transformers", **figures}


def vocabulary(model: Any) -> int:
    """How many tokens a model knows."""
    return int(model.get_input_embeddings().weight.shape[0])


def floor(model: Any) -> float:
    """What rounding does to a sound implementation: u sqrt(K) with K the terms of the longest sums
    that follow one another, one of a layer's attention and one of its feed-forward."""
    text = model.config.get_text_config(decoder=True)
    width = int(text.hidden_size) * int(text.num_hidden_layers) * 2
    return float(UNIT_ROUNDOFF["float32"] * width**0.5)


def _first_line(error: BaseException) -> str:
    """The first cause of an error, in one line."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
