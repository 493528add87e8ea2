"""Build a TensorRT engine: `python scripts/build_engine.py DIR --out ENGINE_DIR`.

The same as `rope-export build`, for those who like scripts.
"""

import sys

from rope_export.cli import run

if __name__ == "__main__":
    sys.exit(run(["build", *sys.argv[1:]]))
