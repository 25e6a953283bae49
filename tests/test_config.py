"""Settings: every YAML file against the tables and signatures, what is refused, and which value wins."""

import inspect
import json
import re
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache, partial
from itertools import cycle, product
from math import inf, nan
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from conftest import Cli, assert_refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.build import LOSSES, OPTIMIZERS
from trainer.commands import train
from trainer.config.freeze import from_dict
from trainer.config.options import (
    CONFIGS,
    check_value,
    choices_of,
    defaults_of,
    flatten,
    group_choices,
    load_yaml,
    run_settings,
)
from trainer.config.ranges import RANGES, FilePath
from trainer.config.schema import BUILT, GROUPS, Config
from trainer.config.tasks import REGRESSION, TASK_OF_DATA, TASKS_OF
from trainer.data import DATASETS
from trainer.models import MODELS
from trainer.run.machine import set_up
from trainer.schedules import SCHEDULES
from trainer.utils.errors import ConfigError

TABLES = {"data": DATASETS, "model": MODELS, "loss": LOSSES, "optimizer": OPTIMIZERS, "schedule": SCHEDULES}
PICTURE_SETS = ("mnist", "fashion_mnist", "cifar10", "folder", "shards")
PICTURE_MODELS = ("softmax", "lenet", "convnet", "cifarnet", "resnet18", "resnet34", "timm", "torchvision")
# written by hand from the contract: linreg is for regression, mlp for both, the others for classification
FITTING = (
    {(data, model) for data in ("synthetic", "random") for model in ("linreg", "mlp")}
    | {(data, "mlp") for data in PICTURE_SETS}
    | set(product(PICTURE_SETS, PICTURE_MODELS))
    | set(product(["table"], ["linreg", "mlp", *PICTURE_MODELS]))  # what its target is decides when it is read
)


def options_of(group: str, name: str) -> dict[str, Any]:
    loaded = load_yaml(CONFIGS / group / f"{name}.yaml")
    return loaded["data"] if group == "data" else loaded


@cache
def every_setting() -> list[tuple[str, Any]]:
    """(dotted key, default) of config.yaml and of every choice; a key of several choices comes several times."""
    found = list(run_settings().items())
    for group in GROUPS:
        for name in choices_of(group):
            found += [(f"{group}.{option}", value) for option, value in options_of(group, name).items()]
    return found


def plain(nodes: dict[str, Any] | None = None, **choices: str) -> dict[str, Any]:
    """A saved config that names its choices and, but for the settings in `nodes`, nothing else."""
    settled = settled_for(choices.get("data", "synthetic")) | choices
    needed = {name: {"root": "pictures"} for name in ("folder", "shards")}
    needed |= {"table": {"path": "houses.csv", "target": "price"}}
    own = {"data": needed[settled["data"]]} if settled["data"] in needed else {}
    return {"choices": settled} | own | (nodes or {})


@cache
def settled_for(data: str) -> dict[str, str]:
    return group_choices({"data": data})


@pytest.fixture
def composed(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Config]]:
    """The configs that a command line would train with, one for each job; nothing is trained."""
    found: list[Config] = []

    def note(config: Config, stop: object, **_: object) -> tuple[str, float]:
        found.append(config)
        return "a", 0.0

    monkeypatch.setattr(train, "train", note)

    def run(*words: str) -> list[Config]:
        found.clear()
        outcome = cli(*words)
        assert outcome.code == 0, outcome.err
        return list(found)

    return run


# the files against each other


def test_rglob_sees_every_file() -> None:
    found = {path.relative_to(CONFIGS).parts[0] for path in CONFIGS.rglob("*.yaml")}
    assert {"config.yaml", *GROUPS, "recipe", "experiment"} <= found
    in_groups = [path for path in CONFIGS.rglob("*.yaml") if path.relative_to(CONFIGS).parts[0] in GROUPS]
    assert len(in_groups) == sum(len(table) for table in TABLES.values()) + len(("auto", "cpu", "cuda", "mps"))
    assert len(in_groups) >= 28


