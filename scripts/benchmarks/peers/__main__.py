"""Exporters side by side, on the same weights and shapes: `python -m scripts.benchmarks.peers`.

Exports a Llama of one layer with rope_export and with every peer, each in a process and an
environment of its own (made under build/peers the first time, some minutes), cuts the attention
layer out, compares it with the float64 reference and takes its time in onnxruntime. Prints
Markdown; with --write it writes docs/benchmarks/peers.md.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from scripts.benchmarks.peers.checkpoint import Sizes
from scripts.benchmarks.peers.environments import ROOT
from scripts.benchmarks.peers.exports import PEERS
from scripts.benchmarks.peers.page import Results, error_cell, latency_cell, page_lines
from scripts.benchmarks.peers.run import Settings, measure

PAGE = ROOT / "docs" / "benchmarks" / "peers.md"
GROUPS = tuple(dict.fromkeys(peer.group for peer in PEERS))


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    peers = tuple(name for name in options.peers.split(",") if name)
    unknown = [name for name in peers if name not in GROUPS]
    if unknown:
        print(f"--peers {unknown[0]}: use some of {','.join(GROUPS)}.", file=sys.stderr)
        return 2
    sizes = Sizes(
        hidden=options.hidden,
        heads=options.heads,
        kv_heads=options.kv_heads,
        head_dim=options.head_dim,
    )
    settings = Settings(
        sizes=sizes,
        peers=peers,
        threads=options.threads,
        rounds=options.rounds,
        command=_command(options),
    )
    console = Console(stderr=True, highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(settings, Path(folder), lambda step: console.print(step, markup=False))
    console.print(_summary(results))
    text = "\n".join(page_lines(results)) + "\n"
    print(text, end="")
    if options.json:
        options.json.write_text(json.dumps(results.to_json(), indent=1) + "\n", encoding="utf-8")
    if options.write:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(text, encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--threads", type=int, default=2, help="of each onnxruntime session")
    parser.add_argument("--rounds", type=int, default=7, help="blocks of calls per layer")
    parser.add_argument("--peers", default=",".join(GROUPS), metavar="NAME,NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/peers.md")
    parser.add_argument("--hidden", type=int, default=2048, help="width of the hidden states")
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=64)
    return parser


def _command(options: argparse.Namespace) -> str:
    """The command that measures the same again: options that are not the default, but for where
    the figures go."""
    kept = ("threads", "rounds", "peers", "hidden", "heads", "kv_heads", "head_dim")
    default = _parser().parse_args([])
    words = ["python -m scripts.benchmarks.peers"]
    for name in kept:
        value = getattr(options, name)
        if value != getattr(default, name):
            words.append(f"--{name.replace('_', '-')} {value}")
    return " ".join([*words, "--write"] if options.write else words)


def _summary(results: Results) -> Table:
    """Each layer's worst case and first latency, for the eye; everything is on the page."""
    table = Table("layer", "worst error", "ms")
    for row in results.rows:
        figures = [error for error in row.errors.values() if isinstance(error, float)]
        refused = f"{len(row.errors) - len(figures)} refused" if len(figures) < 4 else ""
        worst = " ".join([*(error_cell(max(x for x in figures)) for _ in figures[:1]), refused])
        table.add_row(row.name, worst, latency_cell(next(iter(row.latencies.values()))))
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
