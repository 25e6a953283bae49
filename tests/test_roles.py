"""roles.py: each setting has a role, and no command ignores or overwrites a typed one without saying so."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, assert_refused
from omegaconf import OmegaConf

from trainer.commands import compare_impl, evaluate, predict
from trainer.commands.check_resume import shortened
from trainer.config.freeze import freeze, from_dict
from trainer.config.options import all_keys, choices_of, defaults_of, flatten, group_choices, run_settings
from trainer.config.roles import (
    FREE_ON_RESUME,
    IDENTITY,
    NO_EFFECT,
    OF_THE_COMMAND,
    OF_THIS_MACHINE,
    REFUSED,
    ROWS,
    USED,
    USES,
    Role,
    check_typed,
    identifies,
    row_for,
    verdict_on,
)
from trainer.config.schema import BUILT, GROUPS, Config
from trainer.config.verbs import OF_RUNS, VERBS
from trainer.run.target import settings_of_file
from trainer.utils.errors import ConfigError

KEYS = sorted(all_keys() | {f"recipe/{group}" for group in ("optimizer", "schedule")})
QUICK = ("plots=false", "epochs=1")


def test_each_setting_has_a_role() -> None:
    without = [key for key in KEYS if row_for(key) is None]
    assert not without, f"{without}: a new setting needs a line in TABLE of trainer/config/roles.py, with its role"


def test_each_line_of_the_table_is_about_a_setting_and_each_column_about_a_command() -> None:
    assert set(USES) == {*VERBS, "resume", "sweep"} - {*OF_RUNS, "data", "completion"}
    engines = {"hydra/sweeper", "hydra.sweeper.seed", "hydra.sweeper.n_jobs", "hydra.sweeper.n_trials"}
    engines |= {"hydra/launcher", "hydra.launcher.n_jobs"}
    used = {id(row_for(key)) for key in {*KEYS, *engines}}
    assert not [name for name, line in ROWS.items() if id(line) not in used]


@pytest.mark.parametrize("use", USES)
def test_each_command_uses_refuses_or_warns_about_each_setting(use: str) -> None:
    for key in KEYS:
        verdict, _ = verdict_on(use, key, {key: "1"})
        if verdict == REFUSED:
            with pytest.raises(ConfigError, match=rf"^{re.escape(key)}= .*(=|Leave it out|same command again)"):
                check_typed(use, {key: "1"})
            continue
        assert verdict in (USED, NO_EFFECT)
        warned = check_typed(use, {key: "1"})
        assert list(warned) == ([key] if verdict == NO_EFFECT else [])
        assert all(f"has no effect on {use}" in line for line in warned.values())


def every_default() -> dict[str, Any]:
    """Each setting under some choice of its group, with its default."""
    found = dict(run_settings())
    for group in GROUPS:
        for name in choices_of(group):
            found |= defaults_of(group_choices({}) | {group: name})
    return found


FREE_BY_HAND = {
    *(
        "checkpoint",
        "ensemble",
        "input",
        "output",
        "top_k",
        "probabilities",
        "split",
        "tta",
        "resume",
        "resume_allow",
        "overwrite",
        "name",
        "plots",
        "report",
        "plugins",
        "epochs",
        "max_steps",
        "sweep.stack",
    ),
    *("early_stopping.patience", "early_stopping.min_delta", "save.every_steps", "save.every_seconds"),
    *("stop_at.train_loss", "stop_at.train_accuracy", "stop_at.val_loss", "stop_at.val_accuracy"),
    *("record.every_steps", "record.histograms_every", "record.gradients", "logger"),
    *("reference.source", "reference.metric", "reference.value", "reference.tolerance"),
    *("paths.data", "paths.outputs", "paths.checkpoints", "paths.cache", "paths.weights"),
    *("data.mirror", "data.resident", "data.workers", "data.cache_gb"),
    *("device.index", "device.num_threads", "device.deterministic", "choices.device"),
}


def test_what_resume_may_change_is_what_no_result_depends_on() -> None:
    """A fingerprint in an old checkpoint is made of the rest: this set stays as it is."""
    keys = {*every_default(), *(f"choices.{group}" for group in GROUPS)}
    assert {key for key in keys if key.startswith(FREE_ON_RESUME)} == FREE_BY_HAND


REACHING_BY_HAND = {  # beyond the numbers: addresses, folders and files, devices, processes, and what a command is told
    *("data.mirror", "data.root", "data.test_root", "data.path", "data.test_path", "data.workers", "data.resident"),
    "data.cache_gb",
    *("paths.data", "paths.outputs", "paths.checkpoints", "paths.cache", "paths.weights"),
    *("choices.device", "device.index", "device.num_threads", "device.compile", "device.deterministic"),
    *("overwrite", "checkpoint", "ensemble", "input", "output", "split", "tta", "resume", "resume_allow", "plots"),
    *("top_k", "probabilities"),
    "report",
    "logger",
    "plugins",
}


def test_a_checkpoint_chooses_nothing_that_reaches_beyond_the_numbers() -> None:
    """init_from and model.weights are left: a resumed run does not read them again.

    Every other setting is a number, a word or a table's.
    """
    keys = {*every_default(), *(f"choices.{group}" for group in GROUPS)}
    assert {key for key in keys if key.startswith((*OF_THE_COMMAND, *OF_THIS_MACHINE))} == REACHING_BY_HAND
    for data in choices_of("data"):
        choices = group_choices({"data": data}) | {"device": "cuda"}
        saved: dict[str, Any] = {"choices": choices}
        for key in sorted(REACHING_BY_HAND & set(defaults_of(choices))):
            node, _, leaf = key.rpartition(".")
            (saved.setdefault(node, {}) if node else saved)[leaf] = "chosen by the file"
        kept = from_dict(settings_of_file(saved, {}), complete=False)
        assert flatten(kept.to_dict()) == flatten(
            from_dict({"choices": choices | {"device": "auto"}}, complete=False).to_dict()
        )


def test_a_sweep_and_a_study_are_recognised_by_what_their_results_depend_on() -> None:
    assert [what for what in IDENTITY if identifies(what, "optimizer.lr")] == ["sweep", "study", "name"]
    assert [what for what in IDENTITY if identifies(what, "epochs")] == ["study", "name"]
    assert [what for what in IDENTITY if identifies(what, "plots")] == ["name"]
    assert [what for what in IDENTITY if identifies(what, "device.precision")] == ["name"]
    assert not [what for what in IDENTITY if identifies(what, "hydra.sweeper.n_trials")]


# against an independent truth: what freeze takes from whom, what check-resume overwrites, what a command reads

CANDIDATES = [
    "1h",
    [16],
    8,
    True,
    False,
    1,
    2,
    3,
    0.5,
    "a",
    "val",
    "train",
    "none",
    "scratch",
    "fp64",
    "tanh",
    "shift",
    "tf32",
    "test_loss",
    "val_loss",
    "flip",
    "http://x",
    [0.5, 0.5],
    [2],
    ["a"],
    ["csv"],
]


def with_another_value(key: str, choices: dict[str, str]) -> dict[str, Any]:
    """A plain config in which one setting has not its default."""
    node, _, leaf = key.rpartition(".")
    for value in CANDIDATES:
        plain = {node: {leaf: value}} if node else {leaf: value}
        try:
            config = from_dict(plain | {"choices": choices})
        except ConfigError:
            continue
        if flatten(config.to_dict())[key] != defaults_of(choices)[key]:
            return config.to_dict()
    return {}


def test_freeze_takes_the_command_s_own_settings_from_the_command_and_the_others_from_the_saved_config() -> None:
    choices = group_choices({"data": "mnist", "model": "mlp"})
    composed = OmegaConf.create(from_dict({"choices": choices}).to_dict())
    untested = []
    for key, default in defaults_of(choices).items():
        saved = with_another_value(key, choices)
        if not saved:
            untested.append(key)
            continue
        found = flatten(freeze(composed, choices, [], saved).to_dict())[key]
        line = row_for(key)
        assert line is not None
        assert found == (default if line.role is Role.COMMAND else flatten(saved)[key]), key
    # which need a convolution, or weights of others, and have words that no other setting has
    needy = ["whiten", "finetune.freeze", "finetune.unfreeze_epoch"]
    assert untested == [*needy, "reference.metric", "optimizer.nesterov"]  # which need a value, and a momentum


def test_what_check_resume_overwrites_cannot_be_typed_without_an_answer(tmp_path: Path) -> None:
    choices = group_choices({"data": "mnist", "model": "mlp"})
    overwritten = set()
    for key in run_settings():
        saved = with_another_value(key, choices)
        if saved:
            short = flatten(shortened(from_dict(saved), str(tmp_path)).to_dict())
            overwritten |= {name for name, value in short.items() if value != flatten(saved)[name]}
    assert {"plots", "paths.outputs", "save.every_steps", "save.every_seconds"} <= overwritten
    used = {key for key in overwritten if verdict_on("check-resume", key, {key: "1"})[0] == USED}
    assert used <= {"epochs"}  # which is said on the screen


@pytest.mark.parametrize(
    ("verb", "module", "function"),
    [
        ("eval", evaluate, "run_eval"),
        ("predict", predict, "run_predict"),
        ("compare-impl", compare_impl, "run_compare_impl"),
    ],
)
def test_a_setting_without_effect_is_not_read(
    cli: Cli, tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch, verb: str, module: Any, function: str
) -> None:
    read: set[str] = set()
    settings = {f.name for f in fields(Config)} - {*GROUPS, "typed", "recipes"}
    original: Callable[..., None] = getattr(module, function)

    def get(self: Config, name: str) -> Any:
        caller = sys._getframe(1).f_code
        if name in settings and not caller.co_filename.endswith("dataclasses.py"):  # replace() and asdict() read all
            read.add(name)
        return object.__getattribute__(self, name)

    def watched(*args: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Config, "__getattribute__", get)
            original(*args)

    words = ("data=mnist", f"paths.data={tiny_mnist}", "batch_size=50", *QUICK)
    if verb != "compare-impl":
        assert cli("name=a", *words).code == 0
        words = ("checkpoint=a", f"paths.data={tiny_mnist}")
    monkeypatch.setattr(module, function, watched)
    outcome = cli(verb, *words)
    assert outcome.code == 0, outcome.err
    keys = [key for key in run_settings() if key.split(".")[0] in read - {"paths", *BUILT}]
    assert len(keys) >= 3
    assert not [key for key in keys if verdict_on(verb, key, {key: "1"})[0] == NO_EFFECT]


# as a user sees it


def test_check_resume_refuses_what_it_cannot_use(cli: Cli) -> None:
    """What it only warns of: tests/test_check_resume.py."""
    assert_refused(cli("check-resume", "resume_allow=[seed]"), "resume_allow=", "Leave it out")


def test_a_stack_is_for_sweeps(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("name=a", "sweep.stack=true", *QUICK)
    assert outcome.code == 0
    assert "warning: sweep.stack has no effect on train: it is for sweeps (-m)" in outcome.out
    assert "sweep.stack has no effect" in (tmp_path / "outputs/a/train.log").read_text()
    swept = cli("-m", "name=s", "sweep.stack=false", "optimizer.lr=0.1,0.2", *QUICK)
    assert swept.code == 0
    assert "no effect" not in swept.out


def test_what_has_no_effect_on_eval_changes_nothing(cli: Cli, tmp_path: Path) -> None:
    assert cli("name=a", *QUICK).code == 0
    assert cli("eval", "checkpoint=a").code == 0
    path = tmp_path / "outputs/a/eval-synthetic-test.json"
    before = json.loads(path.read_text())
    words = ("loss.form=sum", "model.impl=scratch", "seed=3", "name=b", "experiment=d2l_linreg", "recipe=none")
    outcome = cli("eval", "checkpoint=a", *words)
    assert outcome.code == 0, outcome.err
    assert json.loads(path.read_text())["loss"] == pytest.approx(before["loss"], rel=1e-6)
    for key in ("loss.form", "seed", "name", "experiment", "recipe"):
        assert outcome.out.count(f"warning: {key} has no effect on eval") == 1
    assert "model.impl has no" not in outcome.out
    assert "plots has no effect on eval: it draws nothing" in cli("eval", "checkpoint=a", "plots=true").out


def test_an_experiment_does_not_change_a_run_that_is_resumed(cli: Cli, tmp_path: Path) -> None:
    assert cli("name=a", *QUICK).code == 0
    outcome = cli("resume=a", "epochs=2", "plots=false", "experiment=nielsen_ch1")
    assert outcome.code == 0, outcome.err
    assert "warning: experiment has no effect on resume" in outcome.out
    assert json.loads((tmp_path / "outputs/a/result.json").read_text())["epochs"] == 2
    again = cli("resume=auto", "name=b", "experiment=d2l_linreg", *QUICK)
    assert again.code == 0
    assert "no effect" not in again.out  # there was no such run: it is started


def test_predict_of_files_does_not_read_the_data_set(cli: Cli, tiny_mnist: Path, tmp_path: Path) -> None:
    from PIL import Image

    assert cli("data=mnist", f"paths.data={tiny_mnist}", "batch_size=50", "name=a", *QUICK).code == 0
    Image.new("L", (28, 28)).save(tmp_path / "x.png")
    outcome = cli("predict", "checkpoint=a", "input=x.png", "paths.data=nowhere", "data.limit=3", "plots=false")
    assert outcome.code == 0, outcome.err
    for key in ("paths.data", "data.limit"):
        assert f"warning: {key} has no effect on predict: input= says what is labelled" in outcome.out


@pytest.mark.parametrize("word", ["checkpoint=a", "split=val", "input=x.png", "resume=a"])
def test_a_sweep_refuses_what_is_not_for_training_before_its_first_job(cli: Cli, tmp_path: Path, word: str) -> None:
    assert_refused(cli("-m", "optimizer.lr=0.1,0.2", word, *QUICK), word.split("=")[0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("resume_allow=[seed]",), "resume_allow has no effect on train: resume= is not given"),
        (("fast_dev_run=true", "epochs=7"), "epochs has no effect on train: fast_dev_run=true"),
        (("early_stopping.min_delta=0.1",), "early_stopping.min_delta has no effect on train"),
        (("reference.value=1",), "reference.value has no effect on train"),
    ],
)
def test_train_warns_of_a_setting_that_another_one_makes_void(cli: Cli, words: tuple[str, ...], said: str) -> None:
    outcome = cli("plots=false", *words)
    assert outcome.code == 0, outcome.err
    assert f"warning: {said}" in outcome.out


def test_a_sweep_that_noted_more_settings_is_still_the_same(cli: Cli, tmp_path: Path) -> None:
    words = ("-m", "name=s", "optimizer.lr=0.1,0.2", "data.order_seed=1", *QUICK)
    assert cli(*words, "reference.metric=null").code == 0
    path = tmp_path / "outputs/s/sweep.json"
    content = json.loads(path.read_text())
    assert set(content["made_of"]) == {"optimizer.lr", "data.order_seed"}
    content["made_of"]["reference.metric"] = "null"  # as an earlier version wrote it
    path.write_text(json.dumps(content))
    assert cli(*words).code == 0
    assert_refused(cli(*words[:-2], "seed=3", *QUICK), "seed")
