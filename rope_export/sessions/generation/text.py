"""From text to tokens and back: the tokenizer beside a decoder, and texts that grow."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rope_export.artifacts import contents
from rope_export.errors import InputError, extra
from rope_export.sessions.generation.chat import Chat

TOKENIZER = "tokenizer.json"


class Texts:
    """The tokenizer of a decoder's folder."""

    def __init__(self, folder: Path) -> None:
        """Raises: InputError if there is no tokenizer that can be read; UnavailableError without
        the package tokenizers."""
        path = folder / TOKENIZER
        if not path.exists():
            raise InputError(
                f"{path}: is missing, so texts cannot be read; give the prompt's tokens with `ids`."
            )
        with extra("generate", "reading texts"):
            from tokenizers import Tokenizer
        try:
            self._tokenizer: Any = Tokenizer.from_buffer(contents.read(path))
        except Exception as error:  # the library raises plain Exceptions
            raise InputError(f"{path}: is not a tokenizer ({error}).") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._folder = folder

    def prompt(self, text: str, *, chat: bool) -> list[int]:
        """The tokens of a prompt; chat: as a user's message in the model's own chat template.

        Raises: InputError for a text that holds what is no character, as of a command line that is
            not UTF-8, or that the template refuses.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            shown = text.encode("utf-8", "backslashreplace").decode()
            raise InputError(f"{shown[:80]}: is not UTF-8; give the prompt as text.") from error
        if chat:
            text = Chat(self._folder).render(text)
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=not chat).ids
        return ids

    def growing(self, prompt: Sequence[int], stops: Sequence[str]) -> "GrowingText":
        """The text of an answer to a prompt, token by token."""
        return GrowingText(self._tokenizer, prompt, stops)


class GrowingText:
    """A text that comes token by token, in whole characters, up to a stop text.

    stopped: whether a stop text came; it is not part of the text.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stops: Sequence[str]) -> None:
        from tokenizers.decoders import DecodeStream

        # The prompt's end decides whether the first word begins with a space.
        self._stream = DecodeStream(ids=list(prompt[-CONTEXT:]), skip_special_tokens=True)
        self._tokenizer, self._stops = tokenizer, tuple(filter(None, stops))
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """What the text grows by; what may be the beginning of a stop text is held back."""
        self._held += self._stream.step(self._tokenizer, token) or ""
        places = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if places:
            self.stopped = True
            grown, self._held = self._held[: min(places)], ""
            return grown
        kept = max((_begun(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - kept
        grown, self._held = self._held[:cut], self._held[cut:]
        return grown

    def end(self) -> str:
        """What was held back, when no more tokens come."""
        rest, self._held = self._held, ""
        return rest


CONTEXT = 16
"""Tokens of the prompt that a text's decoder begins with."""


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of a stop text."""
    for count in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-count:]):
            return count
    return 0
