"""Names of classes and files as folders have them: they train, are measured and shown, and change no screen."""

import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli, assert_refused, start, write_class_folders
from PIL import Image

from trainer import data
from trainer.data import folder
from trainer.run.gate import MAX_CLASSES, MAX_TENSORS, check_description
from trainer.run.recorder import Recorder
from trainer.run.safe_load import read_checkpoint
from trainer.utils.errors import ConfigError, DamagedError
from trainer.utils.files import read_csv

ODD = {  # each with what is shown
    "a\u00a0b": "a\\xa0b",
    "c\u3000d": "c\\u3000d",
    "e\u200df": "e\\u200df",
    "g\u00adh": "g\\xadh",
    "i\tj": "i\\tj",
    os.fsdecode(b"k\xffl"): "k\\xffl",
    "m\nfake: all fine": "m\\nfake: all fine",
    "o\x1b[2Jp": "o\\x1b[2Jp",
    "$x^$ {": "$x^$ {",
    "\U0001f600": "\U0001f600",
}
WORDS = ("data=folder", "data.root=pictures", "data.size=8", "data.channels=1", "data.val_fraction=0.25", "epochs=1")
WORDS += ("model=softmax", "schedule=constant", "batch_size=4", "name=a")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """`pictures/{train,test}/<each of ODD>/*.png`."""
    for part, count in (("train", 4), ("test", 2)):
        for k, name in enumerate(ODD):
            (tmp_path / "pictures" / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("L", (8, 8), 20 * k + i).save(tmp_path / "pictures" / part / name / f"{i}.png")
    return tmp_path / "pictures"


def test_class_names_of_any_kind_train_and_are_measured_labelled_and_resumed(
    pictures: Path, cli: Cli, tmp_path: Path
) -> None:
    outcomes = [cli(*WORDS)]  # with its plots
    assert sorted(read_checkpoint(Path("checkpoints/a/best.pt"))["classes"]) == sorted(ODD)
    outcomes += [cli("eval", "checkpoint=a"), cli("predict", "checkpoint=a", "input=pictures/test")]
    outcomes += [cli("resume=a", "epochs=2"), cli("predict", "checkpoint=a")]
    for outcome in outcomes:
        assert outcome.code == 0, outcome.err
        lines = (outcome.out + outcome.err).split("\n")
        assert all(line.isprintable() for line in lines)
        assert not any(line.startswith("fake") for line in lines)
    for shown in ODD.values():
        assert shown in outcomes[1].out
    log = Path("outputs/a/train.log").read_text(encoding="utf-8")
    assert all(line.isprintable() for line in log.split("\n"))
    assert {row["class"] for row in read_csv(Path("outputs/a/predictions.csv"))} <= {
        os.fsencode(name).decode("utf-8", "backslashreplace") if "\udcff" in name else name for name in ODD
    }


ENCODINGS = (*(pytest.param(name, marks=pytest.mark.slow) for name in ("latin-1", "cp1252")), "ascii:strict")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_no_encoding_of_the_terminal_ends_a_run(encoding: str, pictures: Path, tmp_path: Path) -> None:
    environment = {"PYTHONIOENCODING": encoding}
    (pictures / "train" / os.fsdecode(b"k\xffl") / os.fsdecode(b"bad\xfe.png")).write_bytes(b"no picture")
    process = start(*WORDS, "plots=false", "data.on_error=skip", cwd=tmp_path, **environment)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "bad\\xfe.png" in out
    process = start("predict", "checkpoint=a", "input=pictures/test", "plots=false", cwd=tmp_path, **environment)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "\\U0001f600" in out


def test_what_no_checkpoint_may_hold_is_refused_before_the_first_step(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_class_folders(tmp_path / "pictures", {"train": 12, "test": 3}, size=8)
    listed = folder.class_folders

    def with_long_names(*args: Any, **options: Any) -> Any:
        source = listed(*args, **options)
        return type(source)(**(vars(source) | {"classes": tuple(name * 100 for name in source.classes)}))

    monkeypatch.setitem(data.DATASETS, "folder", with_long_names)
    assert_refused(cli(*WORDS), "no checkpoint of this run could be read again", "classes")
    assert not list(Path().glob("checkpoints/*/*"))
    assert not Path("outputs/a").exists()


def test_the_gate_of_the_start_is_the_gate_of_the_reader(cli: Cli) -> None:
    """Each field of a description: what the one refuses, the other refuses, in the same words."""
    assert cli("name=a", "epochs=1", "plots=false", "data.num_examples=40").code == 0
    path = Path("checkpoints/a/best.pt")
    content = read_checkpoint(path)
    changes: list[Callable[[dict[str, Any]], object]] = [
        lambda c: c.update(classes=["x" * 256]),
        lambda c: c.update(classes=["x"] * (MAX_CLASSES + 1)),
        lambda c: c.update(classes=["x"] * 2),
        lambda c: c["arch"].update(in_shape=[2] * 5),
        lambda c: c["arch"].update(in_shape=[10**6, 10**6]),
        lambda c: c["preprocess"].update(mean=[0.5], std=[0.0]),
        lambda c: c["config"].update(name="a/" + "1" * 253),
        lambda c: c["data"].update(sha256=None),
    ]
    for change in changes:
        changed = read_checkpoint(path)
        change(changed)
        with pytest.raises(DamagedError) as early:
            check_description(changed, 10)
        torch.save(changed, "changed.pt")
        with pytest.raises(ConfigError) as late:
            read_checkpoint(Path("changed.pt"))
        assert str(early.value) in str(late.value)
    check_description(content, 10)
    with pytest.raises(DamagedError, match="tensors"):
        check_description(content, MAX_TENSORS + 1)


def raw(path: Path, pickled: bytes) -> None:
    """A zip file as torch writes it, with this pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/version", "3\n")
        archive.writestr("x/byteorder", "little")


LONG = b"\x80\x02]q\x00(" + b"K\x01K\x02\x86" * 100_000 + b"e"
BUSY: dict[str, bytes | Callable[[dict[str, Any]], object]] = {
    "a shape of a million": lambda c: c["arch"].update(in_shape=[10**6] * 10**6),
    "a million classes": lambda c: c.update(classes=["c"] * 10**6),
    "a class of ten million characters": lambda c: c.update(classes=["\x1b" * 10**7, "b"]),
    "a class of a million letters": lambda c: c.update(classes=["c" * 10**6, "b"]),
    "30,000 tensors": lambda c: c["model"].update({f"x{i}": torch.zeros(1) for i in range(30_000)}),
    "a step of 300 digits": lambda c: c["progress"].update(step=10**300),
    "a million tuples": b"\x80\x02(" + b")" * 10**6 + b"t.",
    "many dicts of one list": LONG + b"ccollections\nOrderedDict\nq\x01(" + b"h\x01h\x00\x85R" * 20_000 + b"t.",
    "many dicts of one list, by mark": LONG + b"ccollections\nOrderedDict\nq\x01(" + b"h\x01(h\x00tR" * 20_000 + b"t.",
    "many counts of one list": LONG + b"ccollections\nCounter\nq\x01(" + b"h\x01h\x00\x85R" * 20_000 + b"t.",
    "a terabyte of zeros": b"\x80\x02c__builtin__\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R.",
}


@pytest.mark.parametrize("name", BUSY)
def test_a_file_made_to_keep_the_reader_busy_is_refused_within_a_second(name: str, cli: Cli) -> None:
    assert cli("name=a", "epochs=1", "plots=false", "data.num_examples=40").code == 0
    change, path = BUSY[name], Path("busy.pt")
    if isinstance(change, bytes):
        raw(path, change)
    else:
        content = read_checkpoint(Path("checkpoints/a/best.pt"))
        change(content)
        torch.save(content, path)
    began = time.perf_counter()
    with pytest.raises(ConfigError, match=r"busy\.pt") as refused:
        read_checkpoint(path)
    assert time.perf_counter() - began < 1
    assert len(str(refused.value)) < 1000


def test_a_saved_list_of_ten_thousand_layers_is_refused_at_once(cli: Cli) -> None:
    assert cli("name=a", "epochs=1", "plots=false", "data.num_examples=40").code == 0
    content = read_checkpoint(Path("checkpoints/a/best.pt"))
    content["config"]["choices"]["model"] = "mlp"
    content["config"]["model"] = {"num_hiddens": [1] * 10_000}
    torch.save(content, "busy.pt")
    began = time.perf_counter()
    assert_refused(cli("eval", "checkpoint=busy.pt"), "model.num_hiddens", "1,000")
    assert time.perf_counter() - began < 1


# records that are lost or damaged


def without_setting(config: dict[str, Any], damage: str) -> None:
    """Take a setting out of a saved config, or give it a value that it cannot have."""
    if damage == "no choices":
        del config["choices"]
    else:
        config["optimizer"]["lr"] = "fast"


@pytest.mark.parametrize("damage", ["deleted", "garbage", "a folder of fields", "no choices", "a wrong value"])
def test_a_lost_config_is_made_up_for_from_the_checkpoint(damage: str, cli: Cli) -> None:
    words = ("name=a", "plots=false", "data.num_examples=40", "batch_size=10", "optimizer.lr=0.02", "seed=3")
    assert cli(*words, "epochs=2").code == 0
    straight = read_checkpoint(Path("checkpoints/a/best.pt"))
    path = Path("outputs/a/config.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    if damage in ("garbage", "a folder of fields"):
        path.write_text("garbage" if damage == "garbage" else '{"config": []}')
    elif damage != "deleted":
        without_setting(record["config"], damage)
        path.write_text(json.dumps(record), encoding="utf-8")
    measured = cli("eval", "checkpoint=a")
    assert measured.code == 0, measured.err
    assert measured.out.lower().count("its settings are taken from") == 1
    assert f"{path} cannot be read" in measured.out
    resumed = cli("resume=a", "epochs=3")
    assert resumed.code == 0, resumed.err
    assert resumed.out.count("Its settings are taken from") == 1
    config = read_checkpoint(Path("checkpoints/a/best.pt"))["config"]
    assert config["optimizer"] == straight["config"]["optimizer"]
    assert (config["seed"], config["batch_size"]) == (3, 10)
    assert path.with_suffix(".corrupt").exists() == (damage != "deleted")
    assert cli("resume=a", "epochs=4").code == 0  # the record is whole again
    assert_refused(cli("name=a"), "resume=a")


def test_a_run_without_config_and_checkpoints_says_so(cli: Cli) -> None:
    assert cli("name=a", "epochs=1", "plots=false").code == 0
    Path("outputs/a/config.json").unlink()
    shutil.rmtree("checkpoints/a")
    outcome = cli("resume=a")
    assert_refused(outcome, "outputs/a/config.json", "No checkpoint")
    assert "Did you mean" not in outcome.err


@pytest.mark.parametrize("damage", ["no choices", "a wrong value"])
def test_settings_that_are_refused_are_refused_with_the_name_of_their_file(damage: str, cli: Cli) -> None:
    assert cli("name=a", "epochs=1", "plots=false").code == 0
    contents = {file: read_checkpoint(file) for file in Path("checkpoints/a").glob("*.pt")}  # two names of one file
    for file, content in contents.items():
        without_setting(content["config"], damage)
        torch.save(content, file)
    said = "checkpoints/a/best.pt is refused", "choices=" if damage == "no choices" else "optimizer.lr=fast"
    for verb in ("eval", "predict"):
        assert_refused(cli(verb, "checkpoint=checkpoints/a/best.pt"), *said)
    assert_refused(cli("resume=checkpoints/a/best.pt", "epochs=2"), *said)
    record = json.loads(Path("outputs/a/config.json").read_text(encoding="utf-8"))
    without_setting(record["config"], damage)
    Path("outputs/a/config.json").write_text(json.dumps(record), encoding="utf-8")
    for words in (("eval", "checkpoint=a"), ("predict", "checkpoint=a"), ("resume=a", "epochs=2")):
        assert_refused(cli(*words), "outputs/a/config.json cannot be read", said[1])


@pytest.mark.parametrize("record", ["config.json", "status.json", "result.json", "metrics.jsonl"])
def test_a_sweep_with_a_damaged_job_runs_that_job_again(record: str, cli: Cli) -> None:
    words = ("-m", "seed=0,1,2", "name=s", "epochs=2", "plots=false", "data.num_examples=40", "batch_size=10")
    assert cli(*words).code == 0
    before = read_csv(Path("outputs/s/sweep.csv"))
    Path("outputs/s/1", record).write_text('{"state": 3, "epoch": [], "config": 0}\n')
    outcome = cli(*words)
    assert outcome.code == 0, outcome.err
    after = read_csv(Path("outputs/s/sweep.csv"))
    for row, was in zip(after, before, strict=True):
        assert {k: v for k, v in row.items() if k != "seconds"} == {k: v for k, v in was.items() if k != "seconds"}


def test_a_sweep_whose_list_is_damaged_goes_on(cli: Cli) -> None:
    words = ("-m", "seed=0,1", "name=s", "epochs=1", "plots=false", "data.num_examples=40")
    assert cli(*words).code == 0
    Path("outputs/s/sweep.json").write_text('{"made_of": 1}')
    outcome = cli(*words)
    assert outcome.code == 0, outcome.err
    assert "sweep.corrupt" in outcome.out
    assert outcome.out.count("done before") == 2
    assert_refused(cli(*words, "batch_size=5"), "batch_size")


def test_a_record_with_a_name_that_is_no_text_resumes_with_tensorboard(cli: Cli) -> None:
    assert cli("name=a", "epochs=1", "data.num_examples=40").code == 0
    path = Path("outputs/a/config.json")
    content = json.loads(path.read_text())
    content["config"]["name"] = "\ud800"
    path.write_text(json.dumps(content))
    recorder = Recorder(Path("outputs/a"), ["tensorboard"], epochs_done=1, steps_done=4)
    recorder.close()
    assert any(b"rerun \\ud800" in file.read_bytes() for file in Path("outputs/a/tb").glob("events*"))
