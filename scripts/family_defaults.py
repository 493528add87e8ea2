"""Writes what transformers' config classes fill in: `python -m scripts.family_defaults`."""

from tests.conformance.families.config_defaults import main

if __name__ == "__main__":
    main()
