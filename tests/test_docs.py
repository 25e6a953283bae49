"""The documentation does what it says: the blocks of adding.md are put into a copy of the project and trained with."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

BLOCK = re.compile(r"```\w+\n# (file|in) (?P<path>[^\n]*?)(?:, after: (?P<after>[^\n]*))?\n(?P<text>.*?)```", re.DOTALL)


def blocks(text: str) -> list[tuple[str, str | None, str]]:
    """(path, line to insert after or None for a new file, content) of each block of adding.md."""
    text = text.replace("# file: ", "# file ")
    return [(m["path"].strip(), m["after"], m["text"]) for m in BLOCK.finditer(text)]


@pytest.fixture
def extended(tmp_path: Path) -> Path:
    """A copy of the project with everything of adding.md in it."""
    for name in ("trainer", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "main.py", tmp_path)
    for path, after, text in blocks((ROOT / "docs" / "adding.md").read_text()):
        file = tmp_path / path
        if after is None:
            assert not file.exists()
            file.write_text(text)
            continue
        lines = file.read_text().splitlines(keepends=True)
        [place] = [i for i, line in enumerate(lines) if after in line]
        file.write_text("".join([*lines[: place + 1], text, *lines[place + 1 :]]))
    return tmp_path


def test_the_model_the_data_set_and_the_optimizer_of_adding_md_train_together(extended: Path) -> None:
    words = ["data=stripes", "model=vgg", "model.width=4", "optimizer=adagrad", "name=a", "plots=false"]
    run = subprocess.run([sys.executable, "main.py", *words], cwd=extended, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert (extended / "outputs" / "a" / "result.json").is_file()
    assert "data=stripes model=vgg loss=cross_entropy optimizer=adagrad" in run.stdout
    words = ["resume=a", "epochs=4"]  # its buffers come back, as those of any optimizer do
    run = subprocess.run([sys.executable, "main.py", *words], cwd=extended, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_every_link_in_the_documentation_leads_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    links = [(page, target) for page in pages for target in re.findall(r"\]\(([^)#]+)\)", page.read_text())]
    assert len(links) > 10
    assert [(page.name, target) for page, target in links if not (page.parent / target).exists()] == []
