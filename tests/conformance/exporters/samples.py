"""Files that exporters wrote, small enough to be kept; to write them again:
`python -m tests.conformance.exporters.samples`. Each is tiny and compressed, and what does not bear
upon its results is taken out of it.
"""

import lzma
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from scripts.benchmarks.peers.environments import ENVIRONMENTS
from scripts.benchmarks.peers.exports import GENAI, MOBIUS, export
from tests.conformance.exporters import checkpoints, torch_export
from tests.conformance.exporters.run import OTHERS, TORCH

FOLDER = Path(__file__).parents[2] / "support" / "onnx_files"

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "num_hidden_layers": 1,
    "vocab_size": 32,
}

INT4 = ("-p", "int4", "-e", "cpu")
STATIC = ("--static-cache", "--max-seq-len", "192", "{out}")

SAMPLES = {
    "default": TORCH,
    "linear": "onnxruntime-genai",
    "sliding": "mobius",
    "softcap": "optimum-onnx",
}
"""The exporter of each variant of which a file is kept: the first is right, the others wrong."""

STORED = {
    "int4": ("default", replace(OTHERS["onnxruntime-genai"], command=(*GENAI, *INT4))),
    "static": ("default", replace(OTHERS["mobius"], command=(*MOBIUS, *STATIC))),
}
"""Of files whose weights are quantized, or whose caches are fixed, the variant and how it was
exported; all are right but for what the exporter does to padding."""

ORIGINS = ("name_scopes",)
"""Metadata that is kept: the modules that a node comes from."""


def main() -> None:
    for name in sys.argv[1:] or (*SAMPLES, *STORED):
        variant, given = STORED.get(name, (name, None))
        exporter = SAMPLES[name] if given is None else given.name
        with tempfile.TemporaryDirectory() as folder:
            sizes = dict(SIZES)
            if exporter == "onnxruntime-genai":
                # onnxruntime's operator takes heads of 16 features, or of multiples of it, alone.
                sizes |= {"head_dim": 16, "num_attention_heads": 1}
            if variant == "softcap":
                sizes |= {"layer_types": ["full_attention"], "query_pre_attn_scalar": 8}
            checkpoint = checkpoints.save(variant, Path(folder) / "checkpoint", **sizes)
            out = Path(folder) / "out"
            if exporter == TORCH:
                torch_export.export(checkpoint, out)
            else:
                ENVIRONMENTS[str(OTHERS[exporter].environment)].ready()
                both = checkpoints.for_exporters(checkpoint, Path(folder) / "both")
                export(given or OTHERS[exporter], both, out)
            FOLDER.mkdir(parents=True, exist_ok=True)
            model = onnx.load(str(out / "model.onnx"))
            strip(model)
            packed = lzma.compress(model.SerializeToString(), preset=9)
            (FOLDER / f"{name}.onnx.xz").write_bytes(packed)
            shutil.copyfile(checkpoint / "config.json", FOLDER / f"{name}.json")


def unpack(name: str, folder: Path) -> Path:
    """Writes model.onnx into `folder`."""
    path = folder / "model.onnx"
    path.write_bytes(lzma.decompress((FOLDER / f"{name}.onnx.xz").read_bytes()))
    return path


def config(name: str) -> Path:
    """The config of a file that is kept."""
    return FOLDER / f"{name}.json"


def strip(model: Any) -> None:
    """Takes out what only people read: documentation, the shapes of inner values, traces."""
    graph = model.graph
    del graph.value_info[:]
    for node in graph.node:
        node.doc_string = ""
        kept = [(x.key, x.value) for x in node.metadata_props if x.key.endswith(ORIGINS)]
        del node.metadata_props[:]
        for key, value in kept:
            node.metadata_props.add(key=key, value=value)
    for part in (*graph.initializer, *graph.input, *graph.output, graph, model):
        part.doc_string = ""
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]


if __name__ == "__main__":
    main()
