"""Run directories: names, finding a run, the lock, files that are replaced in one step."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from conftest import Cli

from trainer.config.options import group_choices
from trainer.run import directory, folders
from trainer.run.directory import Run
from trainer.run.target import Target, find_run, path_of
from trainer.sweep.job import log_failure
from trainer.utils.errors import BusyError, ConfigError
from trainer.utils.files import read_csv, replacing, write_csv, write_json

ROOT = Path(__file__).resolve().parent.parent
CONFIG = {"seed": 3, "choices": group_choices({})}


def plant(root: Path, name: str, started: str = "2024-01-01T00:00:00+00:00") -> Run:
    """A run as the train command leaves it."""
    run = directory.locate(name, outputs=str(root / "outputs"), checkpoints=str(root / "checkpoints"))
    run.outputs.mkdir(parents=True)
    write_json(run.outputs / "config.json", {"config": CONFIG})
    directory.write_status(run, "done", started)
    return run


def find(root: Path, target: str) -> Target | Path:
    """The run, or the path of a file whose content is not looked at."""
    folders = {"outputs": str(root / "outputs"), "checkpoints": str(root / "checkpoints")}
    return find_run(target, **folders) or path_of(target, **folders)


@pytest.mark.parametrize("name", ["a", "A1", "mnist-mlp", "a.b_c-d", "1", "x" * 100])
def test_names_that_can_be_typed_are_taken(name: str) -> None:
    assert directory.check_name(name, "outputs") == name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", ".a", "-a", "_a", "a b", "a\n", "a=b", "a:b", "a\\b", "\xe4", "auto", "last", "best"),
        *("CON", "nul", "COM1", "lpt9", "aux.txt", "Prn.a.b", "a.", "a.."),  # Windows has no such folders
        *("a/b", "/a", "a/", "a/../b", "../a", "sweep/0"),  # jobs of a sweep are found by such a name, not given one
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is not allowed"):
        directory.check_name(name, "outputs")


@pytest.mark.parametrize("name", ["console", "com", "com10", "a.con", "auxiliary", "nul-1", "lpt", "aux_.txt"])
def test_names_like_those_of_windows_are_taken(name: str) -> None:
    assert directory.check_name(name, "outputs") == name


def test_a_run_of_before_keeps_a_name_that_is_not_for_windows(tmp_path: Path) -> None:
    run = plant(tmp_path, "aux.txt")
    assert directory.check_name("aux.txt", str(tmp_path / "outputs")) == "aux.txt"
    assert find(tmp_path, "aux.txt") == Target(run, "")


def test_new_names_are_valid_and_never_the_same() -> None:
    names = {directory.new_name("fashion_mnist", "mlp") for _ in range(200)}
    assert len(names) == 200
    for name in names:
        assert re.fullmatch(r"fashion_mnist-mlp-\d{8}-\d{6}-\d{6}-[0-9a-f]{4}", directory.check_name(name, "outputs"))


def test_a_run_is_found_by_its_name(tmp_path: Path) -> None:
    run = plant(tmp_path, "first")
    assert find(tmp_path, "first") == Target(run, "")
    assert find(tmp_path, "first:best") == Target(run, "best")
    assert find(tmp_path, "first:last") == Target(run, "last")


def test_a_job_of_a_sweep_is_found_by_its_number(tmp_path: Path) -> None:
    run = plant(tmp_path, "sweep/3")
    assert find(tmp_path, "sweep/3:best") == Target(run, "best")


def test_last_is_the_run_that_was_started_last(tmp_path: Path) -> None:
    plant(tmp_path, "zzz", "2024-01-01T00:00:00+00:00")
    newest = plant(tmp_path, "sweep/0", "2024-01-03T00:00:00+00:00")
    plant(tmp_path, "aaa", "2024-01-02T00:00:00+00:00")
    assert find(tmp_path, "last") == Target(newest, "")
    assert find(tmp_path, "last:best") == Target(newest, "best")


def test_last_without_any_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"last: there is no run in .*outputs"):
        find(tmp_path, "last")


def test_a_path_is_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a=b (1):x.pt"
    path.touch()
    assert find(tmp_path, str(path)) == path


def test_a_run_goes_before_a_file_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "first").touch()
    assert find(tmp_path, "first") == Path("first")
    run = plant(tmp_path, "first")
    assert find(tmp_path, "first") == Target(run)


@pytest.mark.parametrize(
    ("typed", "hint"),
    [("frist", "first"), ("frist:best", "first"), ("sweep/1", "sweep/0"), ("seep", "sweep:best")],
)
def test_an_unknown_run_is_refused_with_the_nearest_name(typed: str, hint: str, tmp_path: Path) -> None:
    plant(tmp_path, "first")
    plant(tmp_path, "sweep/0")
    with pytest.raises(ConfigError, match=rf"{typed}: there is no run .* Did you mean {hint}\?"):
        find(tmp_path, typed)


def test_the_best_job_of_a_sweep_that_was_deleted_is_said(tmp_path: Path) -> None:
    run = plant(tmp_path, "sweep/0")
    write_json(tmp_path / "outputs/sweep/sweep.json", {"sweeper": "basic", "made_of": {}, "best": 0})
    assert find(tmp_path, "sweep:best") == Target(run, "best")
    write_json(tmp_path / "outputs/sweep/sweep.json", {"sweeper": "basic", "made_of": {}, "best": 1})
    with pytest.raises(ConfigError, match=r"best job of sweep was sweep/1, .* the sweep trains it again.*sweep/0"):
        find(tmp_path, "sweep:best")


@pytest.mark.parametrize("target", ["", ".", "..", "../outputs/first", "first/", "none.pt", "x" * 300, "a\0b"])
def test_what_is_neither_run_nor_file_is_refused(target: str, tmp_path: Path) -> None:
    plant(tmp_path, "first")
    with pytest.raises(ConfigError, match="no such file"):
        find(tmp_path, target)


def test_a_run_exists_from_its_config_on(tmp_path: Path) -> None:
    outputs = str(tmp_path / "outputs")
    assert not directory.exists("first", outputs)
    (tmp_path / "outputs" / "first").mkdir(parents=True)
    assert not directory.exists("first", outputs)
    (tmp_path / "outputs" / "first" / "config.json").touch()
    assert directory.exists("first", outputs)


def test_the_saved_config_and_status_come_back(tmp_path: Path) -> None:
    run = plant(tmp_path, "first", "2024-01-01T12:00:00+00:00")
    assert directory.read_config(run.outputs) == CONFIG
    assert directory.read_status(run.outputs) == {
        **{"state": "done", "started": "2024-01-01T12:00:00+00:00", "reason": "", "run": "first", "checkpoint": ""}
    }
    (run.outputs / "status.json").unlink()
    assert directory.read_status(run.outputs) == {}


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '{"config": 3}', "{}", "\xff"])
def test_a_damaged_config_is_refused_by_name(text: str, tmp_path: Path) -> None:
    run = plant(tmp_path, "first")
    (run.outputs / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        directory.read_config(run.outputs)


def test_json_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    assert path.read_text() == '{\n  "a": 1\n}\n'
    seen: list[dict[str, Any]] = []
    replace = os.replace

    def look_first(source: Path, target: Path) -> None:
        seen.extend(json.loads(Path(p).read_text()) for p in (source, target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look_first)
    write_json(path, {"a": 2})
    assert seen == [{"a": 2}, {"a": 1}]  # the new one is whole before the old one goes
    assert json.loads(path.read_text()) == {"a": 2}
    assert list(tmp_path.iterdir()) == [path]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_csv_quotes_what_needs_it(tmp_path: Path) -> None:
    rows = [{"input": 'a,b "c"\nd', "p": "0.5"}, {"input": "\xe4", "p": ""}]
    write_csv(tmp_path / "a.csv", rows)
    with open(tmp_path / "a.csv", newline="") as file:
        assert list(csv.DictReader(file)) == rows


@pytest.mark.parametrize(
    "text",
    [
        "=HYPERLINK(1)",
        "@SUM(1)",
        "-rf.png",
        "+x",
        "\t=1",
        "\r=1",
        "'=1",
        "''",
        "'tis",
        "a=b",
        "-1.5",
        "1e3",
        "",
        "''-'",
    ],
)
def test_a_spreadsheet_runs_no_cell_and_the_reader_gets_it_back(text: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [{"=key": text, "n": -1.5}])
    with open(tmp_path / "a.csv", newline="") as file:
        raw = list(csv.reader(file))
    assert raw[0] == ["'=key", "n"]
    runs = text.startswith(("=", "+", "-", "@", "\t", "\r")) and text != "-1.5"
    assert raw[1] == [f"'{text}" if runs or text.startswith("'") else text, "-1.5"]
    assert read_csv(tmp_path / "a.csv") == [{"=key": text, "n": "-1.5"}]


def test_failures_are_appended_to_the_log(tmp_path: Path) -> None:
    for text in ("one\n", "two\n"):
        log_failure(tmp_path / "sweep" / "0", text)
    assert (tmp_path / "sweep" / "0" / "train.log").read_text() == "one\ntwo\n"


HOLDER = """
import sys, time
from pathlib import Path
from trainer.run import directory

