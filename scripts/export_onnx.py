"""Export a rotary attention layer to ONNX: `python scripts/export_onnx.py SOURCE --out DIR`.

The same as `rope-export export`, for those who like scripts.
"""

import sys

from rope_export.cli import run

if __name__ == "__main__":
    sys.exit(run(["export", *sys.argv[1:]]))
