"""Exports every configuration of models/ at reduced width and verifies it, as
`python -m scripts.prove_models`; with --write it writes docs/models.md.

Widths shrink, everything else stays: head size, rotation, window, norms, and which layers differ.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rope_export import AttentionSpec, export, verify

MODELS = Path(__file__).parents[1] / "models"
PAGE = Path(__file__).parents[1] / "docs" / "models.md"
HEADS = 4
"""Query heads that are left, or one group of them where a group has more."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One kind of layer of one configuration."""

    name: str
    layer: int
    rope: str
    lowering: str
    comparisons: int
    failed: int
    used: float
    seconds: float


def reduced(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with fewer heads, and a hidden size to go with them."""
    spec = AttentionSpec.from_hf(config)
    small = dict(config)
    group = spec.heads // spec.kv_heads
    heads = group if group > HEADS else HEADS
    heads = min(heads, 8) if group == spec.heads else heads
    kv_heads = max(1, heads // group)
    names = {"num_attention_heads": heads, "n_head": heads, "n_heads": heads}
    names |= {"num_key_value_heads": kv_heads, "num_kv_heads": kv_heads}
    given_width = config.get("head_dim") is not None or spec.latent is not None
    width = 128 if given_width else heads * spec.head_dim
    names |= {"hidden_size": width, "n_embd": width}
    names |= {"q_lora_rank": 96, "kv_lora_rank": 64}
    small |= {key: value for key, value in names.items() if config.get(key) is not None}
    return small


def layers(config: dict[str, Any]) -> dict[int, AttentionSpec]:
    """The first layer of each kind."""
    many = next(config[key] for key in ("num_hidden_layers", "n_layer") if key in config)
    found: dict[AttentionSpec, int] = {}
    for layer in range(many):
        found.setdefault(AttentionSpec.from_hf(config, layer=layer), layer)
    return {layer: spec for spec, layer in found.items()}


def prove(path: Path) -> Iterator[Proof]:
    """Each kind of layer exported at reduced width and verified."""
    small = reduced(json.loads(path.read_text(encoding="utf-8")))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / path.name
        source.write_text(json.dumps(small), encoding="utf-8")
        for layer, spec in layers(small).items():
            started = time.perf_counter()
            artifact = export(source, out=Path(folder) / "artifact", layer=layer)
            report = verify(artifact)
            yield Proof(
                name=path.stem,
                layer=layer,
                rope=spec.rope.rope_type if spec.rope else "none",
                lowering=artifact.manifest.lowering,
                comparisons=len(report.rows),
                failed=sum(row.status == "failed" for row in report.rows),
                used=max(row.used for row in report.rows if row.runtime == "onnxruntime"),
                seconds=time.perf_counter() - started,
            )


def page(proofs: list[Proof]) -> Iterator[str]:
    yield "# Published configurations, exported and verified"
    yield ""
    yield (
        "Written by `python -m scripts.prove_models --write`: every file of `models/`, with fewer "
        "heads and a smaller hidden size and everything else as published, exported in float32 "
        "with a growing cache and verified against eager PyTorch and the float64 reference. One "
        "line for each kind of layer; weights are drawn."
    )
    yield ""
    yield "| configuration | layer | rope | lowering | comparisons | failed | budget used |"
    yield "|---|---|---|---|---|---|---|"
    for one in proofs:
        yield (
            f"| `{one.name}` | {one.layer} | {one.rope} | {one.lowering} | {one.comparisons} "
            f"| {one.failed} | {100 * one.used:.0f} % |"
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.prove_models", description=__doc__)
    parser.add_argument("names", nargs="*", help="files of models/, without .json; all else")
    parser.add_argument("--write", action="store_true", help="write docs/models.md")
    options = parser.parse_args()
    proofs = []
    for path in sorted(MODELS.glob("*.json")):
        if options.names and path.stem not in options.names:
            continue
        for proof in prove(path):
            proofs.append(proof)
            print(
                f"{proof.name} layer {proof.layer}: {proof.comparisons} comparisons, "
                f"{proof.failed} failed ({proof.seconds:.0f} s)",
                file=sys.stderr,
            )
    if options.write:
        PAGE.write_text("\n".join(page(proofs)) + "\n", encoding="utf-8")
    return 1 if any(proof.failed for proof in proofs) else 0


if __name__ == "__main__":
    sys.exit(main())
