"""Tiny random models of every transformers family that applies rotary embeddings itself.

The families are found by reading the installed modeling files, and each tiny configuration is made
by shrinking the defaults of the family's own config class, so that a family that transformers adds
is covered without a line here. Only what generic rules get wrong stands in the overrides table.
"""

import ast
import copy
import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any
from unittest import mock

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from tests.conformance.families.overrides import NOT_EAGER, OVERRIDES, SKIP, SUBMODULES, VARIANTS

MODELS = Path(transformers.__file__).parent / "models"
ROTATES = re.compile(r"rotate_(half|every_two|pairwise)|apply_\w*rot|apply_\w*rope")
SEED = 20
VOCABULARY = 128


@dataclass(frozen=True)
class TinyModel:
    """One model class of a family, small enough to run in milliseconds, not built yet."""

    family: str
    variant: str
    model_class: type[PreTrainedModel]
    config: PreTrainedConfig
    attention_classes: tuple[str, ...]
    """Names of the rotary attention classes that this model is here to show."""
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        return f"{self.family}/{self.model_class.__name__}/{self.variant}"

    def build(self) -> nn.Module:
        return build(self.model_class, self.config, self.dtype)


@cache
def rotary_families() -> tuple[str, ...]:
    """Directories of transformers/models whose modeling file defines or calls a rotation."""
    found = {x.parent.name for x in MODELS.glob("*/modeling_*.py") if _applies_rotary(x)}
    return tuple(sorted(found))


def _applies_rotary(path: Path) -> bool:
    text = path.read_text(encoding="utf-8")
    if not ROTATES.search(text):
        return False
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and ROTATES.search(node.name):
            return True
        if isinstance(node, ast.Call) and ROTATES.search(ast.unparse(node.func)):
            return True
    return False


def modeling_modules(family: str) -> list[ModuleType]:
    """The family's modeling files as modules, those that apply rotary embeddings."""
    paths = sorted((MODELS / family).glob("modeling_*.py"))
    return [
        importlib.import_module(f"transformers.models.{family}.{x.stem}")
        for x in paths
        if _applies_rotary(x)
    ]


def own_classes(module: ModuleType, base: type) -> list[Any]:
    """Classes that the file itself defines, in its order."""
    return [
        x
        for x in vars(module).values()
        if inspect.isclass(x) and issubclass(x, base) and x.__module__ == module.__name__
    ]


@cache
def rotates(cls: Hashable) -> bool:
    """Whether the forward of a module class, or a method or helper it calls, rotates."""
    forward = getattr(cls, "forward", None)
    return isinstance(cls, type) and forward is not None and _reaches(forward, cls, set())


def _reaches(function: Any, cls: type, seen: set[Any]) -> bool:
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    if code is None or code in seen:
        return False
    seen.add(code)
    names = _names(code)
    if any(ROTATES.search(x) for x in names):
        return True
    module = getattr(function, "__globals__", {})
    for name in names:
        method, helper = inspect.getattr_static(cls, name, None), module.get(name)
        if isinstance(method, staticmethod):
            method = method.__func__
        for target in (method, helper):
            own = getattr(target, "__module__", "") == cls.__module__
            if inspect.isfunction(target) and own and _reaches(target, cls, seen):
                return True
    return False


def _names(code: CodeType) -> set[str]:
    inner = [_names(x) for x in code.co_consts if isinstance(x, CodeType)]
    return set(code.co_names).union(*inner)


def attention_modules(model: nn.Module, family: str) -> dict[str, nn.Module]:
    """The modules of the model that apply rotary embeddings and hold the projections, by path.

    Where the rotation is applied by a helper module without projections, its parent is meant.
    """
    prefix, found = f"transformers.models.{family}.", {}
    modules = dict(model.named_modules())
    for path, module in modules.items():
        if not type(module).__module__.startswith(prefix) or isinstance(module, PreTrainedModel):
            continue
        kind: Any = type(module)
        if not rotates(kind):
            continue
        while path and not any(x.dim() > 1 for x in module.parameters()):
            path = path.rpartition(".")[0]
            module = modules[path]
        found[path] = module
    return {
        path: module
        for path, module in found.items()
        if path and not any(path.startswith(f"{x}.") for x in found)
    }


def rotary_attention_classes(family: str) -> set[str]:
    """Names of the classes of the family's file that apply a rotation and hold projections."""
    return set().union(*(_wanted(x) for x in modeling_modules(family)))


