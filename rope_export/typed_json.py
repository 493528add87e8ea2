"""Facts as JSON: read strictly into types, written the same way for the same facts.

A type is a frozen dataclass, which takes no unknown keys, or a `msgspec.Struct`, which says whether
it does. What does not fit is reported in one line: file, key, value and rule.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from rope_export.errors import ArtifactError, InputError

T = TypeVar("T")

NAMES = {dict: "object", list: "array", tuple: "array", type(None): "null"}
"""What msgspec calls a value's type, where Python has another word."""


def parse(text: bytes, where: Path) -> dict[str, Any]:
    """The object in a JSON file's bytes; `where` is named in errors.

    Raises: ArtifactError if there is none.
    """
    try:
        facts = msgspec.json.decode(text)
    except RecursionError:
        raise ArtifactError(f"{where}: is not JSON of ours; it is nested too deeply.") from None
    except ValueError as error:  # msgspec's own kinds derive from it
        raise ArtifactError(f"{where}: is not JSON ({error}).") from error
    if not isinstance(facts, dict):
        raise ArtifactError(f"{where}: holds {type(facts).__name__}, not an object.")
    return facts


def typed(
    facts: object, kind: type[T], where: str | Path, error: type[InputError] = ArtifactError
) -> T:
    """Plain values as an instance of `kind`.

    where: what the facts are, at the beginning of an error.
    Raises: `error` naming the key, its value and what it must be.
    """
    try:
        value = msgspec.convert(facts, kind)
    except msgspec.ValidationError as refusal:
        raise error(f"{where}: {_described(facts, str(refusal))}.") from refusal
    except InputError as refusal:  # of a type that checks its own values
        raise error(f"{where}: {refusal}") from refusal
    unknown = next(_unknown(facts, value), None)
    if unknown is not None:
        raise error(f"{where}: {_key(unknown)} is not a key that there is.")
    return value


def plain(value: object) -> Any:
    """Typed facts as values that JSON has; null for what is no finite number."""
    return msgspec.json.decode(msgspec.json.encode(value, enc_hook=_base))


def _base(value: object) -> object:
    """A value of a class derived from text or numbers, such as torch's version, as one of these.

    Raises: NotImplementedError for any other.
    """
    for base in (str, int, float):
        if isinstance(value, base):
            return base(value)
    raise NotImplementedError


def text(value: object) -> str:
    """A whole JSON file: keys in the order of their fields, the same bytes for the same facts."""
    return json.dumps(plain(value), indent=1) + "\n"


def brief(value: object) -> str:
    """A value in a line, however long it is."""
    try:
        shown = repr(value)
    except RecursionError:
        return f"a nested {type(value).__name__}"
    return shown if len(shown) <= 80 else f"{shown[:77]}…"


def _described(facts: object, refusal: str) -> str:
    """A line of msgspec's, as "Expected `int`, got `str` - at `$.a[...].b`", with key and value."""
    rule, _, place = refusal.partition(" - at ")
    rule = rule[:1].lower() + rule[1:].replace("`", "")
    steps = re.findall(r"\.([^.\[`]+)|\[([^\]]*)\]", place)
    got = re.search(r"got `(\w+)`", refusal)
    kind = None if got is None else got.group(1)
    names, value = next(_places(facts, [key or at for key, at in steps], kind), ([], facts))
    if not names:
        return rule
    return f"{_key(names)}={brief(value)}: {rule}"


def _key(names: list[Any]) -> str:
    """The way to a value, such as "weights['q_proj.weight']['sha256']"."""
    return "".join(f"[{name!r}]" if at else str(name) for at, name in enumerate(names))


def _unknown(facts: Any, value: object) -> Iterator[list[Any]]:
    """The ways to those keys of `facts` that a dataclass in `value` has not."""
    inner: Mapping[Any, object] = {}
    if isinstance(value, msgspec.Struct) and isinstance(facts, dict):
        inner = msgspec.structs.asdict(value)
    elif is_dataclass(value):
        inner = vars(value)
        yield from ([name] for name in facts if name not in inner)
    elif isinstance(value, tuple | list):
        inner = dict(enumerate(value))
    elif isinstance(value, dict):
        inner = value
    for key, below in inner.items():
        if isinstance(facts, list) or key in facts:
            for names in _unknown(facts[key], below):
                yield [key, *names]


def _places(value: Any, steps: list[str], got: str | None) -> Iterator[tuple[list[Any], object]]:
    """The ways along `steps` that lead to a value of the type `got`; "..." is any key."""
    if not steps:
        if got is None or NAMES.get(type(value), type(value).__name__) == got:
            yield [], value
        return
    if isinstance(value, dict):
        keys = list(value) if steps[0] == "..." else [steps[0]] if steps[0] in value else []
    else:
        keys = list(range(len(value))) if steps[0] == "..." else [int(steps[0])]
    for key in keys:
        for names, inner in _places(value[key], steps[1:], got):
            yield [key, *names], inner
