"""What a user installs: the wheel, in fresh environments outside of the repository."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterable
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.conftest import TINY
from tests.support.decoder_folder import decoder_folder
from tests.support.tokenizer_files import CHAT, word_tokenizer

ROOT = Path(__file__).parents[2]


def tracked(below: str = "") -> list[str]:
    """Files of the repository, relative to it."""
    listing = subprocess.run(
        ["git", "ls-files", below or "."], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return listing.stdout.split()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built of tracked files alone: what an earlier build left must not get into it."""
    out, clean = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("clean")
    for name in tracked():
        (clean / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, clean / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out)]
    subprocess.run([*pip, str(clean)], check=True, cwd=out)
    (built,) = out.glob("*.whl")
    return built


def needed(requirements: Iterable[str], *extras: str) -> dict[str, importlib.metadata.Distribution]:
    """What has to be installed for these requirements and extras, by name: as it is in the
    environment of the tests, in versions that each of them allows."""
    found: dict[str, importlib.metadata.Distribution] = {}
    open_ends = [(Requirement(line), extras) for line in requirements]
    seen = set()
    while open_ends:
        wanted, asked = open_ends.pop()
        applies = wanted.marker is None or any(
            wanted.marker.evaluate({"extra": extra}) for extra in ("", *asked)
        )
        if not applies or (str(wanted), asked) in seen:
            continue
        seen.add((str(wanted), asked))
        here = found[wanted.name] = importlib.metadata.distribution(wanted.name)
        assert wanted.specifier.contains(here.version, prereleases=True), wanted
        further = tuple(sorted(wanted.extras))
        open_ends += [(Requirement(line), further) for line in here.requires or ()]
    return found


def linked(wheel: Path, extras: str, folder: Path) -> Path:
    """The folder of programs of a fresh environment with the wheel and its extras.

    What pip would install beside the wheel is linked to where it lies in the environment of the
    tests: to ask an index for all of it, and to unpack torch, takes longer than all else.
    """
    venv.create(folder)  # without a pip of its own, which takes as long to unpack as the rest
    programs = folder / "bin"
    (packages,) = (folder / "lib").glob("python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        (facts,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        headers = message_from_bytes(archive.read(facts))
    for here in needed(headers.get_all("Requires-Dist") or (), *extras.split(",")).values():
        for top in {file.parts[0] for file in here.files or () if file.parts[0] != ".."}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(here.locate_file(top))))
    pip = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-compile", str(wheel)], check=True, cwd=folder)
    return programs


