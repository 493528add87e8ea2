"""Decoders side by side, on the same weights and threads: `python -m scripts.benchmarks.decoders`.

Exports a checkpoint with rope_export, onnxruntime-genai and optimum, each in a process and an
environment of its own (made under build/peers the first time, some minutes), and generates with
each, and with transformers in PyTorch, in blocks that alternate. Prints Markdown; with --write it
writes docs/benchmarks/decoders.md.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from scripts.benchmarks.decoders.page import page_lines
from scripts.benchmarks.decoders.run import WEIGHTS, Settings, compared
from scripts.benchmarks.peers.environments import ROOT

PAGE = ROOT / "docs" / "benchmarks" / "decoders.md"
PEERS = ("genai", "optimum", "eager")


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    for option, known in (("peers", PEERS), ("weights", tuple(WEIGHTS))):
        unknown = [x for x in _words(getattr(options, option)) if x not in known]
        if unknown:
            print(f"--{option} {unknown[0]}: use some of {','.join(known)}.", file=sys.stderr)
            return 2
    settings = Settings(
        checkpoint=options.checkpoint,
        peers=_words(options.peers),
        weights=_words(options.weights),
        pasts=tuple(map(int, _words(options.pasts))),
        lookup=not options.no_lookup,
        threads=options.threads,
        rounds=options.rounds,
        export_rounds=options.export_rounds,
        command=_command(options),
    )
    console = Console(stderr=True, highlight=False)

    def progress(step: str) -> None:
        console.print(step, markup=False)

    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
        results = compared(settings, options.keep.resolve(), progress)
    else:
        with tempfile.TemporaryDirectory() as folder:
            results = compared(settings, Path(folder), progress)
    text = "\n".join(page_lines(results)) + "\n"
    print(text, end="")
    if options.write:
        PAGE.write_text(text, encoding="utf-8")
    return 0


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmarks.decoders",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = ROOT / "checkpoints" / "smollm2-135m"
    parser.add_argument("--checkpoint", type=Path, default=default, metavar="DIR")
    parser.add_argument("--peers", default=",".join(PEERS), metavar="NAME,NAME")
    parser.add_argument("--weights", default=",".join(WEIGHTS), metavar="NAME,NAME")
    parser.add_argument("--pasts", default="5,512,2048", metavar="N,N", help="tokens of prompts")
    parser.add_argument("--no-lookup", action="store_true", help="without `generate --lookup`")
    parser.add_argument("--threads", type=int, default=2, help="of each way to generate")
    parser.add_argument("--rounds", type=int, default=5, help="blocks of tokens of each way")
    parser.add_argument("--export-rounds", type=int, default=5, help="calls of each exporter")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave what is exported there")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/decoders.md")
    return parser


def _command(options: argparse.Namespace) -> str:
    """The command that measures the same again: options that are not the default, but for where
    things are left."""
    default = _parser().parse_args([])
    words = ["python -m scripts.benchmarks.decoders"]
    kept = ("checkpoint", "peers", "weights", "pasts", "threads", "rounds", "export_rounds")
    for name in kept:
        value = getattr(options, name)
        if value != getattr(default, name):
            words.append(f"--{name.replace('_', '-')} {value}")
    words += ["--no-lookup"] if options.no_lookup else []
    return " ".join([*words, "--write"] if options.write else words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
