"""Greedy texts by optimum's ORTModelForCausalLM from a folder as it is.

    python optimum_client.py FOLDER NEW PROMPT...

Prints JSON: the text of each prompt alone, and of all prompts in one batch, padded on the left.
"""

import json
import sys

from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer


def main(folder: str, new: int, *prompts: str) -> None:
    model = ORTModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")

    def texts(*prompts: str) -> list[str]:
        inputs = tokenizer(list(prompts), return_tensors="pt", padding=True)
        sequences = model.generate(**inputs, max_new_tokens=new, do_sample=False)
        return tokenizer.batch_decode(sequences, skip_special_tokens=True)

    alone = [texts(prompt)[0] for prompt in prompts]
    print(json.dumps({"alone": alone, "together": texts(*prompts)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
