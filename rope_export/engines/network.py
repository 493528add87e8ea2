"""From an ONNX file to a TensorRT network that computes the same, and what is in it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import Struct

from rope_export.errors import InputError, RopeExportError, extra

KERNEL_HEADS = range(16, 257, 8)
"""Head sizes that fused attention kernels are documented for: 16 to 256, a multiple of 8.
Source: NVIDIA TensorRT documentation, "Work with transformers", multi-head attention fusion."""


SCORES = 4
"""Axes that scores have at least; those of a router, which chooses experts, have fewer."""


class NetworkFacts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The layers of a parsed network that compute rotation and attention, of one layer of a model
    or of all of them.

    rotary, attention, kv_cache_updates: layers of each kind. causal: how each attention layer
    counts causality, "NONE" where a mask holds it. decomposed: attention layers that the builder
    may take apart, having no kernel documented for them. softmax: softmaxes of scores outside
    attention layers. head_dims: head size of each attention layer.
    """

    rotary: int
    attention: int
    kv_cache_updates: int
    causal: tuple[str, ...] = ()
    decomposed: int = 0
    softmax: int = 0
    head_dims: tuple[int, ...] = ()


def refuse(model: Path, contents: bytes | None = None) -> None:
    """Refuses a file whose attention or rotation TensorRT would compute otherwise.

    contents: the file's bytes, where they were read already.
    Raises: InputError naming the node, the rule and the way out: for a form that TensorRT parses
        and computes otherwise than ONNX defines it, or that it cannot parse or build.
    """
    with extra("export", "reading an ONNX model"):
        import onnx

        from rope_export.engines.forms import wrong
    try:
        read = onnx.load_model_from_string(model.read_bytes() if contents is None else contents)
        read = onnx.shape_inference.infer_shapes(read)
    except Exception as error:  # protobuf's own kind of error is not public
        raise InputError(f"{model}: is not an ONNX model ({_line(str(error))}).") from error
    for complaint in wrong(read):
        raise InputError(f"{model}: {complaint}")


def parse(trt: Any, network: Any, model: Path, logger: Any) -> None:
    """Fill `network` from a file that `refuse` lets pass, and mark the attention that no kernel is
    documented for, which would fail to build, as one that may be taken apart.

    The mark is set here and not in the file: as an attribute there, onnx and onnxruntime would
    refuse the file. Where there is a kernel after all, the builder still takes it.
    Raises: RopeExportError with the parser's own words.
    """
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        reported = (parser.get_error(at) for at in range(parser.num_errors))
        errors = [f"{e.node_operator()} {e.node_name()!r}: {_line(e.desc())}" for e in reported]
        raise RopeExportError(
            f"{model}: TensorRT's parser refuses it: {'; '.join(errors) or 'it gives no reason'}. "
            f"Export with lowering 'tensorrt'."
        )
    for attention in _attentions(trt, network):
        if not _has_kernel(trt, attention):
            attention.decomposable = True


def facts(trt: Any, network: Any) -> NetworkFacts:
    """The facts of a parsed network."""
    kinds = [network.get_layer(at).type for at in range(network.num_layers)]
    attentions = list(_attentions(trt, network))
    return NetworkFacts(
        rotary=kinds.count(trt.LayerType.ROTARY_EMBEDDING),
        attention=len(attentions),
        kv_cache_updates=kinds.count(trt.LayerType.KV_CACHE_UPDATE),
        causal=tuple(_causal(trt, attention) for attention in attentions),
        decomposed=sum(bool(attention.decomposable) for attention in attentions),
        softmax=len(list(_softmaxes(trt, network))),
        head_dims=tuple(attention.get_input(0).shape[-1] for attention in attentions),
    )


@dataclass(frozen=True, kw_only=True)
class Names:
    """What the parts of a network are called in its file. attention: each attention layer. softmax:
    each softmax of scores outside of those. inputs: of the network."""

    attention: tuple[str, ...] = ()
    softmax: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()


def names(trt: Any, network: Any) -> Names:
    """The names in a parsed network."""
    return Names(
        attention=tuple(str(attention.name) for attention in _attentions(trt, network)),
        softmax=tuple(str(softmax.name) for softmax in _softmaxes(trt, network)),
        inputs=tuple(str(network.get_input(at).name) for at in range(network.num_inputs)),
    )


def _softmaxes(trt: Any, network: Any) -> Iterator[Any]:
    for at in range(network.num_layers):
        layer = network.get_layer(at)
        if layer.type == trt.LayerType.SOFTMAX and len(layer.get_input(0).shape) >= SCORES:
            yield layer


def _attentions(trt: Any, network: Any) -> Iterator[Any]:
    """Every IAttention, by way of its input layer."""
    for at in range(network.num_layers):
        layer = network.get_layer(at)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            # The bindings hand out the base class; the layer takes its own when it is told to.
            layer.__class__ = trt.IAttentionInputLayer
            yield layer.attention


def _has_kernel(trt: Any, attention: Any) -> bool:
    query = attention.get_input(0)
    return query.dtype != trt.DataType.FLOAT and query.shape[-1] in KERNEL_HEADS


def _causal(trt: Any, attention: Any) -> str:
    """The name of the causal kind; before 11.0 there is one kind, UPPER_LEFT, or none."""
    if hasattr(trt, "CausalMaskKind"):
        return str(attention.causal_kind.name)
    return "UPPER_LEFT" if attention.causal else "NONE"


def _line(text: str) -> str:
    """The parser's words in one line, without those that it adds where there is no GPU."""
    lines = (line.strip() for line in text.splitlines())
    return " ".join(line for line in lines if line and "cudaError" not in line)
