"""The kinds of folders that this package brings."""

from rope_export.artifacts.artifact import Artifact
from rope_export.artifacts.decoder import DecoderArtifact

KINDS = (Artifact, DecoderArtifact)
