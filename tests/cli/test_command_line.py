"""The program as a process: what its shell sees, whatever becomes of stdout and of the user."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rope_export

PROGRAM = [sys.executable, "-m", "rope_export"]


def program(*arguments: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([*PROGRAM, *arguments], check=False, **options)


def test_version() -> None:
    done = program("--version")
    assert (done.returncode, done.stdout) == (
        0,
        f"rope-export {rope_export.__version__}\n".encode(),
    )


@pytest.mark.parametrize("arguments", [["inspect", "nothing"], ["bogus"], ["verify"]])
def test_with_json_an_error_is_one_object(arguments) -> None:
    done = program(*arguments, "--json")
    printed = json.loads(done.stdout)
    assert printed["status"] == done.returncode == 2
    assert printed["error"]
    assert done.stderr.decode() == f"rope-export: {printed['error']}\n"


def test_with_json_a_missing_runtime_is_one_object(tiny) -> None:
    done = program("verify", str(tiny().path), "--runtime", "abacus", "--json")
    assert json.loads(done.stdout)["status"] == done.returncode == 3


def without_reader(*arguments: str) -> int:
    """The status of the program when the reader of its stdout has left."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        return program(*arguments, stdout=writing).returncode
    finally:
        os.close(writing)


def test_a_reader_that_leaves_does_not_change_the_status(tiny) -> None:
    assert without_reader("inspect", str(tiny().path)) == 0
    assert without_reader("inspect", str(tiny().path), "--json") == 0
    assert without_reader("inspect", "nothing") == 2


def test_a_full_disk_behind_stdout_is_the_environments_failure(tiny) -> None:
    with Path("/dev/full").open("wb") as full:
        done = program("inspect", str(tiny().path), "--json", stdout=full)
    assert done.returncode == 4
    assert done.stderr == b"rope-export: stdout: No space left on device\n"


def test_closed_handles_are_not_given_to_files(tiny, tmp_path) -> None:
    """With stdout and stderr closed, the next file that is opened would get their numbers."""
    command = f'"$@" >&- 2>&- <&-; echo $? > "{tmp_path}/status"'
    subprocess.run(["sh", "-c", command, "sh", *PROGRAM, "inspect", str(tiny().path)], check=True)
    assert (tmp_path / "status").read_text() == "0\n"
    code = (
        "import os, sys; from rope_export import __main__ as m; m._occupy_standard_handles();"
        f"open({str(tmp_path / 'handle')!r}, 'w').write(str(os.open(os.devnull, os.O_RDONLY)))"
    )
    subprocess.run(["sh", "-c", '"$@" >&- 2>&- <&-', "sh", sys.executable, "-c", code], check=True)
    assert int((tmp_path / "handle").read_text()) > 2


def test_an_ascii_terminal_takes_every_character(tiny) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    for command in (["inspect", str(tiny().path)], ["doctor"], ["--help"]):
        done = program(*command, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.isascii()
        assert done.stdout


def test_a_name_that_is_not_utf8_is_named_as_it_is(tmp_path) -> None:
    name = os.fsencode(tmp_path) + b"/\xe9\xff"
    done = subprocess.run(
        [*map(os.fsencode, PROGRAM), b"inspect", name], capture_output=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1


def interrupted(command: list[str], started: Path) -> subprocess.CompletedProcess[bytes]:
    """The program, sent an interrupt once the file `started` is there."""
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not started.exists() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    return subprocess.CompletedProcess(command, running.returncode, out, err)


@pytest.mark.parametrize("module", ["typer", "rich.table", "numpy"])
def test_an_interrupt_during_imports_is_one_line(module, tmp_path) -> None:
    started = tmp_path / "started"
    code = (
        "import sys, time\n"
        "class Slow:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        f"            open({str(started)!r}, 'w').close()\n"
        "            time.sleep(30)\n"
        "sys.meta_path.insert(0, Slow())\n"
        "from rope_export.__main__ import main\n"
        "sys.argv = ['rope-export', 'doctor']\n"
        "main()\n"
    )
    done = interrupted([sys.executable, "-c", code], started)
    assert (done.returncode, done.stderr) == (130, b"rope-export: interrupted\n")


def test_an_interrupt_that_native_code_turned_into_another_error_is_one(tmp_path) -> None:
    code = (
        "import os, signal, sys\n"
        "import rope_export.cli.doctor as doctor\n"
        "def runtimes():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    except KeyboardInterrupt as error:\n"
        "        raise ImportError('numpy failed to import') from error\n"
        "doctor.all_runtimes = runtimes\n"
        "from rope_export.__main__ import main\n"
        "sys.argv = ['rope-export', 'doctor']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (130, b"rope-export: interrupted\n")


@pytest.mark.long
def test_an_interrupt_at_any_moment_of_an_export_leaves_nothing(tiny_config, tmp_path) -> None:
    """From the first import of ours to the last comparison; an export that was finished stays."""
    command = [*PROGRAM, "export", str(tiny_config), "--out", str(tmp_path / "out")]
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    whole = time.monotonic() - started
    shutil.rmtree(tmp_path / "out")
    for share in range(1, 20):
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(0.2 + whole * share / 20)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=120)
        assert (running.returncode, err) in ((130, b"rope-export: interrupted\n"), (0, b""))
        assert [p.name for p in tmp_path.iterdir()] in ([], ["out"])
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
