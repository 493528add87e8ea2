"""The kind of folder that this package brings."""

from rope_export.engines.plan import Engine

KIND = Engine
