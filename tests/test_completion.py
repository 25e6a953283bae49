"""The Tab key: what is offered for an unfinished command line, and that bash, zsh and fish show it."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer.commands.completion import SHELLS, completion_for, offered
from trainer.utils.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
HOME_OF_PYTHON = Path(sys.executable).parent


@pytest.fixture
def outputs(tmp_path):
    for name in ("clothes", "digits", "grid/0", "grid/1"):
        (tmp_path / "outputs" / name).mkdir(parents=True)
        (tmp_path / "outputs" / name / "status.json").write_text("{}", encoding="utf-8")
    return f"paths.outputs={tmp_path / 'outputs'}"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("model=le", ["model=lenet "]),
        ("mod", ["model.", "model="]),
        ("che", ["check-resume "]),
        ("data=mnist optimizer.mom", ["optimizer.momentum="]),
        ("optimizer=adam optimizer.b", ["optimizer.betas="]),
        ("data=mnist da", ["data."]),  # data= is there, and no command follows a setting
        ("-m model=softmax,ml", ["model=softmax,mlp "]),
        ("-m hydra/sweeper=op", ["hydra/sweeper=optuna "]),
        ("hydra/sw", []),
        ("logger=ml", ["logger=mlflow "]),
        ("logger=[csv,ml", ["logger=[csv,mlflow"]),
        ("data.augment=[flip,col", ["data.augment=[flip,color"]),
        ("plots=", ["plots=auto ", "plots=false ", "plots=true "]),
        ("fast_dev_run=t", ["fast_dev_run=true "]),
        ("data show fash", ["fashion_mnist "]),
        ("export clothes format=s", ["format=safetensors "]),
        ("show clothes --", ["--json "]),
        ("completion z", ["zsh "]),
        ("help opti", ["optimizer ", "optimizer.impl "]),
        ("eval clothes spl", ["split="]),
        ("eval optimizer.", []),  # eval has no use for it
        ("optimizer.lr=", []),
        ("'mod", []),
        ("model=nonsense optimizer.l", ["optimizer.lr="]),
        ("loss.=", []),
    ],
)
def test_offered(line, words):
    assert offered(f"python main.py {line}") == words


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("eval {} c", ["checkpoint=", "clothes "]),
        ("eval {} clothes:", ["clothes:best ", "clothes:last "]),
        ("eval {} checkpoint=d", ["checkpoint=digits "]),
        ("show {} gr", ["grid"]),
        ("show {} grid/", ["grid/0 ", "grid/1 "]),
        ("show {} clothes d", []),  # it takes one run
        ("diff {} clothes d", ["digits "]),
        ("{} resume=l", ["resume=last "]),
    ],
)
def test_offered_runs(line, words, outputs):
    assert offered(f"python main.py {line.format(outputs)}") == words


def test_other_programs():
    assert offered("python other.py mod") == offered("") == []
    assert completion_for(["eval", "completion"]) is None


def test_a_wrong_shell_is_refused():
    with pytest.raises(ConfigError, match=r"takes one of bash, zsh, fish\. Did you mean completion fish"):
        completion_for(["completion", "fisch"])


def test_how_to_load_it():
    told = completion_for(["completion"])
    assert all(f"completion {shell}" in told for shell in SHELLS)
    assert str(HOME_OF_PYTHON) in told


@pytest.mark.parametrize(
    ("shell", "lines"),
    [
        (["bash", "--norc"], ["source <(python main.py completion bash)"]),
        (["zsh", "-f"], ["autoload -Uz compinit; compinit -u -D", "source <(python main.py completion zsh)"]),
    ],
    ids=["bash", "zsh"],
)
def test_tab_in_a_shell(shell, lines, tmp_path):
    if shutil.which(shell[0]) is None:
        pytest.skip(f"there is no {shell[0]}")
    terminal, inner = pty.openpty()
    env = os.environ | {"PATH": f"{HOME_OF_PYTHON}:{os.environ['PATH']}", "TERM": "xterm", "HOME": str(tmp_path)}
    process = subprocess.Popen(
        shell, cwd=ROOT, env=env, stdin=inner, stdout=inner, stderr=inner, start_new_session=True
    )
    os.close(inner)
    try:
        for i, line in enumerate(lines):
            os.write(terminal, f"{line}; echo loa''ded{i}\n".encode())
            read_until(terminal, f"loaded{i}")
        os.write(terminal, b"python main.py model=le\t")
        read_until(terminal, "lenet")
        os.write(terminal, b"\x15python main.py plugins=READ\t")  # no word of ours: a file
        read_until(terminal, "README.md")
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def test_tab_in_fish(tmp_path):
    if shutil.which("fish") is None:
        pytest.skip("there is no fish")
    env = os.environ | {"PATH": f"{HOME_OF_PYTHON}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    lines = "python main.py completion fish | source; complete -C '{}'; complete -C '{}'"
    script = lines.format("python main.py model=le", "python main.py plugins=READ")
    told = subprocess.run(["fish", "--no-config", "-c", script], cwd=ROOT, env=env, capture_output=True, text=True)
    assert told.stdout.split() == ["model=lenet", "plugins=README.md"], told.stderr


def read_until(terminal, text):
    """Read what a shell writes until the text is in it."""
    seen, end = "", time.monotonic() + 60
    while text not in seen:
        assert time.monotonic() < end, seen
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 65536).decode(errors="replace")
