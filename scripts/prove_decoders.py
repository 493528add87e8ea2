"""Proves whole decoders of transformers' models: `python -m scripts.prove_decoders`."""

import sys

from tests.conformance.decoders.run import main

if __name__ == "__main__":
    sys.exit(main())
