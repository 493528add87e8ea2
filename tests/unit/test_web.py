"""The runtime `web`: onnxruntime-web in a real Chromium, and what is said where it cannot be."""

import asyncio
import gc
import os
import stat
import tarfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import onnx.parser
import pytest
import torch

from rope_export import RopeExportError, open_session, verify
from rope_export.artifacts.contents import Contents
from rope_export.errors import ArtifactError, UnavailableError
from rope_export.runtimes import find_runtime
from rope_export.runtimes import web as runtime_file
from rope_export.runtimes.browser import Page, chromium, package
from rope_export.sessions import Session
from tests.unit.test_exporter import call


@pytest.fixture(scope="module")
def page() -> Page:
    """The page that small artifacts share; where it cannot be had, tests are skipped."""
    reason = find_runtime("web").unavailable()
    if reason is not None:
        pytest.skip(f"runtime 'web': {reason}")
    try:
        return runtime_file._shared(None)
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture
def opened(page, tiny) -> Session:
    with open_session(tiny(), "web") as session:
        yield session


USUAL = ("portable", "none", True, "float32")
KINDS = [
    pytest.param(lowering, cache, padding, dtype, marks=marks)
    for lowering in ("portable", "standard")
    for cache in ("none", "growing", *(("fixed",) if lowering == "standard" else ()))
    for padding in (False, True)
    for dtype in ("float32", "float16")
    for marks in [() if (lowering, cache, padding, dtype) == USUAL else pytest.mark.long]
]


@pytest.mark.usefixtures("short_prompts")
@pytest.mark.parametrize(("lowering", "cache", "padding", "dtype"), KINDS)
def test_it_is_inside_of_the_tolerance(page, tiny, lowering, cache, padding, dtype) -> None:
    report = verify(tiny(lowering, dtype, cache, padding), runtimes=["web"])
    assert report.passed, report.problems


def test_one_artifact_on_every_runtime_in_one_table(page, tiny) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    names = ["onnxruntime", "reference", "openvino", "web"]
    few = ["3x7, past 0", "1x1, past 7", "rows of a batch against single rows"]
    report = verify(tiny("standard"), runtimes=names, cases=few)
    assert report.passed, report.problems
    assert not report.skipped
    cases = {name: {(x.case, x.output) for x in report.rows if x.runtime == name} for name in names}
    assert all(cases[name] == cases["onnxruntime"] for name in names)


def test_what_it_computes_is_what_onnxruntime_computes(opened, tiny) -> None:
    with open_session(tiny()) as native:
        for sizes in [(1, 1, 0), (3, 5, 2)]:
            inputs = call(*sizes)
            tensors = {name: torch.from_numpy(x) for name, x in inputs.items()}
            found, expected = opened.run(inputs), native.run(inputs)
            for name, value in opened.run(tensors).items():
                assert isinstance(value, torch.Tensor)
                np.testing.assert_array_equal(value.numpy(), found[name])
                np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=64 * 2**-23)


def test_the_caches_of_a_stream_stay_in_the_page(opened) -> None:
    whole, runner = call(2, 9, 0), opened.runner
    crossed = []

    def run(session, inputs, kept, dropped):
        outputs, numbers = Page.run(runner._page, session, inputs, kept, dropped)
        crossed.append(({n for n, x in inputs.items() if isinstance(x, int)}, set(outputs)))
        return outputs, numbers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner._page, "run", run)
        expected = opened.run(whole)
        stream = opened.start(batch=2)
        parts = [stream.step(whole["hidden_states"][:, at : at + 3]) for at in (0, 3, 6)]
    caches = {"past_key", "past_value"}
    assert [kept for kept, _ in crossed] == [set(), set(), caches, caches]
    assert all(outputs == {"attention_output"} for _, outputs in crossed[1:])
    # Sums of at most 64 terms of order 1.
    close = {"rtol": 0, "atol": 64 * 2**-23}
    np.testing.assert_allclose(np.concatenate(parts, 1), expected["attention_output"], **close)
    np.testing.assert_allclose(stream._caches.tensors["past_key"], expected["present_key"], **close)


