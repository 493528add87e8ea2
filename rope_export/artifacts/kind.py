"""The kind of folder that this package brings."""

from rope_export.artifacts.artifact import Artifact

KIND = Artifact
