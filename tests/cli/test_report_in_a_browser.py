"""The page of `verify --report` in real Chromium: large and small, light and dark."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rope_export.parity.report.html import as_html
from tests.support.chromium import chromium
from tests.unit.test_report_files import command, found  # noqa: F401

SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def file(found, tmp_path_factory) -> Path:  # noqa: F811
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(as_html(found, "build/layer0", command, facts={"machine": "x"}))
    return path


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", SIZES)
def test_the_page_can_be_read(browser, file, size, scheme) -> None:
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        is_mobile=size == "phone",
        has_touch=size == "phone",
    )
    page = context.new_page()
    wrong, asked = [], []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    assert not wrong
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    verdict = page.locator("#verdict h1")
    assert verdict.inner_text() == "Failed"
    box = verdict.bounding_box()
    assert box["y"] >= 0
    assert box["y"] + box["height"] <= height
    assert box["x"] + box["width"] <= width
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    light, dark = (luminance(page, "body", x) for x in ("color", "backgroundColor"))
    assert (light > dark) == (scheme == "dark")
    assert contrast(light, dark) >= 4.5  # WCAG 2.2, success criterion 1.4.3
    text = page.locator("figure svg text").first
    shown = text.evaluate("x => x.getBoundingClientRect().height")
    assert shown >= 7
    assert luminance(page, "figure svg text", "fill") > dark if scheme == "dark" else True
    group = page.locator("#rows details").first
    group.locator("summary").click()
    assert group.locator("pre").is_visible()
    context.close()


def luminance(page: Any, selector: str, name: str) -> float:
    """Of a computed colour. Source: WCAG 2.2, "relative luminance"."""
    colour = page.locator(selector).first.evaluate(f"x => getComputedStyle(x).{name}")
    channels = [int(float(x)) / 255 for x in colour.split("(")[1].rstrip(")").split(",")[:3]]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: float, other: float) -> float:
    """Source: WCAG 2.2, "contrast ratio"."""
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)