def test_the_tables_hold_the_names_of_the_yaml_files() -> None:
    for group, table in TABLES.items():
        assert set(table) == set(choices_of(group)), group
    assert set(TASK_OF_DATA) == set(choices_of("data"))
    assert set(TASKS_OF) == {"model", "loss"}
    for group, tasks in TASKS_OF.items():
        assert set(tasks) == set(choices_of(group))
    assert set(choices_of("device")) == {"auto", "cpu", "cuda", "mps"}


def keywords(function: Callable[..., Any]) -> set[str]:
    return {name for name, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}


@pytest.mark.parametrize("name", choices_of("model"))
def test_options_of_a_model_are_its_keywords(name: str) -> None:
    assert set(options_of("model", name)) - {"weights"} == keywords(MODELS[name])


@pytest.mark.parametrize("name", choices_of("loss"))
def test_options_of_a_loss_are_its_keywords(name: str) -> None:
    assert set(options_of("loss", name)) == keywords(LOSSES[name])


@pytest.mark.parametrize("name", choices_of("schedule"))
def test_options_of_a_schedule_are_its_keywords(name: str) -> None:
    assert set(options_of("schedule", name)) == keywords(SCHEDULES[name]) - {"steps_per_epoch", "total_steps"}


@pytest.mark.parametrize("name", choices_of("optimizer"))
def test_options_of_an_optimizer_are_keywords_of_torch(name: str) -> None:
    optimizer = OPTIMIZERS[name]
    optimizer = optimizer.func if isinstance(optimizer, partial) else optimizer
    known = inspect.signature(optimizer).parameters
    options = dict(options_of("optimizer", name))
    assert (options.pop("decay_all"), options.pop("vector_lr")) == (True, 1.0)  # build.py makes groups of them
    for option, value in options.items():
        default = known[option].default
        if option != "lr":  # ours are those of the notes and of the papers
            assert value == (list(default) if isinstance(default, tuple) else default), option


@pytest.mark.parametrize("name", choices_of("data"))
def test_options_of_a_data_set_are_its_keywords_and_the_common_ones(name: str) -> None:
    common = {"val_fraction", "split_seed", "order_seed", "drop_last", "limit", "eval_limit"}
    common |= {"size"} if name in PICTURE_SETS else set()
    common |= {"normalize", "augment", "mixup", "cutmix", "first_sizes", "balance"} if name in PICTURE_SETS else set()
    common |= {"resident"} if name in PICTURE_SETS and name != "shards" else set()
    common |= {"workers"} if name in ("folder", "shards") else {"expand"} if name in PICTURE_SETS else set()
    common |= {"balance"} if name == "table" else set()
    of_the_tests = {"digests", "archive_sha256", "known"}  # and what a checkpoint gives
    assert set(options_of("data", name)) == keywords(DATASETS[name]) - of_the_tests | common


@pytest.mark.parametrize("name", choices_of("device"))
def test_options_of_a_device_are_keywords_of_set_up(name: str) -> None:
    not_for_it = set() if name == "cuda" else {"index"}
    assert set(options_of("device", name)) == keywords(set_up) - not_for_it


def test_config_fields_are_the_settings_of_config_yaml() -> None:
    hints = get_type_hints(Config)
    names: list[str] = []
    for field in fields(Config):
        node = hints[field.name]
        inner = [f"{field.name}.{f.name}" for f in fields(node)] if is_dataclass(node) else [field.name]
        names += inner if field.name not in (*GROUPS, "typed", "recipes") else []
        names += [f"{field.name}.impl"] if field.name in BUILT else []
    assert sorted(names) == sorted(run_settings())


