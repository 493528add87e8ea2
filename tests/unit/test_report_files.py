"""The files of a report: JUnit's XML, Markdown, and a page that needs nothing but itself."""

import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from rope_export.parity import Report
from rope_export.parity.harness import compare
from rope_export.parity.report.baseline import Grown, Growth
from rope_export.parity.report.html import MARK, as_html
from rope_export.parity.report.junit import as_junit
from rope_export.parity.report.located import Located, Tap
from rope_export.parity.report.markdown import as_markdown
from rope_export.parity.report.plots import errors_plot
from rope_export.parity.report.spread import PARTS, TOKENS, Deviating, OverPositions, Spread, bins
from tests.support.interfaces import decoder_interface
from tests.support.toy_stack import ToySubject
from tests.unit.test_report import row

BAD = {"status": "failed"}
FAILED = {"error": 1.0, "status": "failed"}


def command(one) -> str:
    return "verify x" if one is None else f"verify x --case '{one.case}' --runtime {one.runtime}"


def mixed() -> Report:
    return Report(
        weights="proven",
        rows=[
            row(),
            row(runtime="eager"),
            row(case="a|b <script>alert(1)</script> & c", **FAILED),
            row(output="present_key", error=math.nan, status="failed"),
        ],
        skipped=[{"runtime": "tensorrt", "reason": "there is no GPU"}],
        problems=["7 more cases: it broke"],
    )


def test_junit_has_a_test_for_each_row_and_each_runtime_that_was_skipped() -> None:
    root = ElementTree.fromstring(as_junit(mixed(), "build/layer0", command))
    assert root.tag == "testsuites"
    assert (root.get("tests"), root.get("failures"), root.get("skipped")) == ("5", "2", "1")
    suites = {suite.get("name"): suite for suite in root}
    assert set(suites) == {"onnxruntime", "eager", "tensorrt"}
    failures = root.findall(".//failure")
    assert [x.get("message") for x in failures][1].startswith("relative L2 nan, tolerance 1.0e-06")
    assert all("verify x --case" in x.text for x in failures)
    assert root.find(".//skipped").get("message") == "there is no GPU"


def test_junit_has_an_error_where_no_row_tells_the_verdict() -> None:
    nothing = Report(weights="proven", rows=[row(runtime="eager")])
    root = ElementTree.fromstring(as_junit(nothing, "x", command))
    assert root.get("errors") == "1"
    assert root.find(".//error").get("message").startswith("nothing compared")


def test_junit_is_xml_whatever_characters_an_error_has() -> None:
    report = mixed()
    report.skipped.append({"runtime": "web", "reason": "\x1b[31mno\x00\x1b[0m \N{MIDDLE DOT}"})
    root = ElementTree.fromstring(as_junit(report, "x", command))
    lost = "\N{REPLACEMENT CHARACTER}"
    reasons = [x.get("message") for x in root.findall(".//skipped")]
    assert reasons[1] == f"{lost}[31mno{lost}{lost}[0m \N{MIDDLE DOT}"


def test_markdown_has_the_verdict_then_what_failed() -> None:
    lines = as_markdown(mixed(), "build/layer_0", command).splitlines()
    assert lines[1] == "### ❌ build/layer\\_0"
    assert lines[3].startswith("**failed: 4 comparisons, 2 failed; weights proven.")
    tables = [line for line in lines if line.startswith("| onnxruntime")]
    assert len(tables) == 3
    assert "a\\|b \\<script\\>" in tables[0]
    assert {line.count(" | ") for line in tables} == {6}
    assert "verify x" in lines


def test_markdown_of_thousands_of_failures_fits_a_comment() -> None:
    report = Report(
        weights="proven",
        rows=[row(case=f"{x}x1, past 3, left padding", **FAILED) for x in range(3_000)],
        left_out=[f"corner {x} of a profile is too large" for x in range(900)],
    )
    text = as_markdown(report, "x", command)
    assert len(text) < 65_536
    assert "and 2960 failed rows more" in text


class Page(HTMLParser):
    """The elements of a page, and its text."""

    EMPTY = ("meta", "link", "br", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def found() -> Report:
    """A stack with a fault, and what a report can have besides."""

    def fault(outputs):
        outputs["logits"][-1, -1, -1] += 1e-3
        return outputs

    report = compare(ToySubject(decoder_interface("growing"), fault=fault), spread=True)
    assert report.status == "failed"
    tap = Tap(
        tensor="layers.0.q", value="q", metric="scaled max", error=0.1, tolerance=1e-6,
        status="failed",
    )  # fmt: skip
    report.located = (
        Located(
            case="2x5, past 0", runtime="toy", tensor="layers.0.q", value="q_1",
            where=(("head", 1), ("position", 3)), metric="scaled max", error=0.1, tolerance=1e-6,
            diagnosis="The pairs are rotated as if they were interleaved.", taps=(tap,),
        ),
    )  # fmt: skip
    report.problems.append("<b>a name</b> & another")
    return report


@pytest.fixture(scope="module")
def page(found) -> str:
    return as_html(found, "build/layer0", command, facts={"machine": "a < b"})


def test_the_page_is_whole_and_asks_for_nothing(page) -> None:
    read = Page(page)
    assert not read.open
    assert MARK in page[:400]
    names = [tag for tag, _ in read.elements]
    assert "script" not in names
    links = [
        value
        for _, attributes in read.elements
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "action", "data")
    ]
    assert links
    assert all(x.startswith(("data:", "#")) for x in links)
    assert not re.search(r"url\((?!#)|@import", page)
    (policy,) = [a["content"] for _, a in read.elements if "http-equiv" in a]
    assert "default-src 'none'" in policy


