"""GPT-J, CodeGen, GPT-NeoX, Falcon and DBRX: the layouts of the first rotary models."""

from torch import Tensor

from rope_export.checkpoints.families.base import Config, Facts, Family
from rope_export.checkpoints.families.reading import bias_flag, biases
from rope_export.checkpoints.layout import (
    TensorLayout,
    blocks,
    group_by_group,
    head_by_head,
)
from rope_export.errors import SpecError
from rope_export.spec import AttentionSpec


def _part(config: Config, layer: int) -> dict[str, object]:
    """Rotates rotary_dim features, all of them where it is null; the base is in the code."""
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    rotary_dim = config.get("rotary_dim")
    return {
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 1.0 if rotary_dim is None else rotary_dim / head_dim,
    }


def _codegen(at: int):  # type: ignore[no-untyped-def]
    """Takes one projection out of rows in four parts, each with queries, then values, then keys."""

    def take(tensor: Tensor, spec: AttentionSpec) -> Tensor:
        parts = tensor.reshape(4, 3, -1, *tensor.shape[1:])
        return parts[:, at].flatten(0, 1)

    return take


def _falcon(config: Config, layer: int) -> Facts:
    if config.flag("alibi"):
        raise SpecError("config key alibi=True: attention with linear biases has no rotation.")
    kv_heads, multi_query = config.get("num_kv_heads"), config.flag("multi_query")
    facts = biases("qkvo", config.flag("bias"))
    if config.flag("new_decoder_architecture"):
        return facts | {"kv_heads": kv_heads or config["num_attention_heads"]}
    return facts | {"kv_heads": 1 if multi_query else config["num_attention_heads"]}


def _dbrx(config: Config, layer: int) -> Facts:
    inner = config.get("attn_config") or {}
    clip = inner.get("clip_qkv")
    facts: Facts = {"kv_heads": inner.get("kv_n_heads") or 1}
    return facts | ({} if clip is None else {"clip": float(clip)})


def _dbrx_base(config: Config, layer: int) -> dict[str, object]:
    inner = config.get("attn_config") or {}
    return {"rope_theta": inner.get("rope_theta") or 10_000.0}


def _neox(config: Config, layer: int) -> dict[str, object]:
    """Rope parameters of older files, which have rotary_pct and rotary_emb_base."""
    factor, base = config.get("rotary_pct"), config.get("rotary_emb_base")
    parameters: dict[str, object] = {} if factor is None else {"partial_rotary_factor": factor}
    return parameters | ({} if base is None else {"rope_theta": base})


GPTJ = Family(
    model_type="gptj",
    rope=_part,
    layout="interleaved",
    tensors=TensorLayout(layers="h.{layer}.attn.", modules={"o_proj": "out_proj"}),
    ignored=frozenset({"scale_attn_weights", "n_head", "n_ctx"}),
)
CODEGEN = Family(
    model_type="codegen",
    rope=_part,
    layout="interleaved",
    tensors=TensorLayout(
        layers="h.{layer}.attn.",
        modules={"o_proj": "out_proj"},
        fused={
            "q_proj": ("qkv_proj", _codegen(0)),
            "v_proj": ("qkv_proj", _codegen(1)),
            "k_proj": ("qkv_proj", _codegen(2)),
        },
    ),
    ignored=frozenset({"n_ctx"}),
)
GPT_NEOX = Family(
    model_type="gpt_neox",
    attention=bias_flag(),
    rope=_neox,
    tensors=TensorLayout(
        layers="layers.{layer}.attention.",
        modules={"o_proj": "dense"},
        fused=head_by_head("query_key_value"),
    ),
)
GPT_NEOX_JAPANESE = Family(
    model_type="gpt_neox_japanese",
    rope=_neox,
    tensors=TensorLayout(
        layers="layers.{layer}.attention.",
        modules={"o_proj": "dense"},
        fused=head_by_head("query_key_value"),
        ignored=("rotary_emb.inv_freq", "masked_bias", "dense_bias"),
    ),
)
FALCON = Family(
    model_type="falcon",
    attention=_falcon,
    tensors=TensorLayout(
        layers="h.{layer}.self_attention.",
        modules={"o_proj": "dense"},
        fused=group_by_group("query_key_value"),
    ),
    ignored=frozenset({"parallel_attn", "num_ln_in_parallel_attn"}),
)
DBRX = Family(
    model_type="dbrx",
    attention=_dbrx,
    rope=_dbrx_base,
    tensors=TensorLayout(
        layers="blocks.{layer}.norm_attn_norm.attn.",
        modules={"o_proj": "out_proj"},
        fused=blocks("Wqkv"),
    ),
)
