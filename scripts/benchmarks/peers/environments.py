"""An environment for each exporter that cannot share ours, made once under build/peers."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "build" / "peers"
STAMP = "made-with"
VERSIONS = """
import importlib.metadata, json, sys
print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))
"""
COMMON = (
    "torch==2.13.0",  # any other brings several GB of GPU libraries
    "numpy==2.4.6",
    "onnx==1.23.2",
    "onnxruntime==1.32.0",
    "safetensors==0.8.0",
    "protobuf==7.36.2",
    "ml_dtypes==0.6.0",
)
"""Versions in every environment, of what is needed there."""
NEW = ("transformers==5.23.0", "tokenizers==0.23.3", "huggingface_hub==2.4.0")


class NotInstalledError(Exception):
    """An exporter is not installed; the message says why, in one line."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """name: its folder. installed: what is asked for. pins: name==version of those and of what
    they bring. shown: packages whose versions a reader wants to know."""

    name: str
    installed: tuple[str, ...]
    pins: tuple[str, ...]
    shown: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    @property
    def programs(self) -> Path:
        return self.folder / "bin"

    @property
    def _stamp(self) -> str:
        return "\n".join((*self.installed, *self.pins, *COMMON)) + "\n"

    @property
    def is_ready(self) -> bool:
        """Whether the environment exists, made with these pins."""
        stamp = self.folder / STAMP
        return stamp.is_file() and stamp.read_text(encoding="utf-8") == self._stamp

    def ready(self) -> None:
        """Make the environment if it is not there or was made with other pins.

        Raises: NotInstalledError.
        """
        if self.is_ready:
            return
        print(f"peers: installing {self.name} (some minutes)", file=sys.stderr)
        _run([sys.executable, "-m", "venv", "--clear", str(self.folder)])
        constraints = self.folder / "constraints.txt"
        constraints.write_text("\n".join((*self.pins, *COMMON)) + "\n", encoding="utf-8")
        pip = [str(self.programs / "python"), "-m", "pip", "install", "--quiet"]
        pip += ["--disable-pip-version-check", "--constraint", str(constraints)]
        _run([*pip, *self.installed])
        (self.folder / STAMP).write_text(self._stamp, encoding="utf-8")

    def versions(self) -> dict[str, str]:
        """The installed versions of the packages in `shown`."""
        command = [str(self.programs / "python"), "-c", VERSIONS, *self.shown]
        listing = subprocess.run(command, capture_output=True, text=True, check=True)
        return dict(json.loads(listing.stdout))


ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment(
            name="optimum",
            installed=("optimum-onnx[onnxruntime]",),
            pins=(
                "optimum-onnx==0.1.0",
                "optimum==2.1.0",
                "transformers==4.57.6",  # optimum-onnx 0.1.0 takes none from 4.58 on
                "tokenizers==0.22.2",
                "huggingface_hub==0.36.2",
            ),
            shown=("optimum-onnx", "transformers", "torch", "onnx"),
        ),
        Environment(
            name="genai",
            installed=("onnxruntime-genai", "onnx", "onnx-ir", "transformers", "torch"),
            pins=("onnxruntime-genai==0.18.0", "onnx-ir==1.1.0", *NEW),
            shown=("onnxruntime-genai", "transformers", "torch", "onnx-ir"),
        ),
        Environment(
            name="mobius",
            installed=("mobius-onnx",),
            pins=(
                "mobius-onnx==0.1.0",
                "onnx-ir==1.1.0",
                "onnxscript==0.7.2",
                "onnx-shape-inference==0.4.0",
                *NEW,
            ),
            shown=("mobius-onnx", "transformers", "torch", "onnx-ir"),
        ),
    )
}


def _run(command: list[str]) -> None:
    """Raises: NotInstalledError with the last line that says ERROR, or the last one there is."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    raise NotInstalledError((errors or lines or [f"exit status {done.returncode}"])[-1])
