"""Sessions and streams: the public classes over a runtime's Runner."""

from rope_export.sessions.session import Session, open_session
from rope_export.sessions.stream import Stream

__all__ = ["Session", "Stream", "open_session"]
