"""The README's table of what is supported, made from the code: `python -m scripts.support_table`.

With --check nothing is written, and the status is 1 if the README says something else.
"""

import re
import sys
from pathlib import Path
from typing import get_args

from rope_export.checkpoints.config import select
from rope_export.errors import SpecError
from rope_export.lowerings import lowerings
from rope_export.rope import every_variant
from rope_export.runtimes import all_runtimes
from rope_export.spec import DType, Layout
from tests.conformance.models import layers

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- support table: begin -->\n", "<!-- support table: end -->\n"


def support_table() -> str:
    """Markdown: one line for each kind of thing."""
    ways = (
        f"`{x.name}` (opset {min(x.caches.values())}+; caches {', '.join(x.caches)})"
        for x in lowerings().values()
    )
    ready, refused = models()
    lines = {
        "model families": f"{proven_families()} proven in float64 and in onnxruntime: "
        "`docs/families.md`",
        "RoPE variants (`rope_type`)": _listed(
            name for name, cls in every_variant().items() if cls.published
        ),
        "rotations that families have in code": _listed(
            name for name, cls in every_variant().items() if not cls.published
        ),
        "rotary layouts": _listed(get_args(Layout)) + ", full or partial `rotary_dim`",
        "dtypes": _listed(get_args(DType)),
        "lowerings": "; ".join(ways),
        "runtimes": _listed(all_runtimes()),
        "configurations in `models/`": f"{len(ready)}, exported at reduced width and verified: "
        "`docs/models.md`" + (f"; refused: {_listed(refused)}" if refused else ""),
    }
    rows = "".join(f"| {name} | {value} |\n" for name, value in lines.items())
    return f"| | supported |\n|---|---|\n{rows}"


def proven_families() -> str:
    """How many of transformers' families the generated page has as proven, as "n of m"."""
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    found = [re.search(pattern, page, re.M) for pattern in (r"^- proven: (\d+)$", r"^Of (\d+) ")]
    proven, every = (match[1] if match else "none" for match in found)
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


def _listed(names: object) -> str:
    return ", ".join(f"`{name}`" for name in names)  # type: ignore[attr-defined]


def main() -> int:
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = before + BEGIN + support_table() + END + after
    if "--check" in sys.argv[1:]:
        return 0 if made == text else 1
    README.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
