"""genai_config.json, by which onnxruntime-genai runs a decoder."""

from typing import Any

from rope_export.interface import Interface

INPUTS = {
    "input_ids": "input_ids",
    "attention_mask": "attention_mask",
    "position_ids": "position_ids",
    "past_key_names": "past_key_values.%d.key",
    "past_value_names": "past_key_values.%d.value",
}
OUTPUTS = {
    "logits": "logits",
    "present_key_names": "present.%d.key",
    "present_value_names": "present.%d.value",
}
SEARCH = {
    "do_sample": False,
    "min_length": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "diversity_penalty": 0.0,
    "length_penalty": 1.0,
    "early_stopping": True,
}
"""What is searched for unless generation_config.json says otherwise."""


class NoConfig(Exception):
    """onnxruntime-genai cannot run the decoder; the message says why, without a full stop."""


def genai_config(
    config: dict[str, Any], generation: dict[str, Any], interface: Interface
) -> dict[str, Any]:
    """The contents of genai_config.json.

    config: the decoder's config.json. generation: its generation_config.json.
    Raises: NoConfig.
    """
    layers, kv_heads, head_dim = _caches(interface)
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int):
        raise NoConfig("config.json has no max_position_embeddings, the length of its context")
    taken = {tensor.name for tensor in interface.inputs}
    tokens = {**config, **{k: v for k, v in generation.items() if v is not None}}
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": "model.onnx",
        "head_size": head_dim,
        "hidden_size": config.get("hidden_size"),
        "inputs": {k: v for k, v in INPUTS.items() if "%d" in v or v in taken},
        "outputs": OUTPUTS,
        "num_attention_heads": config.get("num_attention_heads"),
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
    }
    return {
        "model": {
            **_token_ids(tokens),
            "context_length": positions,
            "decoder": {key: value for key, value in decoder.items() if value is not None},
            "type": "decoder",
            "vocab_size": interface.output(interface.main_output).shape[-1],
        },
        "search": _search(generation)
        | {"max_length": positions, "past_present_share_buffer": interface.cache == "fixed"},
    }


def _caches(interface: Interface) -> tuple[int, int, int]:
    """How many layers there are, and the heads and the width of every cache.

    Raises: NoConfig if they are not all alike.
    """
    if not interface.caches:
        raise NoConfig("the decoder has no caches")
    _only_known(interface)
    layers = [int(pair.input.split(".")[1]) for pair in interface.caches]
    if sorted(set(layers)) != list(range(len(set(layers)))):
        raise NoConfig("not every layer has a cache of its own")
    shapes = {interface.input(pair.input).shape for pair in interface.caches}
    for axis, what in ((1, "numbers of key/value heads"), (3, "head widths")):
        sizes = sorted({shape[axis] for shape in shapes}, key=str)
        if len(sizes) > 1:
            listed = ", ".join(map(str, sizes))
            raise NoConfig(f"its caches differ in their {what} ({listed}), which it cannot say")
    _, kv_heads, _, head_dim = shapes.pop()
    return len(set(layers)), int(kv_heads), int(head_dim)


def _only_known(interface: Interface) -> None:
    """Raises: NoConfig for an input that onnxruntime-genai would not feed."""
    caches = {pair.input for pair in interface.caches}
    for tensor in interface.inputs:
        if tensor.name not in (*INPUTS.values(), *caches, *interface.optional):
            raise NoConfig(f"it has no input {tensor.name}, which this decoder always takes")


def _token_ids(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers, where generation configs may have lists; several end tokens stay a list."""
    ends = values.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    ids = {"bos_token_id": _first(values.get("bos_token_id"))}
    ids["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
    padding = _first(values.get("pad_token_id"))
    ids["pad_token_id"] = padding if padding is not None else _first(ends)
    return {name: value for name, value in ids.items() if value is not None}


def _first(value: Any) -> Any:
    if isinstance(value, list):
        return value[0] if value else None
    return value


def _search(generation: dict[str, Any]) -> dict[str, Any]:
    chosen = {key: generation.get(key) for key in SEARCH}
    numbers = {k: v for k, v in chosen.items() if isinstance(v, bool | int | float)}
    return SEARCH | numbers
