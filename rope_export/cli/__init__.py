"""The command line: one file for each command, each a thin call into the package."""

from rope_export.cli.program import run as run
