"""A small ONNX model with a decoder's names, whose answers can be told by looking.

It keeps the promises of a real one: the mask hides slots, a token sees those up to its own, rows of
a fixed cache have lengths of their own, which may be left out, and logits are those of every new
token or of each row's last one that the mask shows.

Each layer caches (batch, 2, slots, 8), keys of E[id] and values of -E[id], E being 16 rows of 16
whole numbers; `expected_logits` is what the model computes.
"""

import numpy as np
from onnx import ModelProto, numpy_helper, parser

from rope_export.interface import Interface, TensorType

EMBEDDING = np.array([[(7 * i * i + 5 * j * i + 3 * j) % 11 for j in range(16)] for i in range(16)])
STEP = np.array([3, 0, 2, 7, 1, 5, 4, 6, 9, 8, 2, 1, 6, 3, 5, 7])
"""How much each logit grows from position to position."""


MODULUS = 29


def expected_logits(ids: list[int], positions: list[int] | None = None) -> np.ndarray:
    """Logits (tokens, 16) of a row without padding: of each token E[id], its position times STEP,
    and the sum of E over it and those before it, modulo MODULUS.

    positions: counted from 0 unless given.
    """
    at = np.arange(len(ids)) if positions is None else np.array(positions)
    rows = EMBEDDING[ids]
    return ((rows + at[:, None] * STEP + np.cumsum(rows, axis=0)) % MODULUS).astype(np.float32)


def greedy(prompt: list[int], count: int) -> list[int]:
    """The `count` tokens that greedy decoding chooses after a prompt."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(expected_logits(tokens)[-1].argmax()))
    return tokens[len(prompt) :]


CAUSAL = """
    sequence = Shape <start = 1, end = 2> (input_ids)
    total = Shape <start = 1, end = 2> (attention_mask)
    batch = Shape <start = 0, end = 1> (input_ids)
    before = Sub (total, sequence)
    left_out = Less (lengths, zero)
    held = Where (left_out, before, lengths)
    first = Expand (held, batch)
    x = Gather (E, input_ids)
    by_token = Reshape (x, heads)
    new_key = Transpose <perm = [0, 2, 1, 3]> (by_token)
    new_value = Neg (new_key)
    position = Cast <to = 1> (position_ids)
    position_column = Unsqueeze (position, two)
    grown = Mul (position_column, STEP)
    first_column = Unsqueeze (first, one)
    count = Squeeze (sequence, zero)
    start = Squeeze (zero, zero)
    step = Squeeze (one, zero)
    new_index = Range (start, count, step)
    own = Add (first_column, new_index)
    own_column = Unsqueeze (own, two)
    end = Squeeze (total, zero)
    slot = Range (start, end, step)
    later = Less (own_column, slot)
    mask_row = Unsqueeze (attention_mask, one)
    shown = Cast <to = 9> (mask_row)
    not_later = Not (later)
    visible = And (shown, not_later)
    weights = Cast <to = 1> (visible)
"""
"""Which slots each new token sees, and what it is itself."""

LOGITS = """
    covered = Slice (KEYS, zero, total, two)
    keys_by_slot = Transpose <perm = [0, 2, 1, 3]> (covered)
    keys = Reshape (keys_by_slot, flat)
    context = MatMul (weights, keys)
    token = Add (x, grown)
    whole = Add (token, context)
    every_logits = Mod <fmod = 1> (whole, MODULUS)
"""

LAST = """
    new_mask = GatherElements <axis = 1> (attention_mask, own)
    counted = Add (new_index, one)
    masked = Mul (new_mask, counted)
    rank = Cast <to = 1> (masked)
    is_last = Equal (counted, sequence)
    bonus = Cast <to = 1> (is_last)
    half = Mul (bonus, HALF)
    score = Add (rank, half)
    chosen = ArgMax <axis = 1, keepdims = 1> (score)
    chosen_column = Unsqueeze (chosen, two)
    same = Equal (chosen_column, new_index)
    pick = Cast <to = 1> (same)
    logits = MatMul (pick, every_logits)
"""
"""The row's last new token whose mask is 1, or of a row without one the last."""

TYPES = {"float32": "float", "int64": "int64"}
CONSTANTS = {
    "E": EMBEDDING.astype(np.float32),
    "STEP": STEP.astype(np.float32),
    "HALF": np.array(0.5, np.float32),
    "MODULUS": np.array(MODULUS, np.float32),
    "heads": np.array([0, 0, 2, 8]),
    "flat": np.array([0, -1, 16]),
    "zero": np.array([0]),
    "one": np.array([1]),
    "two": np.array([2]),
    "LENGTHS": np.array([-1]),
}


def decoder_model(interface: Interface) -> ModelProto:
    """interface: as `decoder_interface` makes it for layers of 2 heads of 8, and 16 logits."""
    nodes = CAUSAL.replace("lengths", interface.lengths or "LENGTHS")
    for pair in interface.caches:
        new = "new_" + pair.input.rpartition(".")[2]
        if interface.lengths is None:
            nodes += f"{pair.output} = Concat <axis = 2> ({pair.input}, {new})\n"
        else:
            nodes += f"{pair.output} = TensorScatter <axis = 2> ({pair.input}, {new}, first)\n"
    nodes += LOGITS.replace("KEYS", interface.caches[0].output)
    last = interface.output("logits").shape[1] == 1
    nodes += LAST if last else "logits = Identity (every_logits)\n"
    inputs, outputs = (
        ", ".join(map(_declared, tensors)) for tensors in (interface.inputs, interface.outputs)
    )
    text = f"decoder ({inputs}) => ({outputs}) {{ {nodes} }}".replace(".", "__dot__")
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 24]> {text}')
    _name_back(model)
    for name, value in CONSTANTS.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    if interface.optional:
        left_out = numpy_helper.from_array(np.array([-1]), interface.optional[0])
        model.graph.initializer.append(left_out)
    return model


def _declared(tensor: TensorType) -> str:
    axes = [str(axis).replace(" + ", "_plus_") for axis in tensor.shape]
    return f"{TYPES[tensor.dtype]}[{', '.join(axes)}] {tensor.name}"


def _name_back(model: ModelProto) -> None:
    """Put back the dots of names, which the textual form does not take."""
    for value in (*model.graph.input, *model.graph.output):
        value.name = value.name.replace("__dot__", ".")
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [name.replace("__dot__", ".") for name in names]