def _wanted(module: ModuleType) -> set[str]:
    return {
        x.__name__
        for x in own_classes(module, nn.Module)
        if not issubclass(x, PreTrainedModel)
        and rotates(x)
        and _projects(x)
        and "Flash" not in x.__name__
    }


def _projects(cls: type) -> bool:
    sources = (inspect.getsource(x) for x in cls.__mro__ if x.__module__ == cls.__module__)
    return any("Linear" in x or "Conv" in x for x in sources)


def tiny_models(family: str) -> Iterator[TinyModel]:
    """The smallest models that together hold every rotary attention class, then their variants."""
    plain = list(_plain_models(family))
    yield from plain
    for tiny in plain:
        yield from _variants(tiny)


def _plain_models(family: str) -> Iterator[TinyModel]:
    PROBLEMS[family] = []
    for module in modeling_modules(family):
        wanted, candidates = _wanted(module), []
        covered: set[str] = set()
        for cls in sorted(own_classes(module, PreTrainedModel), key=_expense):
            done = wanted and wanted <= covered and max(_expense(cls)) > 0
            if done or cls.__name__ in SKIP or not _is_concrete(cls):
                continue
            try:
                tiny = TinyModel(family, "plain", cls, tiny_config_for(cls, family), ())
                model = _skeleton(tiny)
            except Exception as error:
                PROBLEMS[family].append(f"{cls.__name__}: {type(error).__name__}: {error}")
                continue
            modules = attention_modules(model, family).values()
            names = {(type(x).__name__, str(getattr(x, "is_causal", None))) for x in modules}
            covered |= {x for x, _ in names}
            size = sum(x.numel() for x in model.parameters())
            candidates.append((size, tiny, names))
        yield from _cover(sorted(candidates, key=lambda x: x[0]))


def _skeleton(tiny: TinyModel) -> nn.Module:
    """The model without weights, which is quick; with them where it cannot be made without."""
    try:
        with torch.device("meta"):
            return tiny.model_class(tiny.config)
    except Exception:
        return tiny.build()


def _expense(cls: type[PreTrainedModel]) -> tuple[int, int]:
    """Models with heads last, composites after their parts."""
    parts = getattr(cls.config_class, "sub_configs_defaults", {})
    return int("For" in cls.__name__), len(parts)


PROBLEMS: dict[str, list[str]] = {}
"""What could not be built, by family, from the last call of tiny_models."""


Kinds = set[tuple[str, str]]
"""Attention classes, each with its is_causal: encoders and decoders may share a class."""


def _cover(candidates: list[tuple[int, TinyModel, Kinds]]) -> Iterator[TinyModel]:
    covered: Kinds = set()
    for _, tiny, kinds in candidates:
        if kinds - covered:
            new = tuple(sorted({x for x, _ in kinds - covered}))
            yield dataclasses.replace(tiny, attention_classes=new)
            covered |= kinds


def _is_concrete(cls: type) -> bool:
    if cls.__name__ in SUBMODULES:  # without a forward of its own, perhaps
        return True
    forward = inspect.unwrap(cls.forward)  # type: ignore[attr-defined]
    return forward.__name__ != "_forward_unimplemented" and "PreTrainedModel" not in (
        cls.__name__.replace("PretrainedModel", "")
    )


def tiny_config_for(cls: type[PreTrainedModel], family: str) -> PreTrainedConfig:
    """The tiny configuration that a model class is built with."""
    config_class = cls.config_class
    if config_class is None:
        raise ValueError(f"{cls.__name__} names no config class")
    return tiny_config(config_class, family)


def tiny_config(
    config_class: type[PreTrainedConfig], family: str, **changes: Any
) -> PreTrainedConfig:
    """The config class's own defaults, shrunk key by key, with the family's overrides."""
    default = config_class()
    declared = {x.name: _declared_default(x) for x in dataclasses.fields(config_class) if x.init}
    overrides = {x: y for x, y in OVERRIDES.get(family, {}).items() if x in declared}
    overrides |= OVERRIDES.get(config_class.__name__, {})
    small: dict[str, Any] = {}
    for key, value in declared.items():
        resolved = value_of(default, key, value)
        if isinstance(resolved, PreTrainedConfig):
            small[key] = tiny_config(type(resolved), family)
        elif value is None and resolved is None and key in NEEDED:
            small[key] = NEEDED[key]
        elif value is not None and value is not dataclasses.MISSING:
            small[key] = shrunk(key, value, default)
    small |= _layer_lists(default, declared, small)
    small |= copy.deepcopy(overrides) | copy.deepcopy(changes)
    config = config_class(**small)
    _fit_sections(config, family)
    set_eager(config)
    return config


