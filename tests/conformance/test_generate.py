"""Generated text is that of transformers' own `generate`, from the same files."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rope_export import open_session
from rope_export.cli import run
from rope_export.decoder.pipeline import export_decoder
from rope_export.sessions.generation import Plan, answer_prompts

PROMPTS = [[3, 15, 7, 1, 9, 22, 40, 3, 15], [2], [50, 1, 2, 33]]
SHAPES = {"growing": "last", "fixed": "all"}


def greedy(model, prompts: list[list[int]], count: int) -> list[list[int]]:
    """Of each prompt alone."""
    return [
        model.generate(
            torch.tensor([prompt]), max_new_tokens=count, do_sample=False, use_cache=True
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small model with drawn weights, and its folder."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        eos_token_id=63, bos_token_id=1, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    path = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(path)
    return model, path


@pytest.mark.parametrize("cache", SHAPES)
def test_a_small_models_text_is_that_of_transformers(tiny, tmp_path, cache):
    model, path = tiny
    decoder = export_decoder(path, out=tmp_path / "out", cache=cache, logits=SHAPES[cache])
    expected = greedy(model, PROMPTS, 40)
    with open_session(decoder, threads=1) as session:
        for lookup in (False, True)[: 1 + (cache == "fixed")]:
            plan = Plan(max_tokens=40, lookup=lookup)
            answers, _ = answer_prompts(session, PROMPTS, frozenset([63]), plan)
            for answer, theirs in zip(answers, expected, strict=True):
                ended = answer.finish == "end"
                assert answer.ids == (theirs[:-1] if ended else theirs)
        row = session.start(capacity=64).step(np.array(PROMPTS[:1]))[:, -1:]
        with torch.no_grad():
            logits = model(torch.tensor(PROMPTS[:1])).logits[:, -1:].numpy()
        # Two layers of width 32 in float32: far apart from what a wrong position or mask does.
        np.testing.assert_allclose(row, logits, rtol=0, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("lookup", [[], ["--lookup"]])
def test_smollm2_says_what_transformers_says(smollm2, tmp_path_factory, capsys, lookup):
    """The command line, several prompts at once, and texts as they are read and written."""
    out = tmp_path_factory.getbasetemp() / "smollm2-generate"
    if not out.exists():
        export_decoder(smollm2, out=out, cache="fixed", logits="all")
    model = AutoModelForCausalLM.from_pretrained(smollm2).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    prompts = [
        "The capital of France is",
        "def fibonacci(n):",
        "Überall 🙂 grünt es, und",
        "1, 2, 3,",
    ]
    ids = [tokenizer(prompt).input_ids for prompt in prompts]
    expected = greedy(model, ids, 24)
    arguments = [word for prompt in prompts for word in ("--prompt", prompt)]
    assert run(["generate", str(out), *arguments, "--max-tokens", "24", "--json", *lookup]) == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    for answer, prompt, theirs in zip(answers, ids, expected, strict=True):
        assert answer["prompt_ids"] == prompt
        assert answer["ids"] == [token for token in theirs if token != tokenizer.eos_token_id]
        assert answer["text"] == tokenizer.decode(theirs, skip_special_tokens=True)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi!"}], add_generation_prompt=True, return_dict=True
    )
    assert (
        run(["generate", str(out), "--prompt", "Hi!", "--chat", "--max-tokens", "8", "--json"]) == 0
    )
    (answer,) = json.loads(capsys.readouterr().out)["answers"]
    assert answer["prompt_ids"] == chat["input_ids"]
    assert answer["ids"] == greedy(model, [chat["input_ids"]], 8)[0]


@pytest.mark.long
@pytest.mark.parametrize("lowering", ["portable", "standard"])
def test_smollm2_writes_the_same_text_in_a_browser_and_in_openvino(
    smollm2, tmp_path_factory, capsys, lowering
):
    """540 MB of weights, and a cache that stays where the model runs."""
    out = tmp_path_factory.getbasetemp() / f"smollm2-{lowering}"
    export_decoder(smollm2, out=out, lowering=lowering, cache="growing")
    prompts = ("The capital of France is", "def fibonacci(n):", "1, 2, 3,")
    arguments = [word for prompt in prompts for word in ("--prompt", prompt)]
    texts = {}
    for runtime in ("onnxruntime", "openvino", "web"):
        options = ["--max-tokens", "24", "--threads", "1", "--json", "--runtime", runtime]
        status = run(["generate", str(out), *arguments, *options])
        if status == 3:
            pytest.skip(capsys.readouterr().err)
        assert status == 0
        answers = json.loads(capsys.readouterr().out)["answers"]
        texts[runtime] = [answer["ids"] for answer in answers]
        assert all(len(ids) == 24 for ids in texts[runtime])
    assert texts["openvino"] == texts["web"] == texts["onnxruntime"]
