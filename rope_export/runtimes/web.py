"""onnxruntime-web: WebAssembly in a page of headless Chromium, as a user's browser would run it."""

import os
import weakref
from collections.abc import Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar

from rope_export.arrays import check_on_cpu, is_torch, to_numpy, to_torch
from rope_export.artifacts.contents import DATA
from rope_export.errors import ArtifactError, RopeExportError
from rope_export.runtimes.base import Compute, NeedsPackages, Runner, older, written
from rope_export.runtimes.browser import Page, chromium, package

if TYPE_CHECKING:
    import numpy as np

    from rope_export.arrays import Array
    from rope_export.artifacts.folder import Folder
    from rope_export.interface import Interface

LARGEST = 1 << 31
"""Bytes of an artifact's files: WebAssembly has 4 GiB of memory, and holds weights twice while it
packs them."""

ALONE = 1 << 26
"""Bytes of files above which an artifact has a page of its own, which gives memory back: that of
WebAssembly never shrinks."""

OPENING = Lock()
_SHARED: dict[int | None, Page] = {}
"""Pages of this process for small artifacts, by their threads: a browser takes seconds to start, so
it stays until the process ends."""

_LET_GO: list[Page] = []
"""Pages whose only session was forgotten without being closed. They are closed by the next open:
whatever collects garbage may be a thread that closing waits for."""


class WebRuntime(NeedsPackages):
    name = "web"
    needs: ClassVar[Mapping[str, str]] = {"playwright": "web"}

    def unavailable(self, artifact: "Folder | None" = None) -> str | None:
        """Neither starts the browser nor asks the network."""
        reason = self.missing() or chromium.missing() or package.missing()
        if reason or artifact is None:
            return reason
        manifest, version = artifact.manifest, package.version()
        required = manifest.needs.get("onnxruntime")
        if required is not None and older(version, required):
            return (
                f"lowering {manifest.lowering!r} needs onnxruntime {required} or newer; "
                f"onnxruntime-web is {version}. Export with lowering 'standard' or 'portable'"
            )
        if manifest.dtype == "bfloat16":
            return (
                "onnxruntime-web has no bfloat16 tensors; use runtime 'reference', or export with "
                "dtype 'float32' or 'float16'"
            )
        size = _size(artifact)
        if size > LARGEST:
            return (
                f"the artifact has {size / 1e9:.1f} GB; WebAssembly has 4 GiB of memory, which "
                f"takes files of up to {LARGEST / 1e9:.1f} GB"
            )
        return None

    def open(self, artifact: "Folder", threads: int | None = None) -> Runner:
        """Raises: ArtifactError if onnxruntime-web refuses the model, or its files were changed;
        UnavailableError if the browser does not start, or its package cannot be had."""
        files = artifact.read()
        data = None if files.data is None else (DATA, files.data)
        with OPENING:
            for _ in range(len(_LET_GO)):
                _LET_GO.pop().close()
            alone = _size(artifact) > ALONE
            page, session = Page(threads) if alone else _shared(threads), None
            try:
                session = page.open(files.model, data)
                files.check()
            except BaseException as error:
                if alone:
                    page.close()
                elif session is not None:
                    page.release(session)
                if not isinstance(error, RopeExportError) or isinstance(error, ArtifactError):
                    raise
                refusal = f"{artifact.model}: onnxruntime-web refuses it: {error}."
                raise ArtifactError(refusal) from error
        return WebRunner(artifact.manifest.interface, page, session, alone=alone)

    def compute(self, model: bytes, threads: int | None = None) -> Compute:
        with OPENING:
            page = _shared(threads)
            try:
                session = page.open(model)
            except RopeExportError as error:
                raise ArtifactError(f"onnxruntime-web refuses a model: {error}.") from error
        return _Computed(page, session)


class _Computed:
    """A model in a page, which releases it with the last reference to this."""

    def __init__(self, page: Page, session: int) -> None:
        self._page, self._session = page, session
        weakref.finalize(self, page.release, session).atexit = False

    def __call__(self, inputs: "dict[str, np.ndarray]") -> "dict[str, np.ndarray]":
        try:
            return self._page.run(self._session, inputs)[0]
        except RopeExportError as error:
            raise RopeExportError(f"onnxruntime-web failed: {error}.") from error


def _shared(threads: int | None) -> Page:
    """The page for small artifacts; a new one where there is none that is whole."""
    page = _SHARED.get(threads)
    if page is None or page.broken or page.process != os.getpid():
        if page is not None:
            page.close()
        page = _SHARED[threads] = Page(threads)
    return page


def _size(artifact: "Folder") -> int:
    return sum(file.bytes for file in artifact.manifest.files.values())


class Kept:
    """A cache that stays in the page, by its number there. of_torch: whether it is to be a tensor
    of torch's wherever it leaves the page."""

    def __init__(self, number: int, *, of_torch: bool) -> None:
        self.number, self.of_torch = number, of_torch


class WebRunner(Runner):
    """A session in a page. Bytes cross; growing caches of a stream stay in the page."""

    def __init__(self, interface: "Interface", page: Page, session: int, *, alone: bool) -> None:
        self._interface, self._session, self._alone = interface, session, alone
        self._page: Page | None = page
        self._dropped: list[int] = []
        let_go = (_LET_GO.append, page) if alone else (page.release, session)
        self._let_go = weakref.finalize(self, *let_go)
        self._let_go.atexit = False

    def run(
        self, inputs: "Mapping[str, Array]", axes: Mapping[str, int], into: "Mapping[str, Array]"
    ) -> "dict[str, Array]":
        outputs, _ = self._called(inputs, {}, ())
        return written(outputs, into)

    def follow(
        self,
        inputs: "Mapping[str, Array]",
        caches: Mapping[str, Any],
        pairs: Mapping[str, str],
        axes: Mapping[str, int],
    ) -> "tuple[dict[str, Array], dict[str, Any]]":
        """The caches stay in the page."""
        outputs, numbers = self._called(inputs, caches, tuple(pairs.values()))
        of_torch = is_torch(inputs[self._interface.main_input])
        kept = {before: Kept(numbers[after], of_torch=of_torch) for before, after in pairs.items()}
        for cache in kept.values():
            weakref.finalize(cache, self._dropped.append, cache.number)
        return outputs, kept

    def array(self, cache: Any) -> "Array":
        if not isinstance(cache, Kept):
            return super().array(cache)
        array = self._open().give(self._session, cache.number)
        return to_torch(array) if cache.of_torch else array

    def _called(
        self, inputs: "Mapping[str, Array]", caches: Mapping[str, Any], kept: tuple[str, ...]
    ) -> "tuple[dict[str, Array], dict[str, int]]":
        """The outputs of one call, of the kind of the main input, and the numbers of those kept."""
        page, held = self._open(), {n: x for n, x in caches.items() if isinstance(x, Kept)}
        given = {**inputs, **{n: x for n, x in caches.items() if n not in held}}
        check_on_cpu("web", given)
        feeds: dict[str, np.ndarray | int] = {n: to_numpy(x) for n, x in given.items()}
        feeds |= {name: cache.number for name, cache in held.items()}
        dropped = [self._dropped.pop() for _ in range(len(self._dropped))]
        try:
            arrays, numbers = page.run(self._session, feeds, kept, dropped)
        except RopeExportError as error:
            raise RopeExportError(f"onnxruntime-web failed: {error}.") from error
        of_torch = is_torch(inputs[self._interface.main_input])
        return {n: to_torch(x) if of_torch else x for n, x in arrays.items()}, numbers

    def _open(self) -> Page:
        """Raises: RopeExportError if the session was closed."""
        if self._page is None:
            raise RopeExportError("the session is closed.")
        return self._page

    def close(self) -> None:
        page, self._page = self._page, None
        if page is None:
            return
        self._let_go.detach()
        if self._alone:
            page.close()
        else:
            page.release(self._session)


RUNTIMES = (WebRuntime(),)