NEEDED = {
    "vocab_size": VOCABULARY,
    "num_experts_per_tok": 2,
    "head_dim": 16,
    "num_key_value_heads": 2,
}
"""For keys that are None by default and stay so, though the model needs a number."""


def value_of(config: Any, key: str, default: Any = None) -> Any:
    """The value of a config key; where it varies by layer, that of the first layer."""
    key = getattr(config, "attribute_map", {}).get(key, key)
    try:
        return getattr(config, key, default)
    except Exception:  # a per-layer config refuses keys that differ between its layers
        return getattr(config.per_layer_config[0], key, default)


def _declared_default(item: "dataclasses.Field[Any]") -> Any:
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return item.default


def set_eager(config: PreTrainedConfig) -> None:
    """Eager attention and experts (grouped kernels know no float64), in nested configs too."""
    config._attn_implementation = NOT_EAGER.get(type(config).__name__, "eager")
    config._experts_implementation = "eager"
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            set_eager(value)


RULES: list[tuple[str, Callable[[Any, Any], Any]]] = [
    (r"^index_topk$", lambda x, c: 4),
    (r"^index_kpool$", lambda x, c: 2),
    (r"vocab_size(_\w+)?$|^vocab_size_|^num_embeddings$", lambda x, c: VOCABULARY),
    (r"(^|_)(n_shared|num_shared)_experts$", lambda x, c: 1),
    (r"n_group$|topk_group$|num_expert_groups?$", lambda x, c: 1),
    (r"num_experts_per_tok|^moe_k$|top_?k(_experts)?$|num_selected", lambda x, c: 2),
    (r"(num|n)(_\w+)?_experts$|^num_experts\w*$", lambda x, c: min(x, 4)),
    (r"^q_lora_rank|q_rank$", lambda x, c: 32),
    (r"lora_rank$|^\w+_lora_(rank|dim)$|_rank$", lambda x, c: 16),
    (r"^qk_rope_head_dim$", lambda x, c: 8),
    (r"^qk_nope_head_dim$", lambda x, c: 16),
    (r"^rotary_(dim|ndims)$", lambda x, c: 8),
    (r"^v_head_dim$", lambda x, c: 12),
    (r"linear_(num|n)_key_heads", lambda x, c: 2),
    (r"key_value_heads|kv_heads|num_query_groups|_kv_head", lambda x, c: _kv_heads(x, c)),
    (r"^mamba_(n|num)_heads$|^mamba_heads$", lambda x, c: 8),
    (r"^(mamba|ssm|conv)_\w*(state|head)\w*|^ssm_\w+", lambda x, c: 16),
    (r"(attention|attn|query)_heads$|num_heads|n_heads?$|_heads$", lambda x, c: min(x, 4)),
    (r"head_(dim|size)$|kv_channels|^attention_head\w*dim$", lambda x, c: _head_dim(x, c)),
    (r"(intermediate|ffn|mlp|inner|feed_?forward)\w*(size|dim)|^n_inner$", lambda x, c: 64),
    (
        r"^(hidden_size|d_model|n_embd|embed_dim|dim|width|hidden_dim|model_dim|d_ff)$",
        lambda x, c: 64,
    ),
    (
        r"(hidden|embed|embedding|projection|proj|output|out|cross|state)_(size|dim)(_\w+)?$",
        lambda x, c: 64,
    ),
    (
        r"^(depth|n_layers?|num_layers|num_hidden_layers)$|(hidden|encoder|decoder)_layers$",
        lambda x, c: min(x, 4),
    ),
    (r"_layers$|_depth$", lambda x, c: min(x, 2)),
    (r"max\w*position\w*|n_positions|^n_ctx$|max_seq\w*|^block_size$", lambda x, c: min(x, 64)),
    (r"^image_size$|^img_size$|^crop_size$", lambda x, c: 32),
    (r"^patch_size$", lambda x, c: 8 if x > 2 else x),
    (
        r"window\w*size$|sliding_window$|local_attention$|chunk_size$|attention_window",
        lambda x, c: _window(x, c),
    ),
    (r"query_pre_attn_scalar", lambda x, c: 16),
]
"""Key pattern and what becomes of a positive integer, or list of them, under it; first match."""


