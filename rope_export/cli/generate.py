"""rope-export generate: the text that a decoder goes on with."""

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rope_export.artifacts.decoder import DecoderArtifact
from rope_export.artifacts.folder import peek
from rope_export.cli import output
from rope_export.cli.printing import Printer
from rope_export.errors import InputError
from rope_export.sessions.generation import (
    Answer,
    Plan,
    Sampling,
    Speed,
    Texts,
    answer_prompts,
    settings_of,
)
from rope_export.sessions.session import open_session


def generate_text(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A decoder's folder.")],
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt", metavar="TEXT", help="A prompt; may be repeated. - reads it from stdin."
        ),
    ] = None,
    ids: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IDS",
            help="A prompt's tokens, such as 1,504,3575, in place of a text; the answer is printed "
            "as tokens too. May be repeated.",
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put each prompt into the model's chat template.")
    ] = False,
    lookup: Annotated[
        bool,
        typer.Option(
            "--lookup",
            help="Check several tokens in one pass, taken from the text so far: faster where the "
            "answer repeats the prompt. Needs a fixed cache and the logits of all tokens.",
        ),
    ] = False,
    max_tokens: Annotated[int, typer.Option(help="Tokens of each answer, at most.")] = 256,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="End an answer before this text; may be repeated."),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="Draw tokens, more evenly the higher; 0 takes the likeliest.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Draw among the likeliest tokens that add up to this.")
    ] = 1.0,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the draws; others each time by default.")
    ] = None,
    capacity: Annotated[
        int | None,
        typer.Option(help="Slots of a fixed cache; by default what prompt and answer need."),
    ] = None,
    runtime: Annotated[str, typer.Option(metavar="NAME", help="Where to run.")] = "onnxruntime",
    threads: Annotated[
        int | None, typer.Option(help="Threads of a pass; by default all cores.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Go on with a text, as the decoder does: print each answer as it grows."""
    plan = Plan(
        max_tokens=max_tokens,
        sampling=Sampling(temperature=temperature, top_p=top_p, seed=seed),
        capacity=capacity,
        lookup=lookup,
    )
    folder = peek(path)
    if not isinstance(folder.artifact, DecoderArtifact):
        raise InputError(
            f"{path}: is the artifact of an attention layer, which has no texts. Give a decoder, "
            f"as export --decoder writes it."
        )
    place = folder.artifact.path
    texts, asked = _asked(place, prompts, ids, chat, stop)
    settings = settings_of(place)
    output.warn(folder.artifact.warnings)
    if settings.ignored:
        output.notes([f"generation_config.json: {', '.join(settings.ignored)}: not followed"])
    with open_session(path, runtime, threads=threads) as session:
        printer = Printer(texts, asked, stop or (), quiet=as_json)
        answers, speed = answer_prompts(session, asked, settings.ends, plan, printer.receive)
        if as_json:
            facts = _facts(printer, asked, answers, speed)
            output.print_json(facts | {"ignored": list(settings.ignored)})
        else:
            print(_speed(speed, sum(map(len, asked))), file=sys.stderr)
    return 0


def _asked(
    place: Path,
    prompts: list[str] | None,
    ids: list[str] | None,
    chat: bool,
    stop: list[str] | None,
) -> tuple[Texts | None, list[list[int]]]:
    """The tokenizer, where prompts are texts, and the tokens of each prompt."""
    if bool(prompts) == bool(ids):
        raise InputError("give either --prompt or --ids; --prompt - reads a text from stdin.")
    if ids:
        for given, flag in ((chat, "--chat"), (stop, "--stop")):
            if given:
                raise InputError(f"{flag} is about texts, and --ids gives tokens. Leave one out.")
        return None, [_tokens(text) for text in ids]
    if (prompts or []).count("-") > 1:
        raise InputError("--prompt - is there twice; stdin is read once.")
    texts = Texts(place)
    words = [_from_stdin() if text == "-" else text for text in prompts or []]
    return texts, [texts.prompt(text, chat=chat) for text in words]


def _from_stdin() -> str:
    """What stdin holds, without the end of its last line."""
    if sys.stdin is None:
        raise InputError("--prompt -: stdin is closed.")
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"--prompt -: stdin is not UTF-8 ({error}). Convert it.") from error
    return text.removesuffix("\n").removesuffix("\r")


def _tokens(text: str) -> list[int]:
    words = [word for word in re.split(r"[,\s]+", text) if word]
    for word in words:
        if not re.fullmatch("[0-9]+", word):
            raise InputError(f"--ids {text}: {word!r} is no token; give numbers such as 1,504.")
    return list(map(int, words))


def _speed(speed: Speed, prompt_tokens: int) -> str:
    """How fast it was, in a line."""
    line = f"prompt: {prompt_tokens} tokens in {speed.prompt:.2f} s"
    if speed.tokens_per_second is None:
        return line
    per_pass = f", {speed.tokens / speed.passes:.2f} tokens a pass"
    return (
        f"{line}; after it {speed.tokens} tokens in {speed.decode:.2f} s: "
        f"{speed.tokens_per_second:.1f} tokens/s{per_pass}"
    )


def _facts(
    printer: Printer,
    asked: list[list[int]],
    answers: list[Answer],
    speed: Speed,
) -> dict[str, Any]:
    """What --json prints."""
    return {
        "answers": [
            {
                "prompt_ids": prompt,
                "ids": answer.ids,
                "text": printer.text(row),
                "finish": answer.finish,
            }
            for row, (prompt, answer) in enumerate(zip(asked, answers, strict=True))
        ],
        "seconds": {"prompts": speed.prompt, "tokens": speed.decode},
        "passes": speed.passes,
        "tokens_per_second": speed.tokens_per_second,
    }
