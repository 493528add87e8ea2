"""Where Chromium lies, and how it is started."""

import os
import shutil

VARIABLE = "ROPE_EXPORT_CHROMIUM"
"""Names the program, where it is not found by itself."""

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

OPTIONS = (
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
"""Without a word to anybody but the page's own server."""


def program() -> str | None:
    """The path of Chromium, if there is one."""
    named = os.environ.get(VARIABLE)
    if named:
        return shutil.which(named)
    return next(filter(None, map(shutil.which, NAMES)), None)


def missing() -> str | None:
    """Why there is no Chromium, or nothing if there is."""
    if program() is not None:
        return None
    named = os.environ.get(VARIABLE)
    if named:
        return f"{VARIABLE}={named!r} is no program; it must name Chromium's or Chrome's"
    return (
        f"Chromium is not installed; install it (Debian's package is called chromium), or name "
        f"its program by {VARIABLE}"
    )
