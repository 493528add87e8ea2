"""Thirteen variants by four exporters, each file verified: `python -m scripts.prove_exporters`;
with --write it writes docs/exporters.md."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers

from rope_export.bench.markdown import table_lines
from scripts.benchmarks.peers.environments import ENVIRONMENTS
from tests.conformance import runner
from tests.conformance.exporters.run import EXPORTERS, OTHERS, TORCH, Verdict, judge
from tests.conformance.variants import ORIGINAL, VARIANTS

PAGE = Path(__file__).parents[3] / "docs" / "exporters.md"

KNOWN: dict[tuple[str, str], set[str]] = {
    ("default", "onnxruntime-genai"): {"padding"},
    ("llama3", "onnxruntime-genai"): {"padding"},
    ("linear", "onnxruntime-genai"): {"rope scaling"},
    ("yarn", "onnxruntime-genai"): {"rope scaling"},
    ("sliding", "onnxruntime-genai"): {"window"},
    ("dynamic", "mobius"): {"rope scaling"},
    ("sliding", "mobius"): {"window"},
    ("interleaved", "mobius"): {"pairing"},
    ("dynamic", "optimum-onnx"): {"rope scaling"},
    ("longrope", "optimum-onnx"): {"rope scaling"},
    ("softcap", "optimum-onnx"): {"softcap"},
    ("partial", "onnxruntime-genai"): {"norm epsilon", "padding"},
    ("sinks", "mobius"): {"rope scaling"},
}
"""Causes that must be found: faults of these versions of the exporters that were also found by
hand, but for the last two, which `verify` found."""


def missed(verdict: Verdict) -> set[str]:
    """Known causes that `verify` has not named."""
    return KNOWN.get((verdict.variant, verdict.exporter), set()) - set(verdict.named)


def cell(verdict: Verdict) -> str:
    if verdict.status in ("no file", "not judged"):
        return verdict.status
    refused = f"{len(verdict.refused)} calls refused" if verdict.refused else ""
    if verdict.causes:
        words = ", ".join(verdict.named)
        text = f"**wrong: {words}** ({verdict.error:.1g})"
    elif refused:
        return f"**{refused}**"
    elif verdict.status == "wrong":
        text = f"**wrong** ({verdict.error:.1g})"
    else:
        text = f"right ({verdict.error:.0e}, {100 * verdict.error / verdict.tolerance:.0f} %)"
    return f"{text}; {refused}" if refused else text


def page(verdicts: list[Verdict], versions: dict[str, str]) -> Iterator[str]:
    yield "# Thirteen variants by four exporters"
    yield ""
    yield (
        "Written by `python -m scripts.prove_exporters --write`. Each variant is a tiny causal LM "
        f"with drawn weights that transformers {transformers.__version__} saves; each exporter "
        "reads the folder in an environment of its own and writes a file, and "
        "`rope-export verify FILE --source FOLDER` judges that in onnxruntime against "
        "transformers' own model: logits of single rows and of two, a cache that is read token by "
        "token and in chunks, left padding, a long text, texts beyond the window and "
        f"past the original context of {ORIGINAL} tokens, and greedy text. In brackets the worst "
        "error of the logits, relative to theirs, and of right files its share of the tolerance."
    )
    yield ""
    names = ", ".join(f"{name} ({text})" for name, text in versions.items())
    yield f"Exporters: {names}."
    yield ""
    by_place = {(x.variant, x.exporter): x for x in verdicts}
    rows = [
        (
            f"{variant} (`{VARIANTS[variant][0]}`)",
            *(cell(by_place[variant, x]) if (variant, x) in by_place else "" for x in EXPORTERS),
        )
        for variant in VARIANTS
    ]
    yield from table_lines(("variant", *EXPORTERS), rows)
    yield ""
    yield "## What explains the wrong ones"
    yield ""
    yield (
        "The texts that failed, and what, done to the reference, gives what the file gives: "
        "within the tolerance of the text."
    )
    yield ""
    wrong = [
        (x.variant, x.exporter, cause.cause, cause.fault, cause.texts)
        for x in verdicts
        for cause in x.causes
    ]
    yield from table_lines(("variant", "exporter", "cause", "fault", "texts"), wrong)
    yield ""
    yield "## Calls that onnxruntime refused"
    yield ""
    refused: dict[tuple[str, str, str], list[str]] = {}
    for x in verdicts:
        for text, words in (x.refused or {}).items():
            reason = _plain(words.rpartition("Status Message: ")[2])
            refused.setdefault((x.variant, x.exporter, reason), []).append(text)
    rows = [(*at, reason, ", ".join(texts)) for (*at, reason), texts in refused.items()]
    yield from table_lines(("variant", "exporter", "its words", "texts"), rows)
    yield ""
    yield "## No file"
    yield ""
    none = [
        (x.variant, x.exporter, x.status, _plain(x.reason))
        for x in verdicts
        if x.status in ("no file", "not judged")
    ]
    yield from table_lines(("variant", "exporter", "", "reason"), none)


def _plain(text: str) -> str:
    """A message without the folders of the machine that it was met on."""
    return re.sub(r"(?<![\w.])/\S*/", "", text)[:160]


def main() -> int:
    """Exit status 0 if every file was judged and every known fault was named, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m scripts.prove_exporters", description=__doc__)
    parser.add_argument("variants", nargs="*", help=f"of {', '.join(VARIANTS)}; all else")
    parser.add_argument("--exporter", action="append", choices=EXPORTERS, help="all else")
    parser.add_argument("--write", action="store_true", help="write docs/exporters.md")
    runner.add_options(parser)
    options = parser.parse_args()
    if unknown := set(options.variants) - set(VARIANTS):
        parser.error(f"no such variant: {', '.join(sorted(unknown))}")
    if options.write and (options.variants or options.exporter):
        parser.error("--write needs all variants and exporters")
    chosen = options.exporter or EXPORTERS
    for name in chosen:
        if name in OTHERS:
            ENVIRONMENTS[str(OTHERS[name].environment)].ready()
    finished = runner.run(
        judge,
        {
            f"{variant}, {exporter}": {"variant": variant, "exporter": exporter}
            for exporter in chosen
            for variant in options.variants or VARIANTS
        },
        Verdict,
        jobs=options.jobs,
        fresh=options.fresh,
        line=in_one_line,
    )
    verdicts = list(finished.results.values())
    if options.write:
        text = "\n".join(page(verdicts, _versions())) + "\n"
        PAGE.write_text(text, encoding="utf-8")
    wrong = [x for x in verdicts if missed(x) or x.status == "not judged"]
    return int(bool(finished.errors or wrong))


def _versions() -> dict[str, str]:
    versions = {TORCH: f"torch {torch.__version__}, transformers {transformers.__version__}"}
    for name, exporter in OTHERS.items():
        shown = ENVIRONMENTS[str(exporter.environment)].versions()
        versions[name] = ", ".join(f"{package} {version}" for package, version in shown.items())
    return versions


def in_one_line(verdict: Verdict) -> str:
    late = f"; MISSED {', '.join(sorted(missed(verdict)))}" if missed(verdict) else ""
    return f"{verdict.variant}, {verdict.exporter}: {cell(verdict)} {verdict.reason}{late}"
