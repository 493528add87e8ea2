"""Quantized checkpoints that were read wrongly elsewhere."""

from tests.support.public_reports import Report

SOURCES = "test_quantized_sources.py::"

REPORTS = [
    Report(
        source="github.com/vllm-project/vllm/issues/26343, pull 26092",
        met="gptq_v2 zero points read as those of gptq, one too high: the output is '!!!!'",
        right="A zero point is stored less one in gptq, as it is in gptq_v2",
        ours="Both are read by the definition of their checkpoint_format",
        test=SOURCES + "test_weights_are_the_definitions_own",
    ),
    Report(
        source="github.com/vllm-project/vllm/pull/38966 (Qwen3.5-27B-GPTQ-Int4)",
        met="checkpoint_format says gptq, symmetric zero points are stored as gptq_v2 has them",
        right="Symmetric means half the range, 8 of 16",
        ours="Read as symmetric by what the file holds; anything else but 7 or 8 is refused",
        test=SOURCES + "test_symmetric_zero_points_count_by_what_the_file_holds",
    ),
    Report(
        source="github.com/ModelCloud/GPTQModel/issues/2350",
        met="A zero point of 0, stored less one, became 15 and the logits NaN",
        right="Nothing says which of 0 and 16 a stored 15 is; gptq_v2 does",
        ours="Refused by name, with gptq_v2 as the way out",
        test=SOURCES + "test_what_is_not_read_is_refused_by_name",
    ),
    Report(
        source="github.com/AutoGPTQ/AutoGPTQ/issues/201",
        met="desc_act with groups: inputs took the scale of their place, not of their g_idx",
        right="g_idx names the group of each input",
        ours="Read by g_idx; one that contradicts desc_act is refused",
        test=SOURCES + "test_weights_are_the_definitions_own",
    ),
    Report(
        source="github.com/OpenGVLab/InternVL/issues/1106",
        met="AWQ words unpacked in the order of their bits: decoding never stops",
        right="Of a word's eight outputs the bits hold 0, 2, 4, 6, 1, 3, 5, 7",
        ours="Unpacked in that order",
        test=SOURCES + "test_weights_are_the_definitions_own",
    ),
    Report(
        source="github.com/vllm-project/vllm/issues/9832, pull 9895 (Qwen2-VL AWQ)",
        met="modules_to_not_convert was not looked at; plain weights taken for quantized ones",
        right="What the list names is stored as it is",
        ours="Read as it is, by each method's own rule",
        test=SOURCES + "test_attention_that_is_left_alone_is_read_as_it_is",
    ),
    Report(
        source="github.com/casper-hansen/AutoAWQ/issues/589",
        met="Modules left out of quantization, and no list in the config: loaded with new weights",
        right="The config and the tensors contradict each other",
        ours="Refused by the module's name",
        test=SOURCES + "test_what_is_not_read_is_refused_by_name",
    ),
    Report(
        source="github.com/vllm-project/vllm/issues/7268 (Llama 3.1 GGUF)",
        met="rope_freqs.weight taken for an extra weight, and left out",
        right="It holds the divisors of Llama 3.1's frequencies",
        ours="Llama 3's scaling is found again from it; other divisors are refused",
        test="test_gguf.py::test_llama_3_scaling_is_read_from_its_divisors",
    ),
]
