"""The results of a comparison of decoders, as Markdown."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rope_export.bench.markdown import table_lines
from scripts.benchmarks.decoders.exporting import UNPADDED, Exported
from scripts.benchmarks.decoders.lookup import LONGEST, Pair
from scripts.benchmarks.decoders.measure import NEW, TEXTS, Rates

EXPORT = (
    "Whole processes, imports included, that alternate: median of {rounds} calls, smallest and "
    "largest (one call of optimum-onnx, --logits all and --no-padding); the largest resident "
    "memory, which counts mapped pages of the files that are read and written. Without verifying."
)
GENERATE = (
    "Tokens a second, greedy, batch 1, {threads} threads: {steps} tokens after a prompt of so "
    "many, and the seconds to the first token; medians of {rounds} rounds, smallest and largest. "
    "Each way runs in an environment of its own and in a new process in each round; a "
    "block of one alternates with blocks of the others, in an order drawn anew. "
    "As PyTorch: tokens of {prompts} greedy answers of {texts} that are those of transformers in "
    "float32, up to the first of an answer that is not; quantized weights give other texts. Of "
    "the limit: of the tokens a second at which weights and cache are read once, at "
    "the {bandwidth:.1f} GB/s that this memory gave, measured in every round ({low:.1f} to "
    "{high:.1f})."
)
LOOKUP = (
    f"`rope-export generate --chat` with `--lookup` and without, on the same file with the logits "
    f"of every token, in blocks that alternate: the ratio of the tokens a second of one round, "
    f"median of the rounds. Answers of at most {LONGEST} tokens, to messages that ask to repeat a "
    f"text and to others. The same text: answers that are token for token those without. Others: "
    f"tokens that a pass of one token upon the same text does not choose, of all; each is so far "
    f"below the largest logit, in standard deviations of the logits."
)
LOOPS = (
    "**ours**: `rope-export generate`'s loop. **genai**: onnxruntime-genai's own generator. "
    "**plain loop**: one and the same loop over onnxruntime for every file, caches bound once."
)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The machine, the settings and the model of a comparison. bytes: read for one token, without
    the cache, by the weights' dtype. slot: bytes of one slot of all caches."""

    date: str
    cpu: str
    load: float
    threads: int
    rounds: int
    export_rounds: int
    pasts: tuple[int, ...]
    prompts: int
    model: str
    bandwidths: list[float]
    bytes: dict[str, int]
    slot: int
    versions: dict[str, dict[str, str]]
    command: str

    @property
    def bandwidth(self) -> float:
        return statistics.median(self.bandwidths)

    def limit(self, weights: str, past: int) -> float:
        """Tokens a second at which weights and cache are read once."""
        return self.bandwidth / (self.bytes[weights] + self.slot * (past + NEW // 2))


@dataclass(frozen=True, kw_only=True)
class Results:
    """By the dtype of weights: exports, rates by way and past, how many tokens are PyTorch's, why
    ways did not start, and what candidates from the text gave by the kind of prompt."""

    facts: Facts
    exports: Mapping[str, Sequence[Exported]]
    rates: Mapping[str, Mapping[str, Mapping[int, Rates]]]
    same: Mapping[str, Mapping[str, int | str]]
    refused: Mapping[str, Mapping[str, str]]
    lookup: Mapping[str, Mapping[str, Sequence[Pair]]]


def page_lines(results: Results) -> Iterator[str]:
    """The whole page, line by line."""
    facts = results.facts
    yield from ("# Decoders side by side", "")
    yield (
        f"Measured on {facts.date} by `{facts.command}` on {facts.cpu}, load average "
        f"{facts.load:.1f} before. {facts.model}, the same checkpoint for all."
    )
    yield ""
    versions = [
        (name, ", ".join(f"{package} {number}" for package, number in found.items()))
        for name, found in facts.versions.items()
    ]
    yield from table_lines(("environment", "versions"), versions)
    yield from ("", "## Export", "", EXPORT.format(rounds=facts.export_rounds), "")
    rows = [_export(weights, one) for weights, x in results.exports.items() for one in x]
    yield from table_lines(("exporter", "weights", "seconds", "peak MB", "files MB"), rows)
    for weights in results.rates:
        yield from ("", f"## Generating, {weights} weights", "", _legend(facts), "", LOOPS, "")
        yield from _rates(results, weights)
        yield from _ratios(results.rates[weights], facts.pasts)
    if results.lookup:
        yield from ("", "## Candidates from the text", "", LOOKUP, "")
        yield from _lookup(results.lookup)


def _legend(facts: Facts) -> str:
    return GENERATE.format(
        threads=facts.threads,
        steps=NEW - 1,
        rounds=facts.rounds,
        prompts=facts.prompts,
        texts=TEXTS,
        bandwidth=facts.bandwidth / 1e9,
        low=min(facts.bandwidths) / 1e9,
        high=max(facts.bandwidths) / 1e9,
    )


def _export(weights: str, exported: Exported) -> tuple[str, ...]:
    if exported.problem:
        return (exported.exporter.name, weights, exported.problem, "", "")
    seconds = [cost.seconds for cost in exported.costs]
    return (
        exported.exporter.name,
        weights,
        f"{exported.seconds:.1f} ({min(seconds):.1f}–{max(seconds):.1f})",  # noqa: RUF001
        f"{exported.peak / 1e6:,.0f}",
        f"{exported.bytes / 1e6:,.0f}",
    )


def _rates(results: Results, weights: str) -> Iterator[str]:
    pasts = results.facts.pasts
    heads = [f"after {past}" for past in pasts] + ["of the limit"]
    heads += [f"first token after {past}, s" for past in pasts[1:]] + ["as PyTorch"]
    rows = []
    for name, rates in results.rates[weights].items():
        shares = [_share(results.facts, weights, past, rates[past]) for past in pasts]
        cells = [_spread(rates[past].decode, rates[past].problem) for past in pasts]
        firsts = [_spread(rates[past].first, rates[past].problem, digits=2) for past in pasts[1:]]
        same = str(results.same[weights].get(name, ""))
        same += f" of {results.facts.prompts * TEXTS}" if same.isdigit() else ""
        rows.append((name, *cells, " / ".join(shares), *firsts, same))
    for name, reason in results.refused[weights].items():
        rows.append((name, reason, *[""] * (len(heads) - 1)))
    yield from table_lines(("way", *heads), rows)


def _share(facts: Facts, weights: str, past: int, rates: Rates) -> str:
    return f"{100 * rates.median / facts.limit(weights, past):.0f} %" if rates.decode else "–"  # noqa: RUF001


def _spread(values: Sequence[float], problem: str | None, digits: int = 1) -> str:
    if not values:
        return problem or ""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"  # noqa: RUF001


PAIRS = tuple(
    (f"{own}, {form}", f"onnxruntime-genai, {other}")
    for form, other in (("ours", "genai"), ("plain loop", "plain loop"))
    for own in ("rope_export", UNPADDED)
)
"""Whose tokens a second are divided by whose."""


def _ratios(rates: Mapping[str, Mapping[int, Rates]], pasts: Sequence[int]) -> Iterator[str]:
    """Ratios of the rates of one round, and their median."""
    rows = []
    for own, other in PAIRS:
        if own not in rates or other not in rates:
            continue
        cells = [_ratio(rates[own][past].decode, rates[other][past].decode) for past in pasts]
        cells += [_ratio(rates[other][past].first, rates[own][past].first) for past in pasts[1:]]
        rows.append((f"{own} ÷ {other}", *cells))
    if rows:
        heads = [f"after {past}" for past in pasts] + [f"prefill {past}" for past in pasts[1:]]
        yield ""
        yield from table_lines(("times as fast, median of the rounds", *heads), rows)


def _ratio(own: Sequence[float], other: Sequence[float]) -> str:
    if not own or not other:
        return ""
    return _spread([a / b for a, b in zip(own, other, strict=False)], None, digits=2)


def _lookup(results: Mapping[str, Mapping[str, Sequence[Pair]]]) -> Iterator[str]:
    rows = []
    for weights, kinds in results.items():
        for kind, pairs in kinds.items():
            ratios = [f"{pair.ratio:.2f}" for pair in pairs if pair.plain]
            same = f"{sum(pair.same for pair in pairs)} of {len(pairs)}"
            short = [x for pair in pairs for x in pair.short]
            others = f"{len(short)} of {sum(pair.looked_up for pair in pairs)}"
            others += f", {min(short):.2g}–{max(short):.2g}" if short else ""  # noqa: RUF001
            middle = statistics.median(pair.ratio for pair in pairs if pair.plain)
            tokens = ", ".join(str(pair.tokens) for pair in pairs)
            rows.append((weights, kind, f"{middle:.2f}", ", ".join(ratios), tokens, same, others))
    heads = ("weights", "answers", "times as fast, median", "each", "tokens", "the same text")
    yield from table_lines((*heads, "others"), rows)
