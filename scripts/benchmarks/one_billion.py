"""A float16 checkpoint of 1B: `python -m scripts.benchmarks.one_billion [--rounds N] [--write]`.

Saves models/llama-3.2-1b.json with drawn weights by transformers, and exports it in float16 with
rope_export and with onnxruntime-genai's builder, whole processes that alternate. `--write` keeps
the table as docs/benchmarks/one_billion.md.
"""

import argparse
import datetime
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rope_export.bench.markdown import table_lines
from rope_export.environment import cores, cpu_name
from scripts.benchmarks.decoders.exporting import DECODER, exported
from scripts.benchmarks.peers.environments import ENVIRONMENTS, ROOT
from scripts.benchmarks.peers.exports import GENAI, OURS, Exporter

PAGE = ROOT / "docs" / "benchmarks" / "one_billion.md"
CONFIG = ROOT / "models" / "llama-3.2-1b.json"
TOKENIZER = ROOT / "checkpoints" / "smollm2-135m"
EXPORTERS = (
    Exporter(
        name="rope_export",
        group=OURS,
        command=(*DECODER, "--lowering", "ort", "--cache", "fixed", "--dtype", "float16"),
    ),
    Exporter(
        name="onnxruntime-genai",
        group="genai",
        environment="genai",
        command=(*GENAI, "-e", "cuda", "-p", "fp16"),
    ),
)


def saved(folder: Path) -> Path:
    """The checkpoint, with any tokenizer: the builder asks for one."""
    torch.manual_seed(0)
    folder.mkdir()
    shutil.copyfile(CONFIG, folder / "config.json")
    config = AutoConfig.from_pretrained(folder)
    AutoModelForCausalLM.from_config(config, dtype=torch.float16).save_pretrained(folder)
    for path in TOKENIZER.glob("tokenizer*"):
        shutil.copyfile(path, folder / path.name)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        checkpoint = saved(Path(name) / "checkpoint")
        results = exported(
            EXPORTERS,
            checkpoint,
            Path(name),
            rounds=options.rounds,
            progress=lambda step: print(step, file=sys.stderr),
        )
    rows = []
    for result in results:
        if result.problem is not None:
            rows.append([result.exporter.name, result.problem, "", ""])
            continue
        seconds = sorted(cost.seconds for cost in result.costs)
        span = f"{result.seconds:.1f} s ({seconds[0]:.1f} to {seconds[-1]:.1f})"
        sizes = (f"{x / 1e9:.2f} GB" for x in (result.peak, result.bytes))
        rows.append([result.exporter.name, span, *sizes])
    text = "\n".join(table_lines(["exporter", "time", "peak resident", "files"], rows))
    print(text)
    if options.write:
        PAGE.write_text(_page(text), encoding="utf-8")
    return 0


def _page(text: str) -> str:
    versions = ENVIRONMENTS["genai"].versions()
    shown = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"""# A float16 checkpoint of 1B

Measured on {datetime.date.today()} by `python -m scripts.benchmarks.one_billion --write` on
{cpu_name()}, {cores()} cores; the builder's environment: {shown}.

{CONFIG.stem} with drawn weights, saved by transformers and exported in float16: whole processes
that alternate, medians, smallest and largest. The resident memory counts mapped pages of the files
that are read and written.

{text}
"""


if __name__ == "__main__":
    sys.exit(main())
