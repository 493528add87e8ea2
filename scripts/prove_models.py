"""Exports and verifies every configuration of models/: `python -m scripts.prove_models`."""

import sys

from tests.conformance.models import main

if __name__ == "__main__":
    sys.exit(main())