folder = Path(sys.argv[1])
file = directory.hold(folder)
print("held", flush=True)
time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the lock of a run's folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], cwd=ROOT, text=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_run_is_held_by_one_process_and_free_once_it_is_killed(tmp_path: Path) -> None:
    run = Run("first", tmp_path, tmp_path)
    with holder(tmp_path) as process:
        for _ in range(2):
            with pytest.raises(BusyError, match=rf"in use by pid {process.pid} on \S+\.$"):
                directory.hold(run.outputs)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with directory.hold(run.outputs):
        assert f"pid {os.getpid()} on " in (tmp_path / "run.lock").read_text()
        assert str(process.pid) not in (tmp_path / "run.lock").read_text()


def test_closing_the_file_frees_the_run(tmp_path: Path) -> None:
    directory.hold(tmp_path).close()
    with holder(tmp_path) as process:
        assert process.poll() is None  # it holds the run and waits
        process.kill()


def test_trying_folders_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    directory.check_writable(tmp_path / "a" / "b", tmp_path / "there")
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=rf"{folder} cannot be written: .*paths\."):
            directory.check_writable(tmp_path, folder)


def test_a_folder_that_refuses_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """chmod does not stop root, so the write itself is made to fail."""

    def read_only(self: Path, data: bytes) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", read_only)
    with pytest.raises(ConfigError, match="cannot be written: Read-only file system"):
        directory.check_writable(tmp_path)