def option_lines(path: Path) -> list[str]:
    """The lines that set an option: not those of `defaults:` and `hydra:`, node names, or what data brings along."""
    kept, node = [], ""
    for line in path.read_text().splitlines():
        if match := re.match(r"(\w+):", line):
            node = match[1]
        is_option = re.match(r" *\w+: +[^ #]", line)
        if is_option and node not in ("defaults", "hydra") and (path.parent.name != "data" or line.startswith(" ")):
            kept.append(line)
    return kept


def test_every_option_line_carries_a_comment() -> None:
    paths = [CONFIGS / "config.yaml", *(path for group in GROUPS for path in (CONFIGS / group).glob("*.yaml"))]
    lines = [(path.name, line) for path in paths for line in option_lines(path)]
    assert len(lines) == len(every_setting())
    for name, line in lines:
        assert re.search(r"\S +# *\S", line), f"{name}: {line}"


def test_every_default_keeps_its_own_rule() -> None:
    for key, default in every_setting():
        assert check_value(key, default, default) == default, key


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def test_every_number_has_a_range() -> None:
    for key, default in every_setting():
        items = default if isinstance(default, list) else [default]
        if any(is_number(item) for item in items):
            assert key in RANGES, key


def test_every_range_belongs_to_a_setting() -> None:
    assert set(RANGES) <= {key for key, _ in every_setting()}


def test_every_recipe_and_experiment_keeps_the_rules() -> None:
    known = dict(every_setting())
    paths = [*(CONFIGS / "recipe").rglob("*.yaml"), *(CONFIGS / "experiment").rglob("*.yaml")]
    assert len(paths) >= 30
    for path in paths:
        values = flatten({key: value for key, value in load_yaml(path).items() if key not in ("defaults", "hydra")})
        assert values, path
        for key, value in values.items():
            assert key in known, f"{path}: {key}"
            check_value(key, value, known[key])


