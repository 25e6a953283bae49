"""What once went wrong: collisions of names, files from strangers, data of odd shapes, commands typed in odd ways."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Cli, assert_refused, predictions, start, write_class_folders

from trainer.config.freeze import from_dict
from trainer.config.options import group_choices
from trainer.data.splits import Split, Splits
from trainer.run.checkpoint_files import steps_in
from trainer.run.parts import narrow
from trainer.run.safe_load import read_checkpoint

QUICK = ("plots=false", "epochs=2")


def weights_of(run: str) -> dict[str, torch.Tensor]:
    return torch.load(f"checkpoints/{run}/best.pt", weights_only=True)["model"]


def tampered(path: Path, target: Path, **changes: object) -> Path:
    content = torch.load(path, weights_only=True)
    content["config"] |= changes.pop("config", {})  # type: ignore[operator]
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content | changes, target)
    return target


@pytest.mark.slow
def test_row_33_of_two_processes_that_start_one_run_the_second_is_turned_away(tmp_path: Path) -> None:
    both = [start("name=race", "epochs=60", f"seed={seed}", "plots=false", cwd=tmp_path) for seed in (1, 2)]
    for process in both:
        process.communicate(timeout=120)
    assert sorted(process.returncode for process in both) in ([0, 2], [0, 5])
    rows = [json.loads(line) for line in (tmp_path / "outputs/race/metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 61))


def test_a_run_and_a_sweep_do_not_share_a_name(cli: Cli) -> None:
    assert cli("-m", "seed=0,1", "name=a", *QUICK).code == 0
    assert cli("name=a", *QUICK).code == 2
    assert cli("name=b", *QUICK).code == 0
    refused = cli("-m", "seed=0,1", "name=b", *QUICK)
    assert refused.code == 2
    assert "single run" in refused.err


def test_a_foreign_folder_is_not_adopted(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "outputs/mine").mkdir(parents=True)
    (tmp_path / "outputs/mine/metrics.jsonl").write_text("precious\n")
    assert cli("name=mine", *QUICK).code == 2
    assert (tmp_path / "outputs/mine/metrics.jsonl").read_text() == "precious\n"


def test_a_checkpoint_cannot_choose_where_files_go(cli: Cli, tmp_path: Path) -> None:
    assert cli("name=a", *QUICK).code == 0
    evil = tampered(Path("checkpoints/a/best.pt"), tmp_path / "evil.pt", config={"name": "../../evil"})
    for words in ((f"resume={evil}", "epochs=4"), ("eval", f"checkpoint={evil}")):
        outcome = cli(*words)
        assert outcome.code == 2
        assert "evil" in outcome.err
    assert not list(tmp_path.parent.glob("evil*"))


@pytest.mark.parametrize("change", [{"progress": {"epoch": 3, "extra": 1}}, {"rng": []}, {"early_stop": {}}])
def test_a_checkpoint_with_another_state_is_refused(cli: Cli, tmp_path: Path, change: dict[str, object]) -> None:
    assert cli("name=a", *QUICK).code == 0
    odd = tampered(Path("checkpoints/a/step_00000180.pt"), tmp_path / "odd.pt", **change)
    outcome = cli(f"resume={odd}", "epochs=4")
    if change != {"early_stop": {}}:  # its fields have defaults
        assert outcome.code == 2
        assert "odd.pt" in outcome.err


def test_a_sweep_without_validation_names_the_better_job(cli: Cli, tiny_mnist: Path) -> None:
    words = ("data=mnist", f"paths.data={tiny_mnist}", "batch_size=50", "data.val_fraction=0", "name=s")
    outcome = cli("-m", *words, "optimizer.lr=0.1,0.000001", *QUICK)
    assert outcome.code == 0, outcome.err
    assert "checkpoint=s/0" in next(line for line in outcome.out.splitlines() if line.startswith("eval "))


@pytest.mark.parametrize("word", ["stop_at.val_loss=0.1", "early_stopping.patience=1"])
def test_a_split_that_turns_out_empty_is_refused_where_it_is_needed(cli: Cli, word: str) -> None:
    outcome = cli("data.val_fraction=0.000001", word, *QUICK)
    assert outcome.code == 2
    assert "validation" in outcome.err


@pytest.mark.parametrize(
    ("words", "left", "advice"),
    [
        (("batch_size=4",), "batch_size=4 leaves a last batch of one", "data.drop_last=true"),
        (
            ("batch_size=4", "data.size=16", "data.first_sizes=[8]"),
            "batch_size=4 leaves a last batch of one",
            "drop_last",
        ),
        (("batch_size=1",), "batch_size=1 leaves a batch of one", "a larger batch_size"),
        (
            ("batch_size=3", "accumulate_steps=2"),
            "accumulate_steps=2 computes a part",
            "another accumulate_steps",
        ),
        (("batch_size=3", "accumulate_steps=2", "impl=scratch"), "accumulate_steps=2", "another accumulate_steps"),
    ],
)
def test_a_lone_example_under_batch_normalisation_is_refused_before_the_first_step(
    words: tuple[str, ...], left: str, advice: str, cli: Cli, lone: tuple[str, ...]
) -> None:
    outcome = cli(*lone, *words)
    assert outcome.code == 2
    assert left in outcome.err
    assert advice in outcome.err
    assert not Path("outputs").exists() or not list(Path("outputs").iterdir())


@pytest.mark.parametrize(("word", "steps"), [("data.drop_last=true", 2), ("data.size=16", 3)])
def test_a_lone_last_example_is_dropped_or_does_no_harm(word: str, steps: int, cli: Cli, lone: tuple[str, ...]) -> None:
    outcome = cli(*(w for w in lone if w.split("=")[0] != word.split("=")[0]), word, "batch_size=4")
    assert outcome.code == 0, outcome.err
    rows = Path("outputs/a/metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["step"] == steps


@pytest.fixture
def lone(tmp_path: Path) -> tuple[str, ...]:
    """Words for 9 training images and batch normalisation over 1 x 1 pixels in the last layers."""
    write_class_folders(tmp_path / "p", {"train": 12, "test": 3}, size=8)
    words = ("data=folder", "data.root=p", "data.size=8", "model=resnet18", "data.val_fraction=3")
    return (*words, "epochs=1", "plots=false", "name=a")


def test_pictures_may_have_any_name(cli: Cli, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "p", {"train": 30, "test": 3}, size=8)
    words = ("data=folder", "data.root=p", "data.size=8", "model=softmax", "batch_size=10")
    assert cli(*words, *QUICK, "name=a").code == 0
    odd = os.path.join(os.fsencode(tmp_path / "odd"), b"\xff.png")
    os.mkdir(os.path.dirname(odd))
    shutil.copy(next((tmp_path / "p" / "test").rglob("*.png")), odd)
    outcome = cli("predict", "checkpoint=a", "input=odd")
    assert outcome.code == 0, outcome.err
    assert "\\xff.png" in predictions().read_text()


def test_pictures_may_go_from_disk_to_memory_between_two_runs(cli: Cli, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "p", {"train": 30, "test": 3}, size=8)
    words = ("data=folder", "data.root=p", "data.size=8", "model=softmax", "batch_size=10", "plots=false")
    words += ("schedule=constant",)
    assert cli(*words, "epochs=3", "name=straight").code == 0
    assert cli(*words, "epochs=1", "data.resident=false", "name=cut").code == 0
    outcome = cli("resume=cut", "epochs=3", "data.resident=true")
    assert outcome.code == 0, outcome.err
    cut = weights_of("cut")
    assert all(torch.equal(cut[k], tensor) for k, tensor in weights_of("straight").items())


def test_a_copied_checkpoint_goes_on_in_new_folders(cli: Cli, tmp_path: Path) -> None:
    assert cli("name=a", *QUICK).code == 0
    copy = shutil.copy("checkpoints/a/best.pt", tmp_path / "copy.pt")
    elsewhere = ("paths.outputs=new/o", "paths.checkpoints=new/c")
    refused = cli(f"resume={copy}", *elsewhere)
    assert refused.code == 2
    assert "epochs=N" in refused.err
    outcome = cli(f"resume={copy}", "epochs=3", *elsewhere)
    assert outcome.code == 0, outcome.err
    assert Path("new/c/a/best.pt").is_file()
    assert "paths.outputs=new/o" in outcome.out  # the commands that it prints work as they are


def test_an_early_stopped_run_can_be_told_to_go_on(cli: Cli) -> None:
    assert (
        cli("name=a", "plots=false", "epochs=30", "early_stopping.patience=2", "early_stopping.min_delta=1").code == 0
    )
    stopped = json.loads(Path("outputs/a/result.json").read_text())["epochs"]
    assert stopped < 30
    assert "already complete" in cli("resume=a").out
    assert cli("resume=a", "early_stopping.patience=0").code == 0
    assert json.loads(Path("outputs/a/result.json").read_text())["epochs"] == 30


def test_a_finished_run_goes_on_from_a_file_that_is_named(cli: Cli) -> None:
    assert cli("name=a", "plots=false", "epochs=3").code == 0
    outcome = cli("resume=checkpoints/a/step_00000180.pt")
    assert outcome.code == 0, outcome.err
    assert "3/3" in outcome.out


def test_a_sweep_whose_job_was_extended_can_be_repeated(cli: Cli) -> None:
    sweep = ("-m", "seed=0,1", "name=s", *QUICK)
    assert cli(*sweep).code == 0
    assert cli("resume=s/0", "epochs=3").code == 0
    outcome = cli(*sweep)
    assert outcome.code == 0, outcome.err
    assert "[s/1] seed=1: done before" in outcome.out
    assert len(Path("outputs/s/0/metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("name=a", "resume=auto", "resume_allow=[[a]]"), "each of text"),
        (("-m", "optimizer=sgd,adam", "optimizer.momentum=0.9"), "optimizer=adam"),
        (("-m", "seed=glob(*)"), "no jobs"),
        (("epochs", "5"), "epochs=5"),
        (("data.val_fraction=1.5",), "whole number"),
        (("schedule=cosine", "schedule.warmup_epochs=50"), "below epochs=3"),
        (("device=mps",), "no Apple GPU"),
    ],
)
def test_odd_words_are_answered_to_the_point(cli: Cli, words: tuple[str, ...], said: str) -> None:
    outcome = cli(*words)
    assert outcome.code == 2
    assert said in outcome.err
    assert "Traceback" not in outcome.err


def test_eval_and_predict_refuse_what_they_do_not_know(cli: Cli, tiny_mnist: Path) -> None:
    words = ("data=mnist", f"paths.data={tiny_mnist}", "batch_size=50", "name=a")
    assert cli(*words, *QUICK).code == 0
    for refused in (
        ("eval", "input=foo"),
        ("predict", "split=train"),
        ("eval", "split=val", "data.val_fraction=0.5"),
        ("eval", "init_from=a"),
    ):
        assert cli(refused[0], "checkpoint=a", *refused[1:]).code == 2, refused
    outcome = cli("eval", "checkpoint=a", "data.normalize=none", "plots=false")
    assert outcome.code == 0
    assert "data.normalize has no effect" in outcome.out
    assert cli("resume=a", "name=zzz").code == 2


def test_a_signal_during_the_test_evaluation_leaves_a_run_to_go_on_with(tmp_path: Path) -> None:
    process = start("epochs=2", "name=a", "data.num_examples=2000000", "batch_size=100000", cwd=tmp_path)
    metrics = tmp_path / "outputs/a/metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.is_file() and metrics.read_text().count("\n") == 2) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.terminate()
    process.communicate(timeout=60)
    state = json.loads((tmp_path / "outputs/a/status.json").read_text())["state"]
    assert (process.returncode, state) in ((143, "interrupted"), (0, "done"))


@pytest.fixture
def sorted_folder(tmp_path: Path) -> tuple[str, ...]:
    """Words for 60 images of three classes in folders, of which 6 are cut for the test, and the trained run `a`."""
    write_class_folders(tmp_path / "p", {"": 60}, size=8)
    return ("data=folder", "data.root=p", "data.size=8", "data.channels=1", "model=softmax", "batch_size=6", "name=a")


@pytest.mark.parametrize(
    ("words", "split", "n"),
    [
        (("data=folder", "data.root=p"), "test", 6),  # the run's own data typed again
        (("data=folder",), "val", 9),
        (("data=folder", "data.val_fraction=0.5"), "test", 6),  # which cuts nothing from the test
        (("data=folder", "data.root=other"), "test", 6),  # other images, cut as the run's own were
    ],
)
def test_eval_keeps_the_cut_of_the_training(
    words: tuple[str, ...], split: str, n: int, cli: Cli, sorted_folder: tuple[str, ...]
) -> None:
    assert cli(*sorted_folder, *QUICK, "data.val_fraction=9", "data.limit=30").code == 0
    write_class_folders(Path("other"), {"": 59}, size=8)
    outcome = cli("eval", "checkpoint=a", f"split={split}", *words)
    assert outcome.code == 0, outcome.err
    assert f"{split}: accuracy" in outcome.out
    assert f" on {n} examples" in outcome.out


@pytest.mark.parametrize(
    ("verb", "words", "said"),
    [
        ("eval", ("data.test_fraction=0.5",), "data.test_fraction=0.5: the model was trained with 0.1"),
        ("eval", ("data=folder", "data.root=copy", "data.test_fraction=0.5"), "was trained with 0.1"),
        ("predict", ("data.test_fraction=0.5",), "was trained with 0.1"),
    ],
)
def test_no_image_is_measured_as_test_that_was_trained_on(
    verb: str, words: tuple[str, ...], said: str, cli: Cli, sorted_folder: tuple[str, ...]
) -> None:
    assert cli(*sorted_folder, *QUICK).code == 0
    shutil.copytree("p", "copy")
    outcome = cli(verb, "checkpoint=a", *words)
    assert outcome.code == 2
    assert said in outcome.err
    assert not list(Path("outputs/a").glob("eval-*"))


def test_a_set_that_grew_has_no_known_test_part_any_more(cli: Cli, sorted_folder: tuple[str, ...]) -> None:
    assert cli(*sorted_folder, *QUICK).code == 0
    shutil.copy("p/class0/0000.png", "p/class0/9999.png")
    outcome = cli("eval", "checkpoint=a")
    assert outcome.code == 2
    assert "p is not what it was in the training" in outcome.err


def test_a_trial_of_one_batch_is_no_result(cli: Cli, sorted_folder: tuple[str, ...]) -> None:
    assert cli(*sorted_folder, *QUICK).code == 0
    words = [word for word in sorted_folder if word != "name=a"]
    outcome = cli(*words, "plots=false", "fast_dev_run=true", "name=trial")
    assert outcome.code == 0, outcome.err
    assert "fast_dev_run: everything runs" in outcome.out
    result = json.loads(Path("outputs/trial/result.json").read_text())
    assert (result["fast_dev_run"], result["test"]["n"]) == (True, 6)
    assert "checkpoints/a/best.pt" in cli("eval", "checkpoint=last").out  # the trial is newer
    outcome = cli("-m", *words, "plots=false", "fast_dev_run=true", "seed=0,1", "name=s")
    assert outcome.code == 0, outcome.err
    rows = list(csv.DictReader(Path("outputs/s/sweep.csv").read_text().splitlines()))
    assert [(row["status"], row["objective"], row["test_accuracy"]) for row in rows] == [("done", "", "")] * 2


def test_the_one_batch_of_a_trial_has_all_classes(cli: Cli, tmp_path: Path) -> None:
    """Where a set lies sorted by class, its first images are all of one."""
    config = from_dict(
        {"choices": group_choices({"data": "folder"}), "data": {"root": "p"}, "fast_dev_run": True, "batch_size": 64}
    )
    y = torch.arange(3).repeat_interleave(100)
    split = Split(torch.zeros(300, 1), y)
    splits = Splits(split, split, split, (1,), 3, "classification", ("a", "b", "c"), (), (), "")
    few = narrow(config, splits, 0)
    assert [part.y.bincount().tolist() for part in (few.train, few.val, few.test)] == [[22, 21, 21]] * 3  # of 64


def test_a_run_is_overwritten_when_the_new_one_starts_and_not_before(cli: Cli, sorted_folder: tuple[str, ...]) -> None:
    assert cli(*sorted_folder, *QUICK).code == 0
    before = weights_of("a")
    outcome = cli(*sorted_folder, *QUICK)
    assert (outcome.code, "overwrite=true starts anew" in outcome.err) == (2, True)
    Path("outputs/a/mine.txt").write_text("")
    outcome = cli(*sorted_folder[:1], *sorted_folder[2:], *QUICK, "data.root=nowhere", "overwrite=true")
    assert outcome.code == 2
    assert all(torch.equal(before[name], tensor) for name, tensor in weights_of("a").items())
    outcome = cli(*sorted_folder, *QUICK, "seed=5", "overwrite=true")
    assert outcome.code == 0, outcome.err
    assert not all(torch.equal(before[name], tensor) for name, tensor in weights_of("a").items())
    assert not Path("outputs/a/mine.txt").exists()
    assert len(Path("outputs/a/metrics.jsonl").read_text().splitlines()) == 2
    for words in (("resume=a", "overwrite=true"), ("-m", "seed=1,2", "name=s", "overwrite=true")):
        assert "overwrite= " in cli(*words).err


def test_a_run_that_is_held_is_not_overwritten(cli: Cli, sorted_folder: tuple[str, ...]) -> None:
    assert cli(*sorted_folder, *QUICK).code == 0
    holder = "import sys, time; from pathlib import Path; from trainer.run.directory import hold\n"
    holder += "held = hold(Path('outputs/a')); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", holder], env={"PYTHONPATH": str(ROOT)}, stdout=-1, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        outcome = cli(*sorted_folder, *QUICK, "overwrite=true")
        other.kill()
    assert outcome.code == 5
    assert len(weights_of("a")) == 2


def test_a_diverged_run_says_what_to_type_and_is_not_the_last(cli: Cli) -> None:
    assert cli(*QUICK, "name=good").code == 0
    bad = (*QUICK, "optimizer.lr=900", "record.every_steps=1", "name=bad")
    outcome = cli(*bad)
    assert outcome.code == 3
    assert "smaller optimizer.lr, with name=bad overwrite=true." in outcome.err
    assert "checkpoints/good/best.pt" in cli("eval", "checkpoint=last").out
    outcome = cli("resume=bad")
    assert outcome.code == 3
    assert "warning: bad diverged. With the same settings it will again." in outcome.out
    assert cli(*bad[:2], "name=bad", "overwrite=true").code == 0
    assert cli("eval", "checkpoint=last").out.startswith("linreg from checkpoints/bad/best.pt")


def test_a_backend_that_matplotlib_does_not_know_keeps_no_plot_from_being_drawn(tmp_path: Path) -> None:
    process = start("epochs=1", "name=a", cwd=tmp_path, MPLBACKEND="nonsense")
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert (tmp_path / "outputs/a/plots/curves.png").is_file()


STREAMS = [(">&-", "--help", 0), (">/dev/full", "--help", 0), (">&-", "--cfg job", 0), (">/dev/full", "--cfg job", 0)]
STREAMS += [("2>/dev/full", "seed=x", 2), (">&- 2>&-", "optimizer.lr=-1", 2), (">/dev/full 2>&1", "eval", 2)]


@pytest.mark.parametrize(("streams", "words", "code"), STREAMS)
def test_a_stream_that_takes_nothing_changes_no_exit_code(streams: str, words: str, code: int, tmp_path: Path) -> None:
    command = f"{sys.executable} {ROOT / 'main.py'} {words} {streams}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, text=True, capture_output=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("folder", [ROOT, Path()])
def test_python_that_leaves_the_scripts_folder_out_starts_it_too(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-P", str(ROOT / "main.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path / folder, text=True, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_cfg_prints_the_settings(tmp_path: Path) -> None:
    process = start("--cfg", "job", "seed=7", cwd=tmp_path)
    out, _ = process.communicate(timeout=60)
    assert "\nseed: 7\n" in f"\n{out}"
    assert "\n  impl: null\n" in out  # the indents stay


OWN_FILES = ("status.json", "result.json", "config.json", "metrics.jsonl", "train.log", "run.lock", "best.pt")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", OWN_FILES)
def test_a_pipe_in_place_of_a_file_of_ours_is_named_at_once(name: str, cli: Cli) -> None:
    assert cli("name=a", "plots=false", "data.num_examples=40", "epochs=1").code == 0
    path = Path("checkpoints" if name == "best.pt" else "outputs", "a", name)
    path.unlink()
    os.mkfifo(path)
    outcome = cli("eval", "checkpoint=a")
    assert outcome.code == (2 if name == "best.pt" else 0), outcome.err
    assert ("checkpoints/a/best.pt is no file" in outcome.err) == (name == "best.pt")
    if name == "best.pt":
        return
    outcome = cli("resume=a", "epochs=2", "plots=false")
    assert outcome.code == (4 if name == "run.lock" else 0), outcome.err
    assert str(path) in outcome.out + outcome.err
    assert "Traceback" not in outcome.err
    if name not in ("run.lock", "train.log"):
        assert path.is_file()
        assert not path.with_suffix(".corrupt").is_file()
        assert path.with_suffix(".corrupt").exists()  # the pipe is kept


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "folder", "dead link"])
def test_what_lies_in_place_of_the_newest_step_file_is_named_and_the_file_before_is_taken(kind: str, cli: Cli) -> None:
    words = ("plots=false", "data.num_examples=40", "batch_size=10")
    assert cli("name=a", "epochs=2", *words).code == 0
    before, newest = steps_in(Path("checkpoints/a"))
    newest.unlink()
    make = {"pipe": os.mkfifo, "folder": os.mkdir, "dead link": lambda path: os.symlink("nowhere", path)}
    make[kind](newest)
    outcome = cli("resume=a", "epochs=3")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count(f"warning: {newest} is no file and is passed over") == 1
    assert f"continuing from {before}" in outcome.out


@pytest.mark.timeout(60)
@pytest.mark.parametrize("how", ["moved", "a link that leads nowhere", "its config.json alone"])
def test_a_run_interrupted_without_its_outputs_says_what_continues_it(how: str, cli: Cli, change_at: Any) -> None:
    outputs = Path("outputs/a")

    def swap() -> None:
        if how == "its config.json alone":
            (outputs / "config.json").unlink()
        else:
            outputs.rename("away")
        if "link" in how:
            outputs.symlink_to("nowhere")
        os.kill(os.getpid(), signal.SIGTERM)

    change_at(3, swap)
    words = ("plots=false", "data.num_examples=40", "batch_size=18", "record.every_steps=1")
    outcome = cli("name=a", "epochs=4", *words)
    assert outcome.code == 143
    *_, said = (outcome.out + outcome.err).splitlines()
    if "link" in how:
        assert "outputs/a is a link that leads nowhere. Mend or remove it. Saved: checkpoints/a/step_" in said
        outputs.unlink()
    elif how == "moved":
        assert "interrupted; outputs/a is gone: it was moved or removed while it was in use. Saved:" in said
    [typed] = re.findall(r"main.py (resume=\S+) continues", said)
    resumed = cli(typed)  # as it was said
    assert resumed.code == 0, resumed.err
    assert cli("name=b", "epochs=4", *words).code == 0
    mended, straight = (read_checkpoint(Path("checkpoints", name, "step_00000008.pt"))["model"] for name in "ab")
    assert all(torch.equal(mended[key], straight[key]) for key in straight)


@pytest.mark.timeout(60)
def test_metrics_that_become_a_pipe_while_a_run_trains_end_it_in_one_line(cli: Cli, change_at: Any) -> None:
    path = Path("outputs/a/metrics.jsonl")

    def swap() -> None:
        path.unlink()
        os.mkfifo(path)

    change_at(2, swap)
    words = ("plots=false", "data.num_examples=40", "epochs=2", "record.every_steps=1")
    outcome = cli("name=a", *words)
    assert outcome.code == 4, outcome.err
    assert "outputs/a/metrics.jsonl: it is a pipe, a device or a socket where a file belongs" in outcome.err
    assert outcome.err.count("\n") == 1
    path.unlink()
    assert cli("resume=a").code == 0


def test_overwrite_is_refused_at_once_where_a_file_takes_the_place_of_the_checkpoints(cli: Cli) -> None:
    assert cli("name=a", "plots=false", "data.num_examples=40", "epochs=1").code == 0
    Path("checkpoints/a").rename("elsewhere")
    Path("checkpoints/a").write_text("mine")
    outcome = cli("name=a", "overwrite=true", "plots=false", "data.num_examples=40", "epochs=1")
    assert_refused(outcome, "name=a: checkpoints/a is no folder. Move it away.")
    assert Path("outputs/a/result.json").is_file()


def test_overwrite_empties_a_folder_on_another_disk(cli: Cli) -> None:
    line = ("name=a", "plots=false", "data.num_examples=40")
    assert cli(*line, "epochs=9").code == 0
    Path("checkpoints/a").rename("disk")
    Path("checkpoints/a").symlink_to(Path("disk").absolute())
    assert cli(*line, "epochs=1", "overwrite=true").code == 0
    assert Path("checkpoints/a").is_symlink()
    newest = max(Path("disk").glob("step_*.pt"))
    assert torch.load(newest, weights_only=True)["config"]["epochs"] == 1


def test_eval_says_that_the_folder_of_the_checkpoints_is_gone(cli: Cli) -> None:
    assert cli("name=a", "plots=false", "data.num_examples=40", "epochs=1").code == 0
    Path("checkpoints/a").rename("elsewhere")
    assert_refused(cli("eval", "checkpoint=a"), "checkpoints/a is gone, with all files of a. Bring it back.")


@pytest.mark.parametrize("word", ["resume=last", "resume=abc", "checkpoint=last", "checkpoint=a/b.pt"])
def test_from_a_removed_working_directory_no_run_is_said_to_be_missing(
    word: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    outcome = cli(*(("eval", word) if word.startswith("checkpoint") else (word,)))
    assert outcome.code == 4
    assert outcome.err.startswith("error: the working directory of this command was removed: go to one that exists")
    monkeypatch.chdir(tmp_path)


@pytest.mark.timeout(60)
def test_check_resume_ends_at_once_where_its_working_directory_is_removed(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    process = start("check-resume", "data.num_examples=40", cwd=tmp_path / "gone")
    assert process.stdout is not None
    process.stdout.readline()  # the first of its runs is about to start
    (tmp_path / "gone").rmdir()
    began = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 4, err
    assert time.monotonic() - began < 10
    assert err.splitlines()[-1].startswith("error: the working directory of this command was removed")
