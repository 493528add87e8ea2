"""Plants faults in exported files and verifies them: `python -m scripts.plant_faults`."""

import sys

from tests.conformance.faults.prove import main

if __name__ == "__main__":
    sys.exit(main())
