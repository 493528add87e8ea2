"""AWQ: integers packed along the outputs in an order of their own, with scales and zero points.

qweight int32 (in, out / 8), qzeros int32 (groups, out / 8), scales (groups, out). Of the eight
outputs in a word, the one at place i of its bits is output 0, 2, 4, 6, 1, 3, 5, 7.
Source: casper-hansen/AutoAWQ, awq/modules/linear/gemm.py, WQLinear_GEMM.from_linear.
"""

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from rope_export.checkpoints.integers import Integers, evenly, unpacked
from rope_export.checkpoints.quantized.base import Config, Format, Read, excluded

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class Awq(Format):
    methods: ClassVar[tuple[str, ...]] = ("awq",)
    tensors: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales")

    def __init__(self, method: str, config: Config) -> None:
        super().__init__(method, config)
        if config.get("bits", config.get("w_bit", 4)) != 4:
            raise self.refused("bits" if "bits" in config else "w_bit", "4")
        if str(config.get("version", "gemm")).lower() != "gemm":
            raise self.refused("version", "'gemm'")
        if config.get("format", "gemm") not in ("gemm", None):
            raise self.refused("format", "'gemm'")
        if config.get("zero_point", True) is not True:
            raise self.refused("zero_point", "true, the only one that has a written layout")
        self.group_size = config.get("group_size", config.get("q_group_size", 128))

    def quantizes(self, module: str) -> bool:
        """Whether the module is quantized: AutoAWQ leaves out those with an excluded word anywhere
        in their names."""
        patterns = self.config.get("modules_to_not_convert") or ()
        return not excluded(module, patterns) and not any(word in module for word in patterns)

    def stored(self, module: str, read: Read, names: Iterable[str]) -> Integers | Tensor:
        qweight, qzeros, scales = (read(f"{module}.{name}") for name in self.tensors)
        inputs, words = qweight.shape
        groups, outputs = scales.shape
        if outputs != 8 * words or tuple(qzeros.shape) != (groups, words):
            raise self.damaged(
                module,
                "qweight, qzeros and scales are not (in, out / 8), "
                "(groups, out / 8) and (groups, out)",
            )
        size = self.group_size if self.group_size != -1 else inputs
        if groups * size != inputs:
            raise self.damaged(module, f"{inputs} inputs are not {groups} groups of {size}")
        return Integers(
            bits=4,
            values=_in_order(qweight),
            scales=scales.t().contiguous(),
            zeros=_in_order(qzeros).int(),
            groups=evenly(inputs, groups, size),
        )


def _in_order(words: Tensor) -> Tensor:
    """(out, rows) of words (rows, out / 8), each output at its own place."""
    count = 8 * words.shape[1]
    stored = unpacked(words, 4, count).unflatten(1, (-1, 8))
    placed = torch.empty_like(stored)
    placed[..., list(ORDER)] = stored
    return placed.flatten(1).t().contiguous()
