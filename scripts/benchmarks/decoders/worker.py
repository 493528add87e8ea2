"""One way to generate greedily, in a process and an environment of its own.

Told on stdin, a JSON object a line, what to continue and by how many tokens, answers on stdout
with the tokens and the seconds that each took, the first with the whole prompt. Imports what one
environment has, and of this project only what is asked for by name: any environment runs it.

    python worker.py KIND FOLDER THREADS
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Generate = Callable[[list[int], int, list[int]], Iterator[Any]]
"""From a prompt's ids, a count and tokens that end a text, that many tokens one by one, or tokens
with the time when they came. Only ours end before."""


def generate_ours(folder: str, threads: int, *, lookup: bool = False) -> Generate:
    """An artifact as `rope-export generate` runs it."""
    from rope_export import open_session
    from rope_export.sessions.generation import Plan, answer_prompts

    session = open_session(folder, threads=threads)

    def generate(ids: list[int], new: int, ends: list[int]) -> Iterator[Any]:
        times: list[tuple[float, int]] = []

        def receive(row: int, token: int | None) -> bool:
            if token is not None:
                times.append((time.perf_counter(), token))
            return False

        plan = Plan(max_tokens=new, lookup=lookup)
        answer_prompts(session, [ids], frozenset(ends), plan, receive)
        yield from times

    return generate


def generate_by_lookup(folder: str, threads: int) -> Generate:
    """The same with `--lookup`."""
    return generate_ours(folder, threads, lookup=True)


def generate_genai(folder: str, threads: int) -> Generate:
    """A folder of onnxruntime-genai's by its own generator, which nothing stops."""
    import onnxruntime_genai as genai

    settings = json.loads(Path(folder, "genai_config.json").read_text(encoding="utf-8"))
    vocabulary = settings["model"]["vocab_size"]
    options = {"intra_op_num_threads": threads, "log_id": "genai"}
    overlay = {"eos_token_id": vocabulary - 1, "decoder": {"session_options": options}}
    config = genai.Config(folder)
    config.overlay(json.dumps({"model": overlay}))
    model = genai.Model(config)

    def generate(ids: list[int], new: int, ends: list[int]) -> Iterator[int]:
        chosen = genai.GeneratorParams(model)
        chosen.set_search_options(do_sample=False, max_length=len(ids) + new)
        generator = genai.Generator(model, chosen)
        generator.append_tokens(np.array(ids, np.int32))
        for _ in range(new):
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])

    return generate


def generate_optimum(folder: str, threads: int) -> Generate:
    """A folder by optimum's ORTModelForCausalLM, in the loop of transformers."""
    from onnxruntime import SessionOptions
    from optimum.onnxruntime import ORTModelForCausalLM

    options = SessionOptions()
    options.intra_op_num_threads = threads
    return _transformers(ORTModelForCausalLM.from_pretrained(folder, session_options=options))


def generate_eager(folder: str, threads: int) -> Generate:
    """A checkpoint by transformers in PyTorch."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return _transformers(model.eval())


def _transformers(model: Any) -> Generate:
    """`model.generate`, whose tokens are taken as it hands them to a streamer."""
    import torch

    class Times(list[tuple[float, int]]):
        """Tokens and when they came; the first that is put is the prompt."""

        def put(self, tokens: torch.Tensor) -> None:
            self.append((time.perf_counter(), tokens.reshape(-1).tolist()[-1]))

        def end(self) -> None:
            pass

    def generate(ids: list[int], new: int, ends: list[int]) -> Iterator[Any]:
        times, prompt = Times(), torch.tensor([ids])
        options = {"max_new_tokens": new, "do_sample": False, "eos_token_id": None}
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            streamer=times,
            pad_token_id=0,
            **options,
        )
        yield from times[1:]

    return generate


def generate_plain(folder: str, threads: int) -> Generate:
    """Any folder with a genai_config.json in one and the same loop over onnxruntime: caches that
    are shared where the file shares them, bound once; the mask all ones."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(Path(folder, "model.onnx")), options)
    settings = json.loads(Path(folder, "genai_config.json").read_text(encoding="utf-8"))
    decoder, search = settings["model"]["decoder"], settings["search"]
    names = {tensor.name: tensor.type for tensor in session.get_inputs()}
    caches = {name: name.replace("past_key_values", "present") for name in names if "past" in name}
    dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    heads, width = decoder["num_key_value_heads"], decoder["head_size"]

    def zeros(slots: int, name: str) -> Any:
        values = np.zeros((1, heads, slots, width), dtype[names[name]])
        return onnxruntime.OrtValue.ortvalue_from_numpy(values)

    shared = search["past_present_share_buffer"]

    def generate(ids: list[int], new: int, ends: list[int]) -> Iterator[int]:
        held = {name: zeros(len(ids) + new if shared else 0, name) for name in caches}
        binding, past, tokens = session.io_binding(), 0, np.array([ids], np.int64)
        for _ in range(new):
            total = past + tokens.shape[1]
            numbers = {"input_ids": tokens, "attention_mask": np.ones((1, total), np.int64)}
            numbers["position_ids"] = np.arange(past, total)[None]
            for name in numbers.keys() & names.keys():
                binding.bind_cpu_input(name, numbers[name])
            binding.bind_output("logits", "cpu")
            for name, after in caches.items() if past == 0 or not shared else ():
                binding.bind_ortvalue_input(name, held[name])
                if shared:
                    binding.bind_ortvalue_output(after, held[name])
                else:
                    binding.bind_output(after, "cpu")
            session.run_with_iobinding(binding)
            logits, *presents = binding.get_outputs()
            held = held if shared else dict(zip(caches, presents, strict=True))
            past, tokens = total, logits.numpy()[:, -1:].argmax(-1)
            yield int(tokens[0, 0])

    return generate


KINDS = {
    "ours": generate_ours,
    "lookup": generate_by_lookup,
    "genai": generate_genai,
    "optimum": generate_optimum,
    "eager": generate_eager,
    "plain": generate_plain,
}


def main(kind: str, folder: str, threads: int) -> None:
    generate = KINDS[kind](folder, threads)
    print(json.dumps({"ready": kind}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        before = time.perf_counter()
        tokens, times = [], []
        for token in generate(asked["ids"], asked["new"], asked["ends"]):
            when, token = token if isinstance(token, tuple) else (time.perf_counter(), token)
            tokens.append(token)
            times.append(when - before)
            before = when
        print(json.dumps({"ids": tokens, "seconds": times}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
