"""Arrays that mean something else than their bytes, caches that hold a NaN, float16 that ends."""

from tests.support.public_reports import Report

REPORTS = [
    Report(
        source="github.com/pytorch/pytorch/issues/541, issue 3671, pull 9508",
        met="torch.from_numpy of a big-endian array gave other numbers",
        right="The numbers that the array means, in either byte order",
        ours="Inputs, positions, lengths and masks are read in the order that their dtype says",
        test="test_arrays.py::test_arrays_are_read_for_what_they_mean",
    ),
    Report(
        source="github.com/pytorch/pytorch/pull/61925",
        met="numpy() of a tensor with a lazy negative or conjugate bit gave its bytes as they lay",
        right="The negative is applied, or the tensor refused",
        ours="The bits are resolved before the tensor is bound by its address",
        test="test_arrays.py::test_tensors_are_read_for_what_they_mean",
    ),
    Report(
        source="github.com/Dao-AILab/flash-attention/issues/1745, issue 2374",
        met="NaN in slots after a row's length reached its output, since 0 * NaN is NaN",
        right="What is not in use reaches no result",
        ours="A Stream's slots beyond a length are zero; run refuses such a buffer where the "
        "file's operator computes over it",
        test="test_stream.py::test_what_a_row_gave_up_never_reaches_a_result",
    ),
    Report(
        source="github.com/ggml-org/llama.cpp/pull/3523",
        met="A cache that was not cleared held NaN, and generation failed",
        right="A slot that starts over holds nothing of what was there",
        ours="reset and lowered lengths write zeros into what they give up",
        test="test_stream.py::test_a_row_of_nan_leaves_the_others_alone",
    ),
    Report(
        source="github.com/huggingface/transformers/pull/46765",
        met="Padding tokens wrote NaN into the cache and spoiled real tokens beside them",
        right="What padded tokens hold reaches no result",
        ours="Padded tokens are taken as zeros, or in run wherever they are not finite",
        test="test_arrays.py::test_what_padded_tokens_hold_never_reaches_a_result",
    ),
    Report(
        source="github.com/huggingface/transformers/pull/33317, github.com/QwenLM/Qwen3/issues/910",
        met="Qwen2-7B in float16: eager attention overflows in q k^T and gives NaN; sdpa does not",
        right="The file, which scales first, is right; eager is no measure there",
        ours="verify says in one line that scores pass 65,504 in eager, with the file's own error",
        test="test_overflow.py::test_scores_beyond_float16_are_one_line",
    ),
    Report(
        source="github.com/NVIDIA/FasterTransformer/issues/89",
        met="A head size that the kernels are not made for (80) gave wrong results",
        right="Refused by name, or computed right",
        ours="Head sizes that GroupQueryAttention does not take are refused; auto takes another",
        test="test_lowering_limits.py::"
        "test_head_sizes_that_the_operator_refuses_are_refused_by_name",
    ),
    Report(
        source="github.com/microsoft/onnxscript/issues/2810, issue 1943",
        met="The optimizer lost an initializer that the graph needs; equal ones become one",
        right="Every weight stays under its name",
        ours="The optimizer's passes see weights as inputs, whatever they hold",
        test="test_constant_weights.py::test_every_weight_stays_whatever_it_holds",
    ),
]
