"""A large decoder: `python -m scripts.benchmarks.large_decoder [CONFIG] [--write]`.

Exports a whole decoder with drawn weights in float16 and in int4, each in a process of its own and
without verifying it, and has a session of the int4 model generate. CONFIG defaults to
models/mistral-7b-v0.3.json; `--write` keeps the table as docs/benchmarks/large_decoder.md.
"""

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rope_export.bench.markdown import table_lines
from rope_export.environment import cores, cpu_name

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "large_decoder.md"
PROMPT = "1,2,3,4,5,6,7,8"
COMMAND = (sys.executable, "-m", "rope_export")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One process. output: its stdout, JSON. peak: its largest resident bytes."""

    output: dict
    seconds: float
    peak: int


def run(*arguments: str) -> Run:
    """`rope-export` with these arguments and --json. Raises: SystemExit with its status."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as file:
        process = subprocess.Popen([*COMMAND, *arguments, "--json"], stdout=file, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(process.returncode)
        file.seek(0)
        output = json.load(file)
    return Run(output=output, seconds=time.perf_counter() - start, peak=usage.ru_maxrss * 1024)


def measured(config: Path, folder: Path) -> list[list[str]]:
    """Rows of the table."""
    out = str(folder / "decoder")
    options = ("--decoder", "--cache", "fixed", "--no-verify", "--out", out)
    rows = []
    for weights in (("--dtype", "float16"), ("--weights", "int4", "--accuracy-level", "4")):
        done = run("export", str(config), *options, *weights)
        size = sum(path.stat().st_size for path in Path(out).iterdir())
        rows.append([f"export {' '.join(weights)}", *_cells(done), f"{size / 1e9:.2f} GB"])
        if "int4" in weights:
            answer = run("generate", out, "--ids", PROMPT, "--max-tokens", "32")
            speed = answer.output["tokens_per_second"]
            rows.append(["generate 32 tokens", *_cells(answer), f"{speed:.2f} tokens/s"])
        shutil.rmtree(out)
    return rows


def _cells(done: Run) -> list[str]:
    return [f"{done.seconds:.0f} s", f"{done.peak / 1e9:.2f} GB"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config", nargs="?", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    config = options.config or ROOT / "models" / "mistral-7b-v0.3.json"
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        rows = measured(config.resolve(), Path(name))
    text = "\n".join(table_lines(["process", "wall time", "peak resident", "gave"], rows))
    print(text)
    if options.write:
        PAGE.write_text(_page(config.stem, text, load), encoding="utf-8")
    return 0


def _page(name: str, text: str, load: float) -> str:
    versions = ", ".join(
        f"{x} {version(x)}" for x in ("torch", "transformers", "onnxruntime", "onnx-ir")
    )
    command = "python -m scripts.benchmarks.large_decoder --write"
    return f"""# A large decoder

Measured on {datetime.date.today()} by `{command}` on {cpu_name()}, {cores()} cores; {versions}.
Load average before: {load:.1f}. {name} with weights drawn from seed 0: one tensor at a time is
drawn, rounded or quantized, and written.

{text}
"""


if __name__ == "__main__":
    sys.exit(main())
