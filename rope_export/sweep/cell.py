"""A cell: one artifact on one runtime."""

import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rope_export.sweep.matrix import PLAIN


@dataclass(frozen=True, kw_only=True)
class Export:
    """How one artifact is made: a source and the options of `export` or `export_decoder`.

    name: the source's, short. path: its whole path, or hub id. layer: none for a whole decoder.
    lowering: "auto" is what it came to.
    """

    name: str
    path: str
    layer: int | None
    lowering: str
    cache: Literal["none", "growing", "fixed"]
    dtype: Literal["float32", "float16", "bfloat16"]
    weights: str = PLAIN
    padding: bool = False
    part: str | None = None
    adapter: str | None = None
    seed: int = 0
    block_size: int = 32
    accuracy_level: int = 4
    logits: Literal["last", "all"] = "last"

    @property
    def title(self) -> str:
        """The artifact in a line, another one for each."""
        what = "decoder" if self.layer is None else f"layer {self.layer}"
        parts = [f"{self.name} {what}", self.lowering, self.cache, self.dtype]
        parts += [] if self.weights == PLAIN else [self.weights]
        parts += ["padding"] if self.padding else []
        parts += [] if self.part is None else [self.part]
        parts += [] if self.adapter is None else [f"adapter {self.adapter}"]
        return ", ".join(parts)

    @property
    def decoder(self) -> bool:
        return self.layer is None

    def facts(self, runtime: str | None = None) -> dict[str, Any]:
        """By the keys of a rule of `exclude`."""
        facts: dict[str, Any] = {
            "source": self.path,
            "decoder": self.decoder,
            "lowering": self.lowering,
            "cache": self.cache,
            "dtype": self.dtype,
            "weights": self.weights,
            "padding": self.padding,
        }
        facts |= {} if self.layer is None else {"layer": self.layer}
        return facts if runtime is None else facts | {"runtime": runtime}

    def options(self) -> dict[str, Any]:
        """Keywords of `export` or `export_decoder`, without the source and `out`."""
        options: dict[str, Any] = {
            "lowering": self.lowering,
            "cache": self.cache,
            "dtype": self.dtype,
            "weights": None if self.weights == PLAIN else self.weights,
            "block_size": self.block_size,
            "accuracy_level": self.accuracy_level,
            "seed": self.seed,
            "adapter": self.adapter,
        }
        if self.decoder:
            return options | {"logits": self.logits}
        return options | {"layer": self.layer, "part": self.part, "padding": self.padding}

    def command(self, out: str) -> str:
        """The command that makes it again."""
        return shlex.join(["rope-export", "export", self.path, *self._flags(), "--out", out])

    def _flags(self) -> Iterator[str]:
        yield from ["--decoder"] if self.decoder else ["--layer", str(self.layer)]
        for name, value in self.options().items():
            if name in ("layer", "padding") or value in (None, DEFAULTS.get(name)):
                continue
            yield from (f"--{name.replace('_', '-')}", str(value))
        yield from ["--padding"] if self.padding else []
        yield "--no-verify"

    def folder(self, out: Path) -> Path:
        """Where the artifact is kept."""
        words = self.title.replace("/", "_").replace(", ", "-").replace(" ", "-")
        return out / "artifacts" / words

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


DEFAULTS = {"block_size": 32, "accuracy_level": 4, "seed": 0, "logits": "last"}
"""Options that a command need not have."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One artifact on one runtime."""

    export: Export
    runtime: str

    @property
    def title(self) -> str:
        return f"{self.export.title} on {self.runtime}"
