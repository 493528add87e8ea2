"""A hub as SOURCE: the hub's own client against a server on this machine."""

import json
import shutil
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from rope_export import export, verify
from rope_export.checkpoints import open_model
from rope_export.errors import CheckpointError
from tests.conftest import TINY

constants = pytest.importorskip("huggingface_hub.constants", reason="needs the extra [hf]")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = {**TINY, "vocab_size": 32, "intermediate_size": 32}


class Hub(ThreadingHTTPServer):
    """Serves FOLDER/owner/name as the hub does. fetched: names of the files that were sent."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.fetched: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.reply(with_body=False)

    def do_GET(self) -> None:
        self.reply(with_body=True)

    def reply(self, with_body: bool) -> None:
        owner, name, _, revision, *rest = self.path.lstrip("/").split("/")
        repository = self.server.folder / owner / name
        path = repository / "/".join(rest)
        there = repository.is_dir() and revision in ("main", COMMIT) and path.is_file()
        body = path.read_bytes() if there else b""
        self.send_response(200 if there else 404)
        if not there:
            missing = "EntryNotFound" if repository.is_dir() else "RepoNotFound"
            self.send_header("X-Error-Code", missing)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hash(body) & (2**64 - 1):x}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.server.fetched.append(path.name)
            self.wfile.write(body)

    def log_message(self, format: str, *values: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub(tmp_path / "hub")
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL))
    model.save_pretrained(server.folder / "owner" / "sharded", max_shard_size="60KB")
    model.save_pretrained(server.folder / "owner" / "whole")
    yield server
    server.shutdown()
    server.server_close()


def test_of_a_sharded_repository_only_the_layers_shards_are_fetched(hub: Hub) -> None:
    folder = hub.folder / "owner" / "sharded"
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    shards = {file for name, file in index.items() if ".layers.1.self_attn." in name}
    assert len(shards) < len(set(index.values()))
    source = open_model("owner/sharded").layer(1)
    source.weights()
    needed = {"config.json", "model.safetensors.index.json", *shards}
    assert sorted(hub.fetched) == sorted(needed)
    assert source.facts["revision"] == COMMIT


def test_the_whole_file_counts_before_the_index_on_a_hub_as_well(hub: Hub) -> None:
    both = hub.folder / "owner" / "both"
    shutil.copytree(hub.folder / "owner" / "sharded", both)
    shutil.copy(hub.folder / "owner" / "whole" / "model.safetensors", both)
    open_model("owner/both").layer().weights()
    assert sorted(hub.fetched) == ["config.json", "model.safetensors"]


def test_a_file_that_the_config_names_is_the_only_one_fetched(hub: Hub) -> None:
    folder = hub.folder / "owner" / "whole"
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["transformers_weights"] = "model.fp16.safetensors"
    (folder / "config.json").write_text(json.dumps(config))
    weights = open_model("owner/whole").layer().weights()
    assert sorted(hub.fetched) == ["config.json", "model.fp16.safetensors"]
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(weights["q_proj.weight"], load_file(folder / "model.fp16.safetensors")[name])


@pytest.mark.usefixtures("short_prompts")
def test_an_adapter_of_a_hub_is_merged_and_one_beside_a_model_is_not_fetched(
    hub: Hub, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="needs the extra [test]")
    owner = hub.folder / "owner"
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LlamaForCausalLM.from_pretrained(owner / "whole")
        peft.get_peft_model(model, lora).save_pretrained(owner / "adapter")
    artifact = export("owner/whole", adapter="owner/adapter", out=tmp_path / "out", cache="none")
    assert artifact.manifest.source["adapter"]["merged"]
    report = verify(artifact, source="owner/whole")
    assert (report.status, report.weights) == ("passed", "proven")
    for path in (owner / "adapter").glob("adapter*"):
        shutil.copy(path, owner / "sharded")
    hub.fetched.clear()
    with pytest.raises(CheckpointError, match="`adapter`=owner/sharded"):
        open_model("owner/sharded").layer()
    assert "adapter_model.safetensors" not in hub.fetched
    assert open_model("owner/sharded", adapter="none").layer().weights()
    assert open_model("owner/sharded", adapter="owner/sharded").layer().weights()


def test_what_a_hub_has_not_is_said_in_one_line(hub: Hub) -> None:
    (hub.folder / "owner" / "whole" / "model.safetensors").unlink()
    for name, said in (("whole", "no model.safetensors"), ("gone", "cannot be fetched")):
        with pytest.raises(CheckpointError, match=rf"^[^\n]*owner/{name}[^\n]*{said}[^\n]*$"):
            open_model(f"owner/{name}").layer()