@pytest.mark.parametrize(
    "words", ["eval checkpoint={file}", "eval checkpoint=a:last", "resume={file} epochs=3", "resume=a epochs=3"]
)
def test_a_checkpoint_file_that_is_asked_for_is_read_once(
    words: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("name=a", "epochs=2", "plots=false").code == 0
    file = sorted(Path("checkpoints/a").glob("step_*.pt"))[-1]
    (file.parent / "best.pt").unlink()  # else a second name of the same file
    read, load = list[str](), torch.load

    def noted(opened: IO[bytes], **options: Any) -> Any:
        read.append(Path(opened.name).name)
        return load(opened, **options)

    monkeypatch.setattr(torch, "load", noted)
    outcome = cli(*words.format(file=file).split(), "plots=false")
    assert outcome.code == 0, outcome.err
    assert read.count(file.name) == 1


def test_what_windows_has_open_for_a_moment_is_replaced_when_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, calls = os.replace, []

    def busy(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) < 4:
            error = PermissionError(13, "Access is denied", str(target))
            error.winerror = 5  # type: ignore[attr-defined]
            raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", busy)
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert ((tmp_path / "a").read_text(), len(calls), len(list(tmp_path.iterdir()))) == ("new", 4, 1)


def test_a_path_that_is_too_long_for_windows_is_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows says that such a file is not there."""
    monkeypatch.setattr(folders, "TOO_LONG", 248)
    error = FileNotFoundError(2, "No such file or directory", str(tmp_path / ("a" * 120) / ("b" * 120) / "c"))
    assert "is too long for Windows" in str(folders.trouble(error, [tmp_path]))
    short = FileNotFoundError(2, "No such file or directory", str(tmp_path / "c"))
    assert "is gone" in str(folders.trouble(short, [tmp_path]))


OLD_LOCK = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"


def test_a_run_that_an_earlier_version_holds_is_busy_and_the_other_way_round(tmp_path: Path) -> None:
    """Earlier versions locked the whole file."""
    (tmp_path / "run.lock").write_text("pid 7 on here")
    command = [sys.executable, "-c", OLD_LOCK, str(tmp_path / "run.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(BusyError, match="in use by pid 7 on here"):
            directory.hold(tmp_path)
        assert directory.is_held(tmp_path)
        process.communicate("\n")
    with directory.hold(tmp_path):
        trying = [sys.executable, "-c", OLD_LOCK.replace("LOCK_EX)", "LOCK_EX | fcntl.LOCK_NB)"), command[3]]
        assert b"BlockingIOError" in subprocess.run(trying, capture_output=True, timeout=60).stderr
