"""The exporters of whole decoders, and what calls of them cost."""

import json
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scripts.benchmarks.peers.environments import NotInstalledError
from scripts.benchmarks.peers.exports import (
    GENAI,
    OPTIMUM,
    OURS,
    Cost,
    Exporter,
    ExportError,
    export,
)
from scripts.benchmarks.peers.layer import size

DECODER = ("rope-export", "export", "{checkpoint}", "--decoder", "--out", "{out}", "--no-verify")
FIXED = ("--lowering", "ort", "--cache", "fixed")
FOUR_BITS = ("--weights", "int4", "--accuracy-level", "4")
GENAI_CPU = (*GENAI, "-e", "cpu")

ALL_LOGITS = "rope_export --logits all"
"""What `--lookup` runs on."""

UNPADDED = "rope_export --no-padding"
"""For calls without padding alone, as onnxruntime-genai's files are."""

ONCE = (ALL_LOGITS, UNPADDED)
"""Exported once: how long that takes is known from the others."""

FLOAT = (
    Exporter(name="rope_export", group=OURS, command=(*DECODER, *FIXED), forms=("ours", "plain")),
    Exporter(
        name=UNPADDED,
        group=OURS,
        command=(*DECODER, *FIXED, "--no-padding"),
        forms=("ours", "plain"),
    ),
    Exporter(name=ALL_LOGITS, group=OURS, command=(*DECODER, *FIXED, "--logits", "all"), forms=()),
    Exporter(
        name="onnxruntime-genai",
        group="genai",
        environment="genai",
        command=(*GENAI_CPU, "-p", "fp32"),
        forms=("genai", "plain"),
    ),
    Exporter(
        name="optimum-onnx",
        group="optimum",
        environment="optimum",
        command=(*OPTIMUM, "--task", "text-generation-with-past", "{out}"),
        forms=("optimum",),
    ),
)
"""Exporters of float32 weights."""

INT4 = (
    Exporter(
        name="rope_export",
        group=OURS,
        command=(*DECODER, *FIXED, *FOUR_BITS),
        forms=("ours", "plain"),
    ),
    Exporter(
        name=UNPADDED,
        group=OURS,
        command=(*DECODER, *FIXED, *FOUR_BITS, "--no-padding"),
        forms=("ours", "plain"),
    ),
    Exporter(
        name=ALL_LOGITS,
        group=OURS,
        command=(*DECODER, *FIXED, *FOUR_BITS, "--logits", "all"),
        forms=(),
    ),
    Exporter(
        name="onnxruntime-genai",
        group="genai",
        environment="genai",
        command=(*GENAI_CPU, "-p", "int4"),
        forms=("genai", "plain"),
    ),
)
"""Exporters of weights in 4 bits: blocks of 32, int8 activations."""


@dataclass
class Exported:
    """What an exporter's calls took and gave, the folder of the last; problem: why it gave none;
    bytes: of its model."""

    exporter: Exporter
    out: Path
    costs: list[Cost] = field(default_factory=list)
    problem: str | None = None
    bytes: int = 0

    @property
    def seconds(self) -> float:
        return statistics.median(cost.seconds for cost in self.costs)

    @property
    def peak(self) -> float:
        return statistics.median(cost.peak for cost in self.costs)


def exported(
    exporters: Sequence[Exporter],
    checkpoint: Path,
    folder: Path,
    *,
    rounds: int,
    progress: Callable[[str], None],
) -> list[Exported]:
    """Every exporter's calls, whole processes that alternate; some have one call alone."""
    results = [
        Exported(exporter=exporter, out=folder / str(at) / "exported")
        for at, exporter in enumerate(exporters)
    ]
    for number in range(rounds):
        for result in results:
            once = result.exporter.group == "optimum" or result.exporter.name in ONCE
            if (once and number > 0) or result.problem is not None:
                continue
            progress(f"exporting with {result.exporter.name}, {number + 1} of {rounds}")
            shutil.rmtree(result.out.parent, ignore_errors=True)
            result.out.parent.mkdir(parents=True)
            try:
                result.costs.append(export(result.exporter, checkpoint, result.out))
                result.bytes = size(result.out)
            except NotInstalledError as error:
                result.problem = f"not installed: {error}"
            except ExportError as error:
                result.problem = str(error)
    return results


def shared_checkpoint(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint with a config that older versions of transformers read as well: they know
    rope_theta at the top alone. Its weights are linked."""
    folder.mkdir(parents=True)
    for path in checkpoint.iterdir():
        if path.name.endswith(".safetensors"):
            (folder / path.name).symlink_to(path.resolve())
        else:
            shutil.copyfile(path, folder / path.name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type", "default") == "default" and "rope_theta" in rope:
        config |= {"rope_theta": rope["rope_theta"], "rope_scaling": None}
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return folder
