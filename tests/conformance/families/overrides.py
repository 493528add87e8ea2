"""What the generic shrinking rules of `tiny` get wrong, family by family or config by config."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache, ViTConfig

from tests.conformance.families.cache import cache_among

ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 16,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "rope_theta": 500000.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "rope_theta": 10000.0,
        "short_factor": [1.0 + 0.1 * i for i in range(8)],
        "long_factor": [2.0 + 0.3 * i for i in range(8)],
        "original_max_position_embeddings": 16,
    },
}

SMALL_VIT = ViTConfig(  # type: ignore[call-arg]
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    image_size=32,
    patch_size=8,
    num_labels=16,
)
"""Stands for a tower of another library, which is not what is looked at."""

OVERRIDES: dict[str, dict[str, Any]] = {
    "EomtDinov3Config": {"num_blocks": 1},
    "EsmConfig": {"position_embedding_type": "rotary", "pad_token_id": 1, "mask_token_id": 3},
    "Gemma4TextConfig": {"global_head_dim": 32},
    "Gemma4UnifiedTextConfig": {"global_head_dim": 32},
    "EmbeddingGemma2TextConfig": {"global_head_dim": 32},
    "BambaConfig": {"attn_layer_indices": [1, 3]},
    "BltConfig": {"encoder_hash_byte_group_vocab": 128},
    "BltLocalEncoderConfig": {"hidden_size_global": 64},
    "BltLocalDecoderConfig": {"hidden_size_global": 64},
    "Emu3VQVAEConfig": {"base_channels": 32},
    "MimiConfig": {"upsample_groups": 64, "num_filters": 8},
    "PocketTTSAudioTokenizerConfig": {"upsample_groups": 64, "num_filters": 8},
    "ChameleonConfig": {"vocabulary_map": {"<image>": 100}},
    "ChameleonVQVAEConfig": {"base_channels": 32, "resolution": 32},
    "ClvpEncoderConfig": {"hidden_size": 192, "projection_dim": 256},
    "DbrxAttentionConfig": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 1.0},
    "DeepseekOcr2TextConfig": {"mlp_layer_types": ["dense", "sparse", "dense", "sparse"]},
    "Cosmos3EdgeTextConfig": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [4, 2, 2],
        },
    },
    "CohereCompassTextConfig": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 2, 2],
            },
            "full_attention": None,
        },
    },
    "HYV4VLTextConfig": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 1, 1],
        },
    },
    "Dots1Config": {"n_routed_experts": 4, "n_shared_experts": 1},
    "DiffusionGemmaTextConfig": {
        "global_head_dim": 32,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 32,
    },
    "GradiumPhononTTSFlowHeadConfig": {"condition_dim": 64},
    "PocketTTSFlowHeadConfig": {"condition_dim": 64},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 2},
    "Llama4VisionConfig": {
        "intermediate_size": 256,
        "projector_input_dim": 64,
        "projector_output_dim": 64,
        "vision_output_dim": 64,
    },
    "LongcatFlashConfig": {"head_dim": 8, "moe_topk": 2, "zero_expert_num": 2},
    "MoonshineStreamingConfig": {"num_key_value_heads": 4},
    "Qwen3OmniMoeTalkerConfig": {"spatial_merge_size": 2},
    "Qwen3OmniMoeTalkerTextConfig": {"shared_expert_intermediate_size": 64},
    "Qwen4ExpTextConfig": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 24,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
        "ngram_vocab_size_base": 64,
        "split_ngram_parts": 2,
    },
    "SeamlessM4TConfig": {"position_embeddings_type": "rotary"},
    "Wav2Vec2BertConfig": {"position_embeddings_type": "rotary"},
    "Step3p7TextConfig": {
        "sliding_window": 8,
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "num_sliding_attention_heads": 6,
    },
    "ZayaConfig": {"num_experts_per_tok": 1},
    "HunYuanMoEV1Config": {"moe_topk": 2, "num_experts": 4},
    "EfficientLoFTRConfig": {
        "num_attention_heads": 8,
        "stage_num_blocks": [1, 1, 1, 1],
        "out_features": [32, 32, 64, 64],
        "stage_stride": [2, 1, 2, 2],
    },
    "EsmFold2AtomEncoderConfig": {
        "num_spatial_rope_pairs_per_axis": 2,
        "num_uid_rope_pairs": 2,
        "output_dim": 64,
    },
    "EsmFold2Config": {"single_inputs_size": 131},
    "NeuCodecConfig": {"quantization_dim": 128, "encoder_hidden_size": 4},
    "Xcodec2Config": {"quantization_dim": 128, "encoder_hidden_size": 4},
    "DacConfig": {"encoder_hidden_size": 4, "decoder_hidden_size": 64},
    "Sapiens2Config": {
        "num_key_value_heads_per_layer": [4, 2, 2, 4],
    },
    "Sam2VideoConfig": {"memory_attention_rope_feat_sizes": [4, 4]},
    "Sam3TrackerVideoConfig": {"image_size": 32},
    "EdgeTamVideoConfig": {
        "memory_attention_rope_feat_sizes": [4, 4],
        "memory_attention_rope_k_sizes": [2, 2],
    },
    "PeVideoEncoderConfig": {"vision_config": SMALL_VIT},
    "T5Gemma2TextConfig": {"dropout_rate": 0.0},
    "T5Gemma2DecoderConfig": {"dropout_rate": 0.0},
    "GPTNeoXJapaneseConfig": {"is_decoder": True},
    "JambaConfig": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "GraniteMoeHybridConfig": {
        "layer_types": ["mamba", "attention", "mamba", "attention"],
        "position_embedding_type": "rope",
    },
    "Dots3NoteTextConfig": {
        "swa_num_attention_heads": 2,
        "swa_num_key_value_heads": 2,
        "swa_q_lora_rank": 24,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 24,
        "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 12,
        "head_dim": 24,
        "index_head_dim": 16,
    },
    "Dots3NoteVisionConfig": {
        "pyramid_num_routed": [-1, -1, 4, 4],
        "adapter_in_dim": 64,
        "adapter_out_dim": 64,
    },
    "Dots3NoteAudioConfig": {"adapter_input_size": 64, "adapter_out_dim": 64},
}
"""Config keys, by family or by the name of a config class."""

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "minimax_m3_vl": {
        "sparse": {
            "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
            "index_block_size": 4,
            "index_topk_blocks": 2,
        },
    },
    "roformer": {"is_decoder": {"is_decoder": True}},
    "llama": {f"rope={name}": {"rope_parameters": value} for name, value in ROPES.items()},
    "falcon": {
        "multi_query=False": {"multi_query": False},
        "new_decoder_architecture": {"new_decoder_architecture": True, "num_kv_heads": 2},
    },
}
"""Variants that no single key expresses: family to variant name to config keys."""

SKIP = {
    "BltGlobalTransformer",
    "BltLocalDecoder",
    "BltLocalEncoder",
    "BltPatcher",
    "DINOv3ViTEncoder",
    "EvollaSaProtProteinEncoder",
    "MoonshineDecoder",
    "MoonshineEncoder",
    "MoonshineStreamingDecoder",
    "MoonshineStreamingEncoder",
    "MoshiDepthDecoder",
    "Qwen3OmniMoeCode2Wav",
    "Qwen3OmniMoeCode2WavTransformerModel",
    "Sapiens2Encoder",
    "SeamlessM4TConformerEncoder",
}
"""Model classes that are fed by another of the family, or that name no model_type where they are
saved by themselves; the other is run instead."""


def _positions(rows: int, columns: int) -> torch.Tensor:
    points = [(x, y) for y in range(rows) for x in range(columns)]
    return torch.tensor([points, points])


NOT_EAGER = {"Qwen2_5OmniDiTConfig": "sdpa"}
"""Config classes whose modules look up another attention and have no eager one."""

SUBMODULES = {
    "Qwen3OmniMoeForConditionalGeneration": "code2wav.pre_transformer",
    "EsmFold2Model": "input_embedder.atom_encoder",
    "EdgeTamVideoModel": "memory_attention",
    "Sam2VideoModel": "memory_attention",
    "Sam3TrackerVideoModel": "memory_attention",
}
"""Models that run on a session of video frames, or that are saved only whole: the part with rotary
attention is run."""


def _memory(maker: Any) -> dict[str, Any]:
    """Four by four places that look at the places of two frames and two object pointers."""
    edge = "num_spatial_memory_tokens" in maker.names
    count = 2 * (4 if edge else 16) + 2
    width = maker.config.memory_attention_hidden_size
    inputs = {
        "current_vision_features": maker.noise(16, 1, width),
        "current_vision_position_embeddings": maker.noise(16, 1, width),
        "memory": maker.noise(count, 1, 64),
        "memory_posision_embeddings": maker.noise(count, 1, 64),
        "num_object_pointer_tokens": 2,
    }
    return inputs | ({"num_spatial_memory_tokens": 2} if edge else {})


def _atoms(maker: Any) -> dict[str, Any]:
    """Nine atoms at random places, three to a token."""
    atoms = maker.noise(2, 9, 64)
    tokens = torch.arange(9).expand(2, 9) // 3
    return {
        "hidden_states": atoms,
        "atom_conditioning": atoms,
        "attention_mask": None,
        "position_embeddings": maker.part.rotary_emb(
            10 * maker.noise(2, 9, 3), tokens, dtype=torch.float64
        ),
        "atom_mask": torch.ones(2, 9, dtype=torch.bool),
        "atom_to_token": tokens,
        "num_tokens": 3,
    }


def _canvas(maker: Any) -> dict[str, Any]:
    """A canvas of tokens after five that an encoder has left in the cache."""
    cache = DynamicCache()
    for index, layer in enumerate(maker.model.layers):
        attention = layer.self_attn
        heads = attention.k_proj.out_features // attention.head_dim
        cache.update(*(maker.noise(2, heads, 5, attention.head_dim) for _ in "kv"), index)
    return {"decoder_input_ids": maker.tokens(), str(cache_among(maker.names)): cache}


INPUTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "DeepseekOcr2VisionEncoder": lambda m: {
        "inputs_embeds": m.noise(2, 9, m.width),
        "num_patches": 5,
    },
    "Dots3NoteAudioModel": lambda m: {
        "input_features": m.noise(2, m.number("feature_size"), 64),
        "chunk_sample_lengths": torch.tensor([64 * 160, 48 * 160]),
    },
    "Gemma4VisionModel": lambda m: {
        "pixel_values": m.noise(2, 36, 3 * 64),
        "pixel_position_ids": _positions(6, 6),
    },
    "IdeficsModel": lambda m: {
        "input_ids": m.tokens(),
        "pixel_values": m.noise(2, 1, 3, 32, 32),
        "image_attention_mask": torch.ones(2, 9, 1, dtype=torch.long),
    },
    "Inkling2VisionModel": lambda m: {
        "pixel_values": m.noise(10, 16, 16, 3),
        "image_grid_thw": torch.tensor([[1, 2, 3], [1, 2, 2]]),
    },
    "DiffusionGemmaDecoderModel": _canvas,
    "EsmFold2Model": _atoms,
    "PeAudioVideoEncoder": lambda m: {
        "input_values": m.noise(2, 1, 1920),
        "pixel_values_videos": m.noise(2, 5, 3, 32, 32),
    },
    "EdgeTamVideoModel": _memory,
    "Sam2VideoModel": _memory,
    "Sam3TrackerVideoModel": _memory,
    "EfficientLoFTRModel": lambda m: {"pixel_values": m.noise(1, 2, 3, 64, 64)},
    "Qwen2_5OmniToken2WavDiTModel": lambda m: {
        "hidden_states": m.noise(2, 8, m.config.mel_dim),
        "condition_vector": m.noise(2, 24, m.config.mel_dim),
        "speaker_embedding": m.noise(2, 8, m.config.enc_emb_dim),
        "quantized_code": m.tokens(8 // m.config.repeats),
        "time_step": torch.tensor(0.3, dtype=torch.float64),
    },
    "PeVideoEncoder": lambda m: {"pixel_values_videos": m.noise(2, 5, 3, 32, 32)},
    "MuseGlimmerAssistantModel": lambda m: {
        "noise_embeds": m.noise(2, 4, m.width),
        "context_hidden_states": m.noise(2, 9, m.width * len(m.config.target_layer_ids)),
    },
    "NeuCodecModel": lambda m: {
        "input_values": m.noise(2, 1, 3200),
        "input_features": m.noise(2, 10, 160),
    },
    "Xcodec2Model": lambda m: {
        "input_values": m.noise(2, 1, 3200),
        "input_features": m.noise(2, 10, 160),
    },
    "MoonshineModel": lambda m: {
        "input_values": m.noise(2, 8000),
        "decoder_input_ids": m.tokens(),
    },
    "MoonshineStreamingModel": lambda m: {
        "input_values": m.noise(2, 8000),
        "decoder_input_ids": m.tokens(),
    },
    "TimesFm2_5Model": lambda m: {"past_values": m.noise(2, 9 * m.number("patch_length"))},
    "VoxtralRealtimeTextModel": lambda m: {
        "input_ids": m.tokens(),
        "t_cond": m.noise(1, 1, m.width),
    },
}
"""Inputs by name of the model class, made from a `Maker` of inputs."""
