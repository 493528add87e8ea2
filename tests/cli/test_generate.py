"""rope-export generate: what it prints as it goes, and what it refuses."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rope_export.cli import run
from tests.support.decoder_folder import decoder_folder
from tests.support.decoder_model import greedy
from tests.support.tokenizer_files import CHAT, WORDS, word_tokenizer

SETTINGS = {"eos_token_id": WORDS.index("end"), "repetition_penalty": 1.3}
COMPANIONS = {
    "tokenizer.json": word_tokenizer().to_str(),
    "generation_config.json": json.dumps(SETTINGS),
    "tokenizer_config.json": json.dumps({"bos_token": "the", "chat_template": CHAT}),
}
PROMPT = "saw dogs on a mat"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("generate") / "decoder"
    return str(decoder_folder(path, companions=COMPANIONS, logits="all").path)


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> str:
    """Without a tokenizer."""
    return str(decoder_folder(tmp_path_factory.mktemp("bare") / "decoder", "growing").path)


def tokens(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def answer(prompt: list[int], count: int) -> list[int]:
    """The greedy tokens up to the end token."""
    found = greedy(prompt, count)
    end = SETTINGS["eos_token_id"]
    return found[: found.index(end)] if end in found else found


def words(ids: list[int]) -> str:
    """As they go on with a text that ends with a word."""
    return "".join(f" {WORDS[token]}" for token in ids)


def printed(capsys, *arguments: str) -> tuple[str, str]:
    assert run(["generate", *arguments]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


@pytest.mark.parametrize("lookup", [[], ["--lookup"]])
def test_a_prompt_is_gone_on_with(decoder, capsys, lookup):
    out, err = printed(capsys, decoder, "--prompt", PROMPT, "--max-tokens", "9", *lookup)
    assert out == words(answer(tokens(PROMPT), 9)) + "\n"
    note, speed = err.splitlines()
    assert note == "note: generation_config.json: repetition_penalty: not followed"
    assert speed.startswith("prompt: 5 tokens in ")
    assert "8 tokens in" in speed
    assert "tokens/s" in speed


def test_several_prompts_are_answered_in_their_order(decoder, capsys):
    """The last of them ends first; nothing of it stands before the others."""
    asked = [PROMPT, "cat", "away"]
    arguments = [word for text in asked for word in ("--prompt", text)]
    out, _ = printed(capsys, decoder, *arguments, "--max-tokens", "9")
    expected = [words(answer(tokens(text), 9)) for text in asked]
    assert out == "".join(f"[{at + 1}]\n{text}\n" for at, text in enumerate(expected))


def test_stdin_is_a_prompt(decoder, capsys, monkeypatch):
    text = io.TextIOWrapper(io.BytesIO(PROMPT.encode() + b"\n"))
    monkeypatch.setattr(sys, "stdin", text)
    out, _ = printed(capsys, decoder, "--prompt", "-", "--max-tokens", "3")
    assert out == words(answer(tokens(PROMPT), 3)) + "\n"


def test_a_prompt_that_is_no_text_is_refused(decoder, capsys, monkeypatch):
    """Bytes of another encoding, which stand in an argument as half a surrogate each."""
    for argument in ("-", "caf\udce9"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9")))
        assert run(["generate", decoder, "--prompt", argument]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "is not UTF-8" in line
    monkeypatch.setattr(sys, "stdin", None)
    assert run(["generate", decoder, "--prompt", "-"]) == 2
    assert capsys.readouterr().err == "rope-export: --prompt -: stdin is closed.\n"


def test_a_closed_stdout_is_no_error(decoder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert run(["generate", decoder, "--prompt", PROMPT, "--max-tokens", "3"]) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_behind_stdout_is_one_line(bare):
    command = [sys.executable, "-m", "rope_export", "generate", bare, "--ids", "3"]
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert (ended.returncode, ended.stderr.count(b"\n")) == (4, 1)


def test_tokens_in_tokens_out(bare, capsys):
    out, err = printed(capsys, bare, "--ids", "3,4 5", "--max-tokens", "5")
    assert list(map(int, out.split())) == greedy([3, 4, 5], 5)
    assert "tokens/s" in err


def test_json_is_one_object(decoder, capsys):
    out, _ = printed(capsys, decoder, "--prompt", PROMPT, "--max-tokens", "9", "--json")
    facts = json.loads(out)
    (found,) = facts["answers"]
    ids = answer(tokens(PROMPT), 9)
    assert found == {
        "prompt_ids": tokens(PROMPT),
        "ids": ids,
        "text": words(ids),
        "finish": "end" if len(ids) < 9 else "length",
    }
    assert facts["passes"] == 8
    assert facts["tokens_per_second"] > 0
    assert facts["ignored"] == ["repetition_penalty"]


def test_a_stop_text_ends_an_answer(decoder, capsys):
    whole = words(answer(tokens(PROMPT), 9))
    stop = whole.split()[3]
    out, _ = printed(capsys, decoder, "--prompt", PROMPT, "--max-tokens", "9", "--stop", stop)
    assert out == whole[: whole.index(stop)] + "\n"


def test_a_chat_has_the_models_own_words(decoder, capsys):
    out, _ = printed(capsys, decoder, "--prompt", "cat", "--chat", "--max-tokens", "4", "--json")
    (found,) = json.loads(out)["answers"]
    assert found["prompt_ids"] == tokens("? cat the !")


def test_a_seed_repeats_what_was_drawn(decoder, capsys):
    drawn = ["--prompt", PROMPT, "--max-tokens", "30", "--temperature", "9", "--top-p", "0.9"]
    first, again, other = (
        printed(capsys, decoder, *drawn, "--seed", seed)[0] for seed in ("1", "1", "2")
    )
    assert first == again != other


def test_an_edited_companion_is_a_warning(decoder, tmp_path, capsys):
    edited = decoder_folder(tmp_path / "edited", companions=COMPANIONS, logits="all").path
    (edited / "generation_config.json").write_text(json.dumps({"eos_token_id": 15}))
    _, err = printed(capsys, str(edited), "--prompt", PROMPT, "--max-tokens", "2")
    assert "warning: " in err
    assert "generation_config.json: was edited" in err


REFUSED = {
    "no tokenizer": (["--prompt", "x"], r"tokenizer.json: is missing, .* --ids"),
    "nothing": ([], "give either --prompt or --ids"),
    "both": (["--prompt", "x", "--ids", "1"], "give either --prompt or --ids"),
    "no token": (["--ids", "1,x"], "'x' is no token"),
    "no tokens": (["--ids", ""], "the prompt has no tokens"),
    "unknown token": (["--ids", "16"], "holds 16; the decoder knows the tokens 0 to 15"),
    "too long": (["--ids", "1 " * 64], "has 64 tokens; the model has 64 positions"),
    "chat of tokens": (["--ids", "1", "--chat"], "--chat is about texts"),
    "stop of tokens": (["--ids", "1", "--stop", "x"], "--stop is about texts"),
    "lookup": (["--ids", "1", "--lookup"], "--lookup .* with cache 'fixed' and logits 'all'"),
    "temperature": (["--ids", "1", "--temperature", "-1"], "--temperature -1.0"),
    "top-p": (["--ids", "1", "--temperature", "1", "--top-p", "0"], "--top-p 0.0"),
    "max-tokens": (["--ids", "1", "--max-tokens", "0"], "--max-tokens 0"),
    "capacity": (["--ids", "1", "--capacity", "1"], "--capacity 1"),
    "threads": (["--ids", "1", "--threads", "0"], "--threads 0: a call uses"),
    "prompts": (["--ids", "1", "--ids", "1 " * 64], "prompt 2 has 64 tokens"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_one_line(bare, capsys, case):
    arguments, message = REFUSED[case]
    assert run(["generate", bare, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert re.search(message, line), line


def test_a_runtime_that_is_not_here_is_status_3(bare, capsys):
    assert run(["generate", bare, "--ids", "1", "--runtime", "x"]) == 3
    assert "'x'" in capsys.readouterr().err


def test_stdin_is_read_once(decoder, capsys):
    assert run(["generate", decoder, "--prompt", "-", "--prompt", "-"]) == 2
    assert "stdin is read once" in capsys.readouterr().err


def test_a_layer_has_no_texts(tiny, capsys):
    layer = tiny("standard", "float32", "growing")
    assert run(["generate", str(layer.path), "--prompt", "x"]) == 2
    assert "is the artifact of an attention layer" in capsys.readouterr().err
