"""Draws the pictures of docs/verify.md: `python -m scripts.report_pictures`.

Two pages of `rope-export verify --report` in real Chromium: of SmolLM2's first layer, and of a
layer in whose file the scaling of its frequencies was left out.
"""

import dataclasses
import io
import tempfile
from contextlib import chdir
from pathlib import Path
from typing import Any

from rope_export import AttentionSpec, export
from rope_export.cli import run
from rope_export.rope.default import DefaultRope
from rope_export.rope.llama3 import Llama3Rope
from scripts.fetch_smollm2 import DEFAULT_OUT, fetch
from tests.conformance.faults.planting import Fault, artifact
from tests.support.chromium import chromium

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"

COLOURS = 96
"""Of a picture's palette, so that it is small."""


def draw() -> None:
    """Write both pictures."""
    source = fetch(DEFAULT_OUT)
    with tempfile.TemporaryDirectory() as folder, chdir(folder), chromium() as browser:
        export(source, layer=0, out="build/layer0")
        scaling_left_out(Path("build/llama3"))
        for path in ("layer0", "llama3"):
            run(["verify", f"build/{path}", "--runtime", "onnxruntime", "--report", f"{path}.html"])
        picture(browser, Path("layer0.html"), "report-desktop.png", (1120, 900), "light")
        picture(browser, Path("llama3.html"), "report-phone.png", (420, 900), "dark")


def scaling_left_out(out: Path) -> None:
    """A layer of Llama 3's kind whose file rotates by plain frequencies."""
    scaled = Llama3Rope(
        rotary_dim=64, factor=8.0, low_turns=1.0, high_turns=4.0, original_length=8_192
    )
    spec = AttentionSpec(hidden_size=256, heads=4, kv_heads=2, head_dim=64, rope=scaled)
    plain = dataclasses.replace(spec, rope=DefaultRope(rotary_dim=64))
    fault = Fault(name="scaling left out", spec=lambda _: plain)
    out.parent.mkdir(exist_ok=True)
    artifact(spec, out, lowering="standard", cache="growing", fault=fault)


def picture(browser: Any, page: Path, name: str, size: tuple[int, int], scheme: str) -> None:
    """One page as the first screen of it is seen."""
    from PIL import Image

    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, is_mobile=width < 600
    )
    tab = context.new_page()
    tab.goto(page.resolve().as_uri())
    shot = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
    shot.quantize(COLOURS).save(PICTURES / name, optimize=True)
    context.close()


if __name__ == "__main__":
    draw()
