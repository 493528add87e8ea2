"""Which file counts, whose names they are, and what becomes of adapters."""

from tests.support.public_reports import Report

REPORTS = [
    Report(
        source="github.com/Blaizzy/mlx-vlm/issues/1329, pull 1464",
        met="A 4-bit model.safetensors beside bfloat16 shards and their index; all were read",
        right="One set of files; transformers opens model.safetensors alone",
        ours="model.safetensors is read, and its packed tensors are refused in one line",
        test="test_checkpoint_files.py::"
        "test_quantized_weights_beside_the_shards_that_the_config_is_about",
    ),
    Report(
        source="github.com/Neph0s/CoSER/issues/3",
        met="An index that names 30 shards beside 15 others",
        right="transformers fails on the first file that is missing",
        ours="Refused by that file's name",
        test="test_checkpoint_files.py::test_an_index_of_other_shards_than_there_are_names_the_first",
    ),
    Report(
        source="github.com/huggingface/diffusers/issues/14769",
        met="Saved again as pickle, the folder kept older safetensors, loaded without a word",
        right="safetensors come first, as the library has it, and the user is told",
        ours="Read as transformers does; a note names the pickle that was not",
        test="test_checkpoint_files.py::test_pickled_weights_beside_safetensors_are_told_of",
    ),
    Report(
        source="github.com/huggingface/transformers/issues/43746, pull 43781 (Granite Speech)",
        met="An adapter beside a whole model: the model that the adapter names was loaded instead",
        right="The model that lies there, with or without the adapter, as the user says",
        ours="Refused until --adapter says which",
        test="test_adapters.py::test_an_adapter_beside_a_model_must_be_asked_for",
    ),
    Report(
        source="github.com/huggingface/transformers/issues/36473, pull 36480",
        met="A pipeline given an adapter's folder loaded the base model without the adapter",
        right="The adapter counts, or nothing is loaded",
        ours="Refused; the line names --adapter and the base model that the adapter names",
        test="test_adapter_refusals.py::test_an_adapters_folder_alone_says_what_it_is",
    ),
    Report(
        source="github.com/verl-project/verl/issues/7285, pull 7341",
        met="A merger wrote the base model untouched, and the adapter into lora_adapter/ below it",
        right="Whoever takes the folder for the trained model must hear that it is not",
        ours="A note says that the adapter in lora_adapter/ is not merged",
        test="test_adapters.py::test_an_adapter_in_a_folder_below_is_told_of",
    ),
    Report(
        source="github.com/vllm-project/vllm/issues/10798; "
        "github.com/NVIDIA/TensorRT-LLM/issues/1668",
        met="use_rslora ignored: alpha / r in place of alpha / sqrt(r)",
        right="PEFT's scale",
        ours="PEFT's merge bit for bit",
        test="test_adapters.py::test_an_adapter_is_merged_as_peft_merges_it",
    ),
    Report(
        source="github.com/vllm-project/vllm/issues/34186",
        met="An adapter with other module names changed nothing, without an error",
        right="An adapter that cannot be placed is an error",
        ours="Refused by the module's name",
        test="test_adapter_refusals.py::test_another_models_adapter_is_refused",
    ),
    Report(
        source="github.com/illuin-tech/colpali/issues/424; github.com/vllm-project/vllm/pull/48022",
        met="Adapters of model.layers.… not loaded into model.language_model.layers.…",
        right="The text decoder's layers, whichever of the two names it has",
        ours="Merged as PEFT merges them into the same model",
        test="test_adapters.py::test_an_adapter_of_a_model_of_two_towers_goes_to_its_tower",
    ),
    Report(
        source="github.com/instructlab/training/issues/141; "
        "github.com/huggingface/peft/issues/1932",
        met="Checkpoints of the unmerged state dict (base_layer, lora_A): the adapter was dropped",
        right="Refused, or merged",
        ours="Refused; the line names merge_and_unload and --adapter",
        test="test_adapter_refusals.py::test_a_model_saved_with_its_adapter_unmerged_says_so",
    ),
    Report(
        source="github.com/karpathy/nanoGPT/issues/325; github.com/Lightning-AI/pytorch-lightning/"
        "issues/20233",
        met="_orig_mod. in every name, after torch.compile",
        right="transformers finds none of them",
        ours="Refused; the line names the wrapper",
        test="test_stacks.py::test_names_that_a_wrapper_gave_are_refused_with_the_way_out",
    ),
    Report(
        source="github.com/sgl-project/sglang/pull/17597; github.com/Epistates/pmetal/issues/19",
        met="Qwen3-Embedding has no model. prefix, saved without its head; its fine-tunes do",
        right="Both are the same layers",
        ours="Both are read",
        test="test_checkpoint_files.py::test_a_base_model_saved_without_its_head_has_no_prefix",
    ),
    Report(
        source="github.com/2U1/Qwen-VL-Series-Finetune/pull/259 (Qwen3.5's mtp tensors)",
        met="A head for drafting, of layers like the model's own, beside them",
        right="transformers ignores it on loading",
        ours="The model's own layers are read",
        test="test_stacks.py::test_a_stack_beside_the_model_is_not_the_model",
    ),
]
