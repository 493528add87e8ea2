"""From a checkpoint to results: every exporter exports, every way generates."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from rope_export.environment import cores, cpu_name
from scripts.benchmarks.decoders.exporting import (
    ALL_LOGITS,
    FLOAT,
    INT4,
    Exported,
    exported,
    shared_checkpoint,
)
from scripts.benchmarks.decoders.lookup import Pair, looked_up
from scripts.benchmarks.decoders.measure import Rates, agreements, measured
from scripts.benchmarks.decoders.page import Facts, Results
from scripts.benchmarks.decoders.workers import Way, Worker, opened
from scripts.benchmarks.peers.environments import ENVIRONMENTS, ROOT
from scripts.benchmarks.peers.exports import OURS, Exporter, warm

WEIGHTS: dict[str, Sequence[Exporter]] = {"float32": FLOAT, "int4": INT4}
NAMES = {"ours": "ours", "genai": "genai", "plain": "plain loop", "optimum": "optimum"}
EAGER = "transformers, PyTorch"
OWN_PACKAGES = ("rope_export", "torch", "transformers", "onnxruntime")
PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "def fibonacci(n):",
    "Once upon a time, in a small village,",
    "The three primary colours are",
    "To bake bread, you need flour,",
    "The largest planet in the solar system",
    "In 1969, the first people",
)
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure. peers: of genai, optimum, eager; ours are always measured. weights: keys of
    WEIGHTS. lookup: candidates from the text as well."""

    checkpoint: Path
    peers: tuple[str, ...]
    weights: tuple[str, ...]
    pasts: tuple[int, ...]
    lookup: bool
    threads: int
    rounds: int
    export_rounds: int
    command: str


def compared(settings: Settings, folder: Path, progress: Progress) -> Results:
    """Everything that `settings` ask for; what is exported is written below `folder`."""
    load = os.getloadavg()[0]
    checkpoint = shared_checkpoint(settings.checkpoint, folder / "checkpoint")
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    text = tokenizer.encode((ROOT / "LICENSE").read_text(encoding="utf-8")).ids
    prompts = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    torch.set_num_threads(settings.threads)
    exports: dict[str, list[Exported]] = {}
    rates: dict[str, dict[str, dict[int, Rates]]] = {}
    same: dict[str, dict[str, int | str]] = {}
    refused: dict[str, dict[str, str]] = {}
    lookup: dict[str, dict[str, list[Pair]]] = {}
    bandwidths: list[float] = []
    warm({exporter.environment for exporter in _exporters(settings, settings.weights)})
    for weights in settings.weights:
        exporters = _exporters(settings, (weights,))
        exports[weights] = exported(
            exporters,
            checkpoint,
            folder / weights,
            rounds=settings.export_rounds,
            progress=progress,
        )
        ways = [way for one in exports[weights] for way in _ways(one)]
        ways.append(Way(name=EAGER, kind="eager", folder=checkpoint))
        with opened(ways, settings.threads, folder) as (workers, refused[weights]):
            progress("comparing texts")
            same[weights] = agreements(workers, prompts, EAGER)
        with_eager = weights == "float32" and "eager" in settings.peers
        timed = [
            way
            for way in ways
            if way.name not in refused[weights] and (with_eager or way.name != EAGER)
        ]
        rates[weights], more = measured(
            partial(_started, timed, settings.threads, folder),
            text,
            pasts=settings.pasts,
            rounds=settings.rounds,
            threads=settings.threads,
            progress=_within(progress, weights),
        )
        bandwidths += more
        for one in exports[weights]:
            if one.exporter.name == ALL_LOGITS and one.problem is None:
                lookup[weights] = looked_up(
                    one.out,
                    folder,
                    threads=settings.threads,
                    rounds=settings.rounds,
                    progress=_within(progress, weights),
                )
    facts = _facts(settings, checkpoint, exports, bandwidths, load)
    return Results(
        facts=facts, exports=exports, rates=rates, same=same, refused=refused, lookup=lookup
    )


@contextmanager
def _started(ways: Sequence[Way], threads: int, folder: Path) -> Iterator[Mapping[str, Worker]]:
    """A new process for each way."""
    with opened(ways, threads, folder) as (workers, _):
        yield workers


def _within(progress: Progress, weights: str) -> Progress:
    return lambda step: progress(f"{weights}, {step}")


def _exporters(settings: Settings, weights: Sequence[str]) -> list[Exporter]:
    return [
        exporter
        for kind in weights
        for exporter in WEIGHTS[kind]
        if exporter.group in (OURS, *settings.peers)
        and (settings.lookup or exporter.name != ALL_LOGITS)
    ]


def _ways(one: Exported) -> list[Way]:
    """Every way to run what was exported."""
    forms = one.exporter.forms if one.problem is None else ()
    return [
        Way(
            name=f"{one.exporter.name}, {NAMES[form]}",
            kind=form,
            environment=None if form == "plain" else one.exporter.environment,
            folder=one.out,
        )
        for form in forms
    ]


def _facts(
    settings: Settings,
    checkpoint: Path,
    exports: dict[str, list[Exported]],
    bandwidths: list[float],
    load: float,
) -> Facts:
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    heads = config["num_key_value_heads"] * config["head_dim"]
    return Facts(
        date=date.today().isoformat(),
        cpu=f"{cpu_name()}, {cores()} cores",
        load=load,
        threads=settings.threads,
        rounds=settings.rounds,
        export_rounds=settings.export_rounds,
        pasts=settings.pasts,
        prompts=len(PROMPTS),
        model=settings.checkpoint.name,
        bandwidths=bandwidths,
        bytes={weights: _read_bytes(config, found) for weights, found in exports.items()},
        slot=4 * 2 * config["num_hidden_layers"] * heads,
        versions=_versions(settings),
        command=settings.command,
    )


def _read_bytes(config: dict[str, Any], exports: Sequence[Exported]) -> int:
    """Bytes of the smallest model's files but for an embedding of its own, of which one row is
    read for a token."""
    smallest = min((one.bytes for one in exports if one.problem is None), default=0)
    if config["tie_word_embeddings"]:
        return smallest
    return smallest - 4 * config["vocab_size"] * config["hidden_size"]


def _versions(settings: Settings) -> dict[str, dict[str, str]]:
    """Versions of what is installed, by environment."""
    versions = {"rope_export": {package: version(package) for package in OWN_PACKAGES}}
    used = {exporter.environment for exporter in _exporters(settings, settings.weights)}
    for name, environment in ENVIRONMENTS.items():
        if name in used and environment.is_ready:
            versions[name] = environment.versions()
    return versions
