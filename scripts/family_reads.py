"""Writes which config keys transformers' code reads: `python -m scripts.family_reads`."""

from tests.conformance.families.config_reads import main

if __name__ == "__main__":
    main()
