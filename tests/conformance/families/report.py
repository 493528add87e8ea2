"""The verdict on a family, and docs/families.md."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import transformers

from rope_export.bench.markdown import table_lines
from tests.conformance.families.compare import FLOAT64, UNMODIFIED, Outcome

SAMPLE = (
    "chameleon",
    "cohere",
    "cohere2",
    "dbrx",
    "deepseek_v3",
    "ernie4_5_vl_moe",
    "exaone4",
    "falcon",
    "gemma2",
    "gemma3",
    "glm4v",
    "gpt_neox",
    "gpt_oss",
    "hunyuan_v1_dense",
    "llama",
    "llama4",
    "modernbert",
    "olmo2",
    "persimmon",
    "phi3",
    "pixtral",
    "qwen2_vl",
    "qwen3_next",
    "smollm3",
    "stablelm",
)
"""Twenty-five families that have every feature between them; CI proves these."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of one family.

    status: "proven" if every rotary attention of its file is; "partly proven" where some of its
    modules are refused by name; "refused" where all are; "unread", "wrong" or "crashed" as soon as
    one is: "unread" where the file that transformers wrote lacks a tensor of our layout.
    """

    family: str
    status: str
    outcomes: tuple[Outcome, ...]
    reasons: tuple[str, ...]
    problems: tuple[str, ...]
    seconds: float


def verdict(family: str, outcomes: list[Outcome], problems: list[str], seconds: float) -> Verdict:
    """The family's status from its modules'; a variant that is refused where the plain model is
    proven leaves the family proven, since it is refused by the key that switches it on."""
    outcomes = [*outcomes, *_not_shown(outcomes)]
    by_status: dict[str, set[str]] = {}
    for outcome in outcomes:
        by_status.setdefault(outcome.status, set()).add(outcome.module)
    reasons = tuple(dict.fromkeys(o.reason for o in outcomes if o.status != "proven"))
    proven, refused = (by_status.get(name, set()) for name in ("proven", "refused"))
    bad: list[str] = [x for x in ("crashed", "wrong", "unread") if x in by_status]
    if bad:
        status = bad[0]
    elif not outcomes:
        status = "no rotary attention"
        reasons = tuple(problems)
    elif refused - proven:
        status = "partly proven" if proven else "refused"
    else:
        status = "proven"
    return Verdict(
        family=family,
        status=status,
        outcomes=tuple(outcomes),
        reasons=reasons,
        problems=tuple(problems),
        seconds=seconds,
    )


def _not_shown(outcomes: list[Outcome]) -> Iterable[Outcome]:
    """Causal modules whose proof holds no decode step or no padded call, as wrong: it would hold
    for a model without a cache as well."""
    for module in dict.fromkeys(o.module for o in outcomes):
        mine = [o for o in outcomes if o.module == module and o.status == "proven" and o.causal]
        shown = {call for o in mine for call in o.calls}
        lacking = [kind for kind in ("decode", "padded") if kind not in shown]
        if mine and lacking:
            yield dataclasses.replace(
                mine[0], status="wrong", reason=f"its proof holds no call of: {', '.join(lacking)}"
            )


def write_report(verdicts: Iterable[Verdict], path: Path) -> None:
    """docs/families.md: every family with its features and errors, or what it lacks."""
    path.write_text("\n".join(_lines(list(verdicts))) + "\n", encoding="utf-8")


def counts(verdicts: Iterable[Verdict]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in verdicts:
        found[one.status] = found.get(one.status, 0) + 1
    return found


def _lines(verdicts: list[Verdict]) -> Iterable[str]:
    rotary = [x for x in verdicts if x.status != "no rotary attention"]
    number = counts(rotary)
    yield "# Model families, proven against transformers"
    yield ""
    yield (
        f"Written by `python -m scripts.prove_families --write` with transformers "
        f"{transformers.__version__}. For every model family whose own file rotates queries and "
        f"keys, transformers makes tiny random models, plain and with each attention feature "
        f"switched, and saves each with `save_pretrained`: a folder with config.json and "
        f"model.safetensors. transformers loads that folder and runs it in eager attention, and "
        f"`rope-export` reads the same folder by layer and `--part`: names, shapes and defaults "
        f"are those of the files, and nothing else is handed across. Every rotary attention module "
        f"is compared with ours on the same inputs, a prefill, two decode steps and left padding "
        f"where it has a cache (a causal family without them is called wrong): in float64 as it "
        f"is (largest error at most {UNMODIFIED:g} of the largest output, since transformers "
        f"computes softmax and norms in float32), and with those in float64 as well (at most "
        f"{FLOAT64:g}); then the layer is exported from the folder and run in onnxruntime in "
        f"float32, whose error against transformers in float64 may be twice eager's. Layers whose "
        f"facts and calls are those of one that was exported take its figures, and so do variants "
        f"whose features are."
    )
    yield ""
    yield f"Of {len(rotary)} families:"
    yield ""
    for status in ("proven", "partly proven", "refused", "unread", "wrong", "crashed"):
        yield f"- {status}: {number.get(status, 0)}"
    yield ""
    yield '"Partly proven" families have several rotary attentions, of which the named are refused.'
    yield '"Of it" is the share of what the error in onnxruntime may be.'
    yield ""
    yield from _proven(x for x in rotary if x.status in ("proven", "partly proven"))
    yield from _refused(rotary)


def _proven(verdicts: Iterable[Verdict]) -> Iterable[str]:
    yield "## Proven"
    yield ""
    heads = ("family", "module", "features", "float64, as is", "float64", "onnxruntime", "of it")
    rows = []
    for one in verdicts:
        modules = dict.fromkeys(o.module for o in one.outcomes if o.status == "proven")
        for module in modules:
            mine = [o for o in one.outcomes if o.module == module and o.status == "proven"]
            every = dict.fromkeys(x for o in mine for x in o.features)
            used = max((o.runtime / o.tolerance for o in mine if o.tolerance), default=0.0)
            errors = (
                max(o.unmodified for o in mine),
                max(o.float64 for o in mine),
                max(o.runtime for o in mine),
            )
            figures = (*(f"{error:.0e}" for error in errors), f"{100 * used:.0f} %")
            rows.append((f"`{one.family}`", module, ", ".join(every), *figures))
    yield from table_lines(heads, rows)
    yield ""


def _refused(verdicts: Iterable[Verdict]) -> Iterable[str]:
    yield "## Refused by name"
    yield ""
    rows = []
    for one in verdicts:
        found: dict[tuple[str, str], None] = {}
        for o in one.outcomes:
            if o.status != "proven":
                found[(o.module, o.reason)] = None
        for module, reason in found:
            rows.append((f"`{one.family}`", module, reason))
    yield from table_lines(("family", "module", "the line it gives"), rows)
