"""The tokenizer's files: the source's own, or tokenizer.json made from another form of it."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rope_export.checkpoints.gguf.model import GgufModel
from rope_export.checkpoints.locators import Locator
from rope_export.checkpoints.model import Model
from rope_export.decoder.companions.source_files import locator_of
from rope_export.reading.models import quiet, reason

FAST = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
BESIDE = (
    SETTINGS,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files that say more of a tokenizer.json."""
OTHER_FORMS = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "tiktoken.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)
"""Files that a tokenizer.json can be made from."""
GENERAL = "PreTrainedTokenizerFast"
"""What every version of transformers calls a tokenizer that is all in tokenizer.json."""


class NoTokenizer(Exception):
    """There is no tokenizer; the message says why, without a full stop."""


def tokenizer_files(source: Model) -> dict[str, bytes]:
    """The contents of each file by its name, tokenizer.json among them.

    Raises: NoTokenizer.
    """
    if isinstance(source, GgufModel):
        path = source.file.path
        return _made(lambda folder: _loaded(path.parent, gguf_file=path.name), {})
    locator = locator_of(source)
    if locator is None:
        raise NoTokenizer("the source is a config file")
    beside = {name: path.read_bytes() for name, path in _found(locator, BESIDE).items()}
    fast = locator.find(FAST)
    if fast is not None:
        return {FAST: fast.read_bytes(), **beside}
    forms = _found(locator, OTHER_FORMS)
    if not forms:
        raise NoTokenizer(f"{locator} has none")
    sources = forms | _found(locator, ("config.json",))

    def load(folder: Path) -> Any:
        for name, path in sources.items():
            shutil.copyfile(path, folder / name)
        for name, contents in beside.items():
            (folder / name).write_bytes(contents)
        return _loaded(folder)

    return _made(load, beside)


def _found(locator: Locator, names: Iterable[str]) -> dict[str, Path]:
    paths = {name: locator.find(name) for name in names}
    return {name: path for name, path in paths.items() if path is not None}


def _loaded(folder: Path, **form: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True, **form
    )


def _made(load: Callable[[Path], Any], beside: dict[str, bytes]) -> dict[str, bytes]:
    """A tokenizer as transformers saves it, in a form that older versions read as well."""
    try:
        with quiet(), tempfile.TemporaryDirectory(prefix="rope_export-") as folder:
            tokenizer, saved = load(Path(folder)), Path(folder, "saved")
            tokenizer.save_pretrained(saved)
            taken = list(tokenizer.model_input_names)
            files = {path.name: path.read_bytes() for path in sorted(saved.iterdir())}
    except Exception as error:  # what is missing or damaged, each converter in words of its own
        raise NoTokenizer(f"transformers cannot read it: {reason(error)}") from error
    if FAST not in files:
        raise NoTokenizer(f"transformers makes no {FAST} of it")
    settings = json.loads(files[SETTINGS])
    settings |= {"tokenizer_class": GENERAL, "model_input_names": taken}
    for key in ("backend", "is_local", "local_files_only"):
        settings.pop(key, None)
    files[SETTINGS] = (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()
    return beside | {name: x for name, x in files.items() if name in (FAST, *BESIDE)}
