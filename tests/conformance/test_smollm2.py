"""Real weights: layers 0 and 29 of SmolLM2-135M against transformers' own attention."""

from pathlib import Path

import pytest
import torch
from transformers import DynamicCache, LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

from rope_export import AttentionSpec, RotaryAttention, export, verify
from rope_export.checkpoints import open_model
from rope_export.parity.cases import regular_cases
from tests.conformance.families.cache import cache_name

CALLS = [(1, 0), (7, 0), (512, 0), (1, 1), (1, 2_000)]
"""New tokens and cached tokens; the first decode, after 0 cached tokens, is (1, 0)."""


class Pair:
    """The same layer in transformers and here, in float64."""

    def __init__(self, checkpoint: Path, layer: int) -> None:
        self.config = LlamaConfig.from_pretrained(checkpoint)
        self.config._attn_implementation = "eager"
        weights = open_model(checkpoint).layer(layer).weights()
        spec = AttentionSpec.from_hf(self.config, layer=layer)
        self.ours = RotaryAttention.from_weights(spec, weights).double()
        self.theirs = LlamaAttention(self.config, layer_idx=0).eval()
        self.theirs.load_state_dict(weights)
        self.theirs.double()
        self.rotary = LlamaRotaryEmbedding(self.config)

    @torch.no_grad()
    def outputs(self, batch: int, new: int, past: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What ours and theirs give for `new` tokens after `past` cached ones."""
        stream = torch.Generator().manual_seed(batch * 10_000 + new + past)
        hidden = torch.randn(batch, past + new, 576, dtype=torch.float64, generator=stream)
        positions = torch.arange(past + new).expand(batch, -1)
        key, value = self.cached(hidden[:, :past], positions[:, :past]) if past else (None, None)
        ours, present_key, _ = self.ours(hidden[:, past:], positions[:, past:], key, value)
        cache = DynamicCache(config=self.config)
        if past:
            cache.update(key, value, 0)
        mask = torch.full((new, past + new), torch.finfo(torch.float64).min, dtype=torch.float64)
        theirs, _ = self.theirs(
            hidden[:, past:],
            position_embeddings=self.rotary(hidden, positions[:, past:]),
            attention_mask=mask.triu(past + 1)[None, None],
            **{cache_name(self.theirs.forward): cache},
        )
        assert (present_key - cache.layers[0].keys).abs().max() < 1e-12
        return ours, theirs

    def cached(self, hidden: torch.Tensor, positions: torch.Tensor) -> list[torch.Tensor]:
        """The keys and values that theirs caches of these tokens, without attending to them."""
        key, value = (
            projection(hidden).unflatten(-1, (-1, 64)).transpose(1, 2)
            for projection in (self.theirs.k_proj, self.theirs.v_proj)
        )
        return [apply_rotary_pos_emb(key, key, *self.rotary(hidden, positions))[1], value]


@pytest.fixture(scope="module", params=[0, 29])
def pair(request: pytest.FixtureRequest, smollm2: Path) -> Pair:
    return Pair(smollm2, request.param)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("new", "past"), CALLS)
def test_equals_transformers(pair: Pair, batch: int, new: int, past: int, monkeypatch) -> None:
    """Within 2e-6 as they are, both with a float32 softmax; within 1e-12 with it in float64."""
    assert relative(*pair.outputs(batch, new, past)) < 2e-6
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(
        torch.nn.functional, "softmax", lambda x, dim, dtype=None: softmax(x, dim=dim)
    )
    assert relative(*pair.outputs(batch, new, past)) < 1e-12


def test_cos_and_sin_equal_transformers_bit_for_bit(pair: Pair) -> None:
    positions = torch.cat((torch.arange(0, 4_096), torch.arange(4_096, 131_072, 61)))[None]
    theirs = pair.rotary(torch.zeros(1, dtype=torch.float32), positions)
    for ours, expected in zip(pair.ours.cos_sin(positions, torch.float32), theirs, strict=True):
        assert torch.equal(torch.cat((ours, ours), dim=-1), expected)


@pytest.mark.parametrize(
    ("layer", "lowering", "dtype"),
    [
        (0, "portable", "float32"),
        (29, "standard", "float16"),
        *(
            pytest.param(*one, marks=pytest.mark.long)
            for one in (
                (0, "portable", "float16"),
                (0, "standard", "float32"),
                (29, "portable", "float16"),
                (29, "standard", "float32"),
            )
        ),
    ],
)
def test_artifact_is_within_the_parity_tolerance(smollm2, tmp_path, layer, lowering, dtype) -> None:
    artifact = export(
        smollm2, layer=layer, out=tmp_path / "layer", lowering=lowering, dtype=dtype, padding=True
    )
    report = verify(artifact)
    assert report.weights == "proven"
    assert not [row for row in report.rows if row.status == "failed"]
    assert {row.runtime for row in report.rows} == {"file", "eager", "onnxruntime"}
    tried = {
        (c.batch, c.sequence, c.past)
        for c in regular_cases("growing", padding=True, first_position=None)
    }
    wanted = {(batch, new, past) for batch in (1, 3) for new, past in CALLS}
    assert wanted <= tried
