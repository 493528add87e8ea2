"""GPTQ: integers packed along the inputs, a scale and a zero point for a group of them.

qweight int32 (in * bits / 32, out), qzeros int32 (groups, out * bits / 32), scales (groups, out),
g_idx int32 (in), the group of each input; integers lie in 32-bit words from the lowest bit on.
In the first format ("gptq") a zero point is stored less one, in the second ("gptq_v2") as it is.
Source: AutoGPTQ/AutoGPTQ, auto_gptq/nn_modules/qlinear/qlinear_cuda.py, pack and forward;
ModelCloud/GPTQModel, gptqmodel/utils/model.py, convert_gptq_v1_to_v2_format_module.
"""

import re
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from rope_export.checkpoints.integers import Integers, evenly, unpacked
from rope_export.checkpoints.quantized.base import Config, Format, Read, excluded
from rope_export.errors import CheckpointError

BITS = (2, 3, 4, 8)
ONE_LESS = {"gptq": 1, "gptq_v2": 0}
"""What is added to a stored zero point, by the format of the checkpoint."""


class Gptq(Format):
    methods: ClassVar[tuple[str, ...]] = ("gptq",)
    tensors: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales", "g_idx")

    def __init__(self, method: str, config: Config) -> None:
        super().__init__(method, config)
        key = "checkpoint_format" if config.get("checkpoint_format") else "format"
        self.kind = config.get(key) or "gptq"
        if self.kind not in ONE_LESS:
            raise self.refused(key, "gptq and gptq_v2")
        for key in ("is_marlin_format", "rotation", "adapter"):
            if config.get(key):
                raise self.refused(key, "none")
        if config.get("pack_dtype") not in (None, "int32"):
            raise self.refused("pack_dtype", "int32")
        if not isinstance(config.get("dynamic") or {}, dict):
            raise self.refused("dynamic", "rules by module")

    @classmethod
    def recognised(cls, names: Iterable[str]) -> Config | None:
        all_names = set(names)
        for name in sorted(all_names):
            module, dot, tensor = name.rpartition(".")
            if tensor == "qweight" and all(
                f"{module}{dot}{part}" in all_names for part in cls.tensors
            ):
                return {"quant_method": "gptq"}
        return None

    def quantizes(self, module: str) -> bool:
        only = self.config.get("modules_in_block_to_quantize")
        if only is not None:
            listed = [name for part in only for name in ([part] if isinstance(part, str) else part)]
            if not any(module.endswith(f".{name}") or module == name for name in listed):
                return False
        if excluded(module, self.config.get("modules_to_not_convert")):
            return False
        return self._rules(module) is not None

    def stored(self, module: str, read: Read, names: Iterable[str]) -> Integers | Tensor:
        config = {**self.config, **(self._rules(module) or {})}
        qweight, scales = read(f"{module}.qweight"), read(f"{module}.scales")
        qzeros = read(f"{module}.qzeros")
        groups, outputs = scales.shape
        g_idx = read(f"{module}.g_idx").long() if f"{module}.g_idx" in names else None
        bits = self._bits(module, config, qweight, g_idx)
        inputs = qweight.shape[0] * 32 // bits if g_idx is None else len(g_idx)
        shapes = (-(-inputs * bits // 32), outputs), (groups, -(-outputs * bits // 32))
        if (tuple(qweight.shape), tuple(qzeros.shape)) != shapes:
            raise self.damaged(module, f"qweight and qzeros should be {shapes[0]} and {shapes[1]}")
        size = config.get("group_size", -1 if groups == 1 else inputs // groups)
        in_order = evenly(inputs, groups, size)
        if g_idx is None:
            g_idx = in_order
        elif config.get("desc_act") is False and not torch.equal(g_idx, in_order):
            raise self.damaged(module, f"desc_act=False, but g_idx is not in groups of {size}")
        if not 0 <= int(g_idx.min()) <= int(g_idx.max()) < groups:
            raise self.damaged(module, f"g_idx names a group beyond the {groups} of the scales")
        return Integers(
            bits=bits,
            values=unpacked(qweight.t().contiguous(), bits, inputs),
            scales=scales.t().contiguous(),
            zeros=self._zeros(
                module, unpacked(qzeros, bits, outputs), bits, config.get("sym") is True
            ),
            groups=g_idx,
        )

    def _bits(
        self, module: str, config: dict[str, Any], qweight: Tensor, g_idx: Tensor | None
    ) -> int:
        """Bits of an integer, from the config and from how many words the inputs take."""
        bits = config.get("bits")
        stored = bits if g_idx is None else qweight.shape[0] * 32 // len(g_idx)
        if stored not in BITS or (bits is not None and bits != stored):
            raise CheckpointError(
                f"{module!r}: GPTQ with bits={bits!r}, stored in {stored!r} bits; the two must "
                f"agree and be one of {', '.join(map(str, BITS))}."
            )
        return stored

    def _zeros(self, module: str, stored: Tensor, bits: int, symmetric: bool) -> Tensor:
        """The integers that stand for 0, (out, groups).

        Where the config has them symmetric, that is half the range, and files of the format "gptq"
        store it in either way.
        Source: vllm-project/vllm, pull request 38966.
        """
        added, half = ONE_LESS[self.kind], 2 ** (bits - 1)
        if symmetric and added and (stored == half).all():
            added = 0
        if symmetric and not (stored.int() + added == half).all():
            raise self.damaged(module, f"sym=True, but qzeros are not all {half - added}")
        if added and (stored == 2**bits - 1).any():
            raise CheckpointError(
                f"{module!r}: qzeros holds {2**bits - 1}, the zero point 0 or {2**bits} of the "
                f"format 'gptq', which its writers and kernels take in three ways. Save it again "
                f"in the format 'gptq_v2' with GPTQModel."
            )
        return (stored.int() + added).t().contiguous()

    def _rules(self, module: str) -> dict[str, Any] | None:
        """The module's own settings in `dynamic`; None where it is left alone.

        Source: ModelCloud/GPTQModel, gptqmodel/quantization/config.py, dynamic_get.
        """
        for pattern, rules in (self.config.get("dynamic") or {}).items():
            if pattern.startswith("-:"):
                if re.match(pattern.removeprefix("-:"), module):
                    return None
            elif re.match(pattern.removeprefix("+:"), module):
                return dict(rules)
        return {}
