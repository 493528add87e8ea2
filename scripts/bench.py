"""Time artifacts beside PyTorch: `python scripts/bench.py DIR...`.

The same as `rope-export bench`, for those who like scripts.
"""

import sys

from rope_export.cli import run

if __name__ == "__main__":
    sys.exit(run(["bench", *sys.argv[1:]]))
