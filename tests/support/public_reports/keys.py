"""Config keys: read where transformers reads them, and nowhere else."""

from tests.support.public_reports import Report

REPORTS = [
    Report(
        source="github.com/huggingface/transformers/pull/43705; "
        "github.com/ggml-org/llama.cpp/pull/20746",
        met="is_causal: false makes any decoder bidirectional; a converter wrote a causal model",
        right="No causal mask, the window to both sides",
        ours="Bidirectional, so without a cache",
        test="test_config_keys.py::test_is_causal_off_lets_every_token_see_those_after_it",
    ),
    Report(
        source="github.com/huggingface/transformers/issues/46077, pull 46079",
        met='use_bidirectional_attention "all" of Gemma 4 built causal masks',
        right="Both sides, the window's end counted as within, as transformers 5.24 has it",
        ours="The same, found wrong by one slot when it was tried",
        test="test_config_reports.py::test_gemma_sees_both_sides_where_it_is_told_to",
    ),
    Report(
        source="github.com/huggingface/transformers/issues/38002, pull 38045",
        met="use_sliding_window: false, and the window was applied all the same",
        right="There is no window",
        ours="No window, as there",
        test="test_config_reports.py::test_a_window_that_is_switched_off_hides_nothing",
    ),
    Report(
        source="github.com/huggingface/transformers/issues/35896 and 40126",
        met="max_window_layers read as the layers with a window, which it counts without one",
        right="Layers from max_window_layers on slide",
        ours="The same; SmolLM3 and dots.llm1 by rules of their own, as in their config classes",
        test="test_config_keys.py::test_kinds_of_layers_are_derived_as_the_config_class_does",
    ),
    Report(
        source="github.com/Blackwellboy/model-serving-minefield/issues/107",
        met="A Qwen3 config with sliding_window alone runs full attention on every layer",
        right="So does transformers: use_sliding_window is off unless the file has it",
        ours="No window, as there",
        test="test_config_reports.py::test_a_window_of_qwen3_alone_hides_nothing",
    ),
    Report(
        source="github.com/huggingface/transformers/issues/29623",
        met="A window of 2048 showed 2048 tokens in eager attention and 2049 in another",
        right="The window counts the token itself, as eager has it",
        ours="Eager's, in every lowering",
        test="test_config_reports.py::test_a_window_counts_the_token_itself",
    ),
    Report(
        source="github.com/unslothai/unsloth/pull/8253",
        met="A window of 0 left nothing visible",
        right="No such window: a row that sees nothing is NaN",
        ours="Refused by the key",
        test="test_config_reports.py::test_a_window_of_nothing_is_refused",
    ),
    Report(
        source="github.com/deepspeedai/DeepSpeed/pull/8345; "
        "github.com/vllm-project/vllm/pull/42624; github.com/Open-Athena/MarinFold/pull/184",
        met="rope_theta inside rope_parameters was not seen, or was overwritten by 10000 beside it",
        right="The one inside counts",
        ours="The one inside counts",
        test="test_config_reports.py::"
        "test_a_base_among_the_rope_parameters_counts_more_than_one_beside_them",
    ),
    Report(
        source="github.com/vllm-project/vllm/pull/28542",
        met="rope_parameters nested by kinds of layers, for families that have kinds",
        right="Llama's code has none: transformers ignores them and rotates by 10000",
        ours="Refused: the family has one rotation for all layers",
        test="test_config_keys.py::test_rotations_by_kind_belong_to_families_that_have_them",
    ),
    Report(
        source="github.com/AI-Hypercomputer/maxtext/issues/4616, pull 4742",
        met="partial_rotary_factor dropped where the rotation has several axes",
        right="Part of a head rotates",
        ours="Part of a head rotates",
        test="test_config_reports.py::test_several_axes_rotate_part_of_a_head",
    ),
    Report(
        source="github.com/ModelTC/LightLLM/pull/1582",
        met="YaRN beside mrope_section ran as the plain rotation",
        right="YaRN's frequencies on several axes",
        ours="YaRN's frequencies on several axes",
        test="test_config_reports.py::test_several_axes_rotate_part_of_a_head",
    ),
    Report(
        source="github.com/deepseek-ai/DeepSeek-R1/issues/684; "
        "github.com/hiyouga/LlamaFactory/issues/8269",
        met="attn_factor in a published YaRN config: transformers warns and takes its own factor",
        right="What transformers computes, and the user is told",
        ours="Exported so, with a note",
        test="test_config_keys.py::test_what_transformers_does_not_read_is_told_once_and_left_out",
    ),
    Report(
        source="github.com/lablup/mlxcel/issues/1358",
        met="short_mscale and long_mscale of longrope were not read",
        right="Phi-3.5-MoE multiplies cos and sin by them, in place of longrope's own factor",
        ours="The same; where the two differ, refused",
        test="test_config_keys.py::test_phi_moe_rotates_by_its_own_factors",
    ),
    Report(
        source="github.com/vllm-project/vllm/pull/11203; github.com/ROCm/ATOM/pull/1908",
        met="Command R7B: rotated on the wrong layers, and a window on those that have none",
        right="Layers that slide rotate; every fourth does neither",
        ours="The same, with rotary_pct and position_embedding_type told once",
        test="test_config_keys.py::test_kinds_of_layers_are_derived_as_the_config_class_does",
    ),
    Report(
        source="github.com/vllm-project/vllm/pull/11844 (Qwen2.5-7B-Instruct-1M)",
        met="dual_chunk_attention_config is a scheme of one server",
        right="transformers attends to the whole context",
        ours="Exported so, with a note",
        test="test_config_keys.py::test_what_transformers_does_not_read_is_told_once_and_left_out",
    ),
]
