"""Other people's clients run our folders as they are, and give the text that transformers gives."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from rope_export import open_session
from rope_export.decoder.pipeline import export_decoder
from scripts.benchmarks.peers.environments import ENVIRONMENTS
from tests.conftest import TINY

CLIENTS = Path(__file__).parents[1] / "support" / "clients"
TINY_LM = TINY | {"vocab_size": 64, "intermediate_size": 96, "max_position_embeddings": 128}
TINY_LM |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village, there",
    "def fibonacci(n):",
)
NEW = 24


def texts(python: Path, client: str, folder: Path, new: int, *prompts: str) -> dict[str, Any]:
    """What a client in an environment of its own prints."""
    command = [python, CLIENTS / f"{client}.py", folder, str(new), *prompts]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("cache", "padding"), [("growing", True), ("fixed", True), ("fixed", False)]
)
def test_genai_runs_a_tiny_decoder(tmp_path, cache, padding):
    """Loads the folder and gives our session's own greedy tokens, a prompt alone and in a batch."""
    pytest.importorskip("onnxruntime_genai")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(TINY_LM))
    out = tmp_path / "out"
    artifact = export_decoder(config, out=out, lowering="ort", cache=cache, padding=padding)
    prompts = np.array([[5, 9, 33, 7], [60, 3, 21, 8]])
    with open_session(artifact) as session:
        ours = []
        for prompt in prompts:
            stream, sequence = session.start(1, capacity=16), [int(x) for x in prompt]
            logits = stream.step(prompt[None])
            while len(sequence) < 16 and (len(sequence) == 4 or sequence[-1] != 2):
                sequence.append(int(logits[0, -1].argmax()))
                if len(sequence) < 16:
                    logits = stream.step(np.array([sequence[-1:]]))
            ours.append(sequence)
    words = [",".join(map(str, prompt)) for prompt in prompts]
    theirs = texts(sys.executable, "genai_client", artifact.path, 12, "--ids", *words)
    assert theirs["alone"] == ours
    assert [row[: len(own)] for row, own in zip(theirs["together"], ours, strict=True)] == ours


@pytest.fixture(scope="module")
def smollm2_decoder(smollm2: Path, shared: Path) -> Callable[[str], Path]:
    """SmolLM2 exported with a kind of cache, once."""

    def make(cache: str) -> Path:
        out = shared / f"smollm2-{cache}"
        with FileLock(f"{out}.lock"):
            if not out.exists():
                export_decoder(smollm2, out=out, lowering="ort", cache=cache)
        return out

    return make


@pytest.fixture(scope="module")
def transformers_texts(smollm2: Path) -> list[str]:
    """Each prompt and its greedy answer by transformers in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    answers = []
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        sequence = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0]
        answers.append(tokenizer.decode(sequence, skip_special_tokens=True))
    return answers


@pytest.mark.long
@pytest.mark.parametrize(
    ("client", "cache"),
    [("genai", "growing"), ("genai", "fixed"), ("optimum", "growing")],
)
def test_a_client_gives_the_text_of_transformers(
    smollm2_decoder, transformers_texts, client, cache
):
    """Prompts alone, and in a batch: optimum pads on the left, genai on the right."""
    environment = ENVIRONMENTS[client]
    environment.ready()
    python = environment.programs / "python"
    theirs = texts(python, f"{client}_client", smollm2_decoder(cache), NEW, *PROMPTS)
    assert theirs["alone"] == transformers_texts
    for text, wanted in zip(theirs["together"], transformers_texts, strict=True):
        assert text.startswith(wanted)  # a batch stops where its longest row does
