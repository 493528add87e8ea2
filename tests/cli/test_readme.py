"""What README and documents say holds."""

import re
from pathlib import Path

import pytest

from scripts import readme

PAGES = [readme.ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((readme.ROOT / "docs").rglob("*.md"))


def text() -> str:
    return readme.README.read_text(encoding="utf-8")


def test_the_readme_is_short() -> None:
    assert len(text().splitlines()) <= 120


def test_the_table_of_what_is_supported_is_the_generated_one() -> None:
    written = readme.part_of(text(), "support table")
    assert written == readme.support_table(), "run: python -m scripts.readme"


def test_the_number_of_families_is_the_proven_one() -> None:
    proven = re.search(r"model families \| (\d+ of \d+) proven", readme.support_table())
    assert proven
    assert f"is read of {proven[1]} model" in " ".join(text().split())


def test_the_commands_print_what_is_written(smollm2, tmp_path) -> None:
    """Figures aside, which differ between processors."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / readme.CHECKPOINT).symlink_to(smollm2)
    written = readme.part_of(text(), "commands")
    printed = readme.outputs(tmp_path)
    assert readme.without_figures(printed) == readme.without_figures(written), (
        "run: python -m scripts.readme"
    )


def test_the_examples_of_artifacts_run(smollm2, tmp_path, monkeypatch, capsys) -> None:
    """Those of the README are run in the environment of an installed wheel."""
    page = (readme.ROOT / "docs" / "artifacts.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / readme.CHECKPOINT).symlink_to(smollm2)
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(code), "artifacts.md", "exec"), {})
    assert capsys.readouterr().out == "(1, 5, 576) (1, 3, 5, 64)\n[6 4]\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(readme.ROOT)))
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, f"{page.name} links to {target}"


def test_the_readme_links_every_document() -> None:
    linked = set(re.findall(r"\]\(([^)\s#]+)", text()))
    pages = {str(page.relative_to(readme.ROOT)) for page in PAGES} - {"README.md"}
    assert pages - linked <= {"docs/adding_a_family.md"}  # which CONTRIBUTING links
