"""transformers' config object and model class for a folder, and the model on meta."""

import importlib
import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

AUTO_CLASSES = (
    "AutoModelForCausalLM",
    "AutoModelForImageTextToText",
    "AutoModelForMultimodalLM",
    "AutoModelForMaskedLM",
    "AutoModelForSeq2SeqLM",
    "AutoModel",
)
"""Where the class is looked for if the config names no architecture."""


class Unread(Exception):
    """transformers cannot be asked about this layer; the message says why, in one line."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silences what transformers logs, warns of and shows progress of."""
    from transformers.utils import logging as theirs

    logger = logging.getLogger("transformers")
    level, handlers = logger.level, logger.handlers[:]
    bars = theirs.is_progress_bar_enabled()
    try:
        logger.setLevel(logging.CRITICAL)
        theirs.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        logger.handlers[:] = handlers
        if bars:
            theirs.enable_progress_bar()


def configured(folder: Path) -> Any:
    """transformers' config object for a folder with config.json; code that lies there or on a hub
    is never run.

    Raises: Unread if transformers does not know the model without such code.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise Unread(f"transformers cannot read the config ({reason(error)})") from error


def reason(error: BaseException) -> str:
    """An error in one line, without the advice that follows it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {text}"[:240]


def model_class(config: Any) -> Any:
    """The class that `architectures` names; without, the first auto class that has one.

    Raises: Unread if there is none in transformers.
    """
    import transformers

    for name in getattr(config, "architectures", None) or ():
        cls = getattr(transformers, name, None)
        if cls is None:
            module = type(config).__module__.replace(".configuration_", ".modeling_")
            cls = getattr(importlib.import_module(module), name, None)
        if inspect.isclass(cls) and hasattr(cls, "from_pretrained"):
            return cls
    for name in AUTO_CLASSES:
        by_config = getattr(getattr(transformers, name, None), "_model_mapping", {})
        if type(config) in by_config:
            return by_config[type(config)]
    raise Unread(f"transformers has no model for {type(config).__name__}")


def built(config: Any, dtype: torch.dtype) -> Any:
    """The model on meta, in eager attention.

    Raises: Unread for what transformers' own code raises.
    """
    eager(config)
    cls = model_class(config)
    try:
        with ExitStack() as stack:
            for context in _init_contexts(cls, dtype):
                stack.enter_context(context)
            model = cls(config)
    except Exception as error:
        raise Unread(f"transformers cannot build {cls.__name__} ({reason(error)})") from error
    return model.eval()


def _init_contexts(cls: Any, dtype: torch.dtype) -> list[Any]:
    keywords = {"dtype": dtype, "is_quantized": False, "_is_ds_init_called": False}
    parameters = inspect.signature(cls.get_init_context).parameters
    if "allow_all_kernels" in parameters:
        keywords["allow_all_kernels"] = None
    return cls.get_init_context(**{k: v for k, v in keywords.items() if k in parameters})


def eager(config: Any) -> None:
    """Eager attention and experts, in every config inside of this one."""
    seen = set()

    def visit(at: Any) -> None:
        if id(at) in seen:
            return
        seen.add(id(at))
        at._attn_implementation = "eager"
        at._experts_implementation = "eager"
        for value in list(vars(at).values()):
            if hasattr(value, "to_diff_dict"):
                visit(value)

    visit(config)
