"""Writes which config keys transformers' code reads for each model_type on the way to an attention
layer, as `python -m scripts.family_reads`.

A key counts if it is read while a tiny model of the family is built and run, by an attention or
rotary module or a mask function ("attention") or by the layers around it ("around"); if the source
of such a module names it; or if the config class derives other keys from it ("around"). Parts that
take no part in an attention layer (MLPs, experts, embeddings, heads) are left out, and so is the
cache: what only the cache looks at hides nothing from the tokens of one call.
"""

import argparse
import ast
import dataclasses
import inspect
import json
import re
import signal
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import torch
import transformers
from transformers import PreTrainedConfig, logging

from rope_export.checkpoints.families.tables import READS
from tests.conformance.families.capture import captures
from tests.conformance.families.config_defaults import config_classes
from tests.conformance.families.rotary_classes import rotary_families
from tests.conformance.families.tiny import tiny_models

ROOT = f"{Path(transformers.__file__).parent}/"
OURS = f"{Path(__file__).parents[1]}/"
ELSEWHERE = re.compile(
    r"MLP|Mlp|Expert|MoE(?!.*Attention)|Router|Embeddings?$|Mamba|Conv|SSM|FeedForward|FFN|Norm$"
    r"|Head$|LMHead|Projector|Pool|Patch|Delta|VQ|Quantiz|Codebook|Classif|For[A-Z]"
)
"""Modules that are no part of an attention layer."""
ATTENDS = re.compile(r"Attention|Rotary|RoPE|Rope|rotary|rope|mask")
"""Classes and functions of a modeling file whose source is read for the branches that no tiny
model takes."""
GENERIC = ("masking_utils.py", "modeling_rope_utils.py")
LIMIT = 120
"""Seconds for the tiny models of one family."""

NEVER = re.compile(
    r"^default_(theta|rope_type)$|dropout|^initializer|^output_|^return_dict|^use_cache$|^(vocab_size|pad_token_id)$"
)
"""Keys that bear on training or on the model's ends."""
PLACES = ("attention", "around")

Reads = dict[str, dict[str, set[str]]]
"""Keys by model_type and place."""


def place(frame: FrameType | None) -> str | None:
    """Where a key is read, of PLACES; none where it bears on no attention layer."""
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(ROOT):
            path = name.removeprefix(ROOT)
            if path.startswith("models/") and "/modeling_" in path:
                owner = frame.f_locals.get("self")
                who = frame.f_code.co_name if owner is None else type(owner).__name__
                if ELSEWHERE.search(who):
                    return None
                return "attention" if ATTENDS.search(who) else "around"
            if path in GENERIC:
                # What every config does with its rope parameters says nothing of the model's code.
                config = isinstance(frame.f_locals.get("self"), PreTrainedConfig)
                return None if config else "attention"
            if not path.startswith(("configuration_utils", "integrations/heterogeneity")):
                return None
        elif name.startswith(OURS):
            return None
        frame = frame.f_back
    return None


@contextmanager
def recorded(found: Reads) -> Iterator[None]:
    """Adds every key of a config that is read meanwhile, under its name in the file."""
    plain = PreTrainedConfig.__getattribute__
    inside = False

    def read(self: PreTrainedConfig, key: str) -> Any:
        nonlocal inside
        if not inside and not key.startswith("_"):
            inside = True
            try:
                names = object.__getattribute__(self, "attribute_map")
                where = place(sys._getframe(1))
                if where is not None:
                    found[type(self).model_type][where].add(names.get(key, key))
            finally:
                inside = False
        return plain(self, key)

    with mock.patch.object(PreTrainedConfig, "__getattribute__", read):
        yield


