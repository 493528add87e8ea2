"""Time and memory of an export: `python -m scripts.benchmarks.export [CONFIG]`.

Exports one attention layer in a process of its own, without verifying it, and prints the wall time
and the largest resident memory beside the size of the layer's float32 weights. CONFIG defaults to
models/llama-2-7b.json with 8 key/value heads: the attention of an 8B model.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def eight_billion(folder: Path) -> Path:
    """Hidden 4096, 32 heads, 8 key/value heads, head 128, default RoPE."""
    config = json.loads((ROOT / "models" / "llama-2-7b.json").read_text())
    path = folder / "8b.json"
    path.write_text(json.dumps({**config, "num_key_value_heads": 8}))
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config", nargs="?", type=Path)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--lowering", default="standard")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = options.config or eight_billion(folder)
        command = [sys.executable, str(ROOT / "scripts" / "export_onnx.py"), str(config)]
        command += ["--out", str(folder / "layer"), "--no-verify", "--json"]
        command += ["--dtype", options.dtype, "--lowering", options.lowering]
        start = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        seconds = time.perf_counter() - start
        if done.returncode:
            return done.returncode
        files = json.loads(done.stdout)["manifest"]["files"]
        weights = weight_bytes(json.loads(done.stdout)["manifest"]["spec"])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"export of {config.name}, {options.lowering}, {options.dtype}: {seconds:.1f} s")
    print(f"float32 weights {weights / 1e6:.0f} MB; peak resident {peak / 1e6:.0f} MB")
    print(f"peak beyond 2 x float32 weights: {(peak - 2 * weights) / 1e6:.0f} MB")
    sizes = (f"{name} {file['bytes'] / 1e6:.1f} MB" for name, file in files.items())
    print(f"files: {', '.join(sizes)}")
    return 0


def weight_bytes(spec: dict[str, int]) -> int:
    """Bytes of the four projections in float32."""
    heads = 2 * spec["heads"] + 2 * spec["kv_heads"]
    return 4 * spec["hidden_size"] * heads * spec["head_dim"]


if __name__ == "__main__":
    sys.exit(main())
