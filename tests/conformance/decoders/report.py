"""The verdict on a decoder, and docs/decoders.md."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import transformers

from rope_export.bench.markdown import table_lines
from tests.conformance.decoders.models import MULTIMODAL, TEXT

SAMPLE = (
    "ApertusForCausalLM",
    "BeamForCausalLM",
    "Cohere2ForCausalLM",
    "CohereCompassForCausalLM",
    "DeepseekV3ForCausalLM",
    "FalconForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma4ForCausalLM",
    "Glm4MoeForCausalLM",
    "GPTJForCausalLM",
    "GPTNeoXForCausalLM",
    "GptOssForCausalLM",
    "GraniteForCausalLM",
    "Llama4ForCausalLM",
    "LlamaForCausalLM",
    "MiniCPM3ForCausalLM",
    "MixtralForCausalLM",
    "NanoChatForCausalLM",
    "NemotronForCausalLM",
    "Olmo2ForCausalLM",
    "PersimmonForCausalLM",
    "Phi3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "StableLmForCausalLM",
    "Qwen2VLForConditionalGeneration",
)
"""Decoders that have every feature between them; CI proves these."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of one decoder.

    status: "proven", "refused" by name, "wrong", "crashed"; "no rotary attention" and "not built"
    where there is nothing to prove. eager: the largest error of transformers in float32. errors:
    of the artifacts in onnxruntime, by their cache. used: the largest share of what an error may
    be. seconds: of the whole proof.
    """

    family: str
    name: str
    kind: str
    status: str
    reason: str = ""
    lowering: str = ""
    eager: float = 0.0
    errors: dict[str, float] = field(default_factory=dict)
    used: float = 0.0
    seconds: float = 0.0


def write_report(verdicts: Iterable[Verdict], path: Path) -> None:
    """docs/decoders.md: every decoder with its errors, or why it is refused."""
    path.write_text("\n".join(_lines(list(verdicts))) + "\n", encoding="utf-8")


def _lines(verdicts: list[Verdict]) -> Iterable[str]:
    shown = [x for x in verdicts if x.status not in ("no rotary attention", "not built")]
    yield "# Whole decoders, proven against transformers"
    yield ""
    yield (
        f"Written by `python -m scripts.prove_decoders --write` with transformers "
        f"{transformers.__version__}. Of every model that transformers' auto classes have for "
        f"causal language modelling, and of every multimodal one, whose text decoder rotates "
        f"queries and keys in code of its own, transformers makes a tiny random model and saves it "
        f"with `save_pretrained`. It loads that folder and runs it in float64, each row by itself: "
        f"a prefill and three decode steps. The folder is exported whole, with a growing cache "
        f"and logits of all tokens, and with a fixed one and the last token's; each artifact "
        f"answers the same calls in onnxruntime in float32, the rows together, of equal length and "
        f"padded on the left. The largest error of the logits, scaled by the largest of them, may "
        f"be twice that of transformers itself in float32."
    )
    yield ""
    for kind, title in ((TEXT, "causal LMs"), (MULTIMODAL, "text decoders of multimodal models")):
        of_kind = [x for x in shown if x.kind == kind]
        counts = {x: sum(y.status == x for y in of_kind) for x in ("proven", "refused")}
        bad = len(of_kind) - sum(counts.values())
        yield (
            f"- {len(of_kind)} {title}: {counts['proven']} proven, {counts['refused']} refused by "
            f"name, {bad} wrong or crashed"
        )
    yield ""
    yield '"Of it" is the largest share of what an error may be.'
    yield ""
    for kind, title in ((TEXT, "Causal LMs"), (MULTIMODAL, "Text decoders of multimodal models")):
        yield f"## {title}"
        yield ""
        yield from table_lines(
            ("family", "model", "lowering", "transformers", "growing", "fixed", "of it"),
            [_figures(x) for x in shown if x.kind == kind and x.status == "proven"],
        )
        yield ""
    yield "## Refused by name"
    yield ""
    yield from table_lines(
        ("family", "model", "the line it gives"),
        [(f"`{x.family}`", x.name, x.reason) for x in shown if x.status != "proven"],
    )
    yield ""
    yield "## Not proven"
    yield ""
    yield "transformers does not make, save or run the tiny model of these by itself."
    yield ""
    unbuilt = [x for x in verdicts if x.status == "not built"]
    yield from table_lines(
        ("family", "model", "what transformers says"),
        [(f"`{x.family}`", x.name, x.reason) for x in unbuilt],
    )


def _figures(verdict: Verdict) -> tuple[str, ...]:
    errors = (verdict.eager, *(verdict.errors[x] for x in ("growing", "fixed")))
    return (
        f"`{verdict.family}`",
        verdict.name,
        verdict.lowering,
        *(f"{error:.0e}" for error in errors),
        f"{100 * verdict.used:.0f} %",
    )
