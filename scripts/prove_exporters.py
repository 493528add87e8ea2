"""Verifies what four exporters write: `python -m scripts.prove_exporters`."""

import sys

from tests.conformance.exporters.prove import main

if __name__ == "__main__":
    sys.exit(main())
