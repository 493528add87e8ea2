"""The server of a page: on the loopback interface, below a path that others cannot guess."""

import secrets
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from threading import Thread
from typing import Any, TypeAlias

Buffer: TypeAlias = Any
"""Anything with bytes in memory."""

TYPES = {".html": "text/html; charset=utf-8", ".wasm": "application/wasm"}
TYPES |= dict.fromkeys((".js", ".mjs"), "text/javascript; charset=utf-8")

HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' blob: 'wasm-unsafe-eval'; worker-src 'self' blob:; "
        "connect-src 'self'"
    ),
}
"""With the second to the fourth a page may use several threads; with the last it talks to nobody
else."""


class Loopback:
    """Serves files, and bytes in memory, to one page, and takes what the page sends.

    files: by their names. served: bytes in memory, in parts, by the name that the page asks for.
    received: what the page sent, by the name that it sends it to; other names are not awaited.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.files = dict(files)
        self.served: dict[str, Sequence[Buffer]] = {}
        self.received: dict[str, bytearray] = {}
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.page = self
        self.base = f"/{secrets.token_urlsafe(24)}/"
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}{self.base}"
        Thread(target=self._server.serve_forever, daemon=True, name="rope_export page").start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.served.clear()


class _Server(ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    page: Loopback

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Does nothing: a page that is closed leaves connections behind."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        page, name = self.server.page, self._name()
        if name in page.files:
            parts: Sequence[Buffer] = [page.files[name].read_bytes()]
        elif name in page.served:
            parts = page.served[name]
        else:
            return self.send_error(404)
        self._answer(name, parts)

    def do_POST(self) -> None:
        page, name = self.server.page, self._name()
        if name is None:
            return self.send_error(404)
        body = bytearray(int(self.headers["Content-Length"]))
        left = memoryview(body)
        while left:
            count = self.rfile.readinto(left)
            if not count:
                return None
            left = left[count:]
        if name not in page.received:  # of a call that was given up
            return self.send_error(404)
        page.received[name] = body
        self._answer("", [])

    def _name(self) -> str | None:
        """The name that is asked for, if it lies below the page's own path."""
        base = self.server.page.base
        return self.path.removeprefix(base) if self.path.startswith(base) else None

    def _answer(self, name: str, parts: Sequence[Buffer]) -> None:
        views = [memoryview(part).cast("B") for part in parts]
        self.send_response(200)
        for key, value in HEADERS.items():
            self.send_header(key, value)
        self.send_header("Content-Type", TYPES.get(Path(name).suffix, "application/octet-stream"))
        self.send_header("Content-Length", str(sum(view.nbytes for view in views)))
        self.end_headers()
        for view in views:
            self.wfile.write(view)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Does nothing: nobody reads a log."""
