"""Shows what is captured of transformers' families: `python -m scripts.show_captures`."""

import sys

from tests.conformance.families.describe import main

if __name__ == "__main__":
    sys.exit(main())
