"""Compare an artifact with eager PyTorch: `python scripts/check_parity.py DIR`.

The same as `rope-export verify`, for those who like scripts.
"""

import sys

from rope_export.cli import run

if __name__ == "__main__":
    sys.exit(run(["verify", *sys.argv[1:]]))
