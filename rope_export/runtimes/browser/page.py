"""A page in headless Chromium, driven by Playwright from a thread of its own."""

import asyncio
import atexit
import os
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import numpy as np

from rope_export.errors import RopeExportError, UnavailableError
from rope_export.runtimes.browser import chromium, package
from rope_export.runtimes.browser.server import Buffer, Loopback

HERE = Path(__file__).parent

ALIGNED = 8
"""Bytes; tensors lie one after the other, each at a multiple of it."""

SECONDS = 180
"""Until a browser that does not start, or does not end, is given up."""

REFUSED = "ERROR_CODE"
"""In every error that onnxruntime itself reports, after which it goes on. Any other leaves a page
behind whose memory nobody knows the state of."""


class Page:
    """One page with onnxruntime-web, for any number of sessions; answers one request at a time.

    threads: of its sessions together; all cores unless given. process: the one that it belongs to.
    broken: whether it failed otherwise than by an error that onnxruntime reports.
    """

    def __init__(self, threads: int | None = None) -> None:
        """Raises: UnavailableError if the browser does not start, or the package cannot be had."""
        dist = package.folder() / "dist"
        files = {name: dist / name for name in package.FILES}
        self.threads, self.process, self.broken = threads, os.getpid(), False
        self._released: list[int] = []
        self._calls = 0
        self._server = Loopback(files | {n: HERE / n for n in ("page.html", "page.js")})
        self._lock = Lock()
        self._loop = asyncio.new_event_loop()
        Thread(target=_run, args=(self._loop,), daemon=True, name="rope_export browser").start()
        self._driver: Any = None
        self._closed = False
        atexit.register(self.close)
        try:
            self._wait(self._start(f"{self._server.url}page.html"))
        except BaseException as error:
            self.close()
            if not isinstance(error, Exception):
                raise
            reason = said(error)
            raise UnavailableError(f"runtime 'web': Chromium did not start: {reason}.") from error

    def close(self) -> None:
        """End the browser and what serves it; in a process that was forked off, nothing."""
        if self._closed or self.process != os.getpid():
            return
        self._closed = self.broken = True
        atexit.unregister(self.close)
        if self._driver is not None:
            with suppress(Exception):  # what has crashed is gone already
                asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._server.close()

    def open(self, model: Buffer, data: tuple[str, Buffer] | None = None) -> int:
        """Open a model. data: the name of the file of its weights, and its bytes.

        Returns: the number of its session.
        """
        served = {"model.onnx": [model]} | ({} if data is None else {data[0]: [data[1]]})
        with self._call(served) as call:
            facts = {"threads": self.threads, "data": data and data[0]}
            session: int = self._ask("open", call=call, **facts)
        return session

    def run(
        self,
        session: int,
        inputs: Mapping[str, np.ndarray | int],
        kept: Sequence[str] = (),
        dropped: Sequence[int] = (),
    ) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """One call: the outputs, and the numbers of those that are kept in the page.

        inputs: arrays, or numbers of tensors that are kept there. dropped: numbers of those that
        it may forget.
        """
        arrays = {n: x for n, x in inputs.items() if not isinstance(x, int)}
        facts: list[dict[str, Any]] = [
            {"name": name, "dtype": x.dtype.name, "shape": x.shape} for name, x in arrays.items()
        ]
        facts += [{"name": n, "number": x} for n, x in inputs.items() if isinstance(x, int)]
        request = {"inputs": facts, "kept": list(kept), "dropped": list(dropped)}
        with self._call({"inputs": list(_aligned(arrays.values()))}) as call:
            answer = self._ask("run", call=call, session=session, **request)
            return self._sent(call, answer["outputs"]), answer["numbers"]

    def give(self, session: int, number: int) -> np.ndarray:
        """A tensor that is kept in the page."""
        with self._call({}) as call:
            answer = self._ask("give", call=call, session=session, number=number)
            (array,) = self._sent(call, answer["outputs"]).values()
        return array

    def release(self, session: int) -> None:
        """Release a session and what is kept of it, with the next request: it may be released by
        whatever collects garbage, in the middle of another."""
        self._released.append(session)

    @contextmanager
    def _call(self, parts: Mapping[str, Sequence[Buffer]]) -> Iterator[int]:
        """The number of a call, below which `parts` are served and outputs are awaited meanwhile:
        one that was interrupted goes on in the page, and must not be taken for the next one."""
        server = self._server
        with self._lock:
            self._calls += 1
            number = self._calls
            served = {f"{number}/{name}": part for name, part in parts.items()}
            server.served.update(served)
            server.received[f"{number}/outputs"] = bytearray()
            try:
                yield number
            finally:
                del server.received[f"{number}/outputs"]
                for name in served:
                    server.served.pop(name, None)

    def _ask(self, to: str, **request: Any) -> Any:
        """Raises: RopeExportError with what onnxruntime-web or the browser says."""
        if self._closed or self.process != os.getpid():
            raise RopeExportError("its browser belongs to another process, or was closed")
        released = [self._released.pop() for _ in range(len(self._released))]
        request |= {"to": to, "released": released}
        try:
            return self._wait(self._page.evaluate("x => answer(x)", request))
        except BaseException as error:  # an interrupt leaves half a call behind
            reason = said(error)
            self.broken = self.broken or REFUSED not in reason
            if not isinstance(error, Exception):
                raise
            raise RopeExportError(reason) from error

    async def _start(self, url: str) -> None:
        """Start the browser, with the page at `url` in it."""
        from playwright.async_api import async_playwright

        self._driver = await async_playwright().start()
        self._browser = await self._driver.chromium.launch(
            executable_path=chromium.program(),
            args=list(chromium.OPTIONS),
            timeout=SECONDS * 1000,
            handle_sigint=False,  # an interrupt is Python's to handle
        )
        self._page = await self._browser.new_page()
        wrong: list[str] = []
        self._page.on("pageerror", lambda error: wrong.append(str(error)))
        await self._page.goto(url, timeout=SECONDS * 1000)
        if not await self._page.evaluate("typeof answer === 'function'"):
            raise RuntimeError(wrong[0] if wrong else "its page did not load")

    async def _stop(self) -> None:
        with suppress(Exception):
            await self._browser.close()
        await self._driver.stop()

    def _wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _sent(self, call: int, facts: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """What the page sent in a call."""
        body = self._server.received[f"{call}/outputs"]
        return {
            x["name"]: np.frombuffer(
                body, x["dtype"], count=int(np.prod(x["shape"])), offset=x["at"]
            ).reshape(x["shape"])
            for x in facts
        }


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _aligned(arrays: Iterable[np.ndarray]) -> Iterator[Buffer]:
    for array in arrays:
        if array.size:
            yield np.ascontiguousarray(array)
            yield bytes(-array.nbytes % ALIGNED)


def said(error: BaseException) -> str:
    """What an error of the page or of Playwright says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    return first.removeprefix("Page.evaluate: ").removeprefix("Error: ").rstrip(".")
