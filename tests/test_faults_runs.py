"""The fault matrix, rows 7, 8, 10 to 12, 30 to 33, 40, 41, 43 and 44: full disks, damaged files, memory, numbers that
are no numbers, workers, and what may change between two starts. Each test is named after its row.
"""

import contextlib
import csv
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Cli, start, torchrun_command, wait_for, write_class_folders
from interrupted import last_wins

from trainer.build import LOSSES
from trainer.commands import train
from trainer.commands.check_resume import differences_between
from trainer.config.freeze import from_dict
from trainer.data.images import ImageError
from trainer.run import checkpoint, checkpoint_files, directory, end, epochs, failures, resume
from trainer.run.environment import rounding
from trainer.run.epochs import MAX_FAILED_SAVES
from trainer.run.parts import Parts
from trainer.run.recorder import Recorder
from trainer.run.safe_load import read_checkpoint
from trainer.utils.errors import DamagedError, ResourceError, WorkerError

PLAIN = ("plots=false", "device.num_threads=1")
LINE = (*PLAIN, "data.num_examples=100", "epochs=4", "record.every_steps=1")  # 9 steps an epoch
NET = (*PLAIN, "data=folder", "data.root=p", "data.size=8", "model=mlp", "model.dropout=0.5", "batch_size=10")
NET += ("epochs=3", "optimizer=adam", "record.every_steps=1")  # 6 steps an epoch
UPS_AND_DOWNS = (*LINE, "optimizer.lr=0.2", "optimizer.momentum=0.9", "epochs=12", "data.noise=1")
SignalAt = Callable[..., None]


def left(name: str) -> dict[str, Any]:
    """The newest checkpoint of a run, and its metrics."""
    content = read_checkpoint(checkpoint_files.steps_in(Path("checkpoints", name))[-1])
    return content | {"metrics": directory.read_metrics(Path("outputs", name))}


def best_of(name: str) -> dict[str, Any]:
    """The line of metrics of the best epoch, which has worse ones after it."""
    best: dict[str, Any] = min(left(name)["metrics"], key=lambda row: row["val_loss"])
    assert best["epoch"] < len(left(name)["metrics"]) - 1, "these tests need worse epochs after the best"
    return best


def assert_same(a: str, b: str) -> None:
    assert list(differences_between(left(a), left(b))) == []
    best = [read_checkpoint(Path("checkpoints", name, "best.pt")) for name in (a, b)]
    assert best[0]["progress"]["step"] == best[1]["progress"]["step"]
    results = [json.loads(Path("outputs", name, "result.json").read_text()) for name in (a, b)]
    assert results[0] | {"run": "", "seconds": 0} == results[1] | {"run": "", "seconds": 0}


def status_of(name: str) -> dict[str, Any]:
    return json.loads(Path("outputs", name, "status.json").read_text())


