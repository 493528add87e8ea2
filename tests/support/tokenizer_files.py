"""Tokenizers for small decoders, made by the library itself."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SENTENCE = "the cat sat on a mat and saw dogs run far away . ! ? end"
WORDS = SENTENCE.split()
"""A word for each token of the small decoder of `decoder_model`."""

CHAT = (
    "{% for message in messages %}{{ message.role }} {{ message.content }} {{ bos_token }} "
    "{% endfor %}{% if add_generation_prompt %}! {% endif %}"
)


def word_tokenizer() -> Tokenizer:
    """Words with spaces between them; what is no word of WORDS is a question mark."""
    model = models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="?")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["end"])
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """Bytes, so that a character beyond ASCII has several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=alphabet))
    return tokenizer


def marked_tokenizer() -> Tokenizer:
    """Words that begin with a mark in place of a space, as SentencePiece has them: of a text's
    first word the decoder leaves the mark out."""
    words = {"?": 0, "▁the": 1, "▁cat": 2, "▁sat": 3, "s": 4}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="?"))
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer
