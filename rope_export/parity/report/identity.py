"""What a run is about, so that the errors of one artifact are not taken for another's."""

import hashlib

from rope_export.artifacts.folder import Folder


def identified(folder: Folder) -> dict[str, str]:
    """Facts of an artifact by name: those that its errors depend on, and that stay when it is
    exported again with other packages."""
    facts, quantization = folder.manifest, folder.manifest.quantization
    weights = "".join(sorted(weight.sha256 for weight in facts.weights.values()))
    return {
        "lowering": facts.lowering,
        "cache": facts.cache,
        "dtype": facts.dtype,
        "quantization": "none"
        if quantization is None
        else f"int{quantization.bits}, accuracy level {quantization.accuracy_level}",
        "weights": hashlib.sha256(weights.encode()).hexdigest(),
    }
