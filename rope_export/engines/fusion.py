"""Whether attention was fused: interim, until the other half of the work brings its own."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from rope_export.engines.network import NetworkFacts, _plain


@dataclass(frozen=True, kw_only=True)
class Fusion:
    fused: bool
    kernels: tuple[str, ...]
    rotary: int
    attention: int
    kv_cache_updates: int
    scratch_bytes: int | None
    reason: str | None
    remedy: str | None

    def to_json(self) -> dict[str, Any]:
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_json(cls, facts: Any) -> "Fusion":
        return cls(**{**facts, "kernels": tuple(facts["kernels"])})


def logger(trt: Any, verbose: bool) -> Any:
    class Kept(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            if verbose:
                self.lines.append(message)

    return Kept()


def fusion(lines: Sequence[str], network: NetworkFacts, dtype: str) -> Fusion:
    kernels = tuple(sorted(set(re.findall(r"_gemm_mha_v2", "\n".join(lines)))))
    return Fusion(
        fused=bool(kernels),
        kernels=kernels,
        rotary=network.rotary,
        attention=network.attention,
        kv_cache_updates=network.kv_cache_updates,
        scratch_bytes=None,
        reason=None if kernels else "no fused kernel in the log",
        remedy=None if kernels else "export with dtype float16",
    )
