"""Compares thirteen variants, layers and whole decoders, with transformers:
`python -m scripts.prove_variants`."""

import sys

from tests.conformance.prove_variants import main

if __name__ == "__main__":
    sys.exit(main())
