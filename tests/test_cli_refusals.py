"""What the command line refuses: exit code 2, one message that names key and value, nothing left behind, no torch."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Cli, start

# words typed, and what the message has to hold: key, value, and the nearest match or what is allowed
BEFORE_TORCH: dict[str, tuple[str, ...]] = {
    "model=resnt34": ("model=resnt34", "Did you mean model=resnet34?"),
    "optimizer.momentm=0.9": ("optimizer.momentm", "Did you mean optimizer.momentum?"),
    "optimiser=adam": ("optimiser", "Did you mean optimizer?"),
    "lr=0.1": ("lr ", "Did you mean optimizer.lr?"),
    "optimizer.lr=abc": ("optimizer.lr=abc", "numbers above 0"),
    "optimizer.lr=-1": ("optimizer.lr=-1", "numbers above 0"),
    "optimizer.lr=0": ("optimizer.lr=0", "numbers above 0"),
    "optimizer.lr=nan": ("optimizer.lr=nan", "numbers above 0"),
    "optimizer.lr=inf": ("optimizer.lr=inf", "numbers above 0"),
    "optimizer.lr=null": ("optimizer.lr=null", "numbers above 0"),
    "optimizer.lr=[0.1]": ("optimizer.lr=[0.1]", "numbers above 0"),
    "epochs=0": ("epochs=0", "from 1"),
    "epochs=1.5": ("epochs=1.5", "whole numbers from 1"),
    "epochs=three": ("epochs=three", "whole numbers from 1"),
    "batch_size=0": ("batch_size=0", "from 1"),
    "seed=-1": ("seed=-1", "from 0"),
    "plots=maybe": ("plots=maybe", "true, false"),
    "data.w=[1,a]": ("data.w=[1, 'a']", "numbers"),
    "+extra=1": ("extra", "not a setting"),
    "++optimizer.lrr=1": ("optimizer.lrr", "Did you mean optimizer.lr?"),
    "model.num_hidens=10": ("model.num_hidens", "Did you mean model.num_hiddens?"),
    "model.num_hiddens=10": ("model.num_hiddens", "model=linreg", "belongs to mlp"),
    "model=mlp model.init_sd=1": ("model.init_sd", "Did you mean model.init_std?"),
    "loss=cross_entropy data=synthetic": ("loss=cross_entropy", "data=synthetic", "mse, l1, huber"),
    "model=lenet": ("model=lenet", "data=synthetic", "linreg, mlp"),
    "data=mnist model=linreg": ("model=linreg", "data=mnist", "lenet"),
    "trian model=mlp": ("trian", "Did you mean train?"),
    "--lr 0.1": ("--lr", "Did you mean optimizer.lr=0.1?"),
    "--lr=0.1": ("--lr=0.1", "Did you mean optimizer.lr=0.1?"),
    "-epochs 3": ("-epochs", "Did you mean epochs=3?"),
    "lr = 0.1": ("lr", "without spaces", "Did you mean optimizer.lr=0.1?"),
    "optimizer.lr= 0.1": ("optimizer.lr=", "without spaces", "Did you mean optimizer.lr=0.1?"),
    "optimizer.lr=0.1,0.2": ("-m",),
    "optimizer=sgd,adam": ("optimizer=sgd,adam",),
    "eval": ("eval needs checkpoint=",),
    "predict": ("predict needs checkpoint=",),
    "eval checkpoint=no-such-run": ("no-such-run",),
    "resume=no-such-run": ("no-such-run",),
    "resume=last": ("last", "no run"),
    "resume=auto": ("resume=auto needs name=",),
    "early_stopping.patience=2 data.val_fraction=0": ("early_stopping.patience", "data.val_fraction"),
    "optimizer.nesterov=true": ("optimizer.nesterov=true", "optimizer.momentum"),
    "~seed": ("~seed",),
    "~optimizer.lr=0.1": ("~optimizer.lr", "not removed"),
    "data@val=mnist": ("data@val=mnist",),
    "recipe=foo": ("recipe=foo", "recipe=none"),
    "experiment=foo": ("experiment=foo", "d2l_linreg"),
    "data=folder": ("data.root",),
    "paths.data=${oc.env:HOME}": ("paths.data=${oc.env:HOME}",),
    "-m name=a,b": ("name=a,b",),
    "-m optimizer=sgd,adm": ("optimizer=adm", "Did you mean optimizer=adam?"),
    "-m resume=x seed=1,2": ("resume=",),
    "eval -m checkpoint=a,b": ("-m",),
}
AFTER_TORCH: dict[str, tuple[str, ...]] = {
    "checkpoint=x": ("checkpoint=", "resume="),
    "input=x": ("input=",),
    "name=../x": ("name=../x", "letters, digits"),
    "name=/tmp/x": ("name=/tmp/x", "letters, digits"),
    "name=a/b": ("name=a/b", "letters, digits"),
    "name=.hidden": ("name=.hidden", "letters, digits"),
    "name=auto": ("name=auto", "meaning of their own"),
    "name=last": ("name=last", "meaning of their own"),
    "batch_size=901 data.drop_last=true": ("batch_size=901", "900"),
    "data=folder data.root=nowhere": ("nowhere", "no such folder"),
    "init_from=nowhere": ("nowhere", "no such file"),
    "data=mnist model=lenet data.size=8 paths.data=nowhere": ("12x12 or more",),  # before the files are looked for
    "data.limit=901": ("data.limit=901", "900"),
    "data.val_fraction=1000": ("data.val_fraction=1000",),
}


@pytest.mark.parametrize("typed", [*BEFORE_TORCH, *AFTER_TORCH])
def test_a_refusal_names_key_and_value_and_leaves_nothing(typed: str, cli: Cli, tmp_path: Path) -> None:
    outcome = cli(*typed.split(" "))
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("error: ") == 1
    _, *more = outcome.err.strip().splitlines()
    assert [line.startswith("type: ") for line in more] in ([], [True])
    assert "Traceback" not in outcome.err + outcome.out
    for part in (BEFORE_TORCH | AFTER_TORCH)[typed]:
        assert part in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_refusals_never_import_torch(tmp_path: Path) -> None:
    program = f"""
