"""Decoder artifacts around the small model of `decoder_model`, with any companions."""

from collections.abc import Mapping
from pathlib import Path

from rope_export.artifacts.decoder import DecoderArtifact, DecoderManifest, save_decoder
from rope_export.interface import decoder_interface
from rope_export.rope.default import DefaultRope
from rope_export.spec import AttentionSpec
from tests.support.decoder_model import decoder_model

SPEC = AttentionSpec(
    hidden_size=16, heads=2, kv_heads=2, head_dim=8, rope=DefaultRope(rotary_dim=8)
)
VOCABULARY = 16


def manifest(cache: str, **changes) -> DecoderManifest:
    """Of two layers with the spec above."""
    logits, static = changes.pop("logits", "last"), changes.pop("static_mask", False)
    interface = decoder_interface(
        {0: SPEC, 1: SPEC},
        vocabulary=VOCABULARY,
        cache=cache,
        logits=logits,
        dtype="float32",
        static_mask=static,
    )
    facts = {
        "specs": (SPEC.to_json(),),
        "layers": (0, 0),
        "vocabulary": VOCABULARY,
        "dtype": "float32",
        "logits": logits,
        "positions": 64,
        "lowering": "standard",
        "opset": 24,
        "cache": cache,
        "interface": interface,
        "source": {"kind": "config", "seed": 0},
        "weights": {},
        "versions": {},
        "runtimes": ("onnxruntime",),
        "needs": {},
        "quantization": None,
        "stale_slots": "finite",
    }
    return DecoderManifest(**(facts | changes))


def decoder_folder(
    path: Path, cache: str = "fixed", companions: Mapping[str, str] = {}, **changes
) -> DecoderArtifact:
    """A decoder's artifact at `path`. companions: the text of each."""
    facts = manifest(cache, **changes)

    def write(folder: Path) -> None:
        model = decoder_model(facts.interface)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        for name, text in companions.items():
            (folder / name).write_text(text, encoding="utf-8")

    return save_decoder(path, facts, write, {})
