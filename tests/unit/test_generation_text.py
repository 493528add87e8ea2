"""From text to tokens and back: whole characters, stop texts, chat templates, and what the files
beside a decoder state."""

import json

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from rope_export.errors import InputError
from rope_export.sessions.generation import Texts, settings_of
from rope_export.sessions.generation.chat import Chat
from tests.support.tokenizer_files import (
    CHAT,
    WORDS,
    byte_tokenizer,
    marked_tokenizer,
    word_tokenizer,
)

TEXT = "naïve 日本語 🙂🇫🇷 end"


def texts(folder, tokenizer: Tokenizer) -> Texts:
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    return Texts(folder)


def grown(
    opened: Texts, prompt: list[int], tokens: list[int], *stops: str
) -> tuple[list[str], bool]:
    """The pieces of a text, and whether a stop text ended it."""
    text = opened.growing(prompt, stops)
    pieces = []
    for token in tokens:
        pieces.append(text.push(token))
        if text.stopped:
            return pieces, True
    return [*pieces, text.end()], False


def test_a_text_grows_by_whole_characters(tmp_path):
    opened = texts(tmp_path, byte_tokenizer())
    tokens = opened.prompt(TEXT, chat=False)
    assert len(tokens) == len(TEXT.encode())
    pieces, _ = grown(opened, [], tokens)
    assert "".join(pieces) == TEXT
    assert all("\ufffd" not in piece for piece in pieces)
    half, _ = grown(opened, [], tokens[:-6])  # within the last flag's bytes
    assert TEXT.startswith("".join(half))


def test_a_word_after_the_prompt_keeps_its_space(tmp_path):
    opened = texts(tmp_path, marked_tokenizer())
    assert grown(opened, [1], [2, 4, 3])[0] == [" cat", "s", " sat", ""]
    assert grown(opened, [], [2, 4, 3])[0] == ["cat", "s", " sat", ""]


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        (["on a"], "the cat sat "),
        (["on a", "sat"], "the cat "),
        (["dogs"], "the cat sat on a mat"),
        (["mat and"], "the cat sat on a mat"),  # it began, and did not come
        (["at s", "at"], "the c"),
        (["the"], ""),
        ([""], "the cat sat on a mat"),
    ],
)
def test_a_text_ends_before_the_first_stop_text(tmp_path, stops, expected):
    opened = texts(tmp_path, word_tokenizer())
    tokens = opened.prompt("the cat sat on a mat", chat=False)
    pieces, stopped = grown(opened, [], tokens, *stops)
    assert "".join(pieces) == expected
    assert stopped == (expected != "the cat sat on a mat")
    for end in range(len(pieces)):  # nothing of a stop text was printed meanwhile
        assert expected.startswith("".join(pieces[:end]))


def test_special_tokens_are_not_part_of_a_text(tmp_path):
    opened = texts(tmp_path, word_tokenizer())
    assert "".join(grown(opened, [], opened.prompt("the end cat", chat=False))[0]) == "the cat"


def test_a_chat_template_brings_its_own_special_tokens(tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.post_processor = TemplateProcessing(single="end $A", special_tokens=[("end", 15)])
    opened = texts(tmp_path, tokenizer)
    (tmp_path / "chat_template.jinja").write_text("end {{ messages[0].content }}")
    assert opened.prompt("cat", chat=False) == [15, WORDS.index("cat")]
    assert opened.prompt("cat", chat=True) == [15, WORDS.index("cat")]


def test_a_folder_without_a_tokenizer_takes_tokens(tmp_path):
    with pytest.raises(InputError, match=r"tokenizer\.json: is missing, .* with `ids`"):
        Texts(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json: is not a tokenizer"):
        Texts(tmp_path)


TEMPLATES = {
    "plain": CHAT,
    "loop controls": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
    "{{ m['content'] | trim }}{% endfor %}",
    "marked": "{% for m in messages %}{% generation %}\n{{ m.content }}{% endgeneration %}"
    "{% endfor %}",
    "json": "{{ messages | tojson }}{{ {'a': 'é'} | tojson(indent=2) }}",
    "blocks": "{% if tools %}\n  tools\n{% endif %}\n  {%- for m in messages %}\n{{ m.content }}\n"
    "    {% endfor %}\n{% if not documents %}{{ eos_token }}{% endif %}",
}


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("where", ["jinja", "config", "named"])
def test_a_chat_template_is_rendered_as_transformers_does(tmp_path, template, where):
    text = TEMPLATES[template]
    special = {"bos_token": "the", "eos_token": {"content": "end", "special": True}}
    config = dict(special)
    if where == "jinja":
        (tmp_path / "chat_template.jinja").write_text(text)
        config["chat_template"] = "{{ 'another' }}"
    elif where == "config":
        config["chat_template"] = text
    else:
        other = {"name": "tool_use", "template": "x"}
        config["chat_template"] = [other, {"name": "default", "template": text}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(), bos_token="the", eos_token="end", chat_template=text
    )
    message = "  the <cat> & “é” \n sat "
    expected = theirs.apply_chat_template(
        [{"role": "user", "content": message}], add_generation_prompt=True, tokenize=False
    )
    assert Chat(tmp_path).render(message) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        ("{{ raise_exception('no user here') }}", r"template fails \(no user here\)"),
        ("{% for %}", "template fails"),
        ("{{ messages.__class__.__mro__ }}", "template fails"),
        ("{{ messages.append(1) }}", "template fails"),
        ("{{ 1 / 0 }}", "template fails"),
        ("{{ absent.name }}", "template fails"),
    ],
)
def test_a_template_that_does_not_work_is_one_line(tmp_path, template, message):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(InputError, match=message):
        Chat(tmp_path).render("x")


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        ({"eos_token_id": [2, 5]}, {"eos_token_id": 3}, {2, 5}),
        ({"eos_token_id": 2}, {"eos_token_id": 3}, {2}),
        ({"eos_token_id": None}, {"eos_token_id": 3}, {3}),
        (None, {"eos_token_id": [3]}, {3}),
        (None, {"text_config": {"eos_token_id": 4}}, {4}),
        (None, {}, set()),
        ({}, None, set()),
    ],
)
def test_texts_end_with_the_models_own_tokens(tmp_path, generation, config, ends):
    for name, facts in (("generation_config", generation), ("config", config)):
        if facts is not None:
            (tmp_path / f"{name}.json").write_text(json.dumps(facts))
    assert settings_of(tmp_path).ends == ends


def test_what_a_generation_config_asks_for_beyond_that_is_named(tmp_path):
    path = tmp_path / "generation_config.json"
    facts = {"eos_token_id": 1, "pad_token_id": 0, "_from_model_config": True, "top_k": 50}
    facts |= {"bos_token_id": 2, "repetition_penalty": 1.1, "transformers_version": "5", "x": None}
    facts |= {"output_attentions": False, "do_sample": False, "min_length": 0, "top_p": 0.9}
    path.write_text(json.dumps(facts))
    assert settings_of(tmp_path).ignored == ("top_k", "repetition_penalty", "top_p")
    path.write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(InputError, match="eos_token_id='</s>'; it must be a token's number"):
        settings_of(tmp_path)
