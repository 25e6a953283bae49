"""Every command line of the README and the pages runs, on small sets in place of the published ones."""

import functools
import hashlib
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT, Cli, idx_bytes, striped_pictures, write_class_folders
from test_table import write_houses

from trainer import data
from trainer.config.command_line import parse_command
from trainer.data import vision

PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)]
COMMAND = re.compile(r"^ *(?:\$ )?((?:python main\.py\b|torchrun -)(?:[^\n]*\\\n)*[^\n]*)$", re.MULTILINE)
USAGE = re.compile(r"\bRUN\b|\bNAME\b|\.\.\.|key=value|\[where=|\[bash\|")  # how a command is typed, and no command
[NET] = re.findall(r"```python\n# file: my_net\.py\n(.*?)```", (ROOT / "docs" / "adding.md").read_text(), re.DOTALL)
NOT_RUN = {  # what a command line has in it: why no test of this file runs it
    "model.weights=default": "downloads weights; tests/test_finetune.py takes them from a server of its own",
    "hydra/launcher=slurm": "needs a cluster",
    "device=cuda": "needs a GPU",
    "experiment=search_mlp": "40 trials; the next line of the page is the same with its own settings",
    "main.py board": "stays open; tests/test_about_runs.py starts it",
    "model=vgg": "of a copy of the program; tests/test_docs.py makes and trains it",
    "data=stripes": "of a copy of the program; tests/test_docs.py makes and trains it",
    "data.root=https://": "needs a web server; tests/test_shards.py starts one",
    "data.root=s3://": "needs an object store",
    "torchrun ": "several processes; tests/test_ranks.py starts them",
    "check-resume model=lenet data=mnist": "its processes want the official files; tests/test_check_resume.py",
    "experiment=nielsen_ch5": "validates on 1,000 images; tests/test_experiments.py has what it needs",
    "model.arch=alexnet": "240 MB of weights; tests/test_vision.py has smaller ones",
}
ENDS_WITH = {"modle=LeNet": 2, "optimizer.lr=3 name=far": 3}  # what the page shows to fail
BEFORE = {  # runs that a page takes for granted
    "own-images.md": [
        f"data=folder data.root=photos model=softmax name={n}" for n in ("photos-net", "photos-two", "photos-three")
    ],
    "3-mlp.md": ["experiment=d2l_softmax name=softmax"],
    "export.md": ["name=clothes"],
    "report.md": ["-m optimizer.lr=0.01,0.1 name=sweep"],
}
QUICK = ("1-line.md", "2-softmax.md", "3-mlp.md", "data.md", "tables.md")  # seconds
SHORTER = {
    "data.limit=5000 data.eval_limit=1000": "data.limit=30 data.eval_limit=5",
    "n_trials=40": "n_trials=2",
    "data.limit=20000": "data.limit=50",
    "seeds=5": "seeds=2",
    "budget=1h": "max_steps=2",
    "budget=2m": "max_steps=2",
}


def commands(page: Path) -> list[str]:
    """The command lines of a page, without the comments behind them."""
    texts = (re.sub(r"\\\n\s*", "", match[1]) for match in COMMAND.finditer(page.read_text(encoding="utf-8")))
    return [re.split(r"\s{2,}", text)[0] for text in texts if not USAGE.search(text)]


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """datasets/ with 300 + 50 images in place of each published set, a folder of photos, a table, a file of plugins."""
    for name, folder in (("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")):
        raw = tmp_path / "datasets" / folder / "raw"
        raw.mkdir(parents=True)
        digests = {}
        for part, n, seed in (("train", 300, 0), ("t10k", 50, 1)):
            pictures, labels = striped_pictures(n, 10, 28, seed)
            for kind, array in (("images-idx3", pictures), ("labels-idx1", labels)):
                (raw / f"{part}-{kind}-ubyte").write_bytes(idx_bytes(array))
                digests[f"{part}-{kind}-ubyte"] = hashlib.sha256(idx_bytes(array)).hexdigest()
        monkeypatch.setitem(data.DATASETS, name, functools.partial(getattr(vision, name), digests=digests))
    write_class_folders(tmp_path / "datasets" / "cifar10", {"train": 60, "test": 20}, size=32, num_classes=10)
    for folder in [*(tmp_path / "datasets" / "cifar10").glob("*/class*")]:
        folder.rename(folder.with_name(vision.THINGS[int(folder.name.removeprefix("class"))]))
    write_class_folders(tmp_path / "photos", {"": 30})
    write_class_folders(tmp_path / "new", {"": 6})
    write_houses(tmp_path / "houses.csv")
    write_houses(tmp_path / "new.csv")
    (tmp_path / "my_net.py").write_text(NET, encoding="utf-8")


def test_every_command_can_be_parsed() -> None:
    lines = [line for page in PAGES for line in commands(page) if "torchrun" not in line and "plugins=" not in line]
    assert len(lines) > 70
    for line in lines:
        if not any(part in line for part in (*ENDS_WITH, "model=vgg", "data=stripes", "optimizer=adagrad", "-version")):
            parse_command(shlex.split(line)[2:])


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=page.stem, marks=[] if page.name in QUICK else pytest.mark.slow) for page in PAGES],
)
def test_the_commands_of_a_page_run(page: Path, cli: Cli, sets: None) -> None:
    for line in [f"python main.py {words}" for words in BEFORE.get(page.name, [])] + commands(page):
        if any(part in line for part in NOT_RUN):
            continue
        for long, short in SHORTER.items():
            line = line.replace(long, short)
        words = shlex.split(line)[2:]
        trains = "=" in "".join(words[:1]) or words[:1] == ["-m"] or words[:1] == ["check-resume"] or not words
        fewer = ["epochs=1"] if trains and not any(word.startswith(("resume=", "epochs=")) for word in words) else []
        outcome = cli(*words, *fewer)
        expected = next((code for part, code in ENDS_WITH.items() if part in line), 0)
        assert outcome.code == expected, f"{line}: {outcome.err}"


def test_no_reason_is_left_over() -> None:
    lines = [line for page in PAGES for line in commands(page)]
    assert len(lines) > 80
    for part in (*NOT_RUN, *ENDS_WITH, *SHORTER):
        assert any(part in line for line in lines), part
