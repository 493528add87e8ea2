"""Proves every model family of transformers: `python -m scripts.prove_families`."""

import sys

from tests.conformance.families.run import main

if __name__ == "__main__":
    sys.exit(main())
