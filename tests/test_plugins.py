"""plugins=[my_net.py]: what a file of the user's own brings works as what is built in does.

It is run where it is typed only. The file is the one of docs/adding.md.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, Cli, assert_refused, start, torchrun_command, wait_for
from hydra.core.config_store import ConfigStore
from test_cli_resume import assert_equal, assert_same_run, last_checkpoint

from trainer import build, data, load, train
from trainer.config.options import PLUGGED, choices_of
from trainer.config.plugins import LOADED, as_word, paths_of, typed_in
from trainer.config.tasks import TASK_OF_DATA, TASKS_OF
from trainer.data.given import source_given
from trainer.models import MODELS
from trainer.utils.errors import ConfigError, MissingPluginError, PluginError

PAGE = (ROOT / "docs" / "adding.md").read_text()
[NET] = re.findall(r"```python\n# file: my_net\.py\n(.*?)```", PAGE, re.DOTALL)
LOSS = """
def my_loss(y_hat, y, factor=1.0):
    return factor * nn.functional.cross_entropy(y_hat, y)


LOSSES = {"my_loss": my_loss}
"""
WORD = "plugins=[my_net.py]"
MINE = (WORD, "model=my_net", "data=moons")
QUICK = ("data.num_examples=100", "epochs=2", "plots=false", "device.num_threads=1")
RAN = "\nfrom pathlib import Path\nPath('ran').touch()\n"


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """Nothing of a file is left when a command has ended."""
    tables = (build.LOSSES, data.DATASETS, MODELS, TASK_OF_DATA, *TASKS_OF.values(), PLUGGED, LOADED)
    before = [dict(table) for table in tables]
    choices = {group: choices_of(group) for group in ("data", "model", "loss")}
    yield
    assert [dict(table) for table in tables] == before
    assert {group: choices_of(group) for group in choices} == choices
    assert not [name for name in sys.modules if name.endswith("_my_net")]
    stored = [ConfigStore.instance().repo.get(group, {}) for group in choices]
    assert not any(name in group for group in stored for name in ("my_net.yaml", "moons.yaml", "my_loss.yaml"))


@pytest.fixture
def my_net(tmp_path: Path) -> Path:
    (tmp_path / "my_net.py").write_text(NET + LOSS)
    return tmp_path / "my_net.py"


def test_the_file_of_the_page_is_short() -> None:
    assert len(NET.splitlines()) <= 32


# works as what is built in


def test_trained_measured_and_labelled(cli: Cli, my_net: Path, tmp_path: Path) -> None:
    outcome = cli(*MINE, "optimizer.lr=0.5", "name=a", "device.num_threads=1")  # with all plots
    assert outcome.code == 0, outcome.err
    assert re.search(r"test: accuracy 0\.9", outcome.out)
    assert "eval checkpoint=a 'plugins=[my_net.py]'" in outcome.out
    assert (tmp_path / "outputs/a/plots/confusion.png").is_file()
    for verb in ("eval", "predict"):
        again = cli(verb, "a", WORD)
        assert again.code == 0, again.err
        assert "accuracy 0.9" in again.out
        assert "warning" not in again.out
    assert (tmp_path / "outputs/a/predictions.csv").is_file()
    assert_refused(cli("predict", "a", "my_net.py", WORD), "takes rows of numbers", "predict(rows)")


@pytest.mark.parametrize("step", [1, 8, 13])
def test_resume_after_a_signal_is_bit_identical(
    step: int, cli: Cli, my_net: Path, signal_at: Callable[..., None]
) -> None:
    hard = (*MINE, *QUICK, "loss=my_loss", "loss.factor=0.5", "optimizer=adam", "record.every_steps=1", "batch_size=10")
    assert cli(*hard, "name=straight").code == 0
    signal_at(step)
    outcome = cli(*hard, "name=cut")
    assert outcome.code == 143
    assert "resume=cut 'plugins=[my_net.py]' continues" in outcome.err
    outcome = cli("resume=cut", WORD)
    assert outcome.code == 0, outcome.err
    assert "warning" not in outcome.out
    assert_same_run("straight", "cut")


@pytest.mark.slow
def test_resume_after_a_kill_is_bit_identical(cli: Cli, my_net: Path, tmp_path: Path) -> None:
    words = (*MINE, "epochs=40", "plots=false", "device.num_threads=1")
    process = start(*words, "name=cut", "save.every_steps=1", "epochs=4000", cwd=tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("checkpoints/cut/step_*.pt"))) > 1, process)
    process.kill()
    process.communicate()
    done = last_checkpoint("cut")["progress"]["epoch"]
    assert done < 40
    assert cli("resume=cut", WORD, "epochs=40", "save.every_steps=0").code == 0
    assert cli(*words, "name=straight").code == 0
    assert_same_run("straight", "cut")


def test_swept_over_an_option_in_this_process_and_in_others(cli: Cli, my_net: Path, tmp_path: Path) -> None:
    words = ("-m", *MINE, *QUICK, "model.num_hiddens=8,16")
    outcome = cli(*words, "name=here")
    assert outcome.code == 0, outcome.err
    assert "only linreg, softmax, mlp can be stacked" in outcome.out
    assert "eval checkpoint=here/" in outcome.out
    assert cli(*words, "name=here").out.count("done before") == 2
    outcome = cli(*words, "name=there", "hydra/launcher=processes", "hydra.launcher.n_jobs=2")
    assert outcome.code == 0, outcome.err + outcome.out
    for job in (0, 1):
        assert_equal(*(last_checkpoint(f"{name}/{job}")["model"] for name in ("here", "there")))
    assert_refused(cli(*words[:-1], "model.num_hiddens=8,x", "name=none"), "model.num_hiddens=x", "a whole number")
    assert not Path("outputs/none").exists()


@pytest.mark.slow
def test_searched_and_trained_by_several_processes(cli: Cli, my_net: Path, tmp_path: Path) -> None:
    words = ("-m", *MINE, *QUICK, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "name=s")
    assert cli(*words, "model.num_hiddens=interval(4,8)").code == 0
    typed = [str(ROOT / "main.py"), *MINE, *QUICK, "name=a"]
    run = subprocess.run([*torchrun_command(), *typed], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
def test_check_resume(cli: Cli, my_net: Path) -> None:
    outcome = cli("check-resume", *MINE, "data.num_examples=100")
    assert outcome.code == 0, outcome.err
    assert "bit-identical" in outcome.out


def test_goes_together_with_what_is_built_in(cli: Cli, my_net: Path, tiny_mnist: Path) -> None:
    pixels = ("data=mnist", f"paths.data={tiny_mnist}", "epochs=1", "plots=false", "batch_size=50")
    assert cli(WORD, "model=my_net", *pixels, "name=a", "data.augment=shift").code == 0
    assert cli(WORD, "model=mlp", "model.num_hiddens=8", "data=moons", *QUICK, "impl=scratch").code == 0
    assert cli(WORD, "model=my_net", *QUICK[1:]).code == 0  # on synthetic data, with mse
    stacked = cli("-m", WORD, "model=mlp", "data=moons", "optimizer.lr=0.1,0.2", "sweep.stack=true", *QUICK)
    assert stacked.code == 0, stacked.err
    assert "as one of 2 together" in stacked.out
    tuned = ("init_from=a", "finetune.freeze=backbone")
    outcome = cli(WORD, "model=my_net", *pixels, *tuned, "name=b")
    assert outcome.code == 0, outcome.err
    assert_refused(cli(*MINE, "impl=scratch"), "impl=scratch does not have model=my_net", "Allowed: impl=concise")
    assert_refused(cli(*MINE, "loss=mse"), "loss=mse does not fit data=moons")
    assert_refused(cli(*MINE, "data.augment=flip"), "data.augment=flip is for images")
    assert_refused(cli("compare-impl", *MINE), "nothing to compare")


def test_options_are_checked_and_told_of(cli: Cli, my_net: Path, tmp_path: Path) -> None:
    told = cli("help", *MINE)
    assert told.code == 0
    assert re.search(r"model=my_net\n  Two layers, .*\n  model\.num_hiddens=32 +a whole number", told.out)
    assert "data.noise=0.1" in told.out
    assert "data.val_fraction=0.1" in told.out
    assert "my_net" in cli("--help", WORD, "model").out
    assert "plugins=[my_net.py]" in cli("--help").out
    for word, said in {
        "model.num_hidens=3": "Did you mean model.num_hiddens?",
        "model.num_hiddens=1.5": "model.num_hiddens=1.5 is not allowed. Allowed: a whole number.",
        "model.num_hiddens=[3]": "Allowed: a whole number",
        "data.noise=big": "Allowed: a number",
        "model=my_nett": "Did you mean model=my_net?",
        "model.dropout=0.1": "model.dropout is no option of model=my_net",
    }.items():
        outcome = cli(*MINE, word)
        assert_refused(outcome, said)
        assert ("\ntype: " in outcome.err) == ("Did you mean" in said)
    assert "data.normalize has no effect: it is for images" in cli(*MINE, *QUICK, "data.normalize=none").out
    assert_refused(cli("model=my_net"), "there is no such model")
    my_net.write_text(NET.replace("noise=0.1", "noise=0.1, kind='half', sizes=[1, 2.5], seed=None, flip=False"))
    words = ("data.noise=1", "data.kind=whole", "data.sizes=[3]", "data.seed=x", "data.flip=true")
    assert cli(*MINE, *QUICK, *words, "name=a").code == 0
    options = json.loads((tmp_path / "outputs/a/config.json").read_text())["config"]["data"]
    assert {key.split("=")[0][5:] for key in words} <= options.keys()
    assert (options["noise"], options["sizes"], options["kind"], options["flip"]) == (1.0, [3.0], "whole", True)
    assert isinstance(options["noise"], float)


def test_the_yaml_file_beside_it_gives_other_defaults_and_comments(cli: Cli, my_net: Path, tmp_path: Path) -> None:
    beside = tmp_path / "my_net.yaml"
    beside.write_text(
        "model:\n  my_net:\n    num_hiddens: 7    # units, 1 or more\ndata:\n  moons: {val_fraction: 0.5}\n"
    )
    assert "model.num_hiddens=7              units, 1 or more" in cli("help", WORD, "model=my_net").out
    outcome = cli(*MINE, *QUICK)
    assert "37 parameters; examples: 40 train, 40 val" in outcome.out
    for text, said in {
        "model: {my_net: {num_hidens: 7}}": "model.num_hidens is no option of my_net. Did you mean num_hiddens?",
        "model: {my_net: {num_hiddens: x}}": "model.num_hiddens=x is not allowed. Allowed: a whole number.",
        "model: {my_nett: {}}": "model.my_nett is not in my_net.py. Did you mean model.my_net?",
        "data: {moons: {val_fraction: -1}}": "data.val_fraction=-1 is not allowed",
        "data: {moons: {noise: '${oc.env:HOME}'}}": "is not resolved here",
        "model: [1]": "says something else than defaults",
        "model: {": "cannot be read",
    }.items():
        beside.write_text(text)
        outcome = cli(*MINE, *QUICK)
        assert_refused(outcome, "my_net.yaml", said)


# whose code runs


def test_a_run_does_not_bring_its_file_back(cli: Cli, my_net: Path, tmp_path: Path) -> None:
    my_net.write_text(NET + RAN)
    assert cli(*MINE, *QUICK, "name=a").code == 0
    record = json.loads((tmp_path / "outputs/a/config.json").read_text())["config"]
    assert re.fullmatch(r"my_net\.py sha256:[0-9a-f]{64}", record["plugins"][0])
    (tmp_path / "ran").unlink()
    for words in (["eval", "a"], ["predict", "a"], ["resume=a", "epochs=3"], ["eval", "checkpoints/a/best.pt"]):
        outcome = cli(*words)
        assert_refused(outcome, "=my_net is from" if "x" in words else "is from a file of its own", WORD)
        assert outcome.err.endswith(f"main.py {' '.join(words)} '{WORD}'\n")
        assert outcome.err.count("type:") == 1
    assert_refused(cli("resume=auto", "name=a"), "is from a file of its own")
    assert cli("experiments").code == 0
    assert not (tmp_path / "ran").exists()
    assert sorted(path.name for path in (tmp_path / "outputs/a").glob("config.*")) == ["config.json"]


def test_what_a_file_says_of_files_has_no_effect(cli: Cli, my_net: Path, tmp_path: Path) -> None:
    my_net.write_text(NET + RAN)
    words = ("model=mlp", "model.num_hiddens=[4]", *QUICK[1:], "name=a")
    assert cli(*words).code == 0
    evil = ["my_net.py", f"{tmp_path}/my_net.py sha256:0", "x'; touch ran; '\x1b[2J"]
    record = tmp_path / "outputs/a/config.json"
    content = json.loads(record.read_text())
    for said in (evil, [], evil * 1000):
        content["config"]["plugins"] = said
        record.write_text(json.dumps(content))
        for path in (tmp_path / "checkpoints/a").glob("*.pt"):
            saved = torch.load(path, weights_only=True)
            saved["config"]["plugins"] = said
            torch.save(saved, path)
        for command in (["eval", "a"], ["eval", "checkpoints/a/best.pt"], ["resume=a", "epochs=3"]):
            outcome = cli(*command)
            assert outcome.code in (0, 2), outcome.err
            assert "Traceback" not in outcome.err
    saved["config"]["plugins"], saved["config"]["choices"]["model"] = evil, "my_net"
    torch.save(saved, tmp_path / "other.pt")
    outcome = cli("eval", "other.pt")
    assert_refused(outcome, "model=my_net is from a file of its own")
    assert "\x1b" not in outcome.err
    assert str(tmp_path) not in outcome.err  # no folder is proposed that a file names
    assert not (tmp_path / "ran").exists()


def test_a_changed_file_is_warned_of(cli: Cli, my_net: Path, tmp_path: Path) -> None:
    assert cli(*MINE, *QUICK, "name=a").code == 0
    my_net.write_text(NET + "# changed\n")
    for words in (["eval", "a"], ["eval", "checkpoints/a/best.pt"], ["resume=a", "epochs=3"]):
        outcome = cli(*words, WORD)
        assert outcome.code == 0, outcome.err
        assert "warning: my_net.py is not what it was when this run was trained with it." in outcome.out
    assert "no bit for bit" in outcome.out
    assert "no bit for bit" in (tmp_path / "outputs/a/train.log").read_text()
    assert "warning" not in cli("resume=a", "epochs=4", WORD).out  # the resumed run has kept the new digest
    shutil.move(my_net, tmp_path / "moved.py")
    assert "warning" not in cli("eval", "a", "plugins=[moved.py]").out
    (tmp_path / "moved.py").write_text(NET.replace("num_examples // 5", "num_examples // 4"))  # another test part
    assert "its test part may be some that were trained on" in cli("eval", "a", "plugins=[moved.py]").out
    (tmp_path / "moved.py").write_text(NET.replace("return self.out", "return -self.out"))
    assert cli("eval", "a", "plugins=[moved.py]").code == 0
    (tmp_path / "moved.py").write_text(NET.replace("return self.out", "return self.out(self.hidden(x)).sum(1)  #"))
    assert_refused(cli("eval", "a", "plugins=[moved.py]"), "moved.py:", "give float32 of shape (2,)")
    (tmp_path / "moved.py").write_text(NET.replace("num_examples=1000", "num_examples=1001"))
    assert_refused(cli("resume=a", "epochs=5", "plugins=[moved.py]", "data.num_examples=101"), "data.num_examples")


def test_a_file_that_no_longer_has_the_option_is_said_to_be_the_cause(cli: Cli, my_net: Path) -> None:
    assert cli(*MINE, *QUICK, "name=a").code == 0
    my_net.write_text(NET.replace("num_hiddens", "num_units"))
    for words in (["eval", "a"], ["resume=a", "epochs=3"]):
        outcome = cli(*words, WORD)
        assert_refused(outcome, "model.num_hiddens is no option", "my_net.py is not what it was", "Put the options")
        assert "remove outputs" not in outcome.err
    my_net.write_text(NET.replace('"my_net": ', '"your_net": '))
    outcome = cli("eval", "a", WORD)
    assert_refused(outcome, "model=my_net was in my_net.py and is not any more. Put it back.")
    assert "type:" not in outcome.err


def test_from_python(my_net: Path, cli: Cli, tmp_path: Path) -> None:
    settings = {"plugins": ["my_net.py"], "model": "my_net", "data": "moons", "plots": False, "data.num_examples": 100}
    run = train(settings, epochs=1, name="a")
    model = run.load()
    assert model.classes == ("0", "1")
    found = model.predict(np.zeros((3, 2)))
    assert found.labels.shape == (3,)
    assert load("a", settings["plugins"] and [WORD]).predict([[0.0, 1.0]]).outputs.shape == (1, 2)
    with pytest.raises(MissingPluginError, match="is from a file of its own"):
        load("a")
    assert cli(*MINE, "data.num_examples=100", "epochs=1", "plots=false", "name=b").code == 0
    assert_equal(last_checkpoint("a")["model"], last_checkpoint("b")["model"])
    before = torch.get_rng_state()
    my_net.write_text("import torch\ntorch.rand(3)\n" + NET)
    train(settings, epochs=1, name="c")
    assert torch.equal(before, torch.get_rng_state())
    my_net.write_text("1 / 0")
    with pytest.raises(PluginError, match=r"^my_net.py:1: ZeroDivisionError"):
        train(settings)


# mistakes in the file


def changed(*pairs: str) -> str:
    text = NET + LOSS
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert old in text, old
        text = text.replace(old, new)
    return text


INIT, FORWARD, RETURN = "num_hiddens=32)", "self.out(torch.relu(self.hidden(x.flatten(1))))", "return (x[n:], y[n:]), "
TABLE = 'MODELS = {"my_net": MyNet}'
CROSS = "return factor * nn.functional.cross_entropy(y_hat, y)"
HIDDEN = "self.hidden(x.flatten(1))"
IN_PLACE = f"h = {HIDDEN}.exp()\n        y = self.out(h)\n        h += 1\n        return y"
MISTAKES = {
    "a class as a loss": (
        NET + 'LOSSES = {"m": nn.MSELoss}\n',
        r"is the class MSELoss. Allowed: a function, such as def m\(y_hat, y\): return MSELoss\(\)\(y_hat, y\)",
    ),
    "a module as a loss": (NET + 'LOSSES = {"m": nn.MSELoss()}\n', r"an object of type MSELoss. Allowed: a function,"),
    "syntax": (changed(INIT, "num_hiddens=32"), r"my_net.py:10: SyntaxError: .*: def __init__"),
    "null byte": (NET + "\0", r"my_net.py:\d+: .*null byte"),
    "encoding": ("# coding: nothing\n", r"my_net.py:1: SyntaxError: unknown encoding"),
    "import": ("import nothing_there\n" + NET, r"my_net.py:1: ModuleNotFoundError: No module named 'nothing_there'"),
    "error": (NET + "1 / 0\n", r"my_net.py:\d+: ZeroDivisionError: division by zero"),
    "exit": (NET + "raise SystemExit(0)\n", r"my_net.py:\d+: it ends the program"),
    "recursion": ("def f():\n    f()\nf()\n", r"my_net.py:2, in f: RecursionError"),
    "no table": ("MODEL = {}\n", r"my_net.py has no table. Did you mean MODELS\? Write one at its end: MODELS = "),
    "empty file": ("", r"my_net.py has no table. Write one at its end"),
    "no dict": (changed(TABLE, "MODELS = [MyNet]"), r"my_net.py: MODELS is \[.*Write a dict"),
    "empty": (changed(TABLE, "MODELS = {}"), r"my_net.py: MODELS is \{\}. Write a dict"),
    "an object": (changed(TABLE, 'MODELS = {"my_net": MyNet((2,), 2)}'), r"is an object of type MyNet.*without \( \)"),
    "name": (changed(TABLE, 'MODELS = {"my net": MyNet}'), r"MODELS has the name 'my net'. Allowed: a letter"),
    "word": (changed(TABLE, 'MODELS = {"null": MyNet}'), r"MODELS has the name 'null'. Allowed"),
    "there": (changed(TABLE, 'MODELS = {"mlp": MyNet}'), r"model=mlp is there already"),
    "task": (NET + 'TASKS = {"moons": "regresion"}', r'TASKS: write TASKS = \{"moons": "regression"\}'),
    "missing": (
        changed("in_shape, num_outputs, ", "in_shape, "),
        r":10: .*Write: def __init__\(self, in_shape, num_out",
    ),
    "extra": (
        changed(INIT, "num_hiddens)"),
        r":10: .*Write: def __init__\(self, in_shape, num_outputs, num_hiddens=0\)",
    ),
    "keyword": (changed(INIT, "*, depth, num_hiddens=32)"), r"Write: def __init__\(.*depth=0, num_hiddens=32\)"),
    "of data": (changed("noise=0.1", "noise"), r"data=moons: .*Write: def moons\(noise=0, num_examples=1000\)"),
    "of the loss": (
        changed("(y_hat, y, factor", "(y_hat, factor"),
        r"loss=my_loss: .*def my_loss\(y_hat, y, factor=1.0\)",
    ),
    "default": (changed("noise=0.1", "noise=(1, 2)"), r"data=moons: noise=\(1, 2\) is no default. Allowed"),
    "mixed": (changed("noise=0.1", "noise=[1, 'a']"), r"data=moons: noise=\[1, 'a'\] is no default"),
    "infinite": (changed("noise=0.1", "noise=float('inf')"), r"data=moons: noise=inf is no default"),
    "resolved": (changed("noise=0.1", "noise='${seed}'"), r"data=moons: noise=\$\{seed\} is no default"),
    "taken": (changed("noise=0.1", "limit=1, noise=0.1"), r"the option limit is one of the program's own.*my_limit"),
    "machine": (changed("noise=0.1", "root_of=1, noise=0.1"), r"the option root_of is one of the program's own"),
    "in init": (changed("super()", "super().nothing\n        super()"), r":11, in __init__: AttributeError"),
    "no super": (
        changed("        super().__init__()\n", ""),
        r":11, in __init__: AttributeError: cannot assign module",
    ),
    "no parameters": (changed("self.hidden =", "hidden =", "self.out =", "out ="), r"it has no parameters to train"),
    "lazy": (changed("nn.Linear(math.prod(in_shape), ", "nn.LazyLinear("), r"lazy layers have no weights yet"),
    "no module": (
        changed(TABLE, 'MODELS = {"my_net": lambda a, b: 3}'),
        r"it returns a value of type int. Allowed: a torch",
    ),
    "in forward": (changed(FORWARD, "self.out(x)"), r":16, in forward: RuntimeError: mat1 and mat2 shapes cannot"),
    "shape": (
        changed(FORWARD, HIDDEN),
        r":10: .*\(4, 2\) give float32 of shape \(4, 32\). Allowed: .*\(4, 2\)",
    ),
    "in training": (changed(FORWARD, f"[{FORWARD}] if self.training else {FORWARD}"), r"give a value of type list"),
    "nothing": (changed(f"return {FORWARD}", "pass"), r"inputs of shape \(4, 2\) give None"),
    "detached": (changed(FORWARD, f"{FORWARD}.detach()"), r":10: model=my_net: the gradient of the loss cannot"),
    "data": (changed(RETURN, "raise OSError('a\\nb')\n    return (x, y), "), r", in moons: OSError: a b"),
    "data exit": (changed(RETURN, "raise SystemExit\n    return (x, y), "), r", in moons: it ends the program"),
    "in the loss": (changed(CROSS, "return y_hat - y"), r", in my_loss: RuntimeError: The size of tensor"),
    "vector": (
        changed(CROSS, "return y_hat[:, 0]"),
        r"loss=my_loss: it returns float32 of shape \(4,\). Allowed: a tens",
    ),
    "float": (changed(CROSS, "return 1.0"), r"it returns a value of type float"),
    "constant": (
        changed(CROSS, "return torch.zeros(())"),
        r"my_net.py:\d+: loss=my_loss: the gradient of the loss cannot",
    ),
    "sum": (changed(CROSS, "return y_hat.square().sum()"), r"twice as large. Allowed: the mean"),
    "in place": (
        changed(
            f"return {FORWARD}", "h = self.hidden(x).exp()\n        y = self.out(h)\n        h += 1\n        return y"
        ),
        r"model=my_net and .*loss=my_loss: the gradient of the loss cannot be computed: .*inplace operation",
    ),
    "one example": (
        changed(
            FORWARD,
            "self.bn(self.out(torch.relu(self.hidden(x))))",
            "self.out =",
            "self.bn = nn.BatchNorm1d(2)\n        self.out =",
        ),
        r"batch_size=71 leaves a last batch of one example",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_message(mistake: str, cli: Cli, my_net: Path, tmp_path: Path) -> None:
    text, said = MISTAKES[mistake]
    my_net.write_text(text)
    outcome = cli(*MINE, *QUICK, "loss=my_loss", "batch_size=71", "name=a")
    assert outcome.code == 2, outcome.err
    assert re.match(f"error: (?=.*my_net.py|batch).*{said}", outcome.err), outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "outputs/a").exists()


def test_a_mistake_that_shows_in_the_middle_of_training_ends_the_run(cli: Cli, my_net: Path, tmp_path: Path) -> None:
    late = "if not self.training and torch.is_inference_mode_enabled(): raise {}\n        return "
    for error, said in {"ValueError('no')": "ValueError: no", "SystemExit": "it ends the program"}.items():
        my_net.write_text(changed(f"return {FORWARD}", late.format(error) + FORWARD))
        outcome = cli(*MINE, *QUICK, "name=a", "overwrite=true")
        assert outcome.code == 1
        assert outcome.err.startswith(f"error: my_net.py:16, in forward: {said}")
        assert json.loads((tmp_path / "outputs/a/status.json").read_text())["state"] == "failed"
    my_net.write_text("print('hello')\n" + NET)
    assert cli(*MINE, *QUICK, "name=a", "overwrite=true").out.startswith("hello\n")


def test_a_buffer_that_the_gradient_depends_on_is_no_mistake(cli: Cli, my_net: Path) -> None:
    buffer = 'self.register_buffer("scale", torch.ones(num_outputs))\n        self.out ='
    my_net.write_text(changed(FORWARD, f"{FORWARD} * self.scale", "self.out =", buffer))
    outcome = cli(*MINE, *QUICK)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("plugins=[my_nett.py]", "plugins=[my_nett.py]: there is no such file. Did you mean my_net.py?"),
        ("plugins=[my_net]", "its name does not end in .py"),
        ("plugins=[folder.py]", "it is a folder"),
        ("plugins=[.]", "it is a folder"),
        ("plugins=[my_net.py,other.py]", "model=my_net is there already"),
        ("plugins=[my_net.py] plugins=[my_net.py]", "plugins is given twice"),
    ],
)
def test_what_is_no_such_file_is_refused(word: str, said: str, cli: Cli, my_net: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()
    shutil.copy(my_net, tmp_path / "other.py")
    assert_refused(cli(*word.split(), "model=my_net", "data=moons", as_typed=True), said)


def test_paths_as_they_are_typed(cli: Cli, my_net: Path, tmp_path: Path) -> None:
    assert paths_of("[a.py, 'b c.py']") == ["a.py", "b c.py"]
    assert as_word(["a.py", "b c.py"]) == "plugins=[a.py,'b c.py']"
    assert typed_in(["x=1", "+plugins=a.py", "plugins=[b.py,a.py]"]) == ["a.py", "b.py"]
    (tmp_path / "a folder").mkdir()
    shutil.move(my_net, tmp_path / "a folder" / "my_net.py")
    for word in (
        "plugins=[a folder/my_net.py]",
        "plugins=a folder/my_net.py",
        f"plugins=['{tmp_path}/a folder/my_net.py']",
    ):
        outcome = cli(word, *MINE[1:], *QUICK)
        assert outcome.code == 0, outcome.err


def test_files_beside_it_are_found_and_read_anew(cli: Cli, my_net: Path, tmp_path: Path) -> None:
    folder = tmp_path / "nets"
    folder.mkdir()
    shutil.move(my_net, folder / "my_net.py")
    (folder / "my_net.py").write_text(
        f"from beside_it import WIDTH\n{NET}".replace("num_hiddens=32", "num_hiddens=WIDTH")
    )
    before = [*sys.path]
    for width in (5, 67):
        (folder / "beside_it.py").write_text(f"WIDTH = {width}\n")
        assert f"model.num_hiddens={width} " in cli("help", "plugins=[nets/my_net.py]", "model=my_net").out
    (folder / "beside_it.py").write_text("WIDTH = 1 / 0\n")
    assert_refused(cli("plugins=[nets/my_net.py]", *MINE[1:]), "ZeroDivisionError")
    assert sys.path == before
    assert "beside_it" not in sys.modules


PAIR = (np.zeros((4, 2)), np.array([0, 1, 0, 1]))


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, "it returns a NoneType"),
        (PAIR, "it returns a tuple of 2"),
        ((PAIR, PAIR, PAIR, PAIR), "it returns a tuple of 4"),
        ((PAIR, (PAIR[0], PAIR[1][:3])), "test has 4 x and 3 y"),
        (((PAIR[0][:0], PAIR[1][:0]), PAIR), "train has 0 x and 0 y"),
        ((PAIR, (PAIR[0][:, :1], PAIR[1])), r"different shapes: train \(4, 2\) and \(4,\), test \(4, 1\) and \(4,\)"),
        ((PAIR, (PAIR[0], PAIR[1] + 1)), "train go to 1, those of all parts to 2"),
        (((PAIR[0], PAIR[1] - 1), PAIR), "y of train has the class -1"),
        (((PAIR[0], PAIR[1] * 0), PAIR), "the classes of train go to 0"),
        (((PAIR[0], PAIR[1] * 0.5), PAIR), r'for a regression write TASKS = \{"mine": "regression"\}'),
        (
            ((PAIR[0] + np.nan, PAIR[1]), PAIR),
            "x of train has 8 values that are NaN or infinite, the first in",
        ),
        (((["a"] * 4, PAIR[1]), PAIR), "x of train is not numbers"),
        (((None, PAIR[1]), PAIR), "x of train is not numbers"),
        (((PAIR[0] * 1j, PAIR[1]), PAIR), "x of train is complex"),
        (((PAIR[0][0], PAIR[1]), PAIR), r"x of train is float64 of shape \(2,\)"),
        (((np.zeros((4, 3, 5, 5)), PAIR[1]), PAIR), r"float64 of shape \(4, 3, 5, 5\).*\(x \* 255\)"),
        (((np.zeros((4, 5, 5, 2), np.uint8), PAIR[1]), PAIR), r"uint8 of shape \(4, 5, 5, 2\)"),
    ],
)
def test_data_that_is_not_as_it_has_to_be_is_refused(returned: object, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^my.py:3: data=mine: .*{said}"):
        source_given(returned, "my.py:3: data=mine", classes=True)


def test_data_of_each_kind_becomes_a_source() -> None:
    rows = source_given((PAIR, PAIR, PAIR), "", classes=True)
    assert (rows.in_shape, rows.classes, rows.mean, rows.ignores) == ((2,), ("0", "1"), (), ("normalize",))
    assert rows.val is not None
    assert rows.train.x.dtype == torch.float32
    assert rows.train.y.dtype == torch.int64
    assert source_given((PAIR, PAIR), "", classes=True).sha256 != rows.sha256
    again = source_given([[torch.tensor(each) for each in PAIR]] * 3, "", classes=True)
    assert again.sha256 == rows.sha256
    target = source_given(((PAIR[0], PAIR[1] * 0.5), PAIR), "", classes=False)
    assert target.classes == ()
    assert target.train.y.shape == (4, 1)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    for x in (pixels, torch.tensor(pixels).permute(0, 3, 1, 2)):
        images = source_given(((x, PAIR[1]), (x, PAIR[1])), "", classes=True)
        assert images.in_shape == (3, 5, 6)
        assert images.mean == pytest.approx(pixels.mean((0, 1, 2)) / 255)
        assert torch.equal(images.train.x[1, 2], torch.tensor(pixels[1, :, :, 2]))
    grey = source_given(((pixels[..., 0], PAIR[1]), (pixels[..., 0], PAIR[1])), "", classes=True)
    assert grey.in_shape == (1, 5, 6)


def test_a_regression_and_images_of_ones_own_are_trained_on(cli: Cli, my_net: Path) -> None:
    line = "def line():\n    x = torch.randn(50, 1)\n    return (x, 3 * x[:, 0]), (x, 3 * x[:, 0])\n"
    dots = "def dots(n=40):\n    x = torch.randint(0, 256, (n, 8, 8, 3), dtype=torch.uint8)\n"
    dots += "    y = (x[:, 0, 0, 0] > 127).long()\n    return (x, y), (x, y)\n"
    my_net.write_text(f'{NET}{line}{dots}DATA = {{"line": line, "dots": dots}}\nTASKS = {{"line": "regression"}}\n')
    outcome = cli(WORD, "data=line", "plots=true", "epochs=30", "optimizer.lr=0.3")
    assert outcome.code == 0, outcome.err
    assert re.search(r"model=linreg loss=mse(.|\n)*test: loss \d\.\d+e-", outcome.out)
    outcome = cli(
        WORD, "data=dots", "model=convnet", "model.layers=[conv4x3,fc8]", "epochs=1", "data.augment=flip", "name=b"
    )
    assert outcome.code == 0, outcome.err
    assert Path("outputs/b/plots/predictions.png").is_file()
    assert_refused(cli(WORD, "data=dots", "data.normalize=[[0.5],[0.5]]", "epochs=1"), "images of 3 channels")
