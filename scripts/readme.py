"""The generated parts of the README: `python -m scripts.readme`.

Writes the output of its commands, the table of what is supported, and the picture of errors
beside tolerances. With --check nothing is written, and the status is 1 if the README differs.
"""

import io
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rope_export.checkpoints.config import select
from rope_export.cli import run
from rope_export.errors import SpecError
from rope_export.lowerings import lowerings
from rope_export.rope import every_variant
from rope_export.runtimes import all_runtimes
from rope_export.spec import DType, Layout
from scripts.fetch_smollm2 import DEFAULT_OUT, fetch
from tests.conformance.models import layers

if TYPE_CHECKING:
    from rope_export.parity import Report

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "pictures" / "error_and_tolerance.svg"
CHECKPOINT = "checkpoints/smollm2-135m"

COMMANDS = (
    f"rope-export export {CHECKPOINT} --decoder --out build/smollm2 --no-verify",
    'rope-export generate build/smollm2 --prompt "The capital of France is" --max-tokens 8',
    f"rope-export export {CHECKPOINT} --layer 0 --out build/layer0 --no-verify",
    "rope-export verify build/layer0 --runtime onnxruntime",
)

PICTURED = (("standard", "growing", "float32"), ("ort", "fixed", "float16"))
"""Lowering, cache and dtype of each artifact in the picture."""

METRIC = "relative L2"


def main() -> int:
    text = README.read_text(encoding="utf-8")
    new = filled(text, "support table", support_table())
    if "--check" in sys.argv[1:]:
        return 0 if new == text else 1
    with workplace() as folder:
        new = filled(new, "commands", outputs(folder))
        README.write_text(new, encoding="utf-8")
        draw(folder)
    return 0


def filled(text: str, part: str, content: str) -> str:
    """The README with the part between its two comments replaced."""
    begin, end = (f"<!-- {part}: {word} -->\n" for word in ("begin", "end"))
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return before + begin + content + end + after


def part_of(text: str, part: str) -> str:
    """What stands between the two comments of a part."""
    begin, end = (f"<!-- {part}: {word} -->\n" for word in ("begin", "end"))
    return text.partition(begin)[2].partition(end)[0]


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder with a link to the checkpoint, in which the commands run as a user types them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "checkpoints").mkdir()
        (folder / CHECKPOINT).symlink_to(fetch(DEFAULT_OUT))
        yield folder


def outputs(folder: Path) -> str:
    """Markdown: each command with what it prints where it is run in `folder`."""
    parts = []
    for command in COMMANDS:
        line, _, limit = command.partition(" | head -n ")
        printed = io.StringIO()
        with chdir(folder), redirect_stdout(printed):
            status = run(shlex.split(line)[1:])
        if status != 0:
            raise RuntimeError(f"{line}: status {status}")
        lines = printed.getvalue().rstrip().splitlines()[: int(limit or 1_000)]
        text = "\n".join(line.rstrip() for line in lines)
        parts.append(f"$ {command}\n{text}\n")
    return "```console\n" + "\n".join(parts) + "```\n"


def without_figures(text: str) -> list[str]:
    """The lines of a text, in order of the alphabet, without what differs between processors: which
    case is the worst, and its figures."""
    plain = re.sub(r"^(onnxruntime|eager) +(\S+) .*$", r"\1 \2", text, flags=re.M)
    return sorted(plain.splitlines())


def draw(folder: Path) -> None:
    """Draw the picture: every comparison's error and its tolerance, on a logarithmic axis."""
    import matplotlib
    from matplotlib.figure import Figure

    from rope_export import export, verify

    matplotlib.rcParams["svg.hashsalt"] = "rope_export"
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    plots = figure.subplots(1, len(PICTURED), sharey=False)
    for plot, (lowering, cache, dtype) in zip(plots, PICTURED, strict=True):
        artifact = export(
            folder / CHECKPOINT,
            out=folder / f"{lowering}-{dtype}",
            lowering=lowering,
            cache=cache,  # type: ignore[arg-type]
            dtype=dtype,  # type: ignore[arg-type]
        )
        errors, tolerances = series(verify(artifact, runtimes=["onnxruntime"]))
        plot.semilogy(tolerances, color="#b45309", linewidth=1.2, label="tolerance")
        plot.semilogy(errors, ".", color="#1d4ed8", markersize=4, label="error of onnxruntime")
        plot.set_title(f"{lowering}, cache {cache}, {dtype}", fontsize=10)
        plot.set_xlabel("comparisons, by tolerance")
        plot.grid(axis="y", alpha=0.3)
    plots[0].set_ylabel(f"{METRIC} against float64")
    plots[0].legend(fontsize=8, loc="lower right")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, metadata={"Date": None})


def series(report: "Report") -> tuple[list[float], list[float]]:
    """Errors and tolerances of onnxruntime's comparisons that are judged by an error, in ascending
    order of the tolerance."""
    pairs = [
        (row.tolerance, row.error)
        for row in report.rows
        if row.runtime == "onnxruntime" and row.metric == METRIC and row.tolerance > 0
    ]
    pairs.sort()
    return [error for _, error in pairs], [tolerance for tolerance, _ in pairs]


def support_table() -> str:
    """Markdown: one line for each kind of thing."""
    described = (
        f"`{x.name}` (opset {min(x.caches.values())}+; caches {', '.join(x.caches)})"
        for x in lowerings().values()
    )
    ready, refused = models()
    lines = {
        "model families": f"{proven_families()} proven in float64 and in onnxruntime: "
        "[families](docs/families.md)",
        "RoPE variants (`rope_type`)": listed(
            name for name, cls in every_variant().items() if cls.published
        ),
        "rotations that families have in code": listed(
            name for name, cls in every_variant().items() if not cls.published
        ),
        "rotary layouts; dtypes": f"{listed(get_args(Layout))}, full or partial; "
        + listed(get_args(DType)),
        "lowerings": "; ".join(described),
        "runtimes": listed(all_runtimes()),
        "configurations in `models/`": f"{len(ready)}, exported at reduced width and verified: "
        "[models](docs/models.md)" + (f"; refused: {listed(refused)}" if refused else ""),
    }
    rows = "".join(f"| {name} | {value} |\n" for name, value in lines.items())
    return f"| | supported |\n|---|---|\n{rows}"


def proven_families() -> str:
    """How many of transformers' families the generated page has as proven, as "n of m"."""
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    matches = [re.search(pattern, page, re.M) for pattern in (r"^- proven: (\d+)$", r"^Of (\d+) ")]
    proven, every = (match[1] if match else "none" for match in matches)
    return f"{proven} of {every}"


def models() -> tuple[list[str], list[str]]:
    """Names of the configurations in models/ with a layer that gives a spec, and of the others."""
    ready, refused = [], []
    for path in sorted((ROOT / "models").glob("*.json")):
        try:
            layers(select(path))
        except SpecError:
            refused.append(path.stem)
        else:
            ready.append(path.stem)
    return ready, refused


def listed(names: object) -> str:
    return ", ".join(f"`{name}`" for name in names)  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
