"""The texts that a file is judged on, and those that its inputs cannot take, with the reason."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rope_export.parity.decoder.cases import LONGEST_WINDOW, Text, trained_length
from rope_export.parity.onnx_file.names import Matched
from rope_export.spec import AttentionSpec

LONG = 160
"""Tokens of the long text, where no original context asks for more."""

BEYOND = 2.5
"""How many times the original context the long text is."""

STEPS = 8
"""Tokens that are decoded one by one past the original context; the first four are within it."""

UNEQUAL = Text(name="unequal rows", counts=((8, 3, 5), (1, 1, 1), (2, 2, 2)))
"""Of fixed caches."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """texts: that are run. not_supported: of each other its name and the reason. hidden: what no
    text is long enough for, by "feature" and "reason"."""

    texts: tuple[Text, ...]
    not_supported: dict[str, str]
    hidden: tuple[dict[str, str], ...]


def file_texts(matched: Matched, specs: Sequence[AttentionSpec], positions: int | None) -> Judged:
    """positions: how many the model was made for, if it does not go on with any number."""
    texts: list[Text] = []
    refused: dict[str, str] = {}
    longest = min(x for x in (LONGEST_WINDOW, positions, matched.capacity) if x is not None)
    by_position = "position_ids" in matched.inputs
    every, hidden = _texts(specs, positions, longest, by_position=by_position)
    if matched.fixed:
        every.append(UNEQUAL)
    for text in every:
        reason = _unsupported(text, matched)
        if matched.capacity is not None:
            text = replace(text, spare=min(text.spare, matched.capacity - text.total))
        if reason is not None:
            refused[text.name] = reason
        elif matched.caches:
            texts.append(text)
        else:
            texts.append(_in_one_call(text))
    return Judged(texts=tuple(texts), not_supported=refused, hidden=tuple(hidden))


def original_context(specs: Sequence[AttentionSpec], positions: int | None) -> int | None:
    """The smallest number of positions that a scaled rotation was trained on first."""
    lengths = [x for x in map(trained_length, specs) if x is not None]
    for spec in specs:
        factor = getattr(spec.rope, "factor", None)
        if spec.rope is not None and spec.rope.rope_type == "linear" and factor and positions:
            lengths.append(int(positions / factor))
    return min(lengths, default=None)


def _texts(
    specs: Sequence[AttentionSpec], positions: int | None, longest: int, *, by_position: bool
) -> tuple[list[Text], list[dict[str, str]]]:
    """longest: how many tokens a text may have."""
    original, hidden = original_context(specs, positions), []
    texts = [
        Text(name="short", counts=((7,),)),
        Text(name="two rows", counts=((15, 15),)),
        Text(name="decode", counts=((12,), (1,), (1,), (1,))),
        Text(name="chunk", counts=((9,), (6,))),
        Text(name="chunk of two rows", counts=((9, 9), (6, 6))),
        Text(name="left padding", counts=((10,) * 3, (1,) * 3), left=(0, 3, 7)),
    ]
    long = LONG if original is None else max(LONG, int(BEYOND * original))
    texts.append(Text(name="long", counts=((min(long, longest),),)))
    if original is not None:
        name = f"decode past the original context of {original}"
        steps = ((1,),) * STEPS
        if original + STEPS // 2 <= longest:
            texts.append(Text(name=name, counts=((original - STEPS // 2,), *steps)))
        elif by_position:
            first = original - 6 - STEPS // 2
            texts.append(Text(name=name, counts=((6,), *steps), first=first))
        else:
            reason = f"the file takes no positions, and no text is longer than {longest} tokens"
            hidden.append({"feature": f"original context {original}", "reason": reason})
    for window in sorted({x.window for x in specs if x.window is not None}):
        if window + 6 <= longest:
            texts.append(Text(name=f"beyond the window of {window}", counts=((window + 5,), (1,))))
        else:
            reason = f"no text is longer than {longest} tokens"
            hidden.append({"feature": f"window {window}", "reason": reason})
    return texts, hidden


def _unsupported(text: Text, matched: Matched) -> str | None:
    """Why the file's inputs cannot take a text, or nothing."""
    if text.left and "attention_mask" not in matched.inputs:
        return "there is no attention_mask"
    if text is UNEQUAL and not matched.by_row:
        return "the rows of its caches have one length"
    if matched.capacity is not None and text.total > matched.capacity:
        return f"its caches have {matched.capacity} slots"
    batch, sequence = matched.inputs["input_ids"].sizes
    if batch is not None and text.rows != batch:
        return f"the batch is always {batch}"
    for counts in text.counts if matched.caches else _in_one_call(text).counts:
        if sequence is not None and max(counts) != sequence:
            return f"a call always has {sequence} tokens"
    return None


def _in_one_call(text: Text) -> Text:
    counts = tuple(sum(row) for row in zip(*text.counts, strict=True))
    return replace(text, counts=(counts,))


def lines(judged: Judged) -> Iterator[str]:
    """What was left out, a line each."""
    for name, reason in judged.not_supported.items():
        yield f"{name}: not supported by its inputs, {reason}."