@pytest.mark.parametrize("path", sorted((CONFIGS / "recipe").rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_is_named_after_choices_and_sets_their_options_only(path: Path) -> None:
    group = path.parent.name
    data = max((name for name in choices_of("data") if path.stem.startswith(f"{name}_")), key=len)
    model, _, choice = path.stem.removeprefix(f"{data}_").partition("_")
    assert (data, model) in FITTING
    allowed = {"epochs", "batch_size", "monitor", "data", "model"}
    if group != "recipe":
        assert choice in choices_of(group)
        allowed = {group}
    loaded = load_yaml(path)
    assert set(loaded) <= allowed
    own = group_choices({"data": data, "model": model} | ({group: choice} if group != "recipe" else {}))
    assert set(flatten(loaded)) <= set(defaults_of(own))


# from_dict


@pytest.mark.parametrize(("data", "model"), list(product(choices_of("data"), choices_of("model"))))
def test_models_are_refused_for_the_wrong_task(data: str, model: str) -> None:
    saved = plain(data=data, model=model)
    if (data, model) in FITTING:
        assert from_dict(saved).model.name == model
    else:
        with pytest.raises(ConfigError, match=f"model={model} does not fit data={data}.*Allowed: model=.*mlp"):
            from_dict(saved)


@pytest.mark.parametrize(("data", "loss"), list(product(choices_of("data"), choices_of("loss"))))
def test_losses_are_refused_for_the_wrong_task(data: str, loss: str) -> None:
    saved = plain(data=data, model="mlp", loss=loss)
    for_both = loss in ("quadratic", "sigmoid_cross_entropy", "auto")  # of sigmoids: for labels, and targets in [0, 1]
    if data == "table" or for_both or (TASK_OF_DATA[data] == REGRESSION) == (loss in ("mse", "l1", "huber")):
        assert from_dict(saved).loss.name == loss
    else:
        with pytest.raises(ConfigError, match=f"loss={loss} does not fit data={data}"):
            from_dict(saved)


@pytest.mark.parametrize(("data", "model"), sorted(FITTING))
def test_a_config_survives_json(data: str, model: str) -> None:
    nodes: dict[str, Any] = {"seed": 2**63 - 1, "optimizer": {"lr": 0.1 + 0.2}, "stop_at": {"val_loss": 1e-17}}
    nodes |= {"data": {"val_fraction": 0.1}} if data == "random" else {}
    names = zip(choices_of("optimizer"), cycle(choices_of("schedule")), strict=False)
    for optimizer, schedule in names if data in ("synthetic", "mnist") else [("adamw", "onecycle")]:
        config = from_dict(plain(nodes, data=data, model=model, optimizer=optimizer, schedule=schedule))
        assert from_dict(json.loads(json.dumps(config.to_dict()))) == config
        assert config.optimizer["lr"] == 0.1 + 0.2
        assert config.seed == 2**63 - 1
        assert config.stop_at.val_loss == 1e-17


def test_a_missing_setting_takes_its_default() -> None:
    saved = plain(data="mnist", model="mlp")
    choices = {f"choices.{group}": name for group, name in saved["choices"].items()}
    assert flatten(from_dict(saved).to_dict()) == defaults_of(saved["choices"]) | choices


def test_numbers_take_the_type_of_their_rule() -> None:
    config = from_dict(plain({"optimizer": {"lr": 1}, "data": {"w": [2, 3], "b": 1}}))
    assert isinstance(config.optimizer["lr"], float)
    assert [type(w) for w in config.data["w"]] == [float, float]
    assert isinstance(config.epochs, int)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ({"epoch": 3}, "epoch is not a setting. Did you mean epochs?"),
        ({"optimizer": {"lrr": 3}}, "optimizer.lrr is not a setting. Did you mean optimizer.lr?"),
        ({"optimizer": {"betas": [0.9, 0.9]}}, "optimizer.betas is no option of optimizer=sgd"),
        ({"save": {"every_step": 3}}, "save.every_step is not a setting. Did you mean save.every_steps?"),
        ({"typed": ["seed"]}, "typed is not a setting"),
        ({"recipes": []}, "recipes is not a setting"),
        ({"hydra": {"run": {"dir": "x"}}}, "hydra.run.dir is not a setting"),
        ({"_target_": "antigravity"}, "_target_ is not a setting"),
        ({"model": {"_target_": "antigravity"}}, "model._target_ is not a setting"),
        ({"optimizer": {"lr": {"_target_": "antigravity"}}}, "optimizer.lr._target_ is not a setting"),
        ({"paths": {"data": "${oc.env:HOME}"}}, "paths.data=${oc.env:HOME}"),
        ({"name": "${oc.env:HOME}"}, "name=${oc.env:HOME}"),
        ({"seed": "${oc.env:HOME}"}, "seed=${oc.env:HOME}"),
        ({"paths": 3}, "paths"),
        ({"optimizer": 3}, "optimizer"),
        ({"optimizer": {"lr": (0.1,)}}, "optimizer.lr=(0.1,)"),
        ({"data": {"w": (2.0, 3.0)}}, "data.w=(2.0, 3.0)"),
        ({"data": {"w": [2.0, "3"]}}, "data.w="),
        ({"data": {"w": [[2.0]]}}, "data.w="),
        ({"resume_allow": [3]}, "resume_allow=[3]"),
        ({"resume_allow": "seed"}, "resume_allow=seed"),
    ],
    ids=str,
)
def test_a_saved_config_is_refused(nodes: dict[str, Any], message: str) -> None:
    before = set(sys.modules)
    with pytest.raises(ConfigError) as refusal:
        from_dict(plain(nodes))
    assert message in str(refusal.value)
    assert "antigravity" not in set(sys.modules) - before


