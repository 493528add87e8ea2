"""Whether the builder made one kernel of each attention layer, read from its log."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from rope_export.engines.network import KERNEL_HEADS, Names, NetworkFacts

KERNEL = re.compile(r"^Name: (\w*mha\w*), LayerType:(.*)$", re.MULTILINE)
"""A fused attention kernel in the list of layers, such as _gemm_mha_v2_myl1_5, and what is told of
it."""
MADE_OF = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
"""A node of the file that a kernel computes."""
LAYERS = "Layers:\n"
"""The beginning of the list of layers that the builder logs at the end, in full detail."""
UNNAMED = Names()
NAMED = 8
"""How many layers a reason names."""
SCRATCH = re.compile(r"(?:Max|Total) Scratch Memory: (\d+) bytes")


class Fusion(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which kernels the attention of a network became.

    fused: every attention layer is one kernel. kernels: the fused ones by name. rotary, attention,
    kv_cache_updates: layers of the parsed network. scratch_bytes: memory that a call needs beside
    weights and tensors, at the largest shapes. reason, remedy: where not fused, why, and the change
    that helps. unfused: the nodes of the file whose attention is no kernel of its own in some
    profile, such as layers.3/Attention.
    """

    fused: bool
    kernels: tuple[str, ...]
    rotary: int
    attention: int
    kv_cache_updates: int
    scratch_bytes: int | None
    reason: str | None = None
    remedy: str | None = None
    unfused: tuple[str, ...] = ()


def logger(trt: Any, verbose: bool) -> Any:
    """An ILogger that keeps what it is told, in `lines`, and errors in `errors` as well.

    verbose: keep every line, which `read_fusion` needs; without, only warnings and errors.
    """
    failed = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)

    class Kept(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in failed:
                self.errors.append(message)
            if verbose or severity in (*failed, trt.ILogger.WARNING):
                self.lines.append(message)

    return Kept()


def one_line(errors: Sequence[str]) -> str:
    """The errors that a logger kept, in one line."""
    return " ".join("; ".join(errors).split()) or "no reason given"


def read_fusion(
    lines: Sequence[str], network: NetworkFacts, dtype: str, names: Names = UNNAMED
) -> Fusion:
    """The kernels that a build's log shows for its attention.

    lines: of a logger that keeps all, from a build with ProfilingVerbosity.DETAILED. dtype: of the
    artifact, such as "float16". names: in the network, without which kernels are only counted.
    """
    lists = [line for line in lines if line.startswith(LAYERS)]
    # A list for each device or profile that the builder lays out on its own: all must be fused.
    missing = [_missing(text, network, names) for text in lists]
    fused = bool(lists) and network.attention > 0 and network.softmax == 0
    fused = fused and not any(count for count, _ in missing)
    apart = {name for _, some in missing for name in some}
    unfused = (*(x for x in names.attention if x in apart), *names.softmax)
    scratch = [int(size) for line in lines for size in SCRATCH.findall(line)]
    reason, remedy = (None, None) if fused else _why(network, dtype, bool(lists))
    if reason is not None and unfused:
        more = f" and {len(unfused) - NAMED} more" if len(unfused) > NAMED else ""
        reason = f"{reason} ({', '.join(unfused[:NAMED])}{more})"
    return Fusion(
        fused=fused,
        unfused=unfused,
        kernels=tuple(sorted({name for text in lists for name, _ in KERNEL.findall(text)})),
        rotary=network.rotary,
        attention=network.attention,
        kv_cache_updates=network.kv_cache_updates,
        scratch_bytes=max(scratch, default=None),
        reason=reason,
        remedy=remedy,
    )


def _missing(text: str, network: NetworkFacts, names: Names) -> tuple[int, set[str]]:
    """How many attention kernels a list of layers lacks, and the nodes that they would compute."""
    kernels = KERNEL.findall(text)
    profiles = _profiles(text, names.inputs)
    made = Counter(node for _, told in kernels for node in set(MADE_OF.findall(told)))
    if made.keys() & set(names.attention):
        apart = {name for name in names.attention if made[name] < profiles}
        return len(apart), apart
    count = max(0, network.attention * profiles - len(kernels))
    return count, set(names.attention) if count else set()


def _profiles(text: str, inputs: Sequence[str]) -> int:
    """How many profiles a list of layers lays out: each of them names the network's inputs, all but
    the first with its number."""
    named = "|".join(re.escape(name) for name in inputs)
    found = re.findall(rf"Name: (?:{named})(?: \[profile (\d+)\])?, ", text) if named else []
    return max(1, len(set(found)))


def _why(network: NetworkFacts, dtype: str, listed: bool) -> tuple[str, str]:
    """Why attention is not fused, and what helps."""
    beyond = [size for size in network.head_dims if size not in KERNEL_HEADS]
    if not listed:
        return (
            "the builder's log has no list of layers, so nothing is known",
            "build with full profiling verbosity and a log that keeps every line",
        )
    if network.attention == 0 or network.softmax:
        return (
            "attention is expressed in matrix products and a softmax, not as an attention layer",
            "export with lowering 'tensorrt', which does so only where scores are capped",
        )
    if dtype == "float32":
        return "no attention kernel computes in float32", "export with dtype float16 or bfloat16"
    if beyond:
        low, high = KERNEL_HEADS[0], KERNEL_HEADS[-1]
        return (
            f"head_dim is {beyond[0]}; attention kernels take {low} to {high}, in steps of "
            f"{KERNEL_HEADS.step}",
            "none: the model's heads have this size",
        )
    return (
        "the builder chose no attention kernel for these shapes and devices",
        "build for fewer compute capabilities, or with narrower profiles",
    )
