"""A mixture of experts: `python -m scripts.benchmarks.experts [--rounds N] [--write]`.

Exports a decoder with experts, drawn weights in float32, and times a prefill of it in onnxruntime,
with the form that takes each expert's tokens at once and with the one that gathers each token's
experts alone, beside transformers' own model. Blocks of the three alternate. `--write` keeps the
tables as docs/benchmarks/experts.md.
"""

import argparse
import datetime
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from rope_export.bench.markdown import table_lines
from rope_export.bench.timing import Plan, measure
from rope_export.decoder.pipeline import export_decoder
from rope_export.environment import cores, cpu_name

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "experts.md"
TOKENS = (1, 8, 64, 512)
OURS, GATHERED, EAGER = "rope_export", "each token's experts gathered", "transformers"

CONFIG = Qwen3MoeConfig(
    vocab_size=4096, hidden_size=512, moe_intermediate_size=256, num_hidden_layers=4,
    num_attention_heads=8, num_key_value_heads=2, num_experts=32, num_experts_per_tok=4,
    max_position_embeddings=4096,
)  # fmt: skip

Prefill = Callable[[np.ndarray], object]


def ways(folder: Path) -> dict[str, Prefill]:
    """What is timed."""
    path = folder / "config.json"
    path.write_text(json.dumps(CONFIG.to_dict() | {"architectures": ["Qwen3MoeForCausalLM"]}))
    artifact = export_decoder(path, out=folder / "out", lowering="ort", cache="growing")
    model = onnx.load(artifact.path / "model.onnx", load_external_data=False)
    never = onnx.numpy_helper.from_array(np.array(2**62), "never")
    model.graph.initializer.append(never)
    for node in [x for x in model.graph.node if x.name.endswith("/experts")]:
        asked = next(x for x in model.graph.node if node.input[0] in x.output)
        asked.input[1] = never.name
    other = artifact.path / "gathered.onnx"
    onnx.save(model, other)
    eager = AutoModelForCausalLM.from_config(CONFIG).eval()
    return {
        OURS: _session(artifact.path / "model.onnx"),
        GATHERED: _session(other),
        EAGER: lambda ids: eager(torch.from_numpy(ids), logits_to_keep=1),
    }


def _session(path: Path) -> Prefill:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options)
    empty = {
        x.name: np.zeros((1, x.shape[1], 0, x.shape[3]), np.float32)
        for x in session.get_inputs()
        if x.name.startswith("past_key_values")
    }

    def prefill(ids: np.ndarray) -> object:
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), **empty}
        feeds["position_ids"] = np.arange(ids.shape[1])[None]
        return session.run(["logits"], feeds)

    return prefill


@torch.no_grad()
def measured(timed: dict[str, Prefill], rounds: int) -> list[list[str]]:
    """Rows of the table: milliseconds, and how many times ours another takes."""
    rows = []
    for tokens in TOKENS:
        ids = np.random.default_rng(tokens).integers(0, CONFIG.vocab_size, (1, tokens))
        calls = {name: partial(prefill, ids) for name, prefill in timed.items()}
        found = measure(calls, Plan(rounds=rounds, calls=2, warm_calls=1))
        ours = found.pop(OURS)
        row = [str(tokens), f"{ours.median * 1e3:.1f} ms"]
        for other in found.values():
            ratios = [x / y for x, y in zip(other.rounds, ours.rounds, strict=True)]
            row.append(f"{other.median * 1e3:.1f} ms, {statistics.median(ratios):.2f} times")
        rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(cores())
    with tempfile.TemporaryDirectory() as name:
        rows = measured(ways(Path(name)), options.rounds)
    text = "\n".join(table_lines(["tokens", OURS, GATHERED, EAGER], rows))
    print(text)
    if options.write:
        PAGE.write_text(_page(text), encoding="utf-8")
    return 0


def _page(text: str) -> str:
    versions = ", ".join(f"{x} {version(x)}" for x in ("torch", "transformers", "onnxruntime"))
    config = CONFIG
    shape = (
        f"{config.num_hidden_layers} layers, hidden {config.hidden_size}, {config.num_experts} "
        f"experts of {config.moe_intermediate_size}, {config.num_experts_per_tok} for each token"
    )
    return f"""# A mixture of experts

Measured on {datetime.date.today()} by `python -m scripts.benchmarks.experts --write` on
{cpu_name()}, {cores()} cores; {versions}.

A prefill of a qwen3_moe of {shape};
drawn weights in float32, logits of the last token. Medians of blocks that alternate, and how many
times ours each other takes. A file has both forms of the experts: each token's matrices are
gathered where these are fewer than all experts', otherwise each expert takes all of its tokens at
once.

{text}
"""


if __name__ == "__main__":
    sys.exit(main())
