"""A page in Chromium that runs onnxruntime-web, and what lies between it and Python."""

from rope_export.runtimes.browser import chromium, package
from rope_export.runtimes.browser.page import Page

__all__ = ["Page", "chromium", "package"]
