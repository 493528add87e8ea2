"""How messages of the package are spelled for somebody who typed a command.

The package names a parameter in backticks: `opset`=7, `profiles`, `tf32`=True. On the command line
these are --opset 7, --profile and --tf32.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

ARGUMENTS = {"source": "SOURCE", "artifact": "DIR"}
"""Parameters that are positional arguments of a command, where no option has their name."""

PARAMETER = re.compile(r"`([a-z_][a-z_0-9]*)`(=(True|None|False)\b|=)?")


def spelled(message: str, flags: Mapping[str, str]) -> str:
    """The message with each parameter in backticks as its flag, or as its plain name where the
    command line has no such option.

    flags: flags by the names of the parameters, such as "--compute-capability".
    """

    def replaced(match: re.Match[str]) -> str:
        name, assigned, constant = match.groups()
        word = flag(name, flags)
        if word is None:
            return ARGUMENTS.get(name, name) + (assigned or "")
        if constant == "True":
            return word
        return f"{word} {constant or ''}" if assigned else word

    return PARAMETER.sub(replaced, message)


def flags_of(parameters: Iterable[Any]) -> dict[str, str]:
    """The flag of every option among a command's parameters, by the parameter's name."""
    options = [p for p in parameters if p.name and p.param_type_name == "option"]
    return {option.name: option.opts[0] for option in options}


def flag(name: str, flags: Mapping[str, str]) -> str | None:
    """The flag of a parameter; of a list, which is an option to be repeated, in the singular."""
    for word in (name, name.removesuffix("s"), f"{name.removesuffix('ies')}y"):
        if word in flags:
            return flags[word]
    return None
