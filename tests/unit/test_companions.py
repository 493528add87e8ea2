"""The files beside a decoder's model are what transformers and onnxruntime-genai read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rope_export.checkpoints import open_model
from rope_export.checkpoints.model import Model
from rope_export.decoder.companions import Companions, companions
from rope_export.errors import CheckpointError
from rope_export.interface import Interface, decoder_interface
from rope_export.spec import AttentionSpec
from tests.conftest import TINY
from tests.unit.test_gguf import written as written_gguf

WORDS = {"vocab_size": 64, "intermediate_size": 96, "max_position_embeddings": 512}
LLAMA = (
    TINY
    | WORDS
    | {"bos_token_id": 1, "eos_token_id": [2, 5], "architectures": ["LlamaForCausalLM"]}
)
GEMMA = {
    "model_type": "gemma3",
    "eos_token_id": [1, 7],
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "head_dim": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "sliding_window": 16,
        **WORDS,
    },
    "vision_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
}


def source(folder: Path, config: dict[str, Any], **files: str) -> Model:
    """A config.json with other files beside it, as a model with drawn weights."""
    (folder / "config.json").write_text(json.dumps(config))
    for name, text in files.items():
        (folder / f"{name}.json").write_text(text)
    return open_model(folder / "config.json")


def interface(model: Model, cache: str = "growing", **options: Any) -> Interface:
    specs = {at: layer.spec for at, layer in enumerate(model.layers)}
    chosen = {"vocabulary": 64, "logits": "last", "dtype": "float32"} | options
    return decoder_interface(specs, cache=cache, **chosen)


def beside(model: Model, faces: Interface | None = None) -> Companions:
    from transformers import AutoConfig

    config = AutoConfig.for_model(**model.config)
    return companions(model, config, faces or interface(model))


def written(result: Companions, folder: Path) -> Path:
    folder.mkdir()
    for name, contents in result.files.items():
        (folder / name).write_bytes(contents)
    return folder


def genai(result: Companions) -> dict[str, Any]:
    return json.loads(result.files["genai_config.json"])


def test_a_text_decoders_config_is_its_own(tmp_path):
    more = {"quantization_config": {"quant_method": "gptq"}, "auto_map": {"AutoConfig": "x.Y"}}
    model = source(tmp_path, LLAMA)
    model.config |= more
    result = beside(model)
    assert json.loads(result.files["config.json"]) == LLAMA
    assert len(result.notes) == 1
    assert "no tokenizer beside the model" in result.notes[0]


def test_transformers_reads_the_text_decoder_of_a_multimodal_config(tmp_path):
    from transformers import AutoConfig

    model = source(tmp_path, GEMMA)
    config = AutoConfig.from_pretrained(written(beside(model), tmp_path / "out"))
    theirs = AutoConfig.from_pretrained(tmp_path).get_text_config()
    assert type(config) is type(theirs)
    assert config.architectures == ["Gemma3ForCausalLM"]
    assert config.eos_token_id == [1, 7]
    assert config.rope_parameters == theirs.rope_parameters
    assert config.layer_types == theirs.layer_types


def test_generation_config_says_what_transformers_would_take_from_the_config(tmp_path):
    from transformers import AutoConfig, GenerationConfig

    folder = written(beside(source(tmp_path, LLAMA)), tmp_path / "out")
    ours = GenerationConfig.from_pretrained(folder)
    theirs = GenerationConfig.from_model_config(AutoConfig.from_pretrained(tmp_path))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "do_sample"):
        assert getattr(ours, name) == getattr(theirs, name)


def test_the_sources_own_generation_config_is_kept(tmp_path):
    own = {"do_sample": True, "temperature": 0.6, "eos_token_id": [4, 6], "pad_token_id": [3, 0]}
    result = beside(source(tmp_path, LLAMA, generation_config=json.dumps(own)))
    assert json.loads(result.files["generation_config.json"]) == own
    told = genai(result)
    assert (told["search"]["do_sample"], told["search"]["temperature"]) == (True, 0.6)
    assert (told["model"]["eos_token_id"], told["model"]["pad_token_id"]) == ([4, 6], 3)


def test_a_damaged_generation_config_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"generation_config\.json: is not a JSON file"):
        beside(source(tmp_path, LLAMA, generation_config="{"))


def test_numbers_for_genai(tmp_path):
    """Lists where it takes them alone, one number elsewhere, and no key that it does not know."""
    told = genai(beside(source(tmp_path, LLAMA)))["model"]
    assert told["type"] == "decoder"
    assert (told["eos_token_id"], told["pad_token_id"], told["bos_token_id"]) == ([2, 5], 2, 1)
    assert (told["context_length"], told["vocab_size"]) == (512, 64)
    decoder = told["decoder"]
    assert (decoder["head_size"], decoder["num_key_value_heads"]) == (16, 2)
    assert (decoder["num_hidden_layers"], decoder["hidden_size"]) == (2, 64)
    assert set(decoder["inputs"].values()) == {
        "input_ids",
        "attention_mask",
        "position_ids",
        "past_key_values.%d.key",
        "past_key_values.%d.value",
    }


@pytest.mark.parametrize(("cache", "shared"), [("growing", False), ("fixed", True)])
def test_genai_shares_a_fixed_cache(tmp_path, cache, shared):
    model = source(tmp_path, LLAMA)
    search = genai(beside(model, interface(model, cache)))["search"]
    assert search["past_present_share_buffer"] is shared


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"head_dim": 32}, r"differ in their head widths \(16, 32\)"),
        ({"kv_heads": 4}, r"differ in their numbers of key/value heads \(2, 4\)"),
    ],
)
def test_no_genai_config_where_caches_differ(tmp_path, options, reason):
    model = source(tmp_path, LLAMA)
    specs = {at: layer.spec for at, layer in enumerate(model.layers)}
    specs[1] = AttentionSpec(**{**plain(specs[1]), **options})
    faces = decoder_interface(specs, vocabulary=64, cache="growing", logits="last", dtype="float32")
    result = beside(model, faces)
    assert "genai_config.json" not in result.files
    assert_noted(result, reason)


def plain(spec: AttentionSpec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in spec.__dataclass_fields__}


def assert_noted(result: Companions, reason: str) -> None:
    import re

    assert any(re.search(reason, note) for note in result.notes), result.notes


def test_no_genai_config_for_inputs_that_it_does_not_feed(tmp_path):
    model = source(tmp_path, LLAMA)
    result = beside(model, interface(model, "fixed", static_mask=True))
    assert_noted(result, "no input cache_lengths")


def test_no_genai_config_where_a_layer_has_no_cache(tmp_path):
    model = source(tmp_path, LLAMA)
    faces = decoder_interface(
        {1: model.layer(1).spec}, vocabulary=64, cache="growing", logits="last", dtype="float32"
    )
    assert_noted(beside(model, faces), "not every layer has a cache of its own")


def test_the_sources_own_tokenizer_is_copied(tmp_path, smollm2):
    names = ("tokenizer.json", "tokenizer_config.json")
    for name in names:
        shutil.copy(smollm2 / name, tmp_path)
    result = beside(source(tmp_path, LLAMA))
    assert {n: result.files[n] for n in names} == {n: (smollm2 / n).read_bytes() for n in names}
    assert not result.notes


def test_a_damaged_tokenizer_is_a_note(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"nothing that a tokenizer is made from")
    assert_noted(beside(source(tmp_path, LLAMA)), "no tokenizer beside the model .*transformers")


def test_tokenizer_json_is_made_from_a_sentencepiece_model(tmp_path):
    """The pieces are those of sentencepiece itself."""
    import sentencepiece
    from tokenizers import Tokenizer

    text = "The rotation of a query by its position: how far, and around which axis?"
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join([text, text.lower(), *text.split()] * 20))
    options = {"model_type": "bpe", "vocab_size": 90, "byte_fallback": False}
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "tokenizer"), minloglevel=2, **options
    )
    result = beside(source(tmp_path, LLAMA))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ours = Tokenizer.from_str(result.files["tokenizer.json"].decode())
    assert ours.encode(text, add_special_tokens=False).ids == pieces.encode(text)


def test_a_gguf_files_tokenizer_and_token_ids(tmp_path):
    """Against transformers reading the same file, written by llama.cpp's own package."""
    import gguf
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    words = ["<unk>", "<s>", "</s>", "a", "b", "ab", "Ġ", "Ġab"]
    kinds = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * 5
    written_gguf(
        tmp_path / "tiny.gguf",
        add_rope_dimension_count=64,
        add_tokenizer_model="gpt2",
        add_token_list=[words],
        add_token_types=[kinds],
        add_token_merges=[["a b", "Ġ ab"]],
        add_bos_token_id=1,
        add_eos_token_id=2,
        add_pad_token_id=0,
        add_chat_template="{{ messages[0]['content'] }}",
    )
    model = open_model(tmp_path / "tiny.gguf")
    config = AutoConfig.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    folder = written(companions(model, config, interface(model)), tmp_path / "out")
    ours = AutoTokenizer.from_pretrained(folder)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    assert ours("ab ab</s>")["input_ids"] == theirs("ab ab</s>")["input_ids"] == [5, 7, 2]
    assert ours.chat_template == theirs.chat_template
    read = GenerationConfig.from_pretrained(folder)
    assert (read.bos_token_id, read.eos_token_id, read.pad_token_id) == (1, 2, 0)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"  # older versions have no other
    assert (
        settings["model_input_names"] == ours.model_input_names == ["input_ids", "attention_mask"]
    )
    assert AutoConfig.from_pretrained(folder).hidden_size == config.hidden_size
