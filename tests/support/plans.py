"""What a build cache and an engine's manifest hold of plans that no builder made."""

from rope_export.engines.build_cache import Built
from rope_export.engines.fusion import Fusion
from rope_export.engines.network import NetworkFacts

NETWORK = NetworkFacts(rotary=2, attention=1, kv_cache_updates=0)
FUSION = Fusion(
    fused=True, kernels=("mha",), rotary=2, attention=1, kv_cache_updates=0, scratch_bytes=None
)


def built(plan: bytes) -> Built:
    return Built(plan=plan, network=NETWORK, fusion=FUSION)
