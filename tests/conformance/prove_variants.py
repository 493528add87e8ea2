"""Runs the proofs of the thirteen variants, of layers and of whole decoders, as
`python -m scripts.prove_variants`; with --write it writes docs/variants.md."""

import argparse
from pathlib import Path

from tests.conformance import runner, variants
from tests.conformance.decoders import variants as decoders

PAGE = Path(__file__).parents[2] / "docs" / "variants.md"


def main() -> int:
    """Exit status 0 if every comparison is right, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m scripts.prove_variants", description=__doc__)
    names = ", ".join(variants.VARIANTS)
    parser.add_argument("variants", nargs="*", help=f"of {names}; all else")
    parser.add_argument("--write", action="store_true", help="write docs/variants.md")
    parser.add_argument("--only", choices=("layers", "decoders"), help="one of the two proofs")
    runner.add_options(parser)
    options = parser.parse_args()
    if unknown := set(options.variants) - set(variants.VARIANTS):
        parser.error(f"no such variant: {', '.join(sorted(unknown))}")
    if options.write and (options.variants or options.only):
        parser.error("--write needs all variants, layers and decoders")
    items = {name: {"variant": name} for name in options.variants or variants.VARIANTS}
    how = {"jobs": options.jobs, "fresh": options.fresh}
    layers: list[variants.Cell] = []
    whole: list[decoders.Cell] = []
    errors = 0
    if options.only != "decoders":
        finished = runner.run(
            variants.prove, items, variants.Proof, line=variants.in_one_line, **how
        )
        layers = [cell for proof in finished.results.values() for cell in proof.cells]
        errors += len(finished.errors)
    if options.only != "layers":
        found = runner.run(decoders.prove, items, decoders.Proof, line=decoders.in_one_line, **how)
        whole = [cell for proof in found.results.values() for cell in proof.cells]
        errors += len(found.errors)
    if options.write and not errors:
        lines = [*variants.page(layers), "", *decoders.page(whole)]
        PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    wrong = sum(not x.right for x in layers) + sum(not x.right for x in whole)
    return 1 if errors or wrong else 0
