"""`python -m scripts.prove_families`; see `run`."""

import sys

from scripts.prove_families.run import main

if __name__ == "__main__":
    sys.exit(main())