def limited(limit: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The program under a limit of the shell's: `-f 64` files of 64 KiB, `-v N` N KiB of address space."""
    command = ["bash", "-c", f'ulimit {limit} && exec "$0" "$@"', sys.executable, str(ROOT / "main.py")]
    command += last_wins(words)
    return subprocess.run(command, cwd=cwd, text=True, capture_output=True, timeout=120)


def flip_a_bit(path: Path) -> None:
    """Damage the weights, which follow the pickled structure in the file."""
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 16
    path.write_bytes(damaged)


@pytest.fixture
def pictures(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "p", {"train": 60, "test": 6}, size=8)


# folders that are moved, removed or replaced while a run writes to them, or that cannot be used


def put_file(path: str) -> None:
    """A file in place of whatever is at a path."""
    shutil.rmtree(path, ignore_errors=True)
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text("something else")


def put_folder(path: str) -> None:
    """A folder in place of whatever file is at a path."""
    Path(path).unlink(missing_ok=True)
    Path(path).mkdir(parents=True)


FROM_FILE = "python main.py resume=checkpoints/a/step_00000036.pt continues"
GONE = ("outputs/a is gone", FROM_FILE)
IN_THE_WAY = "is a folder where a file belongs. Move it away"
CHANGES: dict[str, tuple[Callable[[], object], tuple[str, ...], str]] = {  # the change, what is said, of resume=a
    "outputs moved": (lambda: os.rename("outputs/a", "moved"), GONE, FROM_FILE),
    "outputs removed": (lambda: shutil.rmtree("outputs/a"), GONE, FROM_FILE),
    "all outputs removed": (lambda: shutil.rmtree("outputs"), ("outputs is gone", FROM_FILE), FROM_FILE),
    "outputs a file": (lambda: put_file("outputs/a"), ("outputs/a is no folder", FROM_FILE), FROM_FILE),
    "metrics removed": (
        lambda: os.unlink("outputs/a/metrics.jsonl"),
        ("outputs/a/metrics.jsonl is gone", "python main.py resume=a continues"),
        "",
    ),
    "metrics a folder": (lambda: put_folder("outputs/a/metrics.jsonl"), ("metrics.jsonl " + IN_THE_WAY,), IN_THE_WAY),
    "result a folder": (lambda: put_folder("outputs/a/result.json"), ("result.json " + IN_THE_WAY,), ""),
    "status a folder": (lambda: put_folder("outputs/a/status.json"), ("status.json " + IN_THE_WAY,), ""),
    "plots a file": (lambda: put_file("outputs/a/plots"), ("outputs/a/plots is no folder",), "plots is no folder"),
    "checkpoints a file": (
        lambda: put_file("checkpoints/a"),
        ("checkpoints/a is no folder", "No file is saved there"),
        "checkpoints/a is no folder. Move it away.",
    ),
    "best a folder": (lambda: put_folder("checkpoints/a/best.pt"), ("best.pt " + IN_THE_WAY,), IN_THE_WAY),
}


def one_line(outcome: Any, *codes: int) -> str:
    """The one line that a refused or failed command ends in."""
    assert outcome.code in codes, outcome.err
    assert "Traceback" not in outcome.out + outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    return str(outcome.err)


@pytest.mark.parametrize("case", CHANGES)
def test_what_changes_under_a_run_ends_it_in_one_line_and_costs_no_step(
    case: str, cli: Cli, change_at: Callable[..., None]
) -> None:
    change, said, resumed = CHANGES[case]
    words = [word for word in (*LINE, "name=a") if word != "plots=false" or "plots" not in case]
    change_at(12, change)
    line = one_line(cli(*words), 4)
    assert all(part in line for part in said), line
    assert "checkpoints/a" in line
    again = one_line(cli(*words), 2)
    assert "resume=" in again or "Move it away" in again
    if resumed:
        assert resumed in one_line(cli("resume=a"), 2, 4)
    else:
        assert cli("resume=a").code == 0  # a record that is a folder is set aside
        assert status_of("a")["state"] == "done"


def test_a_run_whose_outputs_are_gone_is_finished_from_its_checkpoint(cli: Cli, change_at: Callable[..., None]) -> None:
    assert cli(*LINE, "name=straight").code == 0
    change_at(12, lambda: shutil.rmtree("outputs/a"))
    assert FROM_FILE in one_line(cli(*LINE, "name=a"), 4)
    assert cli("resume=checkpoints/a/step_00000036.pt").code == 0
    results = [json.loads(Path("outputs", name, "result.json").read_text()) for name in ("straight", "a")]
    assert results[0] | {"run": "", "seconds": 0} == results[1] | {"run": "", "seconds": 0}
    # the line of the first epoch went with the folder, the others waited in the checkpoint
    assert [row["epoch"] for row in left_metrics("a")] == [2, 3, 4]
    assert status_of("a")["state"] == "done"


@pytest.mark.parametrize("command", [("name=a",), ("-m", "name=a", "optimizer.lr=0.1,0.2")], ids=["run", "sweep"])
@pytest.mark.parametrize(
    ("case", "codes", "said"),
    [
        ("dangling", (2,), "outputs is a link that leads nowhere"),
        ("looping", (2,), "outputs is a link that leads nowhere"),
        ("checkpoints", (2,), "checkpoints is a link that leads nowhere"),
        ("lock", (4,), "outputs/a/run.lock " + IN_THE_WAY),
        ("paths.outputs=" + "/".join(["d" * 200] * 25), (2, 4), "File name too long"),
        ("paths.checkpoints=" + "x" * 300, (2,), "File name too long"),
        ("paths.outputs=/sys/x", (2,), "/sys/x cannot be written: "),
        ("paths.outputs=file/x", (2,), "file/x cannot be written: Not a directory"),
        ("paths.checkpoints=file", (2,), "file cannot be written: Not a directory"),
    ],
)
def test_folders_that_cannot_be_used_are_refused_before_the_first_step(
    case: str, codes: tuple[int, ...], said: str, command: tuple[str, ...], cli: Cli
) -> None:
    Path("file").write_text("")
    if case in ("dangling", "looping", "checkpoints"):
        name = "checkpoints" if case == "checkpoints" else "outputs"
        Path(name).symlink_to(name if case == "looping" else "nowhere/at/all")
    if case == "lock":
        put_folder("outputs/a/run.lock")
    before = sorted(Path().rglob("*"))
    outcome = cli(*command, *LINE, *([case] if "=" in case else []))
    line = one_line(outcome, *codes)
    assert said in line
    assert len(line) < 600
    assert "epoch" not in outcome.out
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_working_directory_that_is_removed_is_named(when: str, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    words = [*LINE, "epochs=1000", "name=a"]
    command = ["bash", "-c", 'rmdir "$PWD"; exec "$0" "$@"'] if when == "before" else []
    command += [sys.executable, str(ROOT / "main.py"), *last_wins(words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=inner, **pipes) as process:  # type: ignore[call-overload]
        if when == "during":
            wait_for(lambda: (inner / "checkpoints/a/best.pt").exists(), process)
            os.rename(inner, other := tmp_path / "other")
            while other.exists():  # the run may write while its folders are removed
                shutil.rmtree(other, ignore_errors=True)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 4
    assert "Traceback" not in out + err
    assert "the working directory of this command was removed: go to one that exists with cd" in err
    assert err.count("\n") == 1


def test_a_sweep_goes_on_without_the_job_whose_folder_was_removed(cli: Cli, change_at: Callable[..., None]) -> None:
    words = ("-m", *LINE, "name=s", "optimizer.lr=0.01,0.02,0.03", "sweep.stack=false")
    change_at(12, lambda: shutil.rmtree("outputs/s/0"))
    outcome = cli(*words)
    assert outcome.code == 1
    assert "Traceback" not in outcome.out + outcome.err
    assert "outputs/s/0 is gone" in outcome.err
    assert "1 of 3 jobs failed" in outcome.err
    assert [status_of(f"s/{n}")["state"] for n in (1, 2)] == ["done", "done"]
    again = cli(*words)
    assert again.code == 1
    assert "resume=checkpoints/s/0/step_00000036.pt continues" in again.err
    assert "To start anew, move checkpoints/s/0 away." in again.err
    assert cli("resume=checkpoints/s/0/step_00000036.pt").code == 0
    assert cli(*words).code == 0
    with open("outputs/s/sweep.csv") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["done"] * 3


@pytest.mark.parametrize(("path", "stack"), [("1", "true"), ("1", "false"), ("jobs", "false"), ("sweep.csv", "true")])
def test_a_file_in_place_of_a_sweeps_folder_is_named(
    path: str, stack: str, cli: Cli, change_at: Callable[..., None]
) -> None:
    change_at(12, lambda: put_folder("outputs/s/sweep.csv") if path == "sweep.csv" else put_file(f"outputs/s/{path}"))
    words = ("-m", *LINE, "name=s", "optimizer.lr=0.01,0.02,0.03", f"sweep.stack={stack}")
    for _ in range(2):
        outcome = cli(*words)
        assert outcome.code == (1 if path == "1" else 4)
        assert "Traceback" not in outcome.out + outcome.err
        assert f"outputs/s/{path} is " in outcome.err
        assert "Move it away" in outcome.err
        if path == "1":
            assert [status_of(f"s/{n}")["state"] for n in (0, 2)] == ["done", "done"]
    shutil.rmtree("outputs/s/sweep.csv") if path == "sweep.csv" else os.unlink(f"outputs/s/{path}")
    if path != "1":
        assert cli(*words).code == 0


@pytest.mark.parametrize("case", ["best of an earlier epoch", "best of the last epoch", "gone", "newest too"])
def test_a_best_file_that_is_damaged_at_the_very_end_is_replaced_and_said(
    case: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = UPS_AND_DOWNS if case == "best of an earlier epoch" else LINE
    assert cli(*words, "name=straight").code == 0
    original = end.load_best

    def load_best(s: Any) -> None:
        files = checkpoint_files.steps_in(s.run.checkpoints)
        for path in {"gone": [], "newest too": [files[-1]]}.get(case, []):
            content = path.read_bytes()
            path.unlink()  # not the bytes that best.pt shares
            path.write_bytes(content)
            flip_a_bit(path)
        best = s.run.checkpoints / "best.pt"
        content = best.read_bytes()
        best.unlink()
        if case != "gone":
            best.write_bytes(content)
            flip_a_bit(best)
        original(s)

    monkeypatch.setattr(end, "load_best", load_best)
    outcome = cli(*words, "name=a")
    assert outcome.code == 0, outcome.err
    assert "takes its place" in outcome.out
    assert Path("checkpoints/a/best.corrupt").exists() == (case != "gone")
    kept = read_checkpoint(Path("checkpoints/a/best.pt"))
    results = [json.loads(Path("outputs", name, "result.json").read_text()) for name in ("straight", "a")]
    if case in ("best of the last epoch", "gone"):
        assert results[0] | {"run": "", "seconds": 0} == results[1] | {"run": "", "seconds": 0}
        assert kept["progress"]["step"] == 36
    else:
        files = checkpoint_files.steps_in(Path("checkpoints/a"))
        assert kept["progress"]["step"] == checkpoint_files.step_of(files[-2 if case == "newest too" else -1])
        assert f"best.pt is of epoch {results[1]['best']['epoch']}." in outcome.out
        (row,) = [row for row in left_metrics("a") if row["step"] == kept["progress"]["step"]]
        assert results[1]["best"] == {"epoch": row["epoch"], "val_loss": row["val_loss"]}


def left_metrics(name: str) -> list[dict[str, Any]]:
    return directory.read_metrics(Path("outputs", name))


def test_a_run_without_any_whole_file_at_its_end_says_so(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    original = end.load_best

    def load_best(s: Any) -> None:
        shutil.rmtree(s.run.checkpoints)
        original(s)

    monkeypatch.setattr(end, "load_best", load_best)
    assert "no checkpoint of it can be read any more" in one_line(cli(*LINE, "name=a"), 4)
    assert "is not started over" in one_line(cli("resume=a"), 2)


# disks


def test_row_07_a_disk_that_is_full_for_a_while_costs_only_those_saves(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(*LINE, "name=straight").code == 0
    pack, usage, saves = checkpoint.pack, shutil.disk_usage("/"), [0]

    def count(*args: Any) -> Any:
        saves[0] += 1
        return pack(*args)

    with monkeypatch.context() as patch:
        patch.setattr(epochs, "pack", count)
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0 if saves[0] in (2, 3) else 10**12))
        outcome = cli(*LINE, "name=full")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("Training goes on") == 2  # a third one would have ended it
    assert "checkpoints/full/step_00000018.pt could not be written" in outcome.out
    assert not list(Path("checkpoints").rglob(".tmp-*"))
    assert_same("straight", "full")


def test_row_07_a_disk_that_stays_full_ends_the_run_and_keeps_the_last_file(
    cli: Cli, signal_at: SignalAt, tmp_path: Path, pictures: None
) -> None:
    assert cli(*NET, "name=straight").code == 0
    signal_at(4)
    assert cli(*NET, "name=a").code == 143
    (path,) = Path("checkpoints/a").iterdir()
    before = path.read_bytes()
    done = limited("-f 100", "resume=a", "save.every_steps=1", cwd=tmp_path)  # a checkpoint has 0.7 MB
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stdout.count("Training goes on") == 2
    assert "checkpoints/a/step_" in done.stderr
    assert "bytes" in done.stderr
    assert "File too large" in done.stderr  # what the system said, not what torch made of it
    assert [p.name for p in Path("checkpoints/a").iterdir()] == [path.name]
    assert path.read_bytes() == before
    assert status_of("a")["state"] == "failed"
    assert cli("resume=a").code == 0
    assert_same("straight", "a")


def test_row_07_a_best_epoch_that_could_not_be_kept_is_said_and_not_claimed(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(*UPS_AND_DOWNS, "name=straight").code == 0
    best = best_of("straight")
    original = checkpoint_files.keep_as_best

    def keep_as_best(step_file: Path, folder: Path) -> None:
        if checkpoint_files.step_of(step_file) == best["step"]:
            raise ResourceError("there is no room for it.")
        original(step_file, folder)

    with monkeypatch.context() as patch:
        patch.setattr(epochs, "keep_as_best", keep_as_best)
        outcome = cli(*UPS_AND_DOWNS, "name=full")
    assert outcome.code == 0, outcome.err
    assert f"the file of epoch {best['epoch']} is gone" in outcome.out
    result = json.loads(Path("outputs/full/result.json").read_text())["best"]
    (row,) = [row for row in left("full")["metrics"] if row["epoch"] == result["epoch"]]
    assert result == {"epoch": row["epoch"], "val_loss": row["val_loss"]}
    assert result["epoch"] != best["epoch"]
    assert read_checkpoint(Path("checkpoints/full/best.pt"))["progress"]["step"] == row["step"]
    assert list(differences_between(left("straight"), left("full"))) == []  # training itself took no notice


def test_row_08_a_full_disk_for_logs_switches_tensorboard_off_once(cli: Cli, tmp_path: Path) -> None:
    words = (*PLAIN, "record.every_steps=1", "epochs=12")
    done = limited("-f 64", *words, "name=full", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("TensorBoard is off") == 1
    assert len(left("full")["metrics"]) == 12
    assert cli(*words, "name=straight").code == 0
    assert_same("straight", "full")


def test_row_08_a_screen_that_goes_to_a_full_disk_does_not_end_a_run(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "main.py"), *LINE, "name=a"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=tmp_path, text=True, stdout=full, stderr=subprocess.PIPE, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "test: loss" in (tmp_path / "outputs/a/train.log").read_text()


def test_row_08_lines_of_metrics_wait_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    recorder = Recorder(tmp_path, warn=said.append)
    figures = {"lr": 0.1, "train_loss": 1.0, "seconds": 1.0, "samples_per_second": 1.0}
    recorder.epoch(figures | {"epoch": 1, "step": 1})
    path = recorder.path
    recorder.path = Path("/dev/full")
    monkeypatch.setattr(os, "truncate", lambda *_: None)
    recorder.epoch(figures | {"epoch": 2, "step": 2})
    recorder.epoch(figures | {"epoch": 3, "step": 3})
    recorder.path = path
    recorder.epoch(figures | {"epoch": 4, "step": 4})
    recorder.close()
    assert [row["epoch"] for row in directory.read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert len(said) == 1


@pytest.mark.parametrize("left_over", [0, 1])
def test_row_06_metrics_that_a_power_cut_took_end_no_run(cli: Cli, signal_at: SignalAt, left_over: int) -> None:
    signal_at(22)  # in epoch 3: two lines are written
    assert cli(*LINE, "epochs=3", "name=a").code == 143
    path = Path("outputs/a/metrics.jsonl")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:left_over]))
    outcome = cli("resume=a", "plots=true")
    assert outcome.code == 0, outcome.err
    assert json.loads(Path("outputs/a/result.json").read_text())["epochs"] == 3


def test_a_run_whose_metrics_are_all_gone_is_finished(cli: Cli, signal_at: SignalAt) -> None:
    assert cli(*LINE, "epochs=1", "name=a").code == 0
    for name in ("metrics.jsonl", "result.json"):
        Path("outputs/a", name).unlink()
    outcome = cli("resume=a", "plots=true")
    assert outcome.code == 0, outcome.err
    assert json.loads(Path("outputs/a/result.json").read_text())["epochs"] == 1


def test_row_01_a_crash_in_a_long_validation_costs_no_step(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli(*LINE, "name=straight").code == 0
    original, calls = Parts.measure, [0]

    def measure(self: Parts, *args: Any) -> Any:
        calls[0] += 1
        assert calls[0] != 3, "a crash"
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(epochs, "LONG_VALIDATION", 0.0)
        patch.setattr(Parts, "measure", measure)
        with pytest.raises(AssertionError, match="a crash"):
            cli(*LINE, "name=cut")
    content = left("cut")
    assert (content["progress"]["step"], content["progress"]["samples"]) == (27, 90)  # trained, not yet validated
    assert cli("resume=cut").code == 0
    assert_same("straight", "cut")


def test_row_08_lines_that_never_found_room_come_back_with_the_checkpoint(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(*LINE, "name=straight").code == 0

    def write(self: Recorder, lines: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "_write", write)
        outcome = cli(*LINE, "name=full")
    assert outcome.code == 4
    assert "disk is full" in outcome.err
    assert status_of("full")["state"] == "failed"
    assert cli("resume=full").code == 0
    assert_same("straight", "full")


# damaged files


def test_row_10_a_truncated_checkpoint_is_set_aside_and_the_one_before_is_taken(
    cli: Cli, signal_at: SignalAt, pictures: None
) -> None:
    assert cli(*NET, "name=straight").code == 0
    for length in (0, 1000, -1):
        name = f"cut{length}"
        signal_at(15)
        assert cli(*NET, f"name={name}").code == 143
        before, newest = checkpoint_files.steps_in(Path("checkpoints", name))
        newest.write_bytes(newest.read_bytes()[:length])
        outcome = cli(*NET, f"name={name}", "resume=auto")
        assert outcome.code == 0, outcome.err
        assert f"warning: {newest} is damaged" in outcome.out
        assert f"continuing from {before}" in outcome.out
        assert newest.with_suffix(".corrupt").is_file()
        assert_same("straight", name)


def test_row_11_a_flipped_bit_is_noticed_and_the_file_before_is_taken(
    cli: Cli, signal_at: SignalAt, pictures: None
) -> None:
    words = (*NET, "schedule=constant")  # more epochs change nothing before them
    assert cli(*words, "name=straight").code == 0
    assert cli(*words, "name=cut", "epochs=2").code == 0
    before, newest = checkpoint_files.steps_in(Path("checkpoints/cut"))
    flip_a_bit(newest)  # and with it best.pt, where that is another name of the same file
    outcome = cli("resume=cut", "epochs=3")
    assert outcome.code == 0, outcome.err
    assert f"continuing from {before}" in outcome.out
    assert_same("straight", "cut")


@pytest.mark.slow
def test_row_11_no_damage_of_five_thousand_is_accepted(cli: Cli, tmp_path: Path, pictures: None) -> None:
    assert cli(*NET, "name=a").code == 0
    best = Path("checkpoints/a/best.pt")
    original, whole = read_checkpoint(best) | {"metrics": []}, best.read_bytes()
    rng, path = random.Random(0), tmp_path / "damaged.pt"
    counts = {"refused": 0, "harmless": 0}
    for i in range(5400):
        damaged = bytearray(whole)
        if i < 4000:
            damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        elif i < 4700:
            at = rng.randrange(len(whole) - 4096)
            damaged[at : at + 4096] = bytes(4096)
        else:
            del damaged[rng.randrange(len(whole)) :]
        if damaged == whole:
            continue
        path.write_bytes(damaged)
        try:
            content = read_checkpoint(path)
        except DamagedError:
            counts["refused"] += 1
        else:
            assert list(differences_between(original, content | {"metrics": []})) == [], i
            counts["harmless"] += 1
    print(f"\ndamaged files: {counts}, 0 accepted with another content")
    assert sum(counts.values()) > 5000
    assert counts["refused"] > 4000


def test_row_12_with_every_checkpoint_damaged_nothing_starts_over(cli: Cli, signal_at: SignalAt) -> None:
    signal_at(22)
    assert cli(*LINE, "name=a").code == 143
    for path in Path("checkpoints/a").iterdir():
        path.write_bytes(path.read_bytes()[:-30])
    before = {path: path.read_bytes() for path in Path("checkpoints/a").iterdir()}
    metrics = Path("outputs/a/metrics.jsonl").read_bytes()
    for words in (("resume=a",), (*LINE, "name=a", "resume=auto"), ("resume=last",)):
        outcome = cli(*words)
        assert outcome.code == 2
        assert "step_00000022.pt" in outcome.err
        assert {path: path.read_bytes() for path in Path("checkpoints/a").iterdir()} == before
        assert Path("outputs/a/metrics.jsonl").read_bytes() == metrics


@pytest.mark.parametrize("gone", ["step_*.pt", "*", "folder"])
def test_row_12_with_checkpoints_gone_nothing_starts_over(gone: str, cli: Cli, signal_at: SignalAt) -> None:
    signal_at(22)
    assert cli(*LINE, "name=a").code == 143
    for path in Path("checkpoints/a").glob("*" if gone == "folder" else gone):
        path.unlink()
    if gone == "folder":
        Path("checkpoints/a").rmdir()
    metrics = Path("outputs/a/metrics.jsonl").read_bytes()
    for words in (("resume=a",), (*LINE, "name=a", "resume=auto")):
        outcome = cli(*words)
        assert outcome.code == 2
        assert "not started over" in outcome.err
    assert Path("outputs/a/metrics.jsonl").read_bytes() == metrics


def test_row_12_checkpoints_without_their_outputs_are_not_written_over(cli: Cli, signal_at: SignalAt) -> None:
    signal_at(22)
    assert cli(*LINE, "name=a").code == 143
    shutil.rmtree("outputs/a")
    before = {path: path.read_bytes() for path in Path("checkpoints/a").iterdir()}
    outcome = cli(*LINE, "name=a", "resume=auto")
    assert outcome.code == 2
    assert "checkpoints/a" in outcome.err
    assert {path: path.read_bytes() for path in Path("checkpoints/a").iterdir()} == before


def test_a_start_that_was_killed_before_its_config_was_written_leaves_the_name_free(cli: Cli) -> None:
    Path("outputs/a").mkdir(parents=True)
    Path("outputs/a/run.lock").touch()
    assert cli(*LINE, "name=a", "resume=auto").code == 0


def test_row_12_a_first_epoch_is_not_started_over_either(cli: Cli, signal_at: SignalAt) -> None:
    for gone in ("files", "folder"):
        signal_at(5)
        assert cli(*LINE, "save.every_steps=2", f"name={gone}").code == 143
        folder = Path("checkpoints", gone)
        folder.rename("aside" + gone)  # a disk that is not mounted
        if gone == "files":
            folder.mkdir()
        outcome = cli(*LINE, "save.every_steps=2", f"name={gone}", "resume=auto")
        assert outcome.code == 2
        assert "not started over" in outcome.err


def test_row_10_a_disk_that_cannot_be_read_just_now_damages_nothing(
    cli: Cli, signal_at: SignalAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal_at(22)
    assert cli(*LINE, "name=a").code == 143
    before = sorted(path.name for path in Path("checkpoints/a").iterdir())

    def load(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", load)
        outcome = cli("resume=a")
    assert outcome.code == 2
    assert "cannot be read: Input/output error" in outcome.err
    assert sorted(path.name for path in Path("checkpoints/a").iterdir()) == before
    assert cli("resume=a").code == 0


def test_row_02_what_a_killed_save_left_is_swept_before_the_next_one(cli: Cli, signal_at: SignalAt) -> None:
    signal_at(22)
    assert cli(*LINE, "name=a").code == 143
    half = Path("checkpoints/a/.tmp-half")
    half.write_bytes(b"half")
    write = checkpoint_files.write_checkpoint

    def looking(path: Path, content: Any) -> None:
        assert not half.exists()  # it may be what fills the disk
        write(path, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epochs, "write_checkpoint", looking)
        assert cli("resume=a").code == 0


def test_row_03_a_kill_after_going_back_leaves_the_file_gone_back_to(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli(*UPS_AND_DOWNS, "name=a").code == 0
    step = read_checkpoint(Path("checkpoints/a/best.pt"))["progress"]["step"]
    with monkeypatch.context() as patch:
        patch.delattr(train, "train_epochs")  # a crash before anything new is written
        with pytest.raises(NameError, match="train_epochs"):
            cli("resume=a:best", "epochs=13")
    assert checkpoint_files.step_of(checkpoint_files.steps_in(Path("checkpoints/a"))[-1]) == step
    outcome = cli("resume=a", "epochs=13")
    assert outcome.code == 0, outcome.err


def test_a_file_of_another_run_of_the_same_name_is_refused(cli: Cli, tmp_path: Path) -> None:
    assert cli(*LINE, "name=a").code == 0
    elsewhere = (f"paths.outputs={tmp_path}/o", f"paths.checkpoints={tmp_path}/c")
    assert cli(*LINE, "name=a", "seed=1", *elsewhere).code == 0
    before = {path: path.read_bytes() for path in Path("checkpoints/a").iterdir()}
    outcome = cli(f"resume={tmp_path}/c/a/step_00000027.pt", "epochs=5")
    assert outcome.code == 2
    assert "seed 1, not 0" in outcome.err
    assert {path: path.read_bytes() for path in Path("checkpoints/a").iterdir()} == before
    shutil.copy(tmp_path / "c/a/step_00000036.pt", "checkpoints/a/step_00000045.pt")
    assert "warning: checkpoints/a/step_00000045.pt was written with other settings" in cli("resume=a", "epochs=6").out


def test_garbled_metrics_and_a_torn_status_lose_nothing_else(cli: Cli, signal_at: SignalAt) -> None:
    assert cli(*LINE, "name=straight").code == 0
    signal_at(30)
    assert cli(*LINE, "name=a").code == 143
    path = Path("outputs/a/metrics.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\xff\xfe{[1]\n[1]\n" + lines[1] + lines[2])
    Path("outputs/a/status.json").write_bytes(b"")
    outcome = cli("resume=last")  # the time of a torn status.json says when it was started, as well as is known
    assert outcome.code == 0, outcome.err
    assert "kept as metrics.corrupt" in outcome.out
    assert "kept as status.corrupt" in outcome.out
    assert_same("straight", "a")


# memory


def test_row_30_out_of_memory_ends_with_the_batch_size_and_the_peak(tmp_path: Path, pictures: None) -> None:
    done = limited("-v 12000000", *NET, "model.num_hiddens=[1000000]", "batch_size=54", "data.size=64", cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert "batch_size=54" in done.stderr
    assert "data.workers=0" in done.stderr
    assert "MiB at the peak" in done.stderr
    assert "Traceback" not in done.stderr


def test_row_30_the_next_job_of_a_sweep_starts_clean(tmp_path: Path, pictures: None) -> None:
    words = (*NET, "-m", "model.num_hiddens=[1000000],[8]", "data.size=64", "name=s")
    done = limited("-v 12000000", *words, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    with open(tmp_path / "outputs/s/sweep.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["status"] for line in lines] == ["failed", "done"]
    assert "out of memory" in lines[0]["error"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's "
                      "workers are out of shared memory."), ResourceError),
        (RuntimeError("unable to allocate shared memory(shm) for file"), ResourceError),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), ResourceError),
        (MemoryError(), ResourceError),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), WorkerError),
        (ConnectionResetError(104, "Connection reset by peer"), WorkerError),
        (ConnectionRefusedError(111, "Connection refused"), WorkerError),
        (EOFError(), WorkerError),
    ],
)  # fmt: skip
def test_row_30_and_32_what_torch_says_is_told_in_our_words(error: Exception, kind: type, cli: Cli) -> None:
    assert cli(*LINE, "name=a").code == 0
    saved = from_dict(read_checkpoint(Path("checkpoints/a/best.pt"))["config"])
    run = directory.locate("a", outputs="outputs", checkpoints="checkpoints")
    told = failures.explain(error, saved, run)
    assert type(told) is kind
    assert "batch_size=10" in str(told) or "main.py resume=a continues" in str(told)
    assert "data.workers" not in str(told)  # this data set has no such setting
    assert "resume=" not in str(failures.explain(error, saved))  # nothing is there yet
    job = replace(saved, name="s/0", resume="auto")
    in_sweep = str(failures.explain(error, job, run))
    assert "batch_size=10" in in_sweep or "the same command continues the sweep." in in_sweep
    assert "resume=" not in in_sweep


def test_an_error_of_another_folder_than_the_settings_name_stays_as_it_is(cli: Cli) -> None:
    assert cli(*LINE, "name=a").code == 0
    saved = from_dict(read_checkpoint(Path("checkpoints/a/best.pt"))["config"])
    error = PermissionError(errno.EACCES, "Permission denied", "/elsewhere/photo.png")
    assert failures.explain(error, saved) is error


@pytest.mark.parametrize(
    "lists",
    [
        ("batch_size=10,20",),
        ("optimizer.lr=0.01,0.02", "sweep.stack=true"),
        ("seed=1,2", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2"),
    ],
)
def test_an_interrupted_job_of_a_sweep_is_continued_by_the_command_of_the_sweep(
    lists: tuple[str, ...], cli: Cli, signal_at: SignalAt
) -> None:
    words = (*LINE, "-m", "name=s", *lists)
    signal_at(9)
    outcome = cli(*words)
    assert outcome.code == 143
    assert "the same command continues the sweep" in outcome.err
    for name in ("status.json", "train.log"):
        told = Path("outputs/s/0", name).read_text()
        assert "the same command continues the sweep" in told, told
        assert "resume=s/0" not in told
    assert cli(*words).code == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_row_30_out_of_gpu_memory(cli: Cli, pictures: None) -> None:
    outcome = cli(*NET, "device=cuda", "model.num_hiddens=[1000000]", "data.size=512", "name=a")
    assert outcome.code == 4
    assert "batch_size=10" in outcome.err


# numbers that are no numbers


def poisoned(monkeypatch: pytest.MonkeyPatch, at: int, *, gradient: bool) -> None:
    """Make the loss of training step `at` NaN, or leave it as it is and make its gradient NaN."""
    original, calls = LOSSES["mse"], [0]

    def mse(y_hat: torch.Tensor, y: torch.Tensor, **options: Any) -> torch.Tensor:
        loss = original(y_hat, y, **options)
        calls[0] += y_hat.requires_grad
        if not y_hat.requires_grad or calls[0] != at:
            return loss
        return loss + (y_hat * 0).sqrt().sum() if gradient else loss * float("nan")

    monkeypatch.setitem(LOSSES, "mse", mse)  # type: ignore[arg-type]


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize(("at", "last"), [(3, None), (14, 9), (18, 9), (27, 18)])
def test_row_31_what_is_not_finite_ends_the_run_at_its_last_good_checkpoint(
    at: int, last: int | None, gradient: bool, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(*LINE, "name=straight").code == 0
    with monkeypatch.context() as patch:
        poisoned(patch, at, gradient=gradient)
        outcome = cli(*LINE, "record.every_steps=4", "name=a")
    assert outcome.code == 3, outcome.out
    assert status_of("a")["state"] == "diverged"
    named = [int(word) for word in outcome.err.replace(":", " ").replace(",", " ").split() if word.isdecimal()]
    first, until = named[-2:] if "steps" in outcome.err else (named[-1], named[-1])
    assert first <= at + gradient  # a gradient shows in the weights, and so in the next loss
    assert until - at < 5
    files = checkpoint_files.steps_in(Path("checkpoints/a"))
    assert [checkpoint_files.step_of(path) for path in files[-1:]] == ([last] if last else [])
    assert (str(files[-1]) if files else "No checkpoint") in outcome.err
    for path in files:
        read_checkpoint(path)  # refuses what is not finite
    assert cli("resume=a").code == 0
    assert_same("straight", "a")


# workers and other processes


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


STREAMED = (*NET, "data.resident=false", "data.workers=2", "epochs=100000", "schedule=constant", "name=a")


def test_row_32_a_worker_that_is_killed_is_named_and_nothing_is_lost(cli: Cli, tmp_path: Path, pictures: None) -> None:
    process = start(*STREAMED, cwd=tmp_path)
    try:
        wait_for(
            lambda: Path("outputs/a/metrics.jsonl").is_file() and bool(directory.read_metrics(Path("outputs/a"))),
            process,
        )
        wait_for(lambda: len(children_of(process.pid)) == 2, process)
        with contextlib.suppress(ProcessLookupError, IndexError):  # it may just have ended with its epoch
            while process.poll() is None:
                os.kill(children_of(process.pid)[0], signal.SIGKILL)
                time.sleep(0.02)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 1
    last = err.splitlines()[-1]  # Python's own threads may say something before it
    assert "was ended from outside" in last
    assert "resume=a continues; data.workers=0 trains without" in last
    assert status_of("a")["state"] == "failed"
    epochs = left("a")["progress"]["epoch"]
    assert cli("resume=a", "data.workers=0", f"epochs={epochs}").code == 0
    assert cli(*STREAMED, "data.workers=0", "name=straight", f"epochs={epochs}").code == 0
    assert_same("straight", "a")


def test_row_32_a_picture_that_cannot_be_read_any_more_is_named(
    cli: Cli, pictures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.data import folder

    def read_image(*_: Any, **__: Any) -> Any:
        raise ImageError("damaged")

    monkeypatch.setattr(folder, "read_image", read_image)
    outcome = cli(*STREAMED, "epochs=2", "data.workers=1")
    assert outcome.code == 2
    assert ".png: damaged" in outcome.err
    assert "Traceback" not in outcome.err


def test_row_33_a_run_that_is_held_is_busy_and_free_at_once_after_a_kill(
    cli: Cli, tmp_path: Path, pictures: None
) -> None:
    process = start(*STREAMED, cwd=tmp_path)
    workers: list[int] = []
    try:
        wait_for(
            lambda: Path("outputs/a/metrics.jsonl").is_file() and bool(directory.read_metrics(Path("outputs/a"))),
            process,
        )
        wait_for(lambda: len(children_of(process.pid)) == 2, process)
        workers = children_of(process.pid)
        outcome = cli("resume=a")
        assert outcome.code == 5
        assert f"pid {process.pid} on " in outcome.err
        process.kill()
        process.communicate()
        epochs = left("a")["progress"]["epoch"]
        assert cli("resume=a", "data.workers=0", f"epochs={epochs}").code == 0
    finally:
        process.kill()
        process.communicate()
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


# what may change between two starts


def resumed_with(cli: Cli, signal_at: SignalAt, *words: str) -> str:
    """What is said when a run of 3 epochs that was cut in its second is gone on with and `words`."""
    signal_at(9)
    assert cli(*NET, "name=cut").code == 143
    outcome = cli("resume=cut", *words)
    assert outcome.code == 0, outcome.err
    return outcome.out


def test_row_40_another_number_of_threads_goes_on_with_a_warning(cli: Cli, signal_at: SignalAt, pictures: None) -> None:
    said = resumed_with(cli, signal_at, "device.num_threads=2")
    assert "not bit for bit: threads 1 -> 2" in said


@pytest.mark.parametrize("key", ["torch", "cpu", "device"])
def test_row_40_another_torch_or_machine_goes_on_with_a_warning(
    key: str, cli: Cli, signal_at: SignalAt, pictures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = rounding
    signal_at(9)
    assert cli(*NET, "name=cut").code == 143
    monkeypatch.setattr(resume, "rounding", lambda machine: original(machine) | {key: "another"})
    outcome = cli("resume=cut")
    assert outcome.code == 0, outcome.err
    assert f"not bit for bit: {key} " in outcome.out
    assert "-> another. The order of the examples is the same" in outcome.out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_row_40_from_the_cpu_to_a_gpu(cli: Cli, signal_at: SignalAt, pictures: None) -> None:
    assert "not bit for bit: device cpu -> " in resumed_with(cli, signal_at, "device=cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_row_01_on_a_gpu_with_deterministic_kernels(cli: Cli, signal_at: SignalAt, pictures: None) -> None:
    words = (*NET, "device=cuda", "device.deterministic=true")
    assert cli(*words, "name=straight").code == 0
    signal_at(9)
    assert cli(*words, "name=cut").code == 143
    assert cli("resume=cut").code == 0
    assert_same("straight", "cut")


def test_row_40_another_precision_is_refused_unless_allowed(cli: Cli, signal_at: SignalAt, pictures: None) -> None:
    signal_at(9)
    assert cli(*NET, "name=cut").code == 143
    outcome = cli("resume=cut", "device.precision=bf16")
    assert outcome.code == 2
    assert "resume_allow=[device.precision]" in outcome.err
    outcome = cli("resume=cut", "device.precision=fp16", "ema_decay=0.9", "resume_allow=[device.precision,ema_decay]")
    assert outcome.code == 0, outcome.err


def test_row_33_a_sweep_that_runs_is_busy(cli: Cli, tmp_path: Path) -> None:
    words = ("-m", "seed=0,1", "epochs=2000", "plots=false", "name=s")
    process = start(*words, cwd=tmp_path)
    try:
        wait_for(lambda: Path("outputs/s/0/metrics.jsonl").is_file(), process)
        outcome = cli(*words)
        assert outcome.code == 5, outcome.err
        assert f"pid {process.pid}" in outcome.err
        assert not Path("outputs/s/sweep.csv").exists()
        process.terminate()
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 143
    assert "the same command continues the sweep" in err


def test_row_41_other_workers_other_savings_and_more_interruptions_change_no_bit(
    cli: Cli, signal_at: SignalAt, pictures: None
) -> None:
    words = (*NET, "data.resident=false", "data.augment=crop_flip")
    assert cli(*words, "name=straight").code == 0
    signal_at(2)
    assert cli(*words, "data.workers=2", "name=cut").code == 143
    signal_at(8)
    assert cli("resume=cut", "data.workers=1", "save.every_steps=2").code == 143
    signal_at(17)
    assert cli("resume=cut", "data.resident=true", "record.every_steps=1", "save.every_steps=5").code == 143
    assert cli("resume=cut", "data.workers=0", "save.every_seconds=0.001").code == 0
    assert_same("straight", "cut")


PROBE = """
import sys, time
later = time.time
time.time = lambda: later() + 400 * 86400
time.strftime = lambda form, *when: "20300101-000000"
sys.path.insert(0, {root!r})
import main
sys.argv = ["main.py", *{words!r}]
sys.exit(main.main())
"""


def test_row_43_clock_zone_hash_seed_and_folder_change_no_bit(cli: Cli, tmp_path: Path, pictures: None) -> None:
    assert cli(*NET, "name=a").code == 0
    assert cli(*NET, "name=again").code == 0
    assert_same("a", "again")
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    shutil.copytree("p", elsewhere / "p")
    words = [*NET, "name=b", f"paths.outputs={tmp_path}/outputs", f"paths.checkpoints={tmp_path}/checkpoints"]
    environment = os.environ | {"TZ": "Pacific/Kiritimati", "PYTHONHASHSEED": "12345", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(root=str(ROOT), words=words)],
        cwd=elsewhere,
        env=environment,
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert_same("a", "b")


def test_row_44_the_best_survives_a_crash_and_worse_epochs_after_it(cli: Cli, signal_at: SignalAt) -> None:
    assert cli(*UPS_AND_DOWNS, "name=straight").code == 0
    best = best_of("straight")
    signal_at(best["step"] + 3)
    assert cli(*UPS_AND_DOWNS, "name=cut").code == 143
    kept = Path("checkpoints/cut/best.pt").read_bytes()
    signal_at(best["step"] + 12)
    assert cli("resume=cut").code == 143
    assert Path("checkpoints/cut/best.pt").read_bytes() == kept
    assert cli("resume=cut").code == 0
    assert Path("checkpoints/cut/best.pt").read_bytes() == kept
    assert_same("straight", "cut")


def test_row_45_a_torn_event_file_is_gone_on_with(cli: Cli, signal_at: SignalAt) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    signal_at(20)
    assert cli(*LINE, "name=a").code == 143
    (events,) = Path("outputs/a/tb").iterdir()
    events.write_bytes(events.read_bytes()[:-7])
    assert cli("resume=a").code == 0
    accumulator = EventAccumulator("outputs/a/tb")
    accumulator.Reload()
    steps = [event.step for event in accumulator.Scalars("loss/train_so_far")]
    assert steps == sorted(set(steps))
    assert {*range(21, 37)} <= set(steps)


# several processes


MANY = (*PLAIN, "device=cpu", "device.precision=fp64", "data.num_examples=1005", "epochs=4")  # 91 steps an epoch


def torchrun(*words: str, cwd: Path, options: Sequence[str] = (), ranks: int = 2) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*torchrun_command(ranks), *options, str(ROOT / "main.py"), *last_wins(words)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


TOGETHER = pytest.mark.xdist_group("ranks")  # in one process of pytest-xdist, so that two_ranks is made once


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `straight`, which two ranks trained."""
    folder = tmp_path_factory.mktemp("ranks")
    process = torchrun(*MANY, "name=straight", cwd=folder)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert said.count("epoch  train_loss") == 1  # one rank speaks
    return folder


def ended(folder: Path, end: Callable[[int], None], *options: str, name: str = "cut") -> tuple[int, float]:
    """Go on with `cut` on two ranks, let `end` do something to the launcher's process id; its code, and seconds."""
    words = (*MANY, "save.every_steps=20", f"name={name}", "resume=auto")
    process = torchrun(*words, cwd=folder, options=options)
    files = checkpoint_files.steps_in(folder / "checkpoints" / name)
    wait_for(lambda: checkpoint_files.steps_in(folder / "checkpoints" / name) != files, process)
    began = time.monotonic()
    end(process.pid)
    process.communicate(timeout=60)
    return process.returncode, time.monotonic() - began


@TOGETHER
def test_two_ranks_train_what_one_process_trains(two_ranks: Path, cli: Cli) -> None:
    """In float64, with a last batch of 4 examples, and validation and test parts that are odd."""
    assert cli(*MANY, "name=alone").code == 0
    alone = left("alone")
    with contextlib.chdir(two_ranks):
        together = left("straight")
    assert list(together["model"]) == list(alone["model"])
    for name, tensor in alone["model"].items():
        torch.testing.assert_close(together["model"][name], tensor, rtol=0, atol=1e-10)
    for row, expected in zip(together["metrics"], alone["metrics"], strict=True):
        for key in ("epoch", "step", "lr", "train_loss", "val_loss"):
            assert row[key] == pytest.approx(expected[key], rel=1e-12, abs=1e-12)
    folders = Path("outputs/alone"), two_ranks / "outputs/straight"
    results = [json.loads((folder / "result.json").read_text()) for folder in folders]
    assert results[1]["test"] == pytest.approx(results[0]["test"], rel=1e-12)
    assert len(together["rng"]) == 2


@pytest.mark.slow
@TOGETHER
def test_row_38_sigterm_to_the_launcher_saves_once_and_hangs_nowhere(
    two_ranks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(two_ranks)
    code, seconds = ended(two_ranks, lambda pid: os.kill(pid, signal.SIGTERM))
    assert code != 0
    assert seconds < 30
    assert status_of("cut")["state"] == "interrupted"


@pytest.mark.slow
def test_row_38_the_death_of_the_launcher_leaves_no_process_and_loses_no_step(
    two_ranks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(two_ranks)
    ranks: list[int] = []

    def kill(pid: int) -> None:
        ranks.extend(children_of(pid))
        os.kill(pid, signal.SIGKILL)

    code, seconds = ended(two_ranks, kill, name="orphans")
    assert (code, len(ranks)) == (-signal.SIGKILL, 2)
    assert seconds < 20
    stats = [Path(f"/proc/{rank}/stat") for rank in ranks]
    assert [path for path in stats if path.exists() and ") Z " not in path.read_text()] == []
    assert status_of("orphans")["state"] == "interrupted"


@TOGETHER
def test_row_37_the_death_of_a_rank_ends_the_others_and_a_relaunch_goes_on(
    two_ranks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun itself relaunches."""
    monkeypatch.chdir(two_ranks)
    code, seconds = ended(two_ranks, lambda pid: os.kill(children_of(pid)[1], signal.SIGKILL), "--max-restarts=1")
    assert code == 0
    assert seconds < 60
    assert_same("straight", "cut")


@pytest.mark.slow
def test_row_39_a_save_that_fails_on_rank_0_is_known_to_all(two_ranks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(two_ranks)
    command = " ".join(["exec", *torchrun_command(), str(ROOT / "main.py")])
    words = " ".join((*MANY, "name=full"))  # files of 8 KiB are enough for all but the checkpoints
    full = subprocess.run(["bash", "-c", f"ulimit -f 8; {command} {words}"], cwd=two_ranks, timeout=120)
    assert full.returncode != 0
    assert status_of("full")["state"] == "failed"
    assert "ResourceError" in status_of("full")["reason"]
    assert len(directory.read_metrics(Path("outputs/full"))) == MAX_FAILED_SAVES


@TOGETHER
def test_row_40_another_number_of_ranks_goes_on_with_a_warning(two_ranks: Path, cli: Cli) -> None:
    outcome = cli("resume=straight", "epochs=9", f"paths.outputs={two_ranks}/outputs",
                  f"paths.checkpoints={two_ranks}/checkpoints")  # fmt: skip
    assert outcome.code == 0
    assert "not bit for bit: world 2 -> 1. The order of the examples is the same" in outcome.out


# the rest takes minutes


def kill_rank_1(pid: int) -> None:
    os.kill(children_of(pid)[1], signal.SIGKILL)


def kill_rank_0(pid: int) -> None:
    os.kill(children_of(pid)[0], signal.SIGKILL)


def stop_rank_1(pid: int) -> None:
    os.kill(children_of(pid)[1], signal.SIGTERM)


def interrupt_all(pid: int) -> None:
    """As a terminal does; torchrun then sends each rank another SIGINT."""
    os.killpg(pid, signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize("end", [kill_rank_1, kill_rank_0, stop_rank_1, interrupt_all])
def test_row_37_38_whatever_ends_a_rank_a_relaunch_is_bit_identical(
    two_ranks: Path, monkeypatch: pytest.MonkeyPatch, end: Callable[[int], None]
) -> None:
    monkeypatch.chdir(two_ranks)
    name = end.__name__
    code, seconds = ended(two_ranks, end, name=name)
    assert code != 0
    assert seconds < 30
    if end in (stop_rank_1, interrupt_all):
        assert status_of(name)["state"] == "interrupted"
    again = torchrun(*MANY, f"name={name}", "resume=auto", cwd=two_ranks)
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert_same("straight", name)


PICTURES = (
    "device=cpu",
    "device.precision=fp64",
    "data=folder",
    "data.root=p",
    "data.size=8",
    "plots=false",
    "epochs=2",
)
ODD = {  # 54 training examples
    "accumulated": ("model=mlp", "batch_size=10", "accumulate_steps=3", "optimizer=adam"),
    "clipped": ("model=mlp", "batch_size=7", "accumulate_steps=4", "clip_norm=0.01"),
    "averaged": ("model=mlp", "batch_size=10", "ema_decay=0.9"),
    "one example": ("model=mlp", "batch_size=1"),
    "last batch of one": ("model=lenet", "data.size=16", "data.channels=1", "batch_size=53", "data.augment=crop_flip"),
    "streamed": ("model=mlp", "batch_size=53", "data.resident=false", "data.workers=1", "data.augment=crop_flip"),
    "by hand": ("model=mlp", "impl=scratch", "batch_size=53"),
}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("case", ODD)
def test_ranks_train_what_one_process_trains(cli: Cli, tmp_path: Path, pictures: None, case: str, ranks: int) -> None:
    assert cli(*PICTURES, *ODD[case], "name=alone").code == 0
    process = torchrun(*PICTURES, *ODD[case], "name=several", cwd=tmp_path, ranks=ranks)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    alone, several = left("alone"), left("several")
    for part in ("model", "ema"):
        for name, tensor in (alone[part] or {}).items():
            torch.testing.assert_close(several[part][name], tensor, rtol=0, atol=1e-10)
    for row, expected in zip(several["metrics"], alone["metrics"], strict=True):
        for key in ("step", "train_loss", "train_accuracy", "val_loss", "val_accuracy"):
            assert row[key] == pytest.approx(expected[key], rel=1e-12, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model=mpl",), "there is no such model"),
        (("eval", "checkpoint=last"), "eval is for one process"),
        (("impl=numpy",), "impl=numpy is for one process"),
        (("sync_batch_norm=true",), "torch has it for GPUs only"),
        (("data=folder", "data.root=nowhere"), "nowhere: there is no such folder"),
        (("batch_size=100000", "data.drop_last=true"), "is more than the 900 training examples"),
        (("optimizer.lr=1000", "epochs=100", "record.every_steps=1"), "diverged in epoch 1"),
    ],
)
def test_what_is_refused_on_several_ranks_is_said_once(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    process = torchrun(*words, "plots=false", "device=cpu", cwd=tmp_path)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out.count("error: ") == 1, out
    assert out.count(said) == 1
