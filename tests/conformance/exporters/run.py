"""One variant exported by one exporter, and what `verify` finds of the file."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import transformers

from rope_export.errors import RopeExportError
from rope_export.parity import verify
from rope_export.parity.onnx_file.shared import SHARED
from rope_export.parity.report.result import Report
from rope_export.parity.rows import CALLS_FAILED
from scripts.benchmarks.peers.environments import ENVIRONMENTS, NotInstalledError
from scripts.benchmarks.peers.exports import GENAI, MOBIUS, OPTIMUM, Exporter, ExportError, export
from tests.conformance.exporters import checkpoints, torch_export
from tests.conformance.runner import ROOT, digest, files_digest

TORCH = "torch.onnx.export"

OTHERS = {
    "optimum-onnx": Exporter(
        name="optimum-onnx",
        group="optimum",
        environment="optimum",
        command=(*OPTIMUM, "--task", "text-generation-with-past", "{out}"),
    ),
    "onnxruntime-genai": Exporter(
        name="onnxruntime-genai",
        group="genai",
        environment="genai",
        command=(*GENAI, "-p", "fp32", "-e", "cpu"),
    ),
    "mobius": Exporter(
        name="mobius",
        group="mobius",
        environment="mobius",
        command=(*MOBIUS, "{out}"),
    ),
}
"""Exporters that are programs of environments of their own."""

EXPORTERS = (TORCH, *OTHERS)

KEPT = ROOT / "build" / "exporters"
"""Where checkpoints and files are kept from one run to the next."""

CHECKPOINT, OUT, REASON = "checkpoint", "exported", "reason"


@dataclass(frozen=True, kw_only=True)
class Cause:
    """What explains texts that failed. error: the largest of them, relative to the logits' norm or
    largest, by whichever metric it is larger."""

    cause: str
    fault: str
    texts: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """status: "right", "wrong", "no file", "not judged". reason: why there is no file, or why it
    was not judged. refused: texts that onnxruntime failed on, with its words. error, tolerance,
    text: of the worst row of the logits. not_supported: texts that the inputs cannot take."""

    variant: str
    exporter: str
    status: str
    reason: str = ""
    causes: tuple[Cause, ...] = ()
    refused: dict[str, str] | None = None
    error: float = 0.0
    tolerance: float = 0.0
    text: str = ""
    not_supported: tuple[str, ...] = ()

    @property
    def named(self) -> tuple[str, ...]:
        """The causes, each once."""
        return tuple(dict.fromkeys(x.cause for x in self.causes))


def judge(variant: str, exporter: str) -> Verdict:
    """Raises: NotInstalledError if the exporter's environment cannot be made."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folder = exported(variant, exporter)
    reason = folder / REASON
    if reason.exists():
        text = reason.read_text(encoding="utf-8")
        return Verdict(variant=variant, exporter=exporter, status="no file", reason=text)
    return verdict(variant, exporter, folder / OUT / "model.onnx", folder / CHECKPOINT)


def exported(variant: str, exporter: str) -> Path:
    """A folder with the checkpoint of a variant and what an exporter has made of it, or why there
    is nothing. It is kept for as long as the checkpoint and the versions are the same."""
    KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=KEPT) as name:
        folder = Path(name) / "made"
        checkpoint = checkpoints.save(variant, folder / CHECKPOINT)
        kept = KEPT / _key(exporter, checkpoint)
        if kept.exists():
            return kept
        try:
            if exporter == TORCH:
                torch_export.export(checkpoint, folder / OUT)
            else:
                both = checkpoints.for_exporters(checkpoint, folder / variant)
                export(OTHERS[exporter], both, folder / OUT)
        except NotInstalledError:
            raise
        except Exception as error:  # an exporter may raise anything
            text = first_line(error).replace(str(folder), "")
            (folder / REASON).write_text(text, encoding="utf-8")
        folder.rename(kept)
    return kept


def _key(exporter: str, checkpoint: Path) -> str:
    """A name for an exporter, its versions and what it is given."""
    given = [path.read_bytes() for path in sorted(checkpoint.iterdir())]
    if exporter == TORCH:
        return digest(given, files_digest([Path(torch_export.__file__)]))
    return digest(given, exporter, ENVIRONMENTS[str(OTHERS[exporter].environment)].pins)


def verdict(variant: str, exporter: str, file: Path, checkpoint: Path) -> Verdict:
    """What `verify` finds of one file."""
    try:
        report = verify(file, source=checkpoint)
    except RopeExportError as error:
        reason = first_line(error).replace(str(file.parents[1]), "")
        return Verdict(variant=variant, exporter=exporter, status="not judged", reason=reason)
    return of_report(variant, exporter, report)


def of_report(variant: str, exporter: str, report: Report) -> Verdict:
    rows = [row for row in report.rows if row.runtime == "onnxruntime"]
    judged = [row for row in rows if row.output == "logits" and row.metric != CALLS_FAILED]
    worst = max(judged, key=lambda row: row.used, default=None)
    refused = {row.case for row in rows if row.metric == CALLS_FAILED and row.error}
    return Verdict(
        variant=variant,
        exporter=exporter,
        status={"passed": "right", "failed": "wrong"}.get(report.status, "not judged"),
        causes=tuple(
            Cause(cause=x["cause"], fault=x["fault"], texts=_texts(x)) for x in report.causes
        ),
        refused={
            case: next((x for x in report.problems if case in x.partition(" on ")[0]), "")
            for case in sorted(refused)
        },
        error=worst.error if worst else 0.0,
        tolerance=worst.tolerance if worst else 0.0,
        text=worst.case if worst else "",
        not_supported=tuple(x for x in report.left_out if "not supported" in x),
    )


def _texts(cause: Mapping[str, str]) -> str:
    """The texts that failed, with what is special about how they ran."""
    return cause["texts"] + (f", with {SHARED}" if SHARED in cause["runtime"] else "")


def first_line(error: BaseException) -> str:
    """The first line of an error, or of the one that it was raised from: torch's exporter has
    advice in the outer ones."""
    while isinstance(error.__cause__, Exception) and not isinstance(error, RopeExportError):
        error = error.__cause__
    lines = [x.strip() for x in str(error).splitlines() if x.strip()]
    text = lines[0] if lines else type(error).__name__
    known = isinstance(error, RopeExportError | ExportError)
    return text[:200] if known else f"{type(error).__name__}: {text}"[:200]
