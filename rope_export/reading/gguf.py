"""A GGUF file read by transformers' own loader, which dequantizes it."""

from collections.abc import Mapping
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rope_export.reading.models import Unread, reason
from rope_export.reading.skeleton import Skeleton
from rope_export.reading.weights import put

LARGEST = 2**29
"""Bytes of a file of which every tensor is dequantized to read some."""


class Loader:
    """transformers' quantizer for one file, told to dequantize.

    Raises: Unread if this version has none, or none that can read single tensors of the file.
    """

    def __init__(self, file: Path) -> None:
        try:
            from transformers import GgufConfig
            from transformers.quantizers.quantizer_gguf import GgufHfQuantizer

            self.quantizer: Any = GgufHfQuantizer(GgufConfig(dequantize=True))
            self.quantizer.read_header(str(file))
            self.quantizer.update_dtype(torch.float32)
        except Exception as error:
            raise Unread(f"transformers cannot read the file ({reason(error)})") from error
        if not self.quantizer.supported and file.stat().st_size > LARGEST:
            raise Unread("its loader dequantizes the whole file, which is large")
        self.file = file

    def mapping(self, model: Any) -> list[Any]:
        """How the tensors are renamed, unpacked and converted."""
        from transformers.conversion_mapping import get_model_conversion_mapping

        if not self.quantizer.supported:  # its tensors have the model's names already
            return get_model_conversion_mapping(model)
        self.quantizer._process_model_before_weight_loading(model)
        return get_model_conversion_mapping(model, None, self.quantizer)

    def names(self, ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, str]:
        """Our tensors' names as the loader has them.

        ours: our names to the file's. theirs: transformers' names to the file's.
        """
        if self.quantizer.supported:
            return dict(ours)
        back = {name: their_name for their_name, name in theirs.items()}
        return {key: back[name] for key, name in ours.items()}

    def load(self, skeleton: Skeleton) -> None:
        """Puts the file's weights into the attention, and into nothing else.

        Raises: as `weights.loaded`.
        """
        with redirect_stderr(StringIO()):  # where it shows its progress
            state = self.quantizer.get_state_dict(str(self.file), skeleton.model)
        tensors = {
            name: torch.as_tensor(x) if isinstance(x, np.ndarray) else x
            for name, x in state.items()
        }
        ours = {name: x for name, x in tensors.items() if skeleton.is_ours(name)}
        more = {"hf_quantizer": self.quantizer} if self.quantizer.supported else {}
        put(skeleton, ours, **more)
