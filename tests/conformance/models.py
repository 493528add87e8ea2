"""Exports every configuration of models/ at reduced width and verifies it, as
`python -m scripts.prove_models`; with --write it writes docs/models.md.

Widths shrink, everything else stays: head size, rotation, window, norms, which layers differ, and
every key that the published file has. A configuration that is refused stands there with the line.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rope_export import AttentionSpec, export, verify
from rope_export.bench.markdown import table_lines
from rope_export.checkpoints.config import INNER, Read, select, spec_of
from rope_export.errors import SpecError
from tests.conformance import runner

MODELS = Path(__file__).parents[2] / "models"
PAGE = Path(__file__).parents[2] / "docs" / "models.md"
FEWER = 4
"""Query heads that are left, or one group of them where a group has more."""
HEADS = (
    *("configuration", "confirmed", "layer", "rope", "lowering"),
    *("comparisons", "failed", "tolerance used", "notes"),
)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One kind of layer of one configuration. used: largest share of its tolerance that an error
    in onnxruntime took."""

    index: int
    rope: str
    lowering: str
    comparisons: int
    failed: int
    used: float
    notes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One configuration: its kinds of layers, or the line that refuses all of them."""

    name: str
    layers: tuple[Layer, ...] = ()
    refusal: str = ""


def reduced(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with fewer heads, and a hidden size to go with them."""
    part = next((key for key in INNER if isinstance(config.get(key), dict)), None)
    if part is not None:
        return {**config, part: _narrowed(config[part], select(config))}
    return _narrowed(config, select(config))


