"""What became of users' files, of links, and of files that changed while they were read."""

from tests.support.public_reports import Report

REPORTS = [
    Report(
        source="github.com/microsoft/onnxruntime/issues/27353, pull 27374",
        met="Weights beside a model in Hugging Face's cache of links: 'escapes model directory'",
        right="Model and data resolve into one folder of the cache, and load",
        ours="Read through the links, hashed, and loaded from what was read; onnxruntime sees none",
        test="test_safety_links.py::test_an_artifact_in_the_hubs_cache_opens",
    ),
    Report(
        source="github.com/huggingface/community-events/issues/77; "
        "github.com/Talmaj/onnx2pytorch/issues/61",
        met="An output folder of ./ was emptied, with all the user's work in it",
        right="Nothing of a user's is deleted",
        ours="The current folder, and any that holds it, is refused before anything is read",
        test="test_safety_paths.py::test_out_that_cannot_be_a_folder_is_refused_first",
    ),
    Report(
        source="github.com/RBLN-SW/optimum-rbln/pull/246",
        met="Saving into a folder that exists deleted it and made a new one",
        right="Only the writer's own files are replaced",
        ours="A folder is replaced if all it holds is a whole artifact of ours, told by content",
        test="test_safety_files.py::test_out_that_holds_something_of_the_users_is_kept",
    ),
    Report(
        source="github.com/NVIDIA/TensorRT-Edge-LLM/issues/38",
        met="A subfolder in the output folder: files deleted one by one, then a raw exception",
        right="One line, and every file still there",
        ours="Refused by the subfolder's name before tracing",
        test="test_safety_files.py::test_out_that_holds_something_of_the_users_is_kept",
    ),
    Report(
        source="github.com/hapi-server/client-python/issues/94; "
        "github.com/huggingface/huggingface_hub/pull/4306",
        met="A write that was killed left half a file, and every later run failed on it",
        right="Old or new as a whole; left-overs are cleared by the next writer",
        ours="The same, killed before each system call in turn",
        test="test_safety_files.py::test_a_killed_verify_blocks_nothing",
    ),
    Report(
        source="github.com/FinGuardName/FinBound/issues/80",
        met="An ONNX file's digest was checked on its bytes, and its path given to onnxruntime",
        right="The bytes that were hashed are the bytes that are loaded",
        ours="One read; a swap between the two changes nothing",
        test="test_safety_verdicts.py::test_what_was_hashed_is_what_is_loaded",
    ),
]
