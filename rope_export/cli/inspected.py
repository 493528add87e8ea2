"""What `inspect` prints: a fact in each row, in short, without what is at its default."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from rope_export.spec import AttentionSpec

PLAIN = {"kind", "format_version", "interface", "spec", "stale_slots", "dtype"}
"""Facts that have no row of their own."""

INDEX = re.compile(r"(?<=\.)[0-9]+(?=\.)")
"""The number of a layer in a tensor's name."""

MANY = 40
"""Weights that are listed one by one, as those of one layer are."""

HASH = re.compile("[0-9a-f]{64}")
"""A sha256, of which the beginning is shown."""


def rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and text of each row that `inspect` prints.

    facts: as `inspect --json` prints them.
    """
    for name, value in facts.items():
        if name == "spec":
            yield from _spec_rows(value)
        elif name == "specs":
            for index, spec in enumerate(value):
                yield from ((f"{word} of spec {index}", text) for word, text in _spec_rows(spec))
        elif name in PLAIN or value in (None, False, "", [], {}):
            continue
        else:
            yield name, FORMS.get(name, _flat)(value)


def _spec_rows(spec: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    defaults = {f.name: f.default for f in dataclasses.fields(AttentionSpec)}
    rope = spec.get("rope")
    yield "layer", _parts({k: v for k, v in spec.items() if k != "rope" and v != defaults[k]})
    if rope is None:
        yield "rope", "no rotation"
    else:  # a manifest that was changed may have anything
        yield "rope", _parts(rope) if isinstance(rope, Mapping) else _flat(rope)


def _parts(facts: Mapping[str, Any]) -> str:
    """Each fact by its name and value, without what is empty or off."""
    return ", ".join(
        name if value is True else f"{name} {_flat(value)}"
        for name, value in facts.items()
        if value not in (None, False, [], {})
    )


def _tensors(value: Any) -> str:
    """A tensor in each line; those of many layers, whose names differ in a number, in one."""
    alike: dict[tuple[str, str], list[str]] = {}
    for tensor in value:
        form = f"{tensor['dtype']}({', '.join(map(str, tensor['shape']))})"
        alike.setdefault((INDEX.sub("*", tensor["name"]), form), []).append(tensor["name"])
    return "\n".join(
        f"{names[0] if len(names) == 1 else name.replace('*', _numbers(names))} {form}"
        for (name, form), names in alike.items()
    )


def _numbers(names: list[str]) -> str:
    """The numbers in names that differ in them alone, such as 0-3,5."""
    return _ranges([int(INDEX.findall(name)[0]) for name in names])


def _ranges(numbers: list[int]) -> str:
    """Numbers in rising order in short, such as 0-3,5."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    return ",".join(f"{s[0]}-{s[-1]}" if len(s) > 1 else str(s[0]) for s in spans)


def _layers(value: list[int | None]) -> str:
    """Which layers have which spec, and which have no cache."""
    by_spec: dict[int | None, list[int]] = {}
    for index, spec in enumerate(value):
        by_spec.setdefault(spec, []).append(index)
    return "\n".join(
        f"{_ranges(at)}: " + ("no cache of their own" if spec is None else f"spec {spec}")
        for spec, at in by_spec.items()
    )


def _weights(value: Mapping[str, Mapping[str, Any]]) -> str:
    if len(value) > MANY:
        sources = len({facts["source_tensor"] for facts in value.values()})
        return f"{len(value)} from {sources} tensors; --json lists them"
    return "\n".join(
        f"{name} from {facts['source_tensor']}, sha256 {facts['sha256'][:12]}…"
        for name, facts in value.items()
    )


def _files(value: Mapping[str, Mapping[str, Any]]) -> str:
    return "\n".join(
        f"{name}: {facts['bytes'] / 1e6:.1f} MB, sha256 {facts['sha256'][:12]}…"
        for name, facts in value.items()
    )


def _evidence(value: Mapping[str, Any]) -> str:
    parity = value.get("parity")
    if not isinstance(parity, dict) or "status" not in parity:
        return "not verified yet"
    numbers = f"; numbers {parity['numbers']}" if parity.get("numbers") else ""
    return (
        f"{parity['status']}: {parity.get('rows')} rows, {parity.get('failed')} failed, "
        f"weights {parity.get('weights')}{numbers}"
    )


def _profiles(value: Any) -> str:
    return "\n".join(
        ",".join(f"{axis}={':'.join(map(str, _sizes(sizes)))}" for axis, sizes in profile.items())
        for profile in value
    )


def _sizes(sizes: Any) -> list[int]:
    """One number where minimum, optimum and maximum are the same."""
    numbers = list(sizes.values()) if isinstance(sizes, dict) else list(sizes)
    return numbers[:1] if numbers[0] == numbers[-1] else numbers


def _lines(value: Mapping[str, Any]) -> str:
    return "\n".join(f"{name}: {_flat(part)}" for name, part in value.items())


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        parts = (f"{name} {_flat(part)}" for name, part in value.items() if part is not None)
        return ", ".join(parts)
    if isinstance(value, list):
        return ", ".join(map(_flat, value))
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value[:12]}…" if HASH.fullmatch(str(value)) else str(value)


FORMS = {
    "inputs": _tensors,
    "outputs": _tensors,
    "weights": _weights,
    "files": _files,
    "companions": _files,
    "layers": _layers,
    "evidence": _evidence,
    "profiles": _profiles,
    "fusion": _lines,
    "network": _lines,
    "metadata": _lines,
}
"""How a fact is printed, where it is not one line of values."""
