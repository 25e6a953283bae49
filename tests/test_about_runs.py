"""The commands about runs of before: runs, show, diff, rerun, rm, board."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, Outcome, assert_refused, start, wait_for

from trainer.config.verbs import OF_RUNS
from trainer.plots import sweep as plots_of_sweep
from trainer.sweep.verbs import VERB_OF_RUNS

QUICK = ("plots=false", "data.num_examples=60", "epochs=1")


@pytest.fixture
def two(cli: Cli) -> Cli:
    """Two finished runs, a and b, b the better one and the newer one."""
    assert cli(*QUICK, "name=a", "optimizer.lr=0.001").code == 0
    assert cli(*QUICK, "name=b", "epochs=2").code == 0
    return cli


def names(outcome: Outcome) -> list[str]:
    """The first column of a table without its header."""
    assert outcome.code == 0, outcome.err
    return [line.split()[0] for line in outcome.out.splitlines()[1:] if line and not line.startswith("and ")]


HOLD = "import fcntl, sys; f = open(sys.argv[1], 'a+'); fcntl.lockf(f, fcntl.LOCK_EX, 1, 0); print(flush=True); input()"


@contextmanager
def held_by_another(folder: str) -> Iterator[None]:
    """While another process has a run."""
    words = [sys.executable, "-c", HOLD, f"{folder}/run.lock"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.kill()


def edit(path: Path, **fields: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | fields), encoding="utf-8")


def test_each_verb_about_runs_is_a_function() -> None:
    assert set(OF_RUNS) == set(VERB_OF_RUNS)


def test_runs_lists_selects_and_sorts(two: Cli) -> None:
    assert names(two("runs")) == ["b", "a"]  # the newest first
    assert names(two("runs", "sort=test")) == ["b", "a"]
    assert names(two("runs", "sort=-test")) == ["a", "b"]
    assert names(two("runs", "sort=name")) == ["a", "b"]
    assert names(two("runs", "sort=epochs", "limit=1")) == ["a"]
    assert "and 1 run more: limit=2" in two("runs", "limit=1").out
    selected = {
        "epochs=1": ["a"],
        "epochs>=1": ["b", "a"],
        "model=linreg,epochs!=1": ["b"],
        "name=?": ["b", "a"],
        "optimizer.lr<0.01": ["a"],
        "data.w=[2.0,-3.4]": ["b", "a"],
        "data=s*,state=done": ["b", "a"],
        "data.limit=null": ["b", "a"],
        "data.limit!=400": ["b", "a"],
        "model!=3": ["b", "a"],
        "epochs==1": ["a"],
        "plots=False": ["b", "a"],
        "age<1h": ["b", "a"],
    }
    for where, found in selected.items():
        assert names(two("runs", f"where={where}")) == found, where
    assert "None of 2 runs" in two("runs", "where=model=mlp").out
    assert "optimizer.lr" in two("runs", "where=optimizer.lr>0").out.splitlines()[0]  # a column of its own


def test_runs_are_json_for_scripts(two: Cli) -> None:
    found = json.loads(two("runs", "--json", "sort=optimizer.lr").out)
    assert [run["name"] for run in found] == ["a", "b"]
    result = json.loads(Path("outputs/a/result.json").read_text(encoding="utf-8"))
    assert found[0]["best"] == result["objective"]
    assert found[0]["test"] == {"metric": "loss", "value": result["test"]["loss"]}
    assert found[0]["optimizer.lr"] == 0.001


def test_what_runs_cannot_read_is_refused_and_what_to_type_is_said(two: Cli) -> None:
    assert_refused(two("runs", "where=lr<1"), "lr is no column and no setting", "where=optimizer.lr<1")
    assert_refused(two("runs", "sort=tset"), "Did you mean sort=test?")
    assert_refused(two("runs", "where=model"), "'model' is no condition such as model=mlp")
    for limit in ("0", "x", "9" * 5000):
        assert_refused(two("runs", f"limit={limit}"), "whole numbers from 1")
    assert_refused(two("runs", "where=test>90%"), "test is a number, and '90%' is none")
    assert_refused(two("runs", "where=age<1week"), "Allowed: seconds, or 5min, 3h, 2d")
    shutil.copytree("outputs/a", "outputs/my run")
    assert_refused(two("show", "my run"), "a name that none may have. Rename it")
    assert_refused(two("runs", "a"), "runs takes no names")
    assert_refused(two("runs", "model=mlp"), "main.py runs where=model=mlp")
    assert_refused(two("runs", "--jsn"), "Did you mean --json?")
    assert_refused(two("runs", "sort=name", "sort=age", as_typed=True), "sort is given twice")
    assert_refused(two("rnus"), "Did you mean runs?")


def test_runs_without_any(cli: Cli) -> None:
    assert "There are no runs in outputs/ yet" in cli("runs").out
    assert json.loads(cli("runs", "--json").out) == []


def test_states_are_what_is_true(two: Cli) -> None:
    assert two(*QUICK, "name=t", "fast_dev_run=true").code == 0
    edit(Path("outputs/a/status.json"), state="running")  # as a process that was killed leaves it
    states = {run["name"]: run["state"] for run in json.loads(two("runs", "--json").out)}
    assert states == {"a": "interrupted", "b": "done", "t": "trial"}
    with held_by_another("outputs/a"):
        assert json.loads(two("runs", "--json", "where=name=a").out)[0]["state"] == "running"
    figures = json.loads(two("runs", "--json", "where=name=t").out)[0]
    assert figures["test"] is None  # the figures of one batch are no result
    assert figures["best"] is None


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b'{"config": 3}'),
        ("config.json", b'{"config": {"choices": [1]}, "command": "x"}'),
        ("config.json", b'{"config": {"choices": {"data": 5, "model": null}, "epochs": [[1]]}, "versions": 1}'),
        ("config.json", b'{"config": {"choices": {"model": "theirs"}}, "git": {}, "threads": "many"}'),
        ("status.json", b"[]"),
        ("status.json", b'{"state": "gone", "started": "yesterday"}'),
        ("result.json", b'{"best": 3}'),
        ("result.json", b""),
        ("metrics.jsonl", b"\xff\xfe{}"),
        ("test.json", b"{}"),
        ("config.json", b'{"config": {"x": ' + b"[" * 900 + b"]" * 900 + b"}}"),
    ],
)
def test_damaged_records_are_shown_as_far_as_they_can_be_read(two: Cli, file: str, content: bytes) -> None:
    Path("outputs/a", file).write_bytes(content)
    Path("outputs/a/result.json").touch()
    for words in (
        ("runs",),
        ("runs", "where=epochs>0", "sort=model"),
        ("runs", "--json"),
        ("show", "a"),
        ("diff", "a", "b"),
    ):
        outcome = two(*words)
        assert outcome.code == 0, outcome.err
        assert "a" in outcome.out


def test_figures_that_are_no_finite_numbers_are_null_in_json(two: Cli) -> None:
    path = Path("outputs/a/result.json")
    result = json.loads(path.read_text(encoding="utf-8"))
    edit(path, test=result["test"] | {"loss": float("nan")})
    out = two("runs", "--json", "sort=test").out
    assert [run["test"]["value"] for run in json.loads(out, parse_constant=pytest.fail)][-1] is None
    json.loads(two("show", "a", "--json").out, parse_constant=pytest.fail)
    edit(path, test=result["test"] | {"loss": 10**400})
    for words in (("runs",), ("show", "a"), ("diff", "a", "b")):
        assert two(*words).code == 0


def test_show_tells_where_settings_came_from(two: Cli) -> None:
    out = two("show", "a").out
    assert "a: done, started" in out
    assert "optimizer.lr=0.001" in next(line for line in out.splitlines() if line.endswith("(typed)"))
    assert "1 look at it" in out
    assert "eval a" in out
    told = json.loads(two("show", "b", "--json").out)["settings"]
    origins = {key: told[key]["from"] for key in ("epochs", "optimizer.lr", "seed", "data", "device.precision")}
    recipe = "configs/recipe/optimizer/synthetic_linreg_sgd.yaml"
    assert origins == {
        "epochs": "typed", "optimizer.lr": recipe, "seed": "default", "data": "default", "device.precision": "auto"
    }  # fmt: skip
    assert_refused(two("show", "c"), "c: there is no run of this name")
    assert_refused(two("show"), "show needs a run")


def test_settings_of_an_experiment_and_of_a_data_set(
    cli: Cli, tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["experiment=nielsen_ch1", f"paths.data={tiny_mnist}", "data.val_fraction=100", "epochs=1", "plots=false"]
    monkeypatch.setattr(sys, "orig_argv", ["python", "main.py", *words])
    assert cli(*words, "name=n").code == 0
    told = json.loads(cli("show", "n", "--json").out)["settings"]
    assert told["model.num_hiddens"]["from"] == "configs/experiment/nielsen_ch1.yaml"
    assert told["model"]["from"] == "data or experiment"
    assert told["epochs"]["from"] == "typed"


def test_show_and_diff_of_a_sweep(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("-m", *QUICK, "name=s", "optimizer.lr=0.001,0.03").code == 0
    out = cli("show", "s").out
    assert [line.split()[1] for line in out.splitlines()[1:3]] == ["optimizer.lr=0.03", "optimizer.lr=0.001"]
    assert "show s/1" in out
    assert [row["job"] for row in json.loads(cli("show", "s", "--json").out)] == [1, 0]
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(
        plots_of_sweep, "draw_curves", lambda curves, path: drawn.update(curves=list(curves), path=path)
    )
    lines = cli("diff", "s/0", "s/1").out.splitlines()
    settings = lines[: lines.index("")]
    assert [line.split() for line in settings] == [["settings", "s/0", "s/1"], ["optimizer.lr", "0.001", "0.03"]]
    assert "The same machine." in lines
    assert drawn == {"curves": ["s/0", "s/1"], "path": Path("outputs/s/0/plots/diff-s-1.png")}
    assert_refused(cli("diff", "s", "s/0"), "s is a sweep: name one of its jobs")
    assert_refused(cli("diff", "s/0"), "diff needs two runs")
    assert_refused(cli("diff", "s/0", "outputs/s/0"), "diff takes each run once")


def test_diff_tells_what_only_one_has(two: Cli) -> None:
    assert two("model=mlp", "loss=mse", *QUICK, "name=m").code == 0
    edit(Path("outputs/m/config.json"), cpu="another", versions={"torch": "1.0"})
    out = two("diff", "a", "m").out
    shutil.copytree("outputs/a", "outputs/settings")
    record = json.loads(Path("outputs/a/config.json").read_text(encoding="utf-8"))
    for name in ("a", "settings"):
        settings = record["config"] | {"clip_norm": [1, 2, 3, 4, 5, 6, 7, len(name)]}
        edit(Path("outputs", name, "config.json"), config=settings)
    out_of_lists = two("diff", "settings", "a").out
    assert "clip_norm  [1, 2, 3, 4, 5, 6, 7, 8]  [1, 2, 3, 4, 5, 6, 7, 1]" in out_of_lists
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
    assert rows["model"] == ["linreg", "mlp"]
    assert rows["model.num_hiddens"] == ["[256]"]
    assert rows["torch"][-1] == "1.0"
    assert Path("outputs/a/plots/diff-m.png").stat().st_size > 1000


def test_rerun_is_bit_identical_or_says_what_differs(two: Cli) -> None:
    out = two("rerun", "b").out
    assert "bit-identical to b" in out.splitlines()[-1]
    assert "b-again-2 repeats b" in two("rerun", "b").out
    assert "bit-identical" in two("rerun", "b", "name=c").out
    record = json.loads(Path("outputs/b/config.json").read_text(encoding="utf-8"))
    edit(Path("outputs/b/config.json"), config=record["config"] | {"seed": 1})
    out = two("rerun", "b", "name=d").out
    assert "not bit-identical to b." in out
    assert "model.linear.weight: by up to" in out
    edit(Path("outputs/b/config.json"), config=record["config"] | {"budget": "1h", "max_steps": None})
    assert "bit-identical to b: " in two("rerun", "b").out  # which went further than its budget
    shutil.rmtree("checkpoints/b")
    assert "no step file of b any more" in two("rerun", "b", "name=e").out
    edit(Path("outputs/a/status.json"), state="interrupted")
    assert "a is interrupted" in two("rerun", "a").out
    assert_refused(two("rerun", "a", "name=b"), "name=b exists already. Choose another name=")
    assert_refused(two("rerun", "nothing"), "there is no run of this name")
    assert_refused(two("rerun", "a", "epochs=3"), "epochs=3: rerun takes runs, name=")


class Terminal:
    """A stdin that is one."""

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        return self.answer


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda text: monkeypatch.setattr(sys, "stdin", Terminal(text))


def test_rm_asks_and_deletes_both_folders(two: Cli, answers: Any) -> None:
    for answer in ("n\n", "\n", "", "yess\n"):
        answers(answer)
        outcome = two("rm", "a")
        assert "Nothing was deleted." in outcome.out
        assert "Delete them? [y/N]" in outcome.out
    assert Path("outputs/a").is_dir()
    answers("y\n")
    assert "deleted a: " in two("rm", "a").out
    assert not Path("outputs/a").exists()
    assert not Path("checkpoints/a").exists()
    assert Path("outputs/b").is_dir()


def test_rm_never_deletes_what_is_in_use_or_was_not_named(two: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert_refused(two("rm", "a"), "rm a --yes")
    shutil.copytree("outputs", "there")
    assert_refused(two("rm", "a", "paths.outputs=there"), "rm a paths.outputs=there --yes")  # not the other a
    shutil.copytree("checkpoints/a", "there/a", dirs_exist_ok=True)
    assert two("rm", "a", "paths.outputs=there", "paths.checkpoints=there", "--yes").code == 0
    assert not Path("there/a").exists()
    assert_refused(two("rm", "last", "--yes"), "last: rm takes names")
    assert_refused(two("rm", "b:best", "--yes"), "rm takes names")
    assert_refused(two("rm", "a", "bb", "--yes"), "bb: there is no run of this name")
    for word in ("..", ".", "/", "outputs", "../x", "a/..", "tb"):
        assert two("rm", word, "--yes").code == 2, word
    with held_by_another("outputs/a"):
        assert two("rm", "b", "a", "--yes").code == 5
    assert Path("outputs/b").is_dir()  # nothing was deleted, since one of them was in use
    assert two("rm", "outputs/b/", "--yes").code == 0
    assert not Path("outputs/b").exists()
    assert Path("outputs/a").is_dir()


def test_rm_of_a_sweep_and_of_a_linked_folder(cli: Cli, tmp_path: Path) -> None:
    assert cli("-m", *QUICK, "name=s", "seed=0,1").code == 0
    with held_by_another("outputs/s/1"):
        assert cli("rm", "s", "--yes").code == 5
    assert cli("rm", "s/0", "--yes").code == 0
    assert "show s/1 tells more" in cli("show", "s").out  # there is no s/0 any more
    assert not Path("outputs/s/0").exists()
    assert Path("outputs/s/1").is_dir()
    elsewhere = tmp_path / "elsewhere"
    shutil.move("outputs/s", elsewhere)
    Path("outputs/s").symlink_to(elsewhere)
    outcome = cli("rm", "s", "--yes")
    assert outcome.code == 0
    assert "of outputs/s the link, not what it leads to" in outcome.out
    assert not Path("outputs/s").is_symlink()
    assert (elsewhere / "1").is_dir()  # the link is gone, what it led to is there
    assert not Path("checkpoints/s").exists()


def test_board_refuses_what_it_cannot_show(two: Cli) -> None:
    assert_refused(two("board", "port=x"), "1 to 65535")
    assert_refused(two("board", "c"), "c: there is no run of this name")
    assert_refused(two("board", "a", "b"), "board takes 1 run")
    assert_refused(two("board", "paths.outputs=none"), "none/ is not there yet")


@pytest.mark.slow
def test_board_shows_a_run(cli: Cli, tmp_path: Path) -> None:
    assert cli(*QUICK, "name=a").code == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = start("board", f"port={port}", cwd=tmp_path)
    pages: list[bytes] = []

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/runs", timeout=1) as page:
                pages.append(page.read())
        except OSError:
            return False
        return b"a" in pages[-1]

    wait_for(answers, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
