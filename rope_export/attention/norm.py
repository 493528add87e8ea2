"""Normalisations of queries, keys, values, heads and latents."""

import torch
from torch import Tensor, nn

from rope_export.spec import NormSpec


class Norm(nn.Module):
    """An RMS or layer normalisation over the last axis, in float32 and cast last.

    Source: RMSNorm, arXiv:1910.07467; Layer Normalization, arXiv:1607.06450.
    """

    def __init__(self, spec: NormSpec, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.spec = spec
        self.weight: nn.Parameter | None
        self.bias: nn.Parameter | None
        for name in ("weight", "bias"):
            values = torch.full(shape, float(name == "weight") - spec.offset, dtype=dtype)
            self.register_parameter(name, nn.Parameter(values) if getattr(spec, name) else None)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        if self.spec.kind == "layer":
            wide = wide - wide.mean(-1, keepdim=True)
        # Not pow(2): from that, torch's exporter makes an RMSNormalization of mixed types, which is
        # not valid.
        mean_square = (wide * wide).mean(-1, keepdim=True)
        wide = wide * torch.rsqrt(mean_square + self.spec.eps)
        if self.weight is not None:
            wide = wide * (self.spec.offset + self.weight.float())
        if self.bias is not None:
            wide = wide + self.bias.float()
        return wide.to(x.dtype)