def shrunk(key: str, value: Any, default: Any) -> Any:
    """The small value of one config key: sizes by rule, token ids into the small vocabulary."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if re.search(r"token_ids?$|token_index$|_token$|token_id_\w+$", key):
        return _token(key, value)
    if isinstance(value, int) and value > 0:
        for pattern, rule in RULES:
            if re.search(pattern, key):
                return rule(value, default)
    if isinstance(value, (list, tuple)) and re.search(r"ind(ex|ic)e?s|_layers$|layers_\w+", key):
        few = [1, 3] if len(value) > 1 else [1]
        if value and all(type(x) is int for x in value):
            return type(value)(few)
    return value


def _token(key: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_token(f"{key}{i}", x) for i, x in enumerate(value)]
    if not isinstance(value, int) or value < 10:
        return value
    return 100 + sum(key.encode()) % 28


def attribute(config: Any, *names: str) -> int | None:
    for name in names:
        value = value_of(config, name)
        if isinstance(value, int) and value > 0:
            return value
    return None


HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads", "attention_heads")
WIDTH = ("hidden_size", "d_model", "n_embd", "embed_dim", "dim", "width")


def _kv_heads(value: int, config: Any) -> int:
    heads = attribute(config, *HEADS)
    return 4 if value == heads else min(value, 2)


def _head_dim(value: int, config: Any) -> int:
    heads, width = attribute(config, *HEADS), attribute(config, *WIDTH)
    return 16 if heads is None or width is None or heads * value == width else 24


def _window(value: int, config: Any) -> int:
    return 32 if attribute(config, "patch_size", "image_size") else 8


def _layer_lists(
    default: Any, declared: Mapping[str, Any], small: Mapping[str, Any]
) -> dict[str, Any]:
    """Lists with one entry for each layer, made anew so that every distinct kind occurs."""
    key, count = _layer_count(default)
    if key is None or key not in declared:
        return {}
    lists = {
        name: list(value)
        for name in declared
        if isinstance(value := value_of(default, name), (list, tuple))
        and len(value) == count
        and all(isinstance(x, (str, int)) for x in value)
    }
    kinds = {name: list(dict.fromkeys(value)) for name, value in lists.items()}
    most = max((len(x) for x in kinds.values()), default=0)
    layers = max(small.get(key, 4), most if most <= 8 else 0)
    made: dict[str, Any] = {key: layers} if layers != small.get(key) else {}
    for name, values in kinds.items():
        made[name] = [values[i % len(values)] for i in range(layers)]
    return made


def _layer_count(config: Any) -> tuple[str | None, int]:
    for name in ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth"):
        value = value_of(config, name)
        if isinstance(value, int):
            return getattr(config, "attribute_map", {}).get(name, name), value
    return None, 0


def _fit_sections(config: Any, family: str) -> None:
    """Sections of multi-axis rotary embeddings must add up to half of the rotary dimension.

    Where the config has none, the modeling file falls back on its full-size ones.
    """
    rope = getattr(config, "rope_parameters", None)
    sources = "".join(inspect.getsource(x) for x in modeling_modules(family))
    if not isinstance(rope, dict) or "mrope_section" not in sources:
        return
    if value_of(config, "vocab_size") is None:
        return
    literal = re.search(r"mrope_section\", (\[[\d, ]+\])", sources)
    usual = ast.literal_eval(literal[1]) if literal else [16, 24, 24]
    nested = [x for x in rope.values() if isinstance(x, dict)]
    for part in nested or [rope]:
        half = int(_rotary_width(config) * (part.get("partial_rotary_factor") or 1.0)) // 2
        section = part.get("mrope_section") or usual
        share = [half * x // sum(section) for x in section]
        for i in range(half - sum(share)):
            share[i] += 1
        part["mrope_section"] = share


def _rotary_width(config: Any) -> int:
    head = attribute(config, "qk_rope_head_dim", "head_dim")
    heads, width = attribute(config, *HEADS), attribute(config, *WIDTH)
    return head or (width // heads if heads and width else 16)


def _variants(tiny: TinyModel) -> Iterator[TinyModel]:
    """The tiny model once more for each attention feature that its config can switch."""
    seen = {repr(_plain(tiny.config))}
    reads = _reads(tiny)
    for name, changes in _switches(tiny.config, tiny.family, reads):
        try:
            config = tiny_config(type(tiny.config), tiny.family, **changes)
        except Exception as error:
            PROBLEMS.setdefault(tiny.family, []).append(f"{name}: {error}")
            continue
        if repr(_plain(config)) not in seen:
            seen.add(repr(_plain(config)))
            yield dataclasses.replace(tiny, variant=name, config=config)


def _plain(config: PreTrainedConfig) -> dict[str, Any]:
    return {x: y for x, y in config.to_dict().items() if not x.startswith("_")}


def _reads(tiny: TinyModel) -> set[str]:
    """Attribute names that the source of the attention classes (and rotary classes) uses."""
    module = importlib.import_module(tiny.model_class.__module__)
    names: set[str] = set()
    for cls in own_classes(module, nn.Module):
        rotary = "Rotary" in cls.__name__ or "Rope" in cls.__name__
        if rotates(cls) or rotary or cls.__name__ in tiny.attention_classes:
            for base in cls.__mro__:
                if base.__module__ == module.__name__:
                    names |= _attributes(base)
    return names


def _attributes(cls: type) -> set[str]:
    tree = ast.parse(inspect.getsource(cls))
    read = {x.attr for x in ast.walk(tree) if isinstance(x, ast.Attribute)}
    texts = {x.value for x in ast.walk(tree) if isinstance(x, ast.Constant)}
    return read | {x for x in texts if isinstance(x, str) and x.isidentifier()}


FEATURE = re.compile(
    r"attention|attn|qk|qkv|bias|rope|rotary|sliding|window|sink|clip|softcap|gate|gating|nope|norm"
    r"|parallel|multi_query|architecture|lora_rank|key_equals"
)
NEVER = re.compile(
    r"dropout|implementation|_eps$|norm_topk|epsilon|rms_norm|theta|mlp_bias|type|flash"
    r"|multiplier|pattern"
)
NUMBERS = [(r"clip", 0.5), (r"softcap", 2.0), (r"q_lora_rank", 32), (r"sliding_window", 8)]


def _switches(
    config: PreTrainedConfig, family: str, reads: set[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and changes: booleans flipped, numbers that may be None set or taken away."""
    yield from VARIANTS.get(family, {}).items()
    if value_of(config, "index_topk") is not None:  # sparse attention that leaves nothing out
        yield "index_topk=32", {"index_topk": 32}
    for item in dataclasses.fields(config):
        key = item.name
        if not FEATURE.search(key) or NEVER.search(key) or key not in reads:
            continue
        value = value_of(config, key)
        optional = "None" in str(item.type)
        if isinstance(value, bool):
            yield f"{key}={not value}", {key: not value}
        elif value is None and optional:
            yield from ((f"{key}={x}", {key: x}) for p, x in NUMBERS if re.search(p, key))
        elif key == "sliding_window" and _slides(config):
            continue
        elif isinstance(value, (int, float)) and optional:
            yield f"{key}=None", {key: None}


