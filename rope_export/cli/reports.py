"""The files that `verify` writes beside what it prints, and the commands that they quote."""

import platform
import shlex
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from rope_export import gpu, paths
from rope_export.artifacts.folder import peek
from rope_export.artifacts.saving import file_hash
from rope_export.cli import output
from rope_export.cli.inspected import rows
from rope_export.environment import cores, cpu_name, versions
from rope_export.errors import InputError
from rope_export.runtimes import all_runtimes
from rope_export.typed_json import plain

OTHER = {
    *("path", "runtime", "case", "report", "junit", "markdown", "baseline", "factor", "require"),
    *("all_rows", "as_json", "record"),
}
"""Parameters of `verify` that change no figure of a row, or that each row has its own of."""

ABOUT = ("lowering", "opset", "cache", "padding", "source", "quantization", "files")
"""Facts of a manifest that a report shows."""

PACKAGES = (
    *("torch", "transformers", "numpy", "onnx", "onnxscript", "onnx-ir", "onnxruntime"),
    *("onnxruntime-gpu", "openvino", "playwright", "tensorrt", "tensorrt-rtx"),
)

SUFFIXES = {"report": (".html", ".htm"), "junit": (".xml",), "markdown": (".md",)}


class ReportFiles:
    """Where reports are to be written, checked before anything is compared.

    files: by the option's name; none where it was not given.
    Raises: InputError and OSError for a file that cannot be written; UnavailableError where a
        package is missing that it needs.
    """

    def __init__(self, files: Mapping[str, Path | None]) -> None:
        self.places = {name: self._place(name, x) for name, x in files.items() if x is not None}
        if len(set(self.places.values())) < len(self.places):
            raise InputError("--report, --junit and --markdown: give each a file of its own.")

    def _place(self, name: str, path: Path) -> Path:
        from rope_export.parity.report import html, junit, markdown

        if path.suffix.lower() not in SUFFIXES[name]:
            raise InputError(f"--{name} {path}: its name ends in {SUFFIXES[name][0]}.")
        if name == "report":
            html.check_html()
        if name == "junit":
            junit.check_junit()
        marks = {"report": html.MARK, "junit": junit.NAME, "markdown": markdown.MARK}
        return paths.file_target(path, "a report", marks[name].encode())

    @property
    def spread(self) -> bool:
        """Whether a report has plots of where errors lie."""
        return "report" in self.places

    def write(
        self,
        report: Any,
        title: str,
        context: typer.Context,
        command: Callable[[Any], str],
        about: Callable[[], Mapping[str, str]],
    ) -> None:
        """Write each file as a whole. command: compares again what a row is about, or everything.
        about: facts by name, which the page shows."""
        from rope_export.artifacts import swap
        from rope_export.parity.report.html import as_html
        from rope_export.parity.report.junit import as_junit
        from rope_export.parity.report.markdown import as_markdown

        forms: dict[str, Callable[..., str | bytes]] = {
            "report": as_html,
            "junit": as_junit,
            "markdown": as_markdown,
        }
        for name, place in self.places.items():
            more = {"facts": about()} if name == "report" else {}
            text = forms[name](report, title, command, output.speller(context), **more)
            swap.write(place, text)


def facts(context: typer.Context) -> dict[str, str]:
    """What was compared, on which machine and with what, by name."""
    path: Path = context.params["path"]
    about = {"when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}
    if path.is_dir():
        about |= {k: v for k, v in rows(plain(peek(path).manifest)) if k in ABOUT}
    else:
        about["file"] = f"sha256 {file_hash(path)}"
    return about | machine_facts() | {"seed": str(context.params["seed"])}


def machine_facts() -> dict[str, str]:
    """The machine, its packages, and how eager PyTorch computes."""
    about: dict[str, str] = {}
    about["machine"] = f"{cpu_name()}, {cores()} cores, {platform.platform(terse=True)}"
    about["GPU"] = str(gpu.here() or f"none ({gpu.missing()})")
    about["versions"] = ", ".join(f"{name} {x}" for name, x in versions(PACKAGES).items())
    about["eager PyTorch"] = "on the CPU, TF32 off"
    return about


def commands(context: typer.Context) -> Callable[[Any], str]:
    """The command that compares again what a row is about, or everything where there is none."""
    words = ["rope-export", "verify", str(context.params["path"])]
    for parameter in context.command.params:
        name, value = str(parameter.name), context.params.get(str(parameter.name))
        if name in OTHER or value in (None, False, (), []) or value == parameter.default:
            continue
        flag = parameter.opts[0]
        for one in value if isinstance(value, list | tuple) else [value]:
            words += [flag] if one is True else [flag, str(one)]

    def command(row: Any) -> str:
        own = list(words)
        # What follows the name tells of another one, or of buffers.
        runtime = None if row is None else row.runtime.partition(" ")[0].rstrip(",")
        if runtime in all_runtimes() and runtime != "eager":
            own += ["--runtime", str(runtime)]
        if row is None:
            for option in ("runtime", "case"):
                for name in context.params[option] or ():
                    own += [f"--{option}", name]
        elif row.runtime != "file":
            own += ["--case", row.case]
        return shlex.join(own)

    return command