def test_the_page_begins_with_the_verdict_and_has_every_row(page, found) -> None:
    text = " ".join(Page(page).words)
    order = ["Failed", "failed: ", "first wrong tensor", "layers.0.q", "interleaved", "Every case"]
    places = [text.index(word, text.index("Failed")) for word in order]
    assert places == sorted(places)
    assert "<b>a name</b> & another" in text
    for case, runtime in {(one.case, one.runtime) for one in found.rows}:
        assert text.count(f"verify x --case '{case}' --runtime {runtime}") == 1


def test_a_page_of_nothing_and_of_no_numbers() -> None:
    """Nothing ran; and errors that are zero, infinite or none, of a run that grew."""
    nothing = Report(weights="proven", skipped=[{"runtime": "x", "reason": "there is no <GPU>"}])
    words = " ".join(Page(as_html(nothing, "x", command)).words)
    assert "Nothing compared" in words
    assert "skipped x: there is no <GPU>" in words
    rows = [row(error=0.0), *(row(case=str(x), error=x, **BAD) for x in (math.nan, math.inf))]
    report = Report(weights="proven", rows=rows)
    report.growth = Growth(
        file="base.json", factor=2.0, compared=3, vanished=(), gone=(),
        grown=(Grown(row=rows[1], recorded=1e-7),),
    )  # fmt: skip
    words = " ".join(Page(as_html(report, "x", command)).words)
    assert "Grown since the baseline" in words
    assert words.count("nan") >= 3
    zero = Report(weights="proven", rows=[row(error=0.0)])
    assert "Passed" in as_html(zero, "x", command)


def test_identifiers_are_unique_and_lead_somewhere(page) -> None:
    names = re.findall(r'\bid="([^"]+)"', page)
    assert len(names) == len(set(names))
    assert set(re.findall(r"(?:url\(|href=\")#([\w-]+)", page)) <= set(names)


def test_plots_take_their_colours_from_the_page(page) -> None:
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    drawn = page.replace(style, "")
    assert not re.findall(r"(?:fill|stroke): ?#", drawn)
    used = set(re.findall(r"var\((--[\w-]+)\)", drawn))
    light, dark = (set(re.findall(r"(--[\w-]+):", x)) for x in style.split("@media", 1))
    assert used <= light
    assert light - {"--tone", "--soft"} <= dark | {"--tone", "--soft"}


def test_a_map_shows_the_place_of_the_fault(found) -> None:
    """The last channel of the last token of the last row."""
    worst = found.spread.maps["toy", "logits"]
    assert worst.row.status == "failed"
    at = np.unravel_index(np.argmax(worst.values), worst.values.shape)
    assert at == tuple(size - 1 for size in worst.values.shape)
    assert worst.values.max() == pytest.approx(worst.row.used, rel=1e-6)
    assert [one.row.output for one in found.spread.worst()] == ["logits"]


def deviating(shape: tuple[int, ...], positions: np.ndarray) -> Deviating:
    difference = np.arange(math.prod(shape), dtype=float).reshape(shape)
    judged = np.ones(shape[:2], bool)
    return Deviating(
        difference=difference, bound=None, scale=1.0, judged=judged, positions=positions
    )


def test_a_large_output_is_pooled_and_keeps_its_largest_error() -> None:
    spread = Spread()
    call = deviating((3, 50, 7, 64), np.zeros((3, 50)))
    spread.add([row(metric="scaled max", tolerance=1.0)], call)
    (one,) = spread.worst()
    assert one.values.shape[0] <= TOKENS
    assert one.values.shape[1] <= PARTS
    assert one.values.shape[1] % one.heads == 0
    assert one.values.max() == call.difference.max()
    assert (one.heads, one.channels) == (7, 7 * 64)


def test_errors_lie_at_the_size_of_their_positions() -> None:
    positions = np.array([[0, -8, 2**20]])
    one = OverPositions()
    one.add(deviating((1, 3, 2), positions))
    assert one.error[bins(positions)].tolist() == [[1.0, 3.0, 5.0]]
    assert (one.error >= 0).sum() == 3


def test_what_is_no_number_is_larger_than_any_error() -> None:
    call = deviating((1, 2, 2), np.zeros((1, 2)))
    call.difference[0, 1, 1] = np.nan
    spread = Spread()
    spread.add([row(metric="scaled max", error=math.nan, status="failed")], call)
    (one,) = spread.worst()
    assert np.isinf(one.values.max())


def test_names_in_plots_are_no_formulas() -> None:
    """As matplotlib takes what stands between two dollars for one."""
    assert "a$\\frac{$b" in errors_plot([row(output="a$\\frac{$b")])


@pytest.mark.parametrize(
    ("errors", "shown"),
    [((1e-6, 0.5), {"10⁻⁶", "10⁻³", "10⁻¹"}), ((1.2e-6, 2.5e-6), {"2·10⁻⁶"})],
    ids=["decades", "within one"],
)
def test_powers_on_axes_are_plain_text(errors: tuple[float, ...], shown: set[str]) -> None:
    rows = [row(case=str(x), metric="relative L2", error=x, tolerance=1e-5) for x in errors]
    labels = set(re.findall(r">([^<>]*)</text>", errors_plot(rows)))
    assert shown <= labels
    assert not any("$" in label for label in labels)
