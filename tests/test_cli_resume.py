"""Going on with a run: an interruption, wherever it falls and however hard it is, changes no number."""

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli, start, wait_for, write_class_folders
from PIL import Image

from trainer.data import folder
from trainer.run.checkpoint_files import steps_in

PLAIN = ("plots=false", "device.num_threads=1")
TIMES = ("seconds", "samples_per_second")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def status_of(name: str) -> dict[str, Any]:
    return read(Path("outputs", name, "status.json"))


def metrics_of(name: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in Path("outputs", name, "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def last_checkpoint(name: str) -> dict[str, Any]:
    return torch.load(max(Path("checkpoints", name).glob("step_*.pt")), weights_only=True)


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """The same plain types and the same bits; NaN would be unequal."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def assert_same_run(a: str, b: str) -> None:
    """Weights, optimizer, random state, progress, best epoch and every metric but the times are bit-identical."""
    one, other = last_checkpoint(a), last_checkpoint(b)
    for part in ("model", "optimizer", "rng", "best"):
        assert_equal(one[part], other[part], part)
    for content in (one, other):
        content["progress"].pop("seconds")
    assert_equal(one["progress"], other["progress"], "progress")
    assert metrics_of(a) == metrics_of(b)
    results = [read(Path("outputs", name, "result.json")) for name in (a, b)]
    for result in results:
        del result["run"], result["seconds"]
    assert results[0] == results[1]


HARD = ("model=mlp", "model.dropout=0.5", "data.augment=crop_flip", "optimizer=adam", "schedule=cosine")
HARD += ("schedule.warmup_epochs=1", "record.every_steps=1", "batch_size=10", "epochs=3", *PLAIN)


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[str, ...]:
    """Words for a set of 54 + 6 training and validation pictures: 6 steps of 10 an epoch, the last one short."""
    write_class_folders(tmp_path / "pictures", {"train": 60, "test": 6}, size=8)
    return ("data=folder", "data.root=pictures", "data.size=8", *HARD)


@pytest.mark.parametrize(("step", "every"), [(1, 0), (4, 1), (6, 0), (7, 4), (17, 0)])
def test_resume_after_a_signal_is_bit_identical(
    step: int, every: int, cli: Cli, pictures: tuple[str, ...], signal_at: Callable[..., None]
) -> None:
    assert cli(*pictures, "name=straight").code == 0
    signal_at(step)
    outcome = cli(*pictures, "name=cut", f"save.every_steps={every}")
    assert outcome.code == 143
    assert status_of("cut")["state"] == "interrupted"
    assert "resume=cut" in outcome.err
    outcome = cli("resume=cut")
    assert outcome.code == 0, outcome.err
    assert status_of("cut")["state"] == "done"
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["cut", "straight"]
    assert_same_run("straight", "cut")


def test_several_interruptions_change_nothing(
    cli: Cli, pictures: tuple[str, ...], signal_at: Callable[..., None]
) -> None:
    assert cli(*pictures, "name=straight").code == 0
    started = []
    for word, step, signum, code in (
        ("name=cut", 2, signal.SIGTERM, 143),
        ("resume=cut", 3, signal.SIGINT, 130),
        ("resume=last", 10, signal.SIGTERM, 143),
    ):
        signal_at(step, signum)
        outcome = cli(*(pictures if word == "name=cut" else ()), word)
        assert outcome.code == code, outcome.err
        started.append(status_of("cut")["started"])
    assert cli("resume=cut", "save.every_steps=2", "data.workers=0").code == 0
    assert len(set(started)) == 1
    assert_same_run("straight", "cut")


def test_a_streamed_folder_resumes_bit_identically(
    cli: Cli, pictures: tuple[str, ...], signal_at: Callable[..., None]
) -> None:
    words = (*pictures, "data.resident=false", "data.workers=0")
    assert cli(*words, "name=straight").code == 0
    signal_at(9)
    assert cli(*words, "name=cut").code == 143
    assert cli("resume=cut", "data.workers=1").code == 0
    assert_same_run("straight", "cut")


def test_an_interrupted_process_with_workers_ends(tmp_path: Path, pictures: tuple[str, ...]) -> None:
    words = (*pictures, "data.resident=false", "data.workers=2", "epochs=100000", "schedule.warmup_epochs=0")
    process = start(*words, "name=cut", cwd=tmp_path)
    metrics = tmp_path / "outputs" / "cut" / "metrics.jsonl"
    workers: list[int] = []

    def is_training() -> bool:
        workers[:] = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
        return metrics.is_file() and metrics.read_text().count("\n") >= 1 and len(workers) == 2

    try:
        wait_for(is_training, process)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=10)
    finally:
        process.kill()
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _, err = process.communicate()
    assert process.returncode == 143
    assert "resume=cut" in err


def test_row_41_the_save_interval_changes_nothing(cli: Cli, pictures: tuple[str, ...]) -> None:
    assert cli(*pictures, "name=a").code == 0
    assert cli(*pictures, "name=b", "save.every_steps=1").code == 0
    assert_same_run("a", "b")


def test_row_45_what_tensorboard_shows_has_no_step_twice(cli: Cli, signal_at: Callable[..., None]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ("record.every_steps=1", "data.num_examples=100", "epochs=3", *PLAIN)
    signal_at(12)
    assert cli(*words, "name=a").code == 143
    assert cli("resume=a").code == 0
    events = EventAccumulator("outputs/a/tb")
    events.Reload()
    assert [event.step for event in events.Scalars("loss/train_so_far")] == list(range(1, 28))
    assert [event.step for event in events.Scalars("loss/val")] == [9, 18, 27]


FOR_EVER = ("epochs=100000", "batch_size=3", "optimizer.lr=0.001", *PLAIN)


@pytest.mark.parametrize(
    ("signum", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_signal_to_the_process(signum: int, code: int, cli: Cli, tmp_path: Path) -> None:
    process = start(*FOR_EVER, "name=cut", cwd=tmp_path)
    metrics = tmp_path / "outputs" / "cut" / "metrics.jsonl"
    try:
        wait_for(lambda: metrics.is_file() and metrics.read_text().count("\n") >= 2, process)
        busy = cli("resume=cut")
        assert busy.code == 5
        assert f"pid {process.pid}" in busy.err
        assert status_of("cut")["state"] == "running"
        process.send_signal(signum)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in out + err
    assert "resume=cut" in err
    assert status_of("cut")["state"] == "interrupted"
    done = len(metrics_of("cut"))
    outcome = cli("resume=cut", f"epochs={done + 1}")  # a constant schedule: the total changes no number
    assert outcome.code == 0, outcome.err
    assert [row["epoch"] for row in metrics_of("cut")] == list(range(1, done + 2))
    assert cli(*FOR_EVER, f"epochs={done + 1}", "name=straight").code == 0
    assert_same_run("straight", "cut")


@pytest.mark.slow
def test_resume_after_sigkill_is_bit_identical(cli: Cli, tmp_path: Path, pictures: tuple[str, ...]) -> None:
    words = (*pictures, "epochs=40")
    process = start(*words, "name=cut", "save.every_steps=1", "save.every_seconds=0", cwd=tmp_path)
    try:
        wait_for(lambda: len(list((tmp_path / "checkpoints").rglob("step_0000001[0-9].pt"))) > 0, process)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert status_of("cut")["state"] == "running"
    outcome = cli("resume=cut", "save.every_steps=0")
    assert outcome.code == 0, outcome.err
    assert cli(*words, "name=straight").code == 0
    assert_same_run("straight", "cut")
    assert not list(Path("checkpoints").rglob(".tmp*"))


def test_a_half_written_line_and_file_of_a_killed_process_do_no_harm(cli: Cli, signal_at: Callable[..., None]) -> None:
    words = ("record.every_steps=1", "data.num_examples=100", "epochs=3", *PLAIN)
    assert cli(*words, "name=straight").code == 0
    signal_at(12)
    assert cli(*words, "name=cut").code == 143
    with open("outputs/cut/metrics.jsonl", "a") as file:
        file.write('{"epoch": 2, "step": 18, "train_loss": 1.0}\n{"epoch": 3, "st')
    Path("checkpoints/cut/.tmp-half").write_bytes(b"half")
    assert cli("resume=cut").code == 0
    assert_same_run("straight", "cut")
    assert not Path("checkpoints/cut/.tmp-half").exists()


# which run, and what may change


def cut_run(cli: Cli, signal_at: Callable[..., None], *words: str, name: str = "a") -> None:
    """An interrupted run: in the second of 3 epochs of 9 steps."""
    signal_at(12)
    outcome = cli("record.every_steps=1", "data.num_examples=100", "epochs=3", *PLAIN, *words, f"name={name}")
    assert outcome.code == 143, outcome.err


def test_resume_auto_starts_and_goes_on(cli: Cli, signal_at: Callable[..., None]) -> None:
    words = ("record.every_steps=1", "data.num_examples=100", "epochs=3", *PLAIN)
    assert cli(*words, "name=straight").code == 0
    signal_at(12)
    assert cli(*words, "name=a", "resume=auto").code == 143
    outcome = cli(*words, "name=a", "resume=auto")
    assert outcome.code == 0, outcome.err
    assert_same_run("straight", "a")
    outcome = cli(*words, "name=a", "resume=auto")
    assert outcome.code == 0
    assert "already complete" in outcome.out


def test_resume_of_a_run_without_a_checkpoint_starts_at_step_zero(cli: Cli, signal_at: Callable[..., None]) -> None:
    words = ("record.every_steps=1", "data.num_examples=100", "epochs=3", *PLAIN)
    assert cli(*words, "name=straight").code == 0
    for word in ("resume=cut", "resume=auto"):
        name = "cut" if word == "resume=cut" else "cut2"
        cut_run(cli, signal_at, name=name)
        for path in Path("checkpoints", name).iterdir():
            path.unlink()
        status = status_of(name) | {"checkpoint": ""}  # as if it had been killed in its first epoch
        Path("outputs", name, "status.json").write_text(json.dumps(status))
        assert cli(*((word,) if word == "resume=cut" else (*words, word, f"name={name}"))).code == 0
        assert_same_run("straight", name)


def test_row_42_resume_of_a_finished_run_changes_nothing(cli: Cli, tmp_path: Path) -> None:
    assert cli("name=a", "epochs=2", *PLAIN).code == 0

    def state() -> dict[Path, tuple[bytes, int]]:
        lock = "run.lock"  # says who works here, and is written by everyone who looks
        files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != lock]
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    before = state()
    for words in (
        ("resume=a",),
        ("resume=last",),
        ("resume=a", "epochs=2"),
        ("name=a", "resume=auto", "epochs=2", *PLAIN),
    ):
        outcome = cli(*words)
        assert outcome.code == 0, outcome.err
        assert "already complete" in outcome.out
        assert state() == before


def test_row_42_more_epochs_go_on_as_if_planned(cli: Cli) -> None:
    assert cli("name=a", "epochs=2", *PLAIN).code == 0
    assert cli("resume=a", "epochs=4").code == 0
    assert cli("name=straight", "epochs=4", *PLAIN).code == 0
    assert_same_run("straight", "a")
    assert read(Path("outputs/a/config.json"))["config"]["epochs"] == 4


def test_row_42_more_epochs_of_a_cosine_warn(cli: Cli) -> None:
    assert cli("name=a", "epochs=2", "schedule=cosine", *PLAIN).code == 0
    outcome = cli("resume=a", "epochs=4")
    assert outcome.code == 0
    assert "warning: schedule=cosine" in outcome.out
    rows = metrics_of("a")
    assert rows[2]["lr"] == pytest.approx(rows[0]["lr"] * 0.1464 / 0.5, rel=0.05)  # now over four epochs


def test_more_epochs_of_an_interrupted_cosine_warn(cli: Cli, signal_at: Callable[..., None]) -> None:
    cut_run(cli, signal_at, "schedule=cosine")
    outcome = cli("resume=a", "epochs=4")
    assert outcome.code == 0
    assert "warning: schedule=cosine" in outcome.out


def test_fewer_epochs_than_done_are_refused(cli: Cli, signal_at: Callable[..., None]) -> None:
    assert cli("name=a", "epochs=3", *PLAIN).code == 0
    before = read(Path("outputs/a/config.json"))
    outcome = cli("resume=a", "epochs=2")
    assert outcome.code == 2
    assert "epochs=2" in outcome.err
    cut_run(cli, signal_at, name="b")
    signal_at(20)
    assert cli("resume=b").code == 143  # two epochs done
    outcome = cli("resume=b", "epochs=1")
    assert outcome.code == 2
    assert "epochs=1" in outcome.err
    assert read(Path("outputs/a/config.json")) == before
    assert cli("resume=b").code == 0


def test_row_40_a_changed_setting_is_refused_unless_allowed(cli: Cli, signal_at: Callable[..., None]) -> None:
    cut_run(cli, signal_at)
    before = [row["lr"] for row in metrics_of("a")]
    for word, shown in (
        ("optimizer.lr=0.5", "optimizer.lr"),
        ("seed=1", "seed"),
        ("batch_size=20", "batch_size"),
        ("data.noise=1", "data.noise"),
        ("model.init_std=1", "model.init_std"),
        ("schedule=step", "schedule"),
        ("optimizer=adam", "optimizer"),
        ("clip_norm=1", "clip_norm"),
    ):
        outcome = cli("resume=a", word)
        assert outcome.code == 2, word
        assert shown in outcome.err
        advice = "init_from=a takes its weights" if word == "optimizer=adam" else f"resume_allow=[{shown}] allows it"
        assert advice in outcome.err
    outcome = cli("resume=a", "optimizer.lr=0.5", "resume_allow=[optimizer.rl]")
    assert outcome.code == 2
    assert "optimizer.rl is not a setting of this run. Did you mean optimizer.lr?" in outcome.err
    outcome = cli("resume=a", "optimizer.lr=0.5", "resume_allow=[optimizer.lr]")
    assert outcome.code == 0, outcome.err
    assert [row["lr"] for row in metrics_of("a")] == [*before, 0.5, 0.5]


def test_row_41_what_changes_no_number_may_change(cli: Cli, signal_at: Callable[..., None]) -> None:
    assert cli("name=straight", "record.every_steps=1", "data.num_examples=100", "epochs=3", *PLAIN).code == 0
    cut_run(cli, signal_at, name="cut")
    outcome = cli("resume=cut", "plots=true", "record.every_steps=7", "save.every_seconds=5", "device=cpu")
    assert outcome.code == 0, outcome.err
    assert_same_run("straight", "cut")
    assert Path("outputs/cut/plots/curves.png").is_file()


def test_resume_of_a_path_goes_on_from_that_file(cli: Cli, signal_at: Callable[..., None]) -> None:
    words = ("record.every_steps=1", "data.num_examples=100", "epochs=3", *PLAIN)
    assert cli(*words, "name=straight").code == 0
    cut_run(cli, signal_at, name="cut")
    outcome = cli("resume=checkpoints/cut/step_00000009.pt")
    assert outcome.code == 0, outcome.err
    assert "step_00000009.pt: epoch 2, 0 examples" in outcome.out
    assert_same_run("straight", "cut")


def test_row_10_a_damaged_file_that_is_named_is_refused_and_no_other_taken(
    cli: Cli, signal_at: Callable[..., None]
) -> None:
    cut_run(cli, signal_at)
    newest = max(Path("checkpoints/a").glob("step_*.pt"))
    whole = newest.read_bytes()
    for damaged in (whole[:-100], whole.replace(b"linear.weight", b"linear.weighs"), b""):
        newest.write_bytes(damaged)
        outcome = cli(f"resume={newest}")
        assert outcome.code == 2
        assert newest.name in outcome.err
        assert newest.read_bytes() == damaged
    assert len(steps_in(newest.parent)) == 2


def test_other_data_is_refused_on_resume(cli: Cli, tmp_path: Path, signal_at: Callable[..., None]) -> None:
    write_class_folders(tmp_path / "pictures", {"train": 60, "test": 6}, size=8)
    words = ("data=folder", "data.root=pictures", "data.size=8", *HARD)
    signal_at(4)
    assert cli(*words, "name=a").code == 143
    victim = next((tmp_path / "pictures" / "train").rglob("*.png"))
    victim.unlink()
    outcome = cli("resume=a")
    assert outcome.code == 2
    assert "other data" in outcome.err


@pytest.mark.parametrize("resident", ["true", "false"])
def test_a_folder_that_was_edited_is_refused_and_a_copy_of_it_resumed(cli: Cli, tmp_path: Path, resident: str) -> None:
    write_class_folders(tmp_path / "p", {"train": 18, "test": 6}, size=8)
    for path in (tmp_path / "p").rglob("*.png"):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    words = ("data=folder", "data.root=p", "data.size=8", f"data.resident={resident}", "model=softmax", "batch_size=6")
    assert cli(*words, "schedule=constant", "name=a", "epochs=1", "plots=false").code == 0
    shutil.copytree(tmp_path / "p", tmp_path / "copy", copy_function=shutil.copyfile)
    edited = sorted((tmp_path / "p" / "train").rglob("*.bmp"))[4]
    data, times = bytearray(edited.read_bytes()), edited.stat()
    data[-1] ^= 255
    edited.write_bytes(data)
    os.utime(edited, ns=(times.st_atime_ns, times.st_mtime_ns))
    outcome = cli("resume=a", "epochs=2")
    assert outcome.code == 2
    assert "was trained on other data than data=folder holds now" in outcome.err
    shutil.rmtree(tmp_path / "p")
    (tmp_path / "copy").rename(tmp_path / "p")
    outcome = cli("resume=a", "epochs=2")
    assert outcome.code == 0, outcome.err


def test_a_run_on_a_folder_of_before_digests_of_contents_is_resumed(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_class_folders(tmp_path / "p", {"train": 18, "test": 6}, size=8)
    words = ("data=folder", "data.root=p", "data.size=8", "model=softmax", "batch_size=6", "schedule=constant")
    with monkeypatch.context() as before:
        original = folder._digests
        before.setattr(folder, "_digests", lambda *args: original(*args)[1:] * 2)
        assert cli(*words, "name=a", "epochs=1", "plots=false").code == 0
    for epochs in (2, 3):
        outcome = cli("resume=a", f"epochs={epochs}")
        assert outcome.code == 0, outcome.err


def test_a_run_stopped_early_stays_stopped(cli: Cli) -> None:
    assert cli("name=a", "epochs=20", "stop_at.val_loss=0.01", *PLAIN).code == 0
    rows = metrics_of("a")
    outcome = cli("resume=a")
    assert outcome.code == 0
    assert metrics_of("a") == rows


@pytest.mark.parametrize(
    "words",
    [
        ("init_from=first", "epochs=2"),
        ("recipe=none", "optimizer=sgd", "epochs=2"),
        (
            "experiment=nielsen_ch1",
            "data=folder",
            "data.root=p",
            "data.size=8",
            "data.val_fraction=9",
            "model=mlp",
            "epochs=1",
            "batch_size=10",
        ),
        ("data=synthetic", "model=linreg", "data.num_examples=60", "optimizer=adam", "epochs=2"),
    ],
)
def test_the_same_command_with_resume_auto_is_the_same_run(cli: Cli, tmp_path: Path, words: tuple[str, ...]) -> None:
    write_class_folders(tmp_path / "p", {"train": 90, "test": 9}, size=8)
    assert cli("name=first", "epochs=1", "plots=false").code == 0
    for said in ("", "is already complete"):
        outcome = cli("resume=auto", "name=a", "plots=false", *words)
        assert outcome.code == 0, outcome.err
        assert said in outcome.out
    assert cli("resume=a", "plots=false", "init_from=another").code == 2


def test_the_group_of_a_run_typed_again_changes_nothing(cli: Cli) -> None:
    typed = ("data=synthetic", "data.num_examples=60", "data.noise=0.5", "data.val_fraction=0.3")
    assert cli("name=a", "epochs=1", "plots=false", *typed).code == 0
    alone, again = cli("eval", "checkpoint=a", "split=val"), cli("eval", "checkpoint=a", "data=synthetic", "split=val")
    assert (alone.code, again.code) == (0, 0)
    assert alone.out == again.out
    assert cli("resume=a", "data=synthetic", "epochs=2").code == 0
