"""Text from decoders: prompts and their answers, token by token."""

from rope_export.sessions.generation.answering import Plan, answer_prompts
from rope_export.sessions.generation.loop import Answer, Speed
from rope_export.sessions.generation.sampling import Sampling
from rope_export.sessions.generation.settings import Settings, settings_of
from rope_export.sessions.generation.text import Texts

__all__ = [
    "Answer",
    "Plan",
    "Sampling",
    "Settings",
    "Speed",
    "Texts",
    "answer_prompts",
    "settings_of",
]