def test_a_cache_that_was_followed_is_let_go(opened) -> None:
    runner, inputs = opened.runner, call(1, 2, 0)
    caches = {name: inputs.pop(name) for name in ("past_key", "past_value")}
    pairs = {"past_key": "present_key", "past_value": "present_value"}
    _, first = runner.follow(inputs, caches, pairs, {})
    assert runner.array(first["past_key"]).shape == (1, 2, 2, 16)
    number = first["past_key"].number
    _, second = runner.follow(inputs, first, pairs, {})
    del first
    gc.collect()
    runner.follow(inputs, second, pairs, {})
    with pytest.raises(RopeExportError):
        Page.give(runner._page, runner._session, number)
    runner._page.broken = False  # what was asked for was wrong, not the page


def test_an_error_of_onnxruntime_is_one_line_and_the_page_goes_on(opened) -> None:
    page, session = opened.runner._page, opened.runner._session
    inputs = call(2, 3, 4)
    wrong = {**inputs, "past_key": inputs["past_key"][:, :1]}
    with pytest.raises(RopeExportError, match=r"onnxruntime-web failed: .*ERROR_CODE") as error:
        opened.runner.run(wrong, {}, {})
    assert "\n" not in str(error.value)
    assert not page.broken
    assert page.run(session, inputs)[0].keys() == opened.run(inputs).keys()


HELD = """() => {
  const real = globalThis.fetch;
  globalThis.fetch = async (url, options) => {
    if (!options) return real(url);
    globalThis.fetch = real;
    await new Promise((go) => (globalThis.go = go));
    const response = await real(url, options);
    globalThis.went();
    return response;
  };
}"""
"""Holds what the page sends next until `go` is called, which `went` follows."""

GO = "() => new Promise((went) => { globalThis.went = went; globalThis.go(); })"


def test_outputs_of_a_call_that_was_interrupted_are_nobodys(page, monkeypatch) -> None:
    """The page cannot be stopped in the middle of a call: it sends its outputs later, here after
    those of the next one."""
    negated = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 18]> g (float[n] x) => (float[n] y) { y = Neg(x) }'
    )
    session, wait = page.open(negated.SerializeToString()), page._wait
    wait(page._page.evaluate(HELD))

    def interrupted(coroutine):
        asyncio.run_coroutine_threadsafe(coroutine, page._loop)
        while not wait(page._page.evaluate("() => Boolean(globalThis.go)")):
            time.sleep(0.01)
        raise KeyboardInterrupt

    def before_that(coroutine):
        answer = wait(coroutine)
        wait(page._page.evaluate(GO))
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(page, "_wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            page.run(session, {"x": np.ones(4, np.float32)})
        patch.setattr(page, "_wait", before_that)
        outputs, _ = page.run(session, {"x": np.full(4, 2.0, np.float32)})
    page.release(session)
    page.broken = False  # whose next sessions other tests open
    np.testing.assert_array_equal(outputs["y"], np.full(4, -2.0))


@pytest.mark.long
def test_a_page_that_crashed_is_not_used_again(page, tiny) -> None:
    with open_session(tiny(), "web", threads=2) as session:
        assert session.run(call(1, 1, 0))
        broken = session.runner._page
        assert broken is not page
        broken._wait(broken._page.close())
        with pytest.raises(RopeExportError, match=r"onnxruntime-web failed: .*closed"):
            session.run(call(1, 1, 0))
    with open_session(tiny(), "web", threads=2) as session:
        assert session.runner._page is not broken
        assert session.run(call(1, 1, 0))
    runtime_file._SHARED.pop(2).close()
    broken.close()


def test_a_model_whose_files_were_changed_does_not_stay_in_the_page(page, tiny) -> None:
    artifact = tiny()

    def changed(files):
        raise ArtifactError("it was changed meanwhile")

    page._released.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Contents, "check", changed)
        with pytest.raises(ArtifactError, match="meanwhile"):
            find_runtime("web").open(artifact)
    assert len(page._released) == 1


def test_a_closed_session_says_so(page, tiny) -> None:
    session = open_session(tiny(), "web")
    session.close()
    session.close()
    with pytest.raises(RopeExportError, match="closed"):
        session.run(call(1, 1, 0))


