"""Chat templates: a user's message in the words that a model was trained with."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from rope_export.artifacts import contents
from rope_export.errors import InputError, extra
from rope_export.sessions.generation.settings import read_json

TEMPLATE, TOKENIZER_CONFIG = "chat_template.jinja", "tokenizer_config.json"

SPECIAL = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
"""Keys of a tokenizer's config that templates name."""


class Chat:
    """The chat template in a decoder's folder.

    Templates are programs of somebody else's, so they run in jinja2's sandbox.
    Source: transformers, docs "Chat templates": the names and filters that a template may use.
    """

    def __init__(self, folder: Path) -> None:
        """Raises: InputError if there is none, or it is no template; UnavailableError without the
        package jinja2."""
        config = read_json(folder, TOKENIZER_CONFIG)
        self._where = folder / TEMPLATE
        if self._where.exists():
            raw = contents.read(self._where, contents.LARGEST_JSON)
            text: str | None = raw.decode("utf-8", "replace")
        else:
            self._where = folder / TOKENIZER_CONFIG
            text = _default(config.get("chat_template"))
        if text is None:
            raise InputError(
                f"{folder}: has no chat template, neither {TEMPLATE} nor one in "
                f"{TOKENIZER_CONFIG}. Leave out `chat`."
            )
        special = {name: _text(config.get(name)) for name in SPECIAL}
        self._special = {name: token for name, token in special.items() if token is not None}
        with extra("generate", "a chat template"):
            import jinja2
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        self._errors = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError)
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _generation_tag()],
        )
        environment.filters["tojson"] = _json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        try:
            self._template = environment.from_string(text)
        except self._errors as error:
            raise self._wrong(error) from error

    def render(self, message: str) -> str:
        """The text of a user's message, after which the answer begins.

        Raises: InputError if the template refuses it.
        """
        messages = [{"role": "user", "content": message}]
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=True,
                tools=None,
                documents=None,
                **self._special,
            )
        except self._errors as error:
            raise self._wrong(error) from error

    def _wrong(self, error: Exception) -> InputError:
        return InputError(f"{self._where}: the chat template fails ({error}). Leave out `chat`.")


def _default(template: Any) -> str | None:
    """The one template of a config, or of several the one called default."""
    if isinstance(template, list):
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _text(token: Any) -> str | None:
    """A special token, which a config states as its text or as an object with its content."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **rest: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **rest)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _generation_tag() -> Any:
    """The tag around what a model says, by which those who train tell it apart: what stands in it
    is rendered."""
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 (as the library wants it)

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)
