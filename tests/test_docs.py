"""The documentation does what it says.

The blocks of adding.md are put into a copy of the project and trained with; those of scratch-vs-concise.md and
autograd.md are run, and what they quote is looked up.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

from trainer.scratch import formulas, with_numpy

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
    words = ["compare-impl", "data=stripes", "model=vgg", "model.width=4", "epochs=1", "plots=false"]
    run = subprocess.run([sys.executable, "main.py", *words], cwd=extended, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "vgg on stripes: concise, autograd, scratch" in run.stdout
    words = ["resume=a", "epochs=4"]  # its buffers come back, as those of any optimizer do
    run = subprocess.run([sys.executable, "main.py", *words], cwd=extended, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_the_site_is_built_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    words = ["-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(ROOT / "docs"), str(tmp_path / "site")]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = [page.relative_to(ROOT / "docs").with_suffix(".html") for page in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if not (tmp_path / "site" / page).is_file()] == []
    assert "furo" in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]  # as they are, too
    links = [(page, target) for page in pages for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text())]
    assert len(links) > 100
    assert [(page.name, target) for page, target in links if not (page.parent / target).exists()] == []


def test_the_evening_is_as_long_as_it_says() -> None:
    text = (ROOT / "docs" / "reading-order.md").read_text()
    rows = [line for line in text.splitlines() if re.match(r"\| \d+ \|", line)]
    files = [ROOT / "docs" / link for row in rows for link in re.findall(r"\]\((\.\./[^)]+\.py)\)", row)]
    lines = sum(len(file.read_text().splitlines()) for file in files)
    assert len(files) > 15
    [said] = re.findall(r"^About ([\d,]+) lines", text, re.MULTILINE)
    assert abs(int(said.replace(",", "")) - lines) <= 20
    assert lines <= 2500


def test_what_happens_names_files_that_are_there() -> None:
    text = (ROOT / "docs" / "reading-order.md").read_text()
    told = re.findall(r"`((?:\w+/)*\w+\.py)`", text.split("## What happens")[1])
    assert len(set(told)) > 25
    assert [name for name in told if not (ROOT / "trainer" / name).exists() and name != "main.py"] == []


BY_HAND = (ROOT / "docs" / "scratch-vs-concise.md").read_text()
AUTOGRAD = (ROOT / "docs" / "autograd.md").read_text()
FAMILIES = (
    "Linear layer",
    "Activations",
    "Softmax and cross-entropy",
    "Other losses",
    "Convolution",
    "Pooling",
    "Batch normalisation",
    "Dropout",
    "Optimizers",
    "Initial values",
    "Mini-batches",
)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
QUOTED = re.compile(r"^# from (\S+)\n", re.MULTILINE)


def quotations(text: str) -> list[tuple[str, str]]:
    """(file, code) of every quotation; a block may hold several, each under its own line `# from`."""
    found = []
    for block in PYTHON.findall(text):
        if block.startswith("# from "):
            _, *parts = QUOTED.split(block)
            found += list(zip(parts[::2], parts[1::2], strict=True))
    return found


def examples(text: str) -> list[tuple[int, str]]:
    """(line of the page before its first, code) of every block that is run."""
    blocks = [(text[: m.start(1)].count("\n"), m[1]) for m in PYTHON.finditer(text)]
    return [(line, code) for line, code in blocks if not code.startswith("# from ")]


def sections(text: str) -> dict[str, str]:
    """Text under each heading of the second level."""
    _, *parts = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize(("page", "at_least"), [(BY_HAND, 21), (AUTOGRAD, 6)], ids=["by hand", "autograd"])
def test_what_a_page_quotes_stands_in_the_source_word_for_word(page: str, at_least: int) -> None:
    quoted = quotations(page)
    assert len(quoted) >= at_least
    assert len(quoted) == page.count("# from trainer/")  # no quotation outside of a block of its own
    wrong = [(path, code) for path, code in quoted if f"\n{code}" not in f"\n{(ROOT / path).read_text()}"]
    assert wrong == []


def test_the_examples_of_the_page_on_the_hand_written_library_run() -> None:
    with torch.random.fork_rng():
        session: dict[str, Any] = {}
        for line, code in examples(BY_HAND):
            exec(compile("\n" * line + code, "docs/scratch-vs-concise.md", "exec"), session)


def test_every_family_has_its_code_by_hand_and_an_example_beside_the_library() -> None:
    there = sections(BY_HAND)
    assert [name for name in there if name in FAMILIES] == list(FAMILIES)
    for name in FAMILIES:
        tried = "".join(code for _, code in examples(there[name]))
        assert quotations(there[name]), f"{name}: nothing is quoted"
        assert re.search(r"^ *(same|equal|assert)\b", tried, re.MULTILINE), f"{name}: nothing is compared"
        assert name == "Mini-batches" or re.search(r"\bF\.|\btorch\.(nn|optim)\b", tried), f"{name}: no call of torch's"


def test_every_operation_and_optimizer_of_the_hand_written_libraries_is_tried_on_the_page() -> None:
    tried = "".join(code for _, code in examples(BY_HAND))  # library: first by_hand, then with_numpy
    wanted = [rf"\b(by_hand|library)\.{name}\b" for name in formulas.__all__]
    wanted += [rf"\b(with_numpy|library)\.{name}\b" for name in with_numpy.__all__]
    wanted += [rf"\boptim\.{name}\b" for name in ("SGD", "Adam", "AdamW")]
    assert [name for name in wanted if not re.search(name, tried)] == []


PRINTED = re.compile(r"# -> (.*)$", re.MULTILINE)
IN_THE_LOOP = "**In the loop.**"


def test_the_examples_of_the_autograd_page_print_what_it_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    with torch.random.fork_rng():
        session: dict[str, Any] = {}
        for line, code in examples(AUTOGRAD):
            exec(compile("\n" * line + code, "docs/autograd.md", "exec"), session)
            assert capsys.readouterr().out.splitlines() == PRINTED.findall(code), f"the block after line {line}"


def test_every_section_of_the_autograd_page_is_in_its_table_has_an_example_and_says_what_the_loop_does() -> None:
    table = re.findall(r"^\| (?:all|\d[\d, to]*) \| .* \| \[(.*)\]\(#(.*)\) \|$", AUTOGRAD, re.MULTILINE)
    there = sections(AUTOGRAD)
    assert [name for name, _ in table] == list(there)
    anchors = [re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-") for name in there]
    assert [anchor for _, anchor in table] == anchors
    program = "".join(file.read_text() for file in (ROOT / "trainer").rglob("*.py"))
    for name, text in there.items():
        first, *loop = text.split(IN_THE_LOOP)
        tried = "".join(code for _, code in examples(first))
        assert re.search(r"^ *assert\b|# -> ", tried, re.MULTILINE), f"{name}: nothing is checked"
        assert len(loop) == 1, f"{name}: what does the loop do?"
        words = re.findall(r"`([A-Za-z_]\w*)`", loop[0])
        assert [word for word in words if not re.search(rf"\b{word}\b", program)] == [], name