def test_the_page_is_isolated_and_talks_to_its_server_alone(page) -> None:
    """Threads of WebAssembly need the first; the second is checked with a server beside it."""
    assert page._wait(page._page.evaluate("crossOriginIsolated"))
    url = page._server.url
    with urllib.request.urlopen(f"{url}page.js") as answer:
        assert b"globalThis.answer" in answer.read()
    for other in (url.rsplit("/", 2)[0] + "/page.js", f"{url}../page.js", f"{url}nothing"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(other)
    beside = "fetch(x, {mode: 'no-cors'}).then(() => 'reached', error => error.name)"
    for other in ("http://127.0.0.1:9/", "http://example.com/"):
        assert page._wait(page._page.evaluate(f"x => {beside}", other)) == "TypeError"


def no_browser(*_: object, **__: object) -> None:
    raise AssertionError("a browser was started")


@pytest.fixture
def asked(monkeypatch) -> pytest.MonkeyPatch:
    """A machine with everything, on which no browser may start."""
    pytest.importorskip("playwright", reason="Playwright is not installed")
    monkeypatch.setattr(runtime_file, "Page", no_browser)
    monkeypatch.setattr(chromium, "missing", lambda: None)
    monkeypatch.setattr(package, "missing", lambda: None)
    monkeypatch.delenv(package.VARIABLE, raising=False)
    return monkeypatch


def test_what_it_cannot_run_is_refused_by_name_without_a_browser(asked, tiny) -> None:
    web = find_runtime("web")
    assert web.unavailable(tiny()) is None
    assert "bfloat16" in web.unavailable(tiny("standard", "bfloat16"))
    assert "needs onnxruntime 1.32" in web.unavailable(tiny("ort"))
    asked.setattr(runtime_file, "_size", lambda artifact: 5_000_000_000)
    with pytest.raises(UnavailableError, match=r"5\.0 GB.*4 GiB"):
        open_session(tiny(), "web")


def test_what_is_missing_is_named(monkeypatch, tmp_path, tiny) -> None:
    pytest.importorskip("playwright", reason="Playwright is not installed")
    web = find_runtime("web")
    for variable in (chromium.VARIABLE, package.VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ROPE_EXPORT_CACHE", str(tmp_path / "cache"))
    assert "Chromium is not installed" in web.unavailable()
    program(tmp_path / "chromium", "exit 3")
    assert "npm" in web.unavailable()
    monkeypatch.setenv(package.VARIABLE, str(tmp_path))
    assert "has no package.json" in web.unavailable()
    monkeypatch.setenv(chromium.VARIABLE, "nothing")
    assert "'nothing' is no program" in web.unavailable()
    monkeypatch.setattr(runtime_file.WebRuntime, "needs", {"no_such_package": "web"})
    assert "pip install 'rope_export[web]'" in web.unavailable()
    with pytest.raises(UnavailableError, match="runtime 'web': the package 'no_such_package'"):
        open_session(tiny(), "web")


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def npm(monkeypatch, tmp_path) -> Path:
    """A stand-in for npm, first on the path, and an empty cache."""
    monkeypatch.delenv(package.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("ROPE_EXPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "npm"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"version": "next"}'])
def test_a_package_without_a_version_is_named(text, tmp_path, monkeypatch) -> None:
    (tmp_path / "dist").mkdir()
    for name in package.FILES:
        (tmp_path / "dist" / name).touch()
    (tmp_path / "package.json").write_text(text)
    monkeypatch.setenv(package.VARIABLE, str(tmp_path))
    assert "its package.json tells no version" in str(package.missing())
    (tmp_path / "package.json").write_text('{"version": "1.31.0-dev"}')
    assert (package.missing(), package.version()) == (None, "1.31.0-dev")


def test_npm_that_fails_is_one_line(npm, tmp_path) -> None:
    program(npm, "echo 'npm error code ENOTFOUND' >&2; echo more >&2; exit 1")
    with pytest.raises(UnavailableError, match=r"npm pack onnxruntime-web.*ENOTFOUND.*by ROPE_EX"):
        package.folder()
    assert list((tmp_path / "cache").iterdir()) == []


def test_another_package_than_the_known_one_is_refused(npm, tmp_path) -> None:
    with tarfile.open(tmp_path / "other.tgz", "w:gz") as archive:
        archive.add(__file__, "package/package.json")
    program(npm, f"cp '{tmp_path}/other.tgz' .")
    with pytest.raises(UnavailableError, match="sha512"):
        package.folder()
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_browser_that_does_not_start_is_one_line(page, monkeypatch, tmp_path) -> None:
    program(tmp_path / "broken", "echo no display >&2; exit 3")
    monkeypatch.setenv(chromium.VARIABLE, str(tmp_path / "broken"))
    with pytest.raises(
        UnavailableError, match=r"^runtime 'web': Chromium did not start: "
    ) as error:
        Page(1)
    assert "\n" not in str(error.value)
