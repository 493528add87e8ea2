"""Results on the disk, each under a key that stands for all that it depends on."""

import hashlib
import importlib.metadata
import json
import platform
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec

PACKAGE = Path(__file__).parents[1]

VERSIONS = (
    *("huggingface_hub", "ml_dtypes", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu"),
    *("onnxscript", "openvino", "tensorrt", "tensorrt_rtx", "torch", "transformers"),
)
"""Distributions whose version a result depends on."""

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True)
class Store:
    """JSON files in a folder, each written whole or not at all."""

    folder: Path

    def get(self, key: str, kind: type[T]) -> T | None:
        """The value of that key; None where there is none, or none of that type."""
        try:
            text = (self.folder / f"{key}.json").read_text(encoding="utf-8")
            return msgspec.convert(json.loads(text), kind)
        except (OSError, ValueError):
            return None

    def put(self, key: str, value: Any) -> None:
        """Keeps a value that `msgspec.to_builtins` can express; infinities and NaN stay."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(msgspec.to_builtins(value, enc_hook=_plain))
        with tempfile.NamedTemporaryFile(
            "w", dir=self.folder, suffix=".tmp", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
        Path(file.name).replace(self.folder / f"{key}.json")


def settled(value: Any, kind: type[T]) -> T:
    """The value as the store would give it back: of plain numbers, lists as its type has them."""
    return msgspec.convert(msgspec.to_builtins(value, enc_hook=_plain), kind)


def _plain(value: Any) -> Any:
    """A number of numpy's, or text of a derived class, as Python's own.

    Raises: NotImplementedError for anything else.
    """
    if isinstance(value, str):
        return str(value)
    if hasattr(value, "item"):
        return value.item()
    raise NotImplementedError


def finished(keys: Mapping[K, str], kind: type[T], store: Store) -> dict[K, T]:
    """The values that are in the store, by item. keys: of the items."""
    values = ((name, store.get(key, kind)) for name, key in keys.items())
    return {name: value for name, value in values if value is not None}


def digest(*parts: object) -> str:
    """A name for what `repr` shows of the parts."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@cache
def code_digest() -> str:
    """Changes with the code of this package, and with the versions of what it runs on."""
    return files_digest(x for x in PACKAGE.rglob("*") if x.suffix in (".py", ".json", ".js"))


def files_digest(paths: Iterable[Path]) -> str:
    """Changes with the files, and with the versions of what they run on."""
    versions = [platform.python_version(), *(_version(name) for name in VERSIONS)]
    files = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in sorted(paths)]
    return digest(versions, files)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
