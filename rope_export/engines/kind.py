"""The kinds of folders that this package brings."""

from rope_export.engines.plan import Engine

KINDS = (Engine,)
