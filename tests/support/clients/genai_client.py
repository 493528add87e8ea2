"""Greedy texts by onnxruntime-genai from a folder as it is, as its own examples generate them.

    python genai_client.py FOLDER NEW PROMPT...

Prints JSON: the text of each prompt alone, and of all prompts in one batch. With --ids prompts are
numbers between commas, and so are the answers.
"""

import json
import sys

import numpy as np
import onnxruntime_genai as genai


def main(folder: str, new: int, *prompts: str) -> None:
    model = genai.Model(folder)
    if prompts[0] == "--ids":
        rows = [[int(word) for word in prompt.split(",")] for prompt in prompts[1:]]
        alone = [generated(model, np.array(row, np.int32), len(row) + new)[0] for row in rows]
        together = generated(model, np.array(rows, np.int32), len(rows[0]) + new)
        print(json.dumps({"alone": alone, "together": together}))
        return
    tokenizer = genai.Tokenizer(model)
    encoded = [tokenizer.encode(prompt) for prompt in prompts]
    alone = [generated(model, ids, len(ids) + new)[0] for ids in encoded]
    longest = max(map(len, encoded))
    together = generated(model, tokenizer.encode_batch(list(prompts)).as_numpy(), longest + new)
    texts = [[tokenizer.decode(np.array(ids, np.int32)) for ids in x] for x in (alone, together)]
    print(json.dumps({"alone": texts[0], "together": texts[1]}))


def generated(model: genai.Model, ids: object, length: int) -> list[list[int]]:
    """The whole sequences, prompts and answers, up to so many tokens."""
    rows = ids.shape[0] if len(ids.shape) == 2 else 1
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=length, batch_size=rows)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    return [[int(token) for token in generator.get_sequence(row)] for row in range(rows)]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