def run_reads(family: str, found: Reads) -> None:
    """Builds and runs the family's tiny models, every variant."""

    def late(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    try:
        for tiny in tiny_models(family):
            read: Reads = defaultdict(lambda: {name: set() for name in PLACES})
            with (
                tempfile.TemporaryDirectory() as folder,
                recorded(read),
                suppress(RuntimeError, ValueError, TypeError, AttributeError),
            ):
                captures(tiny, Path(folder))
                for model_type, places in read.items():  # of a run to the end
                    for name, keys in places.items():
                        found[model_type][name] |= keys
    except TimeoutError:
        print(f"{family}: not all variants within {LIMIT} s", file=sys.stderr)
    finally:
        signal.alarm(0)


def source_reads(cls: type[PreTrainedConfig]) -> dict[str, set[str]]:
    """Keys that the family's attention and rotary classes name, and those that its config class
    derives others from."""
    named: set[str] = set()
    for path in Path(inspect.getfile(cls)).parent.glob("modeling_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and ATTENDS.search(node.name):
                named |= set(_of_config(node, {"config"}))
    derived: set[str] = set()
    for base in cls.__mro__:
        if issubclass(base, PreTrainedConfig) and base.__module__.startswith("transformers.models"):
            body = ast.parse(inspect.getsource(base))
            derived |= set(_of_config(body, {"self", "kwargs"}))
    return {"attention": named, "around": derived}


def by_kind(cls: type[PreTrainedConfig]) -> bool:
    """Whether a rotary class of the family takes the rope parameters of each kind of layer."""
    nodes = (
        node
        for path in Path(inspect.getfile(cls)).parent.glob("modeling_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
    )
    classes = (x for x in nodes if isinstance(x, ast.ClassDef) and "Rotary" in x.name)
    return any("layer_type" in ast.unparse(x) for x in classes)


def _of_config(tree: ast.AST, owners: set[str]) -> Iterator[str]:
    """Names read as config.NAME, self.config.NAME, getattr(config, "NAME"), kwargs.get("NAME")."""
    for node in ast.walk(tree):
        loaded = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
        if loaded and _name(node.value) in owners - {"kwargs"}:  # type: ignore[attr-defined]
            yield node.attr  # type: ignore[attr-defined]
        if isinstance(node, ast.Call) and node.args:
            function, texts = node.func, [x for x in node.args if isinstance(x, ast.Constant)]
            asked = isinstance(function, ast.Name) and function.id in ("getattr", "hasattr")
            asked &= _name(node.args[0]) in owners
            method = isinstance(function, ast.Attribute) and function.attr in ("get", "pop")
            taken = method and _name(function.value) in owners  # type: ignore[attr-defined]
            if asked or taken:
                yield from (x.value for x in texts[:1] if isinstance(x.value, str))


def _name(node: ast.AST) -> str:
    """`config` for config and self.config; the name itself otherwise."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def every(families: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The keys of every model_type, each in the first place it was found in, with the config
    class's default, or "?" where it has none that JSON can hold; and whether its rotation differs
    by the kind of layer."""
    found: Reads = defaultdict(lambda: {name: set() for name in PLACES})
    for family in families:
        run_reads(family, found)
        print(family, file=sys.stderr)
    classes = config_classes()
    for model_type in found.keys() & classes.keys():
        for name, keys in source_reads(classes[model_type]).items():
            found[model_type][name] |= keys
    methods = {name for name in dir(PreTrainedConfig) if callable(getattr(PreTrainedConfig, name))}
    return {
        model_type: {
            "attention": _kept(keys["attention"] - methods, classes.get(model_type)),
            "around": _kept(keys["around"] - keys["attention"] - methods, classes.get(model_type)),
            "rope_by_kind": model_type in classes and by_kind(classes[model_type]),
        }
        for model_type, keys in sorted(found.items())
    }


def _kept(names: set[str], cls: type[PreTrainedConfig] | None) -> dict[str, Any]:
    fields = {} if cls is None else {field.name: field for field in dataclasses.fields(cls)}
    found: dict[str, Any] = {}
    for name in sorted(x for x in names if not NEVER.search(x) and not x.startswith("_")):
        value = fields[name].default if name in fields else "?"
        found[name] = value if isinstance(value, bool | int | float | str | None) else "?"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.family_reads", description=__doc__)
    parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    names = every(rotary_families())
    lines = (f"{json.dumps(name)}: {json.dumps(keys)}" for name, keys in names.items())
    READS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