def _slides(config: PreTrainedConfig) -> bool:
    """Whether layer types say which layers slide, so that a window is not to be taken away."""
    return "sliding_attention" in (value_of(config, "layer_types") or ())


def build(cls: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype) -> nn.Module:
    """The model in eval mode as from_pretrained(dtype=...) makes it, with random weights."""
    before = torch.get_default_dtype()
    torch.manual_seed(SEED)
    try:
        torch.set_default_dtype(dtype)
        with mock.patch.object(torch, "empty", cleared), optional_backends(cls):
            model = cls(config)
    finally:
        torch.set_default_dtype(before)
    randomise(model)
    return model.eval()


@contextmanager
def optional_backends(cls: type) -> Iterator[None]:
    """The packages that a model asks for are not needed: a loss that never runs here has scipy."""
    module = importlib.import_module(cls.__module__)
    with ExitStack() as stack:
        if hasattr(module, "requires_backends"):
            stack.enter_context(mock.patch.object(module, "requires_backends"))
        yield


_EMPTY = torch.empty


def cleared(*size: Any, **options: Any) -> torch.Tensor:
    """torch.empty, but the same on every run."""
    return _EMPTY(*size, **options).zero_()


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Weights that hide nothing: norms near one (or zero), biases away from zero, the rest wide."""
    generator = torch.Generator().manual_seed(SEED)
    for name, value in sorted(model.named_parameters(), key=lambda x: x[0]):
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        if value.dim() > 1:
            fan = max(value[0].numel(), 1) if value.dim() != 3 else value.shape[-1]
            value.copy_(noise * fan**-0.5)
            continue
        usable = bool(torch.isfinite(value).all()) and bool((value.abs() < 100).all())
        centre = value.double() if usable else torch.zeros_like(noise)
        value.copy_(centre + (0.5 if "sink" in name else 0.1) * noise)
    for module in model.modules():  # tables that are parameters, but not learned
        create: Any = getattr(module, "create_weight", None)
        if create is not None:
            module.get_parameter("weight").copy_(create())