import json, sys, time
sys.path.insert(0, {str(ROOT)!r})
import main
seconds = []
for typed in json.loads(sys.argv[1]):
    began = time.perf_counter()
    sys.argv = ["main.py", *typed.split(" ")]
    assert main.main() == 2, typed
    assert "torch" not in sys.modules, typed
    seconds.append(time.perf_counter() - began)
print(json.dumps(seconds))
"""
    words = [sys.executable, "-c", program, json.dumps(list(BEFORE_TORCH))]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(done.stdout))[len(BEFORE_TORCH) // 2] < 0.5  # torch alone takes seconds
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_is_over_at_once_as_a_process(tmp_path: Path) -> None:
    began = time.monotonic()
    process = start("optimizer.lr=abc", cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err == "error: optimizer.lr=abc is not allowed. Allowed: numbers above 0 to 1000.\n"
    assert time.monotonic() - began < 2  # half a second on an idle machine


def test_help_lists_groups_and_choices_without_torch(tmp_path: Path) -> None:
    began = time.monotonic()
    words = [sys.executable, "-X", "importtime", str(ROOT / "main.py"), "--help"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert time.monotonic() - began < 1
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "trainer.config.freeze" in imported
    assert not imported & {"torch", "hydra", "numpy"}
    for group in ("data", "model", "loss", "optimizer", "schedule", "device", "experiment"):
        assert f"  {group}=" in done.stdout
        for path in (ROOT / "configs" / group).glob("*.yaml"):
            assert path.stem in done.stdout
    for word in ("train", "eval", "predict", "-m", "checkpoint=", "resume=", "input="):
        assert word in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [("--help",), ("-h",), ("train", "--help"), ("eval", "-h")])
def test_help_is_given_wherever_it_is_asked_for(words: tuple[str, ...], cli: Cli) -> None:
    outcome = cli(*words)
    assert outcome.code == 0
    assert outcome.out.startswith("python main.py")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: device=cuda is no error here")
def test_cuda_without_a_gpu_is_refused(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("device=cuda")
    assert outcome.code == 2
    assert "device=cuda" in outcome.err
    assert "device=cpu" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_is_not_there_is_refused(cli: Cli, tmp_path: Path) -> None:
    outcome = cli(f"device=cuda:{max(7, torch.cuda.device_count())}")
    assert outcome.code == 2
    assert "device=cuda:7" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_the_nearest_run_is_named(cli: Cli) -> None:
    assert cli("name=first", "plots=false", "epochs=1").code == 0
    for typed in ("resume=frist", "resume=firts"):
        outcome = cli(typed)
        assert outcome.code == 2
        assert "Did you mean first?" in outcome.err
    assert "Did you mean first?" in cli("eval", "checkpoint=firs").err


def test_a_name_that_exists_is_refused_and_untouched(cli: Cli, tmp_path: Path) -> None:
    assert cli("name=first", "plots=false", "epochs=1").code == 0
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    outcome = cli("name=first")
    assert outcome.code == 2
    assert "name=first exists already" in outcome.err
    assert "resume=first" in outcome.err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_missing_data_without_a_network_is_told_in_ten_seconds(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    began = time.monotonic()
    outcome = cli("data=mnist", "paths.data=empty", "data.mirror=http://127.0.0.1:9/", "name=a")
    assert time.monotonic() - began < 10
    assert outcome.code == 2
    assert "empty/MNIST/raw" in outcome.err
    assert "http://127.0.0.1:9/" in outcome.err
    assert "paths.data=" in outcome.err
    assert not (tmp_path / "outputs" / "a").exists()
    assert not (tmp_path / "checkpoints" / "a").exists()


def test_missing_data_leaves_nothing(cli: Cli, tmp_path: Path) -> None:
    assert cli("data=mnist", "paths.data=empty", "data.mirror=http://127.0.0.1:9/").code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["paths.outputs", "paths.checkpoints"])
def test_row_09_a_folder_that_cannot_be_written_is_refused(key: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, no folder")
    outcome = cli(f"{key}=file/below")
    assert outcome.code == 2
    assert "file/below cannot be written" in outcome.err
    assert key.partition(".")[0] in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_that_is_no_checkpoint_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"no zip")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "bare.pt")
    for name in ("x.pt", "bare.pt"):
        for words in (("eval", f"checkpoint={name}"), ("predict", f"checkpoint={name}"), (f"resume={name}",)):
            outcome = cli(*words)
            assert outcome.code == 2
            assert name in outcome.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare.pt", "x.pt"]


def test_eval_refuses_what_the_checkpoint_settles(cli: Cli) -> None:
    assert cli("name=a", "plots=false", "epochs=1").code == 0
    for word in ("model=mlp", "loss=l1", "resume=a", "init_from=a"):
        outcome = cli("eval", "checkpoint=a", word)
        assert outcome.code == 2, word
        assert word.partition("=")[0] in outcome.err


def test_a_setting_without_effect_warns(cli: Cli) -> None:
    assert cli("name=a", "plots=false", "epochs=1").code == 0
    outcome = cli("eval", "checkpoint=a", "epochs=7", "optimizer.lr=3")
    assert outcome.code == 0
    assert "epochs has no effect" in outcome.out
    assert "optimizer.lr has no effect" in outcome.out


def test_split_is_not_for_train(cli: Cli) -> None:
    outcome = cli("name=a", "plots=false", "epochs=1", "split=val")
    assert outcome.code == 2
    assert "split= is for eval" in outcome.err


def test_predict_is_refused_for_a_regression(cli: Cli) -> None:
    assert cli("name=a", "plots=false", "epochs=1").code == 0
    outcome = cli("predict", "checkpoint=a")
    assert outcome.code == 2
    assert "classes" in outcome.err


# what looks like Hydra's grammar is text where text is meant


def test_a_name_that_looks_like_a_number_stays_as_typed(cli: Cli, tmp_path: Path) -> None:
    for name in ("1e3", "007", "true", "1.50"):
        assert cli(f"name={name}", "plots=false", "epochs=1").code == 0
        assert json.loads((tmp_path / "outputs" / name / "config.json").read_text())["config"]["name"] == name
        assert json.loads((tmp_path / "outputs" / name / "result.json").read_text())["run"] == name
        assert (tmp_path / "checkpoints" / name / "best.pt").is_file()


def test_paths_with_signs_of_the_grammar_work(cli: Cli, tmp_path: Path) -> None:
    folder = "my runs (1), [a]=b 'c' {d}"
    words = (f"paths.outputs={folder}/o", f"paths.checkpoints={folder}/c")
    outcome = cli("name=a", "plots=false", "epochs=1", *words)
    assert outcome.code == 0, outcome.err
    best = tmp_path / folder / "c" / "a" / "best.pt"
    assert best.is_file()
    assert cli("eval", "checkpoint=a", *words).code == 0
    (tmp_path / "a=b.pt").write_bytes(best.read_bytes())
    outcome = cli("eval", "checkpoint=a=b.pt")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "outputs" / "eval-a=b" / "eval-synthetic-test.json").is_file()


def test_a_path_is_taken_as_it_was_typed(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    words = (r"paths.outputs=~/C:\runs\\new", "paths.checkpoints=~/it's\\")
    outcome = cli("name=a", "plots=false", "epochs=1", *words)
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "home" / r"C:\runs\\new" / "a" / "result.json").is_file()
    assert (tmp_path / "home" / "it's\\" / "a" / "best.pt").is_file()
    assert cli("eval", "checkpoint=~/it's\\/a/best.pt").code == 0
    assert not Path("~").exists()
    outcome = cli("data=folder", r"data.root=C:\Users\me")
    assert outcome.code == 2
    assert r"error: C:\Users\me: there is no such folder" in outcome.err


@pytest.mark.parametrize(
    "words", [("eval", "checkpoint=a", "checkpoint=b"), ("-m", "seed=1", "+seed=2"), ("seed=1", "seed=1")]
)
def test_a_setting_that_is_given_twice_is_refused(words: tuple[str, ...], cli: Cli) -> None:
    outcome = cli(*words, as_typed=True)
    assert outcome.code == 2
    assert "is given twice: " in outcome.err
    assert not Path("outputs").exists()


def test_half_a_reference_is_refused_before_the_first_step(cli: Cli) -> None:
    outcome = cli("reference.metric=test_loss", "plots=false")
    assert outcome.code == 2
    assert "reference.metric needs reference.value" in outcome.err


def test_quotes_that_were_typed_are_taken_off(cli: Cli, tmp_path: Path) -> None:
    assert cli("name='a'", "plots=false", "epochs=1").code == 0
    assert (tmp_path / "outputs" / "a" / "result.json").is_file()