def ran(command: list[object], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command in a folder outside of the repository, with nothing of it on Python's path."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment |= variables
    return subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def whole(wheel, tmp_path_factory) -> Path:
    """An environment as the README's command makes it."""
    return linked(wheel, "export,cpu", tmp_path_factory.mktemp("whole") / "environment")


@pytest.fixture(scope="module")
def light(wheel, tmp_path_factory) -> Path:
    """An environment to deploy in: neither torch nor onnx."""
    return linked(wheel, "cpu,generate", tmp_path_factory.mktemp("light") / "environment")


@pytest.fixture(scope="module")
def artifact(whole, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    out, config = folder / "layer0", folder / "config.json"
    config.write_text(json.dumps(TINY))
    command = ["export", config, "--out", out, "--no-verify", "--json"]
    done = ran([whole / "rope-export", *command], folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parity"] is None
    return out


def test_the_wheel_has_every_file_of_the_package(wheel) -> None:
    named = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith("rope_export/")}
    assert named == set(tracked("rope_export"))


COMMANDS = """
import json, sys
from rope_export.cli import run
for arguments in json.loads(sys.argv[1]):
    print("status", run(arguments), flush=True)
"""


def test_export_and_the_other_commands(whole, artifact, tmp_path) -> None:
    """The others in one process: to import torch takes longer than what they do."""
    commands = [["verify", str(artifact), "--json"], ["inspect", str(artifact)], ["doctor"]]
    done = ran([whole / "python", "-c", COMMANDS, json.dumps(commands)], tmp_path)
    verified, inspected, doctor, _ = re.split(r"^status 0\n", done.stdout, flags=re.M)
    report = json.loads(verified)
    assert (report["status"], report["weights"]) == ("passed", "proven")
    assert "lowering" in inspected
    assert "onnxruntime" in doctor


def test_the_examples_of_the_readme(whole, smollm2, tmp_path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "smollm2-135m").symlink_to(smollm2)
    done = ran([whole / "python", "-c", code], tmp_path)
    assert done.stdout == "(2, 1, 576) [6 4]\n", done.stderr


def test_running_an_artifact_needs_no_torch(light, artifact, tmp_path) -> None:
    code = (
        "import sys, numpy as np; from rope_export import open_session\n"
        f"with open_session({str(artifact)!r}) as session:\n"
        "    cache = np.zeros((1, 2, 0, 16), np.float32)\n"
        "    x = np.ones((1, 5, 64), np.float32)\n"
        "    y = session.run({'hidden_states': x, 'position_ids': np.arange(5)[None],\n"
        "                     'past_key': cache, 'past_value': cache})\n"
        "print(y['attention_output'].shape, 'torch' in sys.modules)\n"
    )
    done = ran([light / "python", "-c", code], tmp_path)
    assert done.stdout == "(1, 5, 64) False\n", done.stderr
    assert ran([light / "rope-export", "inspect", artifact], tmp_path).returncode == 0


def test_generating_text_needs_no_torch(light, tmp_path) -> None:
    companions = {
        "tokenizer.json": word_tokenizer().to_str(),
        "tokenizer_config.json": json.dumps({"chat_template": CHAT}),
    }
    decoder = decoder_folder(tmp_path / "decoder", companions=companions).path
    prompt = ["--prompt", "the cat sat", "--max-tokens", "4"]
    for chat in ([], ["--chat"]):
        done = ran([light / "rope-export", "generate", decoder, *prompt, *chat], tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
        assert "3 tokens in" in done.stderr


WITHOUT_TORCH = {
    "from_hf": "rope_export.AttentionSpec.from_hf(CONFIG)",
    "RotaryAttention": "rope_export.RotaryAttention",
    "export": "rope_export.export",
    "verify": "rope_export.verify",
}


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_without_torch_there_is_one_line_that_names_the_extra(name, light, tmp_path) -> None:
    code = (
        f"import rope_export\nCONFIG = {TINY!r}\ntry:\n    {WITHOUT_TORCH[name]}\n"
        "except rope_export.RopeExportError as error:\n    print(error.status, error)\n"
    )
    done = ran([light / "python", "-c", code], tmp_path)
    assert re.fullmatch(
        r"3 .* needs the package '(torch|onnx|onnx_ir)', which is not installed. "
        r"Install it with: pip install 'rope_export\[export\]'\n",
        done.stdout,
    ), done.stdout + done.stderr


BACKEND = r"""
import zipfile
FILES = {
    "METADATA": "Metadata-Version: 2.1\nName: sample\nVersion: {}\n",
    "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "RECORD": "",
}
def build_editable(folder, *_):
    version = open("pyproject.toml").read().rpartition("version = '")[2].partition("'")[0]
    name = f"sample-{version}-py3-none-any.whl"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        for file, text in FILES.items():
            wheel.writestr(f"sample-{version}.dist-info/{file}", text.format(version))
    return name
def get_requires_for_build_editable(*_):
    return []
"""


PYTHON = """#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then
    "{python}" -m venv --without-pip "$3" && echo "{packages}" > "$3/{within}/tests.pth"
else
    exec "{python}" "$@"
fi
"""
"""A Python whose environments have the pip of the tests: unpacking another takes seconds."""


def test_the_environment_finds_a_changed_project(tmp_path) -> None:
    """The script itself, on a project that is built in no time."""
    packages = Path(sysconfig.get_path("purelib"))
    within = packages.relative_to(sys.prefix)
    stand_in = tmp_path / "python"
    stand_in.write_text(PYTHON.format(python=sys.executable, packages=packages, within=within))
    stand_in.chmod(0o755)
    (tmp_path / "scripts").mkdir()
    script = Path(shutil.copy(ROOT / "scripts" / "environment", tmp_path / "scripts"))
    (tmp_path / "backend.py").write_text(BACKEND)
    (tmp_path / "constraints.txt").write_text("")

    def environment(version: str) -> tuple[str, bool]:
        """The version that is installed then, and whether it was installed anew."""
        (tmp_path / "pyproject.toml").write_text(
            "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
            f"[project]\nname = 'sample'\nversion = '{version}'\n"
        )
        done = ran([script, "none"], tmp_path, PYTHON=str(stand_in))
        assert done.returncode == 0, done.stderr
        told = "import importlib.metadata as m; print(m.version('sample'))"
        python = done.stdout.strip()
        return ran([python, "-c", told], tmp_path).stdout.strip(), "installing" in done.stderr

    assert environment("1") == ("1", True)
    assert environment("1") == ("1", False)
    assert environment("2") == ("2", True)
    (tmp_path / "constraints.txt").write_text("# another")
    assert environment("2") == ("2", True)