@pytest.mark.parametrize(
    "choices",
    [
        None,
        "synthetic",
        {},
        {"data": "synthetic"},
        dict.fromkeys(GROUPS, 3),
        {group: ["mlp"] for group in GROUPS},
        group_choices({}) | {"callbacks": "all"},
        group_choices({}) | {"model": "lenet5"},
        group_choices({}) | {"model": "../model/mlp"},
        group_choices({}) | {"optimizer": "os.system"},
        group_choices({}) | {"loss": ""},
    ],
    ids=str,
)
def test_choices_that_are_no_choices_are_refused(choices: Any) -> None:
    with pytest.raises(ConfigError):
        from_dict({"choices": choices})


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ({"optimizer": {"nesterov": True}}, "optimizer.nesterov=true needs optimizer.momentum above 0"),
        ({"early_stopping": {"patience": 2}, "data": {"val_fraction": 0}}, "need validation data"),
        ({"stop_at": {"val_loss": 0.1}, "data": {"val_fraction": 0}}, "need validation data"),
        ({"stop_at": {"val_accuracy": 0.1}}, "only losses"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_are_refused(nodes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        from_dict(plain(nodes))
    assert message in str(refusal.value)


def test_betas_are_two() -> None:
    for betas, good in (([0.9], False), ([0.9, 0.99], True), ([0.9, 0.99, 0.999], False), ([], False)):
        saved = plain({"optimizer": {"betas": betas}}, optimizer="adam")
        if good:
            assert from_dict(saved).optimizer["betas"] == betas
        else:
            with pytest.raises(ConfigError, match=re.escape("optimizer.betas=")):
                from_dict(saved)


# no bad value gets past check

BELOW, ABOVE = "below", "above"


def bad_bounds(comment: str) -> list[tuple[str, float, bool]]:
    """What a comment in a YAML file says a number must not be: (side, bound, whether the bound itself is bad)."""
    number = r"(-?[\d.]+)"
    if "or a count" in comment:  # a share or a whole number: no upper bound
        return [(BELOW, 0.0, False)]
    if match := re.search(rf"([\[(]){number}, {number}([\])])", comment):
        return [(BELOW, float(match[2]), match[1] == "("), (ABOVE, float(match[3]), match[4] == ")")]
    if match := re.search(rf"{number} to {number}", comment):
        return [(BELOW, float(match[1]), False), (ABOVE, float(match[2]), False)]
    if match := re.search(rf"above {number}", comment):
        return [(BELOW, float(match[1]), True)]
    if match := re.search(rf"(?:>= {number}|{number} or more)", comment):
        return [(BELOW, float(match[1] or match[2]), False)]
    if re.search(r"share|fraction|accuracy", comment):
        return [(BELOW, 0.0, False)]
    return []


def comments() -> dict[str, str]:
    """The comment of each setting, by dotted key; where choices differ, any one of them."""
    found: dict[str, str] = {}
    for path in (CONFIGS / "config.yaml", *(p for group in GROUPS for p in (CONFIGS / group).glob("*.yaml"))):
        group = path.parent.name if path.parent != CONFIGS else ""
        node = ""
        for line in path.read_text().splitlines():
            if match := re.match(r"(\w+):\s*(#.*)?$", line):
                node = match[1]
            elif match := re.match(r"( *)(\w+):[^#]*# *(.*)", line):
                prefix = f"{group}." if group else f"{node}." if match[1] else ""
                found[prefix + match[2]] = match[3]
    return found


COMMENTS = comments()
NEVER_NEGATIVE = {  # comments that say so in words only
    *("save.every_steps", "save.every_seconds", "early_stopping.patience", "early_stopping.min_delta"),
    *("record.histograms_every", "stop_at.train_loss", "stop_at.train_accuracy", "stop_at.val_loss"),
    "stop_at.val_accuracy",
}
NULL_BY_DEFAULT = {  # what kind of value a null stands for
    "max_steps": 1,
    "data.limit": 1,
    "data.eval_limit": 1,
    "data.size": 8,
    "data.order_seed": 0,
    "finetune.unfreeze_epoch": 2,
    "reference.value": 1.0,
    "record.histograms_every": 0,
    "model.init_std": 1.0,
    "model.start": 1.0,
    **dict.fromkeys(("stop_at.train_loss", "stop_at.train_accuracy", "stop_at.val_loss", "stop_at.val_accuracy"), 1.0),
}
NOT_NUMBERS = [
    "abc",
    "",
    "1",
    "0.5",
    "nan",
    "null",
    True,
    False,
    [],
    [1],
    ["a"],
    {},
    {"a": 1},
    (1,),
    b"1",
    1j,
    object(),
]
FAR_OUT = [nan, inf, -inf, 1e300, -1e300, 10**30, -(10**30)]


def bad_numbers(key: str, whole: bool) -> st.SearchStrategy[Any]:
    kinds = [st.sampled_from(FAR_OUT), st.sampled_from(NOT_NUMBERS)]
    bounds = bad_bounds(COMMENTS.get(key, "")) or ([(BELOW, 0.0, False)] if key in NEVER_NEGATIVE else [])
    for side, bound, is_bad in bounds:
        low, high = (None, bound) if side == BELOW else (bound, None)
        kinds.append(
            st.floats(low, high, exclude_min=side == ABOVE and not is_bad, exclude_max=side == BELOW and not is_bad)
        )
        beyond = int(bound) - 1 if side == BELOW else int(bound) + 1
        kinds.append(st.integers(max_value=beyond) if side == BELOW else st.integers(min_value=beyond))
    if whole:
        kinds.append(st.floats(0, 1000).filter(lambda value: not value.is_integer()))
    return st.one_of(kinds)


def bad_values(key: str, default: Any) -> st.SearchStrategy[Any]:
    """Values that the setting must never take, by its default and the comment beside it."""
    if key == "logger":  # it takes null, a word and an empty list
        return st.sampled_from(["", "tensorbord", 3, True, {}, ["csv", "csv"], ["csv", "aim"], [None], [["csv"]]])
    word = r"[\w.]+"
    if key == "data.normalize":
        return st.sampled_from(
            [
                "Own",
                "",
                1,
                True,
                None,
                [],
                [0.5],
                [0.5, 0],
                [0.5, -1],
                [0.5, nan],
                [0.5, "a"],
                [0, 1, 2],
                [[0.5, 0.5, 0.5], [0.5, 0.5, 0]],
                [[], []],
                [[[0.5]], 0.5],
                {},
                (0.5, 0.5),
            ]
        )
    if key in ("data.resident", "device.channels_last", "sweep.stack", "plots", "report"):
        return st.sampled_from(["yes", "", 1, 0, 1.0, None, [], [True], {}])
    if isinstance(default, bool):
        return st.sampled_from([None, 0, 1, 0.0, "true", "false", "", "yes", [], [True], {}])
    if isinstance(default, list):
        inner = bad_numbers(key, isinstance(default[0], int) and key == "model.num_hiddens") if default else None
        if inner is None:
            return st.sampled_from([None, "seed", 3, True, [3], [None], [""], {}, ("seed",)])
        return st.one_of(
            inner.filter(lambda value: not isinstance(value, list)).map(lambda value: [value] * len(default)),
            st.sampled_from([None, 1.0, "abc", {}, (0.5, 0.5), [[0.5, 0.5]]]),
            st.just([] if key != "model.layers" else [""]),  # a convnet of no layers is a softmax regression
        )
    number = NULL_BY_DEFAULT.get(key, default)
    if is_number(number) and key != "data.channels":
        bad = bad_numbers(key, isinstance(number, int) and key not in ("save.every_seconds", "data.max_megapixels"))
        return bad if default is None else st.one_of(bad, st.none())
    if key == "data.channels":
        return st.sampled_from([0, 2, 4, -1, 1.0, 3.0, "3", True, None, [3]])
    allowed = set(re.findall(rf"(?:^|\| |: ){word}", COMMENTS.get(key, "")))
    allowed = allowed if key in RANGES and not isinstance(RANGES[key], FilePath) else set()
    bad_texts = st.sampled_from(["", 3, 0.5, True, [], ["a"], {}, (), "${oc.env:HOME}", "a${x}"])
    if key == "input":  # it takes lists
        bad_texts = bad_texts.filter(lambda value: value != ["a"])
    if allowed:
        return st.one_of(bad_texts, st.text(min_size=1).filter(lambda text: text not in COMMENTS[key]))
    return bad_texts if default is None else st.one_of(bad_texts, st.none())


@settings(max_examples=600, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_no_bad_value_gets_past_check(draw: st.DataObject) -> None:
    key, default = draw.draw(st.sampled_from(every_setting()))
    value = draw.draw(bad_values(key, default))
    with pytest.raises(ConfigError) as refusal:
        check_value(key, value, default)
    assert str(refusal.value).startswith(f"{key}=")
    assert "Allowed: " in str(refusal.value)


@pytest.mark.parametrize("key", ["seed", "optimizer.lr"])
def test_a_whole_number_beyond_every_float_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}=1000"):
        check_value(key, 10**400, dict(every_setting())[key])


def test_the_fuzz_knows_the_bound_of_nearly_every_number() -> None:
    numbers = {key for key, value in every_setting() if is_number(NULL_BY_DEFAULT.get(key, value))}
    without = {key for key in numbers if not bad_bounds(COMMENTS.get(key, "")) and key not in NEVER_NEGATIVE}
    assert without <= {"data.b", "data.channels", "data.depth", "model.start", "reference.value"}


# which value wins

SGD = {"decay_all": True, "vector_lr": 1.0}


def test_a_group_wins_over_the_defaults(composed: Callable[..., list[Config]]) -> None:
    (config,) = composed("model=mlp")
    assert (config.data.name, config.loss.name) == ("synthetic", "mse")
    assert config.model.options == options_of("model", "mlp")


def test_what_the_data_set_brings_wins_over_the_defaults(composed: Callable[..., list[Config]]) -> None:
    (config,) = composed("data=cifar10", "recipe=none")
    chosen = (config.model.name, config.loss.name, config.optimizer.name, config.schedule.name)
    assert chosen == ("resnet34", "cross_entropy", "sgd", "onecycle")
    assert (config.epochs, config.batch_size) == (10, 128)
    assert config.optimizer.options == options_of("optimizer", "sgd")
    assert config.recipes == []


def test_a_recipe_wins_over_the_data_set(composed: Callable[..., list[Config]]) -> None:
    (config,) = composed("data=cifar10")
    assert config.epochs == 30
    assert config.optimizer.options == SGD | {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0005}
    assert config.schedule["warmup_fraction"] == 0.2
    assert config.model["zero_init_residual"] is True
    assert [path.partition("/")[2] for path in config.recipes] == [
        "recipe/cifar10_resnet34.yaml",
        "recipe/optimizer/cifar10_resnet34_sgd.yaml",
        "recipe/schedule/cifar10_resnet34_onecycle.yaml",
    ]


def test_an_experiment_wins_over_a_recipe(composed: Callable[..., list[Config]]) -> None:
    (config,) = composed("experiment=pytorch_book_cifar")
    assert (config.data.name, config.model.name, config.schedule.name) == ("cifar10", "lenet", "constant")
    assert (config.epochs, config.batch_size) == (2, 4)  # the recipe says 20 and 128
    assert config.optimizer["lr"] == 0.001  # the recipe says 0.05
    assert config.data["normalize"] == [0.5, 0.5]


def test_the_command_line_wins_over_everything(composed: Callable[..., list[Config]]) -> None:
    words = (
        "optimizer.lr=0.3",
        "epochs=7",
        "schedule=step",
        "model=mlp",
        "data.augment=shift",
        "experiment=pytorch_book_cifar",
    )
    (config,) = composed(*words)
    assert (config.model.name, config.schedule.name) == ("mlp", "step")
    assert (config.optimizer["lr"], config.epochs, config.data["augment"]) == (0.3, 7, "shift")
    assert config.batch_size == 4


def test_a_recipe_for_sgd_is_not_applied_to_adam(composed: Callable[..., list[Config]]) -> None:
    (config,) = composed("data=cifar10", "optimizer=adam", "schedule=cosine")
    assert config.optimizer.options == options_of("optimizer", "adam")
    assert config.schedule.options == options_of("schedule", "cosine")
    assert config.epochs == 30  # what was tuned for the pair of data and model stays


def test_the_book_experiment_on_cifar10_has_no_weight_decay(composed: Callable[..., list[Config]]) -> None:
    (config,) = composed("experiment=pytorch_book_cifar")  # pytorch-book, ch. 2: SGD(lr=0.001, momentum=0.9)
    assert config.optimizer.options == SGD | {"lr": 0.001, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0}


def test_each_job_of_a_multirun_has_the_same_precedence(composed: Callable[..., list[Config]]) -> None:
    words = ("data=synthetic,cifar10", "optimizer=sgd,adam")
    swept = composed("-m", *words, "name=s")
    alone = [
        composed(data, optimizer)[0]
        for data, optimizer in product(("data=synthetic", "data=cifar10"), ("optimizer=sgd", "optimizer=adam"))
    ]
    assert [config.to_dict() | {"name": None, "resume": None} for config in swept] == [c.to_dict() for c in alone]
    assert [config.optimizer["lr"] for config in swept] == [0.03, 0.001, 0.05, 0.001]
    assert [config.epochs for config in swept] == [3, 3, 30, 30]


def test_an_experiment_wins_in_each_job_of_a_multirun(composed: Callable[..., list[Config]]) -> None:
    found = composed("-m", "experiment=pytorch_book_cifar,d2l_linreg", "seed=1,2", "optimizer.momentum=0.5")
    assert [(c.data.name, c.epochs, c.seed) for c in found] == [
        ("cifar10", 2, 1),
        ("cifar10", 2, 2),
        ("synthetic", 5, 1),
        ("synthetic", 5, 2),
    ]
    assert {c.optimizer["momentum"] for c in found} == {0.5}


def test_recipe_none_holds_in_each_job_of_a_multirun(composed: Callable[..., list[Config]]) -> None:
    found = composed("-m", "recipe=none", "data=mnist,cifar10")
    assert [(c.epochs, c.optimizer["lr"], c.recipes) for c in found] == [(10, 0.1, []), (10, 0.1, [])]


def test_pairs_compose_in_a_multirun_or_fail_as_one_job(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[str, str]] = []

    def note(config: Config, stop: object, **_: object) -> tuple[str, float]:
        found.append((config.data.name, config.model.name))
        return "a", 0.0

    monkeypatch.setattr(train, "train", note)
    outcome = cli("-m", "data=synthetic,mnist", f"model={','.join(choices_of('model'))}", "name=a")
    assert outcome.code == 1
    assert sorted(found) == sorted(pair for pair in FITTING if pair[0] in ("synthetic", "mnist"))
    assert outcome.err.count("does not fit data=") == 2 * len(MODELS) - len(found)


def test_cfg_job_prints_the_settings_of_a_command(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("data=mnist", "epochs=7", "--cfg", "job")
    assert outcome.code == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(outcome.out)
    loaded = load_yaml(printed)
    assert (loaded["epochs"], loaded["batch_size"], loaded["optimizer"]["lr"]) == (7, 256, 0.1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["printed.yaml"]
    assert_refused(cli("--cfg", "jbo", "seed=7", as_typed=True), "--cfg jbo is not allowed. Allowed: --cfg job,")
