"""The attention layer in plain torch: what every artifact is compared with."""

from rope_export.errors import extra

with extra("export", "RotaryAttention"):
    from rope_export.attention.latent import LatentAttention
    from rope_export.attention.layer import RotaryAttention

__all__ = ["LatentAttention", "RotaryAttention"]