def _narrowed(config: dict[str, Any], read: Read) -> dict[str, Any]:
    spec = next(iter(layers(read).values()))
    group = spec.heads // spec.kv_heads
    heads = group if group > FEWER else FEWER
    heads = min(heads, 8) if group == spec.heads else heads
    kv_heads = max(1, heads // group)
    names = {"num_attention_heads": heads, "n_head": heads, "n_heads": heads, "num_heads": heads}
    names |= {"num_key_value_heads": kv_heads, "num_kv_heads": kv_heads}
    given_width = read.facts.get("head_dim") is not None or spec.latent is not None
    width = 128 if given_width else heads * spec.head_dim
    names |= {"hidden_size": width, "n_embd": width}
    names |= {"q_lora_rank": 96, "kv_lora_rank": 64}
    there = {key for key in names if config.get(key) is not None or read.facts.get(key) is not None}
    return config | {key: names[key] for key in there}


def layers(read: Read) -> dict[int, AttentionSpec]:
    """The first layer of each kind; layers that are not attention are passed over.

    Raises: SpecError if every layer is refused.
    """
    count = read.facts.whole("num_hidden_layers")
    found: dict[AttentionSpec, int] = {}
    refused: SpecError | None = None
    for layer in range(count):
        try:
            found.setdefault(spec_of(read, layer), layer)
        except SpecError as error:
            refused = refused or error
    if not found and refused is not None:
        raise refused
    return {layer: spec for spec, layer in found.items()}


def prove(name: str, config: str, compare: bool = True) -> Proof:
    """Each kind of layer exported at reduced width and, if `compare`, verified.

    config: the text of the configuration's file.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"{name}.json"
        try:
            source.write_text(json.dumps(reduced(json.loads(config))), encoding="utf-8")
            specs = layers(select(source))
        except SpecError as error:
            return Proof(name=name, refusal=str(error))
        proven = [
            _prove_layer(source, index, spec, Path(folder), compare)
            for index, spec in specs.items()
        ]
    return Proof(name=name, layers=tuple(proven))


def _prove_layer(
    source: Path, index: int, spec: AttentionSpec, folder: Path, compare: bool
) -> Layer:
    started = time.perf_counter()
    cache: Any = "growing" if spec.causal else "none"
    artifact = export(source, out=folder / "artifact", layer=index, cache=cache)
    rows = verify(artifact).rows if compare else ()
    return Layer(
        index=index,
        rope=spec.rope.rope_type if spec.rope else "none",
        lowering=artifact.manifest.lowering,
        comparisons=len(rows),
        failed=sum(row.status == "failed" for row in rows),
        used=max((row.used for row in rows if row.runtime == "onnxruntime"), default=0.0),
        notes=len(artifact.manifest.source.get("notes", ())),
        seconds=time.perf_counter() - started,
    )


def page(proofs: list[Proof]) -> Iterator[str]:
    files = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in MODELS.glob("*")}
    certain = sum(file["_certain"] for file in files.values())
    yield "# Published configurations, exported and verified"
    yield ""
    yield (
        "Written by `python -m scripts.prove_models --write`: every file of `models/`, with fewer "
        "heads and a smaller hidden size and everything else as published, exported in float32 "
        "with a growing cache, or without one where tokens see those after them, and verified "
        "against eager PyTorch and the float64 reference. One line for each kind of layer; weights "
        "are drawn."
    )
    yield ""
    yield (
        f"Of {len(files)} configurations {certain} are confirmed word for word from the public "
        f"file that `_source` names; in the others `_unconfirmed` lists the keys that are not. "
        f'A line that says "exported" was written without its comparison (`--no-verify`). '
        f"Notes: how many keys `export` tells of that transformers does not read."
    )
    yield ""
    rows: list[tuple[object, ...]] = []
    for proof in proofs:
        confirmed = "yes" if files[proof.name]["_certain"] else "in part"
        for layer in proof.layers:
            compared: tuple[object, ...] = ("exported", "", "")
            if layer.comparisons:
                compared = (layer.comparisons, layer.failed, f"{100 * layer.used:.0f} %")
            facts = (f"`{proof.name}`", confirmed, layer.index, layer.rope, layer.lowering)
            rows.append((*facts, *compared, layer.notes or ""))
    yield from table_lines(HEADS, rows)
    refused = [proof for proof in proofs if proof.refusal]
    if not refused:
        return
    yield ""
    yield "## Refused"
    yield ""
    heads = ("configuration", "the line that the command prints")
    yield from table_lines(heads, ((f"`{x.name}`", x.refusal) for x in refused))


def main() -> int:
    """Exit status 0 if no comparison failed, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m scripts.prove_models", description=__doc__)
    parser.add_argument("names", nargs="*", help="files of models/, without .json; all else")
    parser.add_argument("--write", action="store_true", help="write docs/models.md")
    parser.add_argument("--no-verify", action="store_true", help="export, and compare nothing")
    runner.add_options(parser)
    options = parser.parse_args()
    paths = {path.stem: path for path in sorted(MODELS.glob("*.json"))}
    if unknown := set(options.names) - set(paths):
        parser.error(f"models/ has no {', '.join(sorted(unknown))}")
    items = {
        name: {
            "name": name,
            "config": path.read_text(encoding="utf-8"),
            "compare": not options.no_verify,
        }
        for name, path in paths.items()
        if not options.names or name in options.names
    }
    finished = runner.run(
        prove,
        items,
        Proof,
        jobs=options.jobs,
        fresh=options.fresh,
        line=in_one_line,
    )
    proofs = list(finished.results.values())
    if options.write:
        PAGE.write_text("\n".join(page(proofs)) + "\n", encoding="utf-8")
    failed = any(layer.failed for proof in proofs for layer in proof.layers)
    return 1 if failed or finished.errors else 0


def in_one_line(proof: Proof) -> str:
    if proof.refusal:
        return f"{proof.name}: refused: {proof.refusal}"
    compared = sum(layer.comparisons for layer in proof.layers)
    failed = sum(layer.failed for layer in proof.layers)
    seconds = sum(layer.seconds for layer in proof.layers)
    return f"{proof.name}: {compared} comparisons, {failed} failed ({seconds:.0f} s)"
