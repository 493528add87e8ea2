"""The parsed network: interim, until the other half of the work brings its own."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rope_export.errors import RopeExportError


@dataclass(frozen=True, kw_only=True)
class NetworkFacts:
    rotary: int
    attention: int
    kv_cache_updates: int
    causal: tuple[str, ...]
    decomposed: int

    def to_json(self) -> dict[str, Any]:
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_json(cls, facts: Any) -> "NetworkFacts":
        return cls(**{**facts, "causal": tuple(facts["causal"])})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def refuse(model: Path) -> None:
    """Raises: InputError for a form that is computed otherwise."""


def parse(trt: Any, network: Any, model: Path, logger: Any) -> None:
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        errors = [parser.get_error(at).desc() for at in range(parser.num_errors)]
        raise RopeExportError(f"{model}: TensorRT cannot parse it: {'; '.join(errors)}")


def facts(trt: Any, network: Any) -> NetworkFacts:
    kinds = [network.get_layer(at).type for at in range(network.num_layers)]
    return NetworkFacts(
        rotary=kinds.count(trt.LayerType.ROTARY_EMBEDDING),
        attention=kinds.count(trt.LayerType.ATTENTION_INPUT),
        kv_cache_updates=kinds.count(trt.LayerType.KV_CACHE_UPDATE),
        causal=(),
        decomposed=0,
    )
