"""What the README says holds."""

import re
from pathlib import Path

from scripts import support_table

README = Path(support_table.README)


def test_the_table_of_what_is_supported_is_the_generated_one() -> None:
    text = README.read_text(encoding="utf-8")
    written = text.partition(support_table.BEGIN)[2].partition(support_table.END)[0]
    assert written == support_table.support_table(), "run: python -m scripts.support_table"


def test_the_number_of_families_is_the_proven_one() -> None:
    proven = re.search(r"model families \| (\d+ of \d+) proven", support_table.support_table())
    assert proven
    assert f"reads\n{proven[1]} model families" in README.read_text(encoding="utf-8")


def test_the_examples_run(smollm2, tmp_path, monkeypatch, capsys) -> None:
    code = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "smollm2-135m").symlink_to(smollm2)
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(code), "README.md", "exec"), {})
    assert capsys.readouterr().out == "(1, 5, 576) (1, 3, 5, 64)\n[6 4]\n"
