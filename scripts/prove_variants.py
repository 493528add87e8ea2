"""Compares thirteen rotary variants with transformers: `python -m scripts.prove_variants`."""

import sys

from tests.conformance.variants import main

if __name__ == "__main__":
    sys.exit(main())
