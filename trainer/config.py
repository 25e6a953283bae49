"""From YAML and command line to one frozen Config: every name, type and range is checked here,
before torch is imported.

A group's YAML file is the list of its options, the type of a default is the type of the option, and RANGES says what
else a value has to fulfil. A saved config is plain data and is checked against the same tables; it never passes
through OmegaConf again, so nothing in it is ever resolved.
"""

import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from trainer.ranges import (
    IMPLS_OF,
    OF_LAUNCHERS,
    RANGES,
    REGRESSION,
    TASK_OF_DATA,
    TASKS_OF,
    OneOf,
    Range,
    Rule,
    Text,
    shown,
)
from trainer.utils.errors import ConfigError, listed, nearest

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
# settings that belong to a command and are never taken from what an earlier one saved
OF_THE_COMMAND = (
    *("resume", "resume_allow", "checkpoint", "input", "split", "plots"),
    *("paths.outputs", "paths.checkpoints", "paths.cache"),
)
GROUPS = ("data", "model", "loss", "optimizer", "schedule", "device")
BUILT = ("model", "loss", "optimizer")  # from a library that impl= chooses


@dataclass(frozen=True)
class Choice:
    """What was chosen from a group, and its options: config.model.name, config.model["pooling"]."""

    name: str
    options: Mapping[str, Any]
    impl: str | None = None  # model, loss, optimizer: the library it comes from; None: Config.impl

    def __getitem__(self, option: str) -> Any:
        return self.options[option]


@dataclass(frozen=True)
class Save:
    """When checkpoints are written besides the end of each epoch; 0 is never."""

    every_steps: int
    every_seconds: float


@dataclass(frozen=True)
class EarlyStopping:
    """Stop after `patience` epochs without a validation metric better by more than min_delta; 0 is never."""

    patience: int
    min_delta: float


@dataclass(frozen=True)
class StopAt:
    """Stop after the epoch in which a metric reaches its value; None is never."""

    train_loss: float | None
    train_accuracy: float | None
    val_loss: float | None
    val_accuracy: float | None


@dataclass(frozen=True)
class Sweep:
    """How the runs of a sweep are trained; stack is auto, True or False."""

    stack: str | bool


@dataclass(frozen=True)
class Record:
    """What goes to TensorBoard how often."""

    every_steps: int
    histograms_every: int


@dataclass(frozen=True)
class Paths:
    """The four folders a run touches, relative to where the program was started."""

    data: str
    outputs: str
    checkpoints: str
    cache: str


@dataclass(frozen=True)
class Reference:
    """A published figure and where it stands."""

    source: str | None
    metric: str | None
    value: float | None


@dataclass(frozen=True)
class Config:
    """All settings of a run; configs/config.yaml says what each one means."""

    data: Choice
    model: Choice
    loss: Choice
    optimizer: Choice
    schedule: Choice
    device: Choice
    name: str | None
    seed: int
    epochs: int
    batch_size: int
    accumulate_steps: int
    clip_norm: float
    ema_decay: float
    overfit_batches: int
    fast_dev_run: bool
    sync_batch_norm: bool
    impl: str
    resume: str | None
    resume_allow: Sequence[str]
    checkpoint: str | None
    input: str | None
    split: str
    init_from: str | None
    plots: str | bool  # auto, True or False
    save: Save
    early_stopping: EarlyStopping
    stop_at: StopAt
    sweep: Sweep
    record: Record
    paths: Paths
    reference: Reference
    typed: Sequence[str] = field(default=(), compare=False)  # dotted keys named on the command line, groups by name
    recipes: Sequence[str] = field(default=(), compare=False)  # the files of tuned values that were found

    def impls(self) -> dict[str, str]:
        """The library that model, loss and optimizer come from."""
        return {part: getattr(self, part).impl or self.impl for part in BUILT}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and checkpoints: settings nested as in YAML, and the group choices under `choices`."""
        plain = asdict(self)
        del plain["typed"], plain["recipes"]
        choices = {group: plain[group]["name"] for group in GROUPS}
        impls = {group: {"impl": plain[group]["impl"]} if group in BUILT else {} for group in GROUPS}
        return plain | {group: impls[group] | plain[group]["options"] for group in GROUPS} | {"choices": choices}


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of ours as plain data."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path)))


@cache
def choices_of(group: str) -> tuple[str, ...]:
    """The names that can be chosen in a group, from its YAML files."""
    return tuple(sorted(path.stem for path in (CONFIGS / group).glob("*.yaml")))


def check_choice(group: str, name: str) -> None:
    """Refuse a name that the group does not have."""
    if name not in choices_of(group):
        hint = " A list needs -m in front." if "," in name else nearest(name, choices_of(group))
        raise ConfigError(f"{group}={name}: there is no such {group}.{hint} Choices: {listed(choices_of(group))}.")


@cache
def _options_of(group: str, name: str) -> Mapping[str, Any]:
    check_choice(group, name)
    loaded = load_yaml(CONFIGS / group / f"{name}.yaml")
    return types.MappingProxyType(loaded["data"] if group == "data" else loaded)


@cache
def run_settings() -> Mapping[str, Any]:
    """The settings that belong to no group, by dotted name, with their defaults."""
    loaded = load_yaml(CONFIGS / "config.yaml")
    return types.MappingProxyType(flatten({k: v for k, v in loaded.items() if k not in ("defaults", "hydra")}))


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"save": {"every_steps": 0}} -> {"save.every_steps": 0}; nested deeper than any setting stays as it is."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        deeper = isinstance(value, Mapping) and prefix.count(".") < 2  # a stranger's dict may hold itself
        flat |= flatten(value, f"{prefix}{key}.") if deeper else {f"{prefix}{key}": value}
    return flat


def settle(typed: Mapping[str, str]) -> dict[str, str]:
    """The group choices that Hydra arrives at: the defaults, what data and experiment bring, and what was typed."""

    def chosen(path: Path) -> dict[str, str]:
        entries = load_yaml(path).get("defaults", []) if path.is_file() else []
        named = [item for entry in entries if isinstance(entry, dict) for item in entry.items()]
        return {key.split()[-1].lstrip("/"): value for key, value in named}

    experiment = chosen(CONFIGS / "experiment" / f"{typed.get('experiment')}.yaml")
    choices = chosen(CONFIGS / "config.yaml") | experiment | dict(typed)
    choices |= chosen(CONFIGS / "data" / f"{choices['data']}.yaml") | experiment | dict(typed)
    return {group: choices[group] for group in GROUPS}


def engines(typed: Mapping[str, str]) -> dict[str, str]:
    """What chooses the jobs of a multirun (hydra/sweeper) and what runs them (hydra/launcher); basic: nothing special.

    Args:
        typed: {group: choice}; an experiment may bring its own.
    """
    path = CONFIGS / "experiment" / f"{typed.get('experiment')}.yaml"
    brought = load_yaml(path).get("defaults", []) if path.is_file() else []
    named = {key.split()[-1].lstrip("/"): value for entry in brought for key, value in entry.items()}
    return {key: typed.get(key, named.get(key, "basic")) for key in ("hydra/sweeper", "hydra/launcher")}


def defaults_of(choices: Mapping[str, str]) -> dict[str, Any]:
    """Every dotted key that exists under these group choices, with its default."""
    flat = dict(run_settings())
    for group in GROUPS:
        flat |= flatten(_options_of(group, choices[group]), f"{group}.")
    return flat


def all_keys() -> set[str]:
    """Every dotted key of any choice, and the groups: what a typo is compared with."""
    keys = set(run_settings()) | {*GROUPS, "experiment", "recipe"}
    return keys.union(*(flatten(_options_of(g, name), f"{g}.") for g in GROUPS for name in choices_of(g)))


def unknown_key(key: str, choices: Mapping[str, str] | None = None) -> ConfigError:
    """The refusal of a key that does not exist, or not under these choices."""
    group = key.split(".")[0]
    owners = [
        name
        for name in (choices_of(group) if group in GROUPS else ())
        if key in flatten(_options_of(group, name), f"{group}.")
    ]
    if owners and choices is not None:
        own = listed([f"{group}.{option}" for option in _options_of(group, choices[group])]) or "none"
        return ConfigError(
            f"{key} is no option of {group}={choices[group]} (it belongs to {listed(owners)}). Its options: {own}."
        )
    hint = nearest(key, all_keys())
    if not hint and choices is not None and group in GROUPS:
        hint = f" Options of {group}={choices[group]}: {listed(sorted(_options_of(group, choices[group])))}."
    return ConfigError(f"{key} is not a setting.{hint or ' python main.py --help lists them.'}")


def check(key: str, value: Any, default: Any) -> Any:
    """The value of one setting in its final type.

    Raises:
        ConfigError: wrong type, not finite, or out of range; names key, value and what is allowed.
    """
    rule = RANGES.get(key) or (OneOf((True, False)) if isinstance(default, bool) else Text())
    try:
        if value is None:
            if default is not None:
                raise ValueError
            return None
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(t, str) and "${" in t for t in texts):  # resolved, it could carry a secret into saved files
            raise ConfigError(f"{key}={shown(value)}: ${{...}} is not resolved here. Allowed: the value itself.")
        if isinstance(default, list):
            return _list(value, rule)
        return rule(value)
    except (ValueError, OverflowError):  # a whole number can be too large for a float
        allowed = f"a list, each of {rule}" if isinstance(default, list) else str(rule)
        allowed += " or null" if default is None and "null" not in allowed else ""
        hint = nearest(shown(value), [str(w) for w in rule.words]) if isinstance(rule, OneOf) else ""
        raise ConfigError(f"{key}={shown(value)} is not allowed.{hint} Allowed: {allowed}.") from None


def check_hydra_option(group: str, choice: str, option: str, value: str) -> None:
    """Refuse an option that a sweeper or launcher does not have, or a value that RANGES does not allow.

    Args:
        group: hydra/sweeper or hydra/launcher.  choice: one of its files.  value: as typed.
    """
    options = flatten(load_yaml(CONFIGS / group / f"{choice}.yaml"))
    known = sorted(name for name in options if name[0] != "_")
    if option not in known:
        raise ConfigError(
            f"{option} is no option of {group}={choice}.{nearest(option, known)} Its options: {listed(known)}."
        )
    if group == "hydra/launcher" and option in OF_LAUNCHERS and not (value == "null" and options[option] is None):
        try:
            OF_LAUNCHERS[option](int(value))
        except ValueError:
            raise ConfigError(
                f"hydra.launcher.{option}={value} is not allowed. Allowed: {OF_LAUNCHERS[option]}."
            ) from None


def _list(value: Any, rule: Rule) -> list[Any]:
    if not isinstance(value, list) or (
        isinstance(rule, Range) and (len(value) != rule.length if rule.length else not value)
    ):
        raise ValueError
    return [rule(item) for item in value]


def from_dict(plain: Mapping[str, Any], typed: Iterable[str] = ()) -> Config:
    """Check plain nested data (a saved config, or what Hydra composed) and freeze it.

    Args:
        plain: settings nested as in YAML, and `choices`: {group: name}. A missing setting takes its default.
        typed: the dotted keys that the user named.
    Raises:
        ConfigError: any name, type, range or combination is off.
    """
    choices = plain.get("choices")
    if (
        not isinstance(choices, Mapping)
        or set(choices) != set(GROUPS)
        or not all(isinstance(v, str) for v in choices.values())
    ):
        raise ConfigError(f"choices={shown(choices)}: a saved config names one choice for each of {listed(GROUPS)}.")
    defaults = defaults_of(choices)
    given = flatten({k: v for k, v in plain.items() if k != "choices"})
    for key in given:
        if key not in defaults:
            raise unknown_key(key, choices)
    flat = {key: check(key, given.get(key, default), default) for key, default in defaults.items()}
    impls = {group: flat.pop(f"{group}.impl") for group in BUILT}
    values: dict[str, Any] = {
        group: Choice(choices[group], _frozen_options(flat, group), impls.get(group)) for group in GROUPS
    }
    settings = [f for f in fields(Config) if f.name not in (*GROUPS, "typed", "recipes")]
    values |= {f.name: _node(cast(type, f.type), flat, f.name) for f in settings}
    config = Config(**values, typed=tuple(typed))
    check_fit(config)
    return config


def _frozen_options(flat: Mapping[str, Any], group: str) -> Mapping[str, Any]:
    return {key.removeprefix(f"{group}."): value for key, value in flat.items() if key.startswith(f"{group}.")}


def _node(kind: type, flat: Mapping[str, Any], name: str) -> Any:
    if name in flat:
        return flat[name]
    return kind(**{f.name: flat[f"{name}.{f.name}"] for f in fields(kind)})


def freeze(
    composed: DictConfig, choices: Mapping[str, str], typed: Sequence[str], saved: Mapping[str, Any] | None = None
) -> Config:
    """What Hydra composed as a frozen Config.

    Args:
        composed: Hydra's result.  choices: {group: name}, as Hydra settled them.
        typed: dotted keys and groups named on the command line.
        saved: the plain config of the checkpoint or run that is gone on with: it gives every value that was not typed.
    Raises:
        ConfigError: as from_dict.
    """
    plain = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=False))
    plain["choices"] = {group: choices[group] for group in GROUPS}
    if saved is None:
        return from_dict(plain, typed)
    flat = flatten(plain)
    merged = flatten({k: v for k, v in saved.items() if k != "choices"})
    merged_choices = dict(saved["choices"])
    for key in typed:
        if key in GROUPS:  # another choice brings all its options
            merged_choices[key] = choices[key]
            merged_before = merged
            merged = {k: v for k, v in merged.items() if k.split(".")[0] != key}
            old = merged_before if key == "device" else {}  # cpu, cuda: the same precision and layout
            merged |= {k: old.get(k, v) for k, v in flat.items() if k.startswith(f"{key}.")}
        elif key in flat and not (key.startswith("device.") and flat[key] == "auto"):  # what it came to stays
            merged[key] = flat[key]
    if "impl" in typed:  # for all parts that were not typed one by one
        merged |= {f"{part}.impl": flat[f"{part}.impl"] for part in BUILT}
    if "checkpoint" in typed:  # eval and predict build no optimizer: the file's need not be in the library
        merged["optimizer.impl"] = "concise"
    merged |= {key: flat[key] for key in OF_THE_COMMAND}
    return from_dict(_nested(merged) | {"choices": merged_choices}, typed)


def with_values(composed: DictConfig, values: Mapping[str, Any], choices: Mapping[str, str]) -> DictConfig:
    """A copy of what Hydra composed, with other values for these keys and without Hydra's own settings.

    Raises:
        ConfigError: a key is no option of these choices.
    """
    copy = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    for key, value in values.items():
        if key not in defaults_of(choices):
            raise unknown_key(key, choices)
        OmegaConf.update(copy, key, value)
    return copy


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        node, _, leaf = key.rpartition(".")
        (nested.setdefault(node, {}) if node else nested)[leaf] = value
    return nested


def needs_validation(config: Config) -> bool:
    """Whether a setting cannot work without validation data."""
    stop_at = config.stop_at
    return bool(config.early_stopping.patience) or stop_at.val_loss is not None or stop_at.val_accuracy is not None


def check_fit(config: Config) -> None:
    """Refuse settings that are fine alone but not together.

    Raises:
        ConfigError: names both settings and the choices that fit.
    """
    task = TASK_OF_DATA[config.data.name]
    for group, choice in (("model", config.model), ("loss", config.loss)):
        if task not in TASKS_OF[group][choice.name]:
            fit = listed([name for name, tasks in TASKS_OF[group].items() if task in tasks])
            raise ConfigError(
                f"{group}={choice.name} does not fit data={config.data.name}, which is {task}. Allowed: {group}={fit}."
            )
    check_impl(config)
    if config.optimizer.options.get("nesterov") and not config.optimizer["momentum"]:
        raise ConfigError(
            "optimizer.nesterov=true needs optimizer.momentum above 0, for example optimizer.momentum=0.9."
        )
    model = config.model.options
    if model.get("bias_std") and (model["init_std"] == "torch" or not model["bias"]):
        reason = "model.bias=false leaves them out" if not model["bias"] else "model.init_std=torch draws them itself"
        raise ConfigError(f"model.bias_std={model['bias_std']:g} is for the initial biases, but {reason}. Allowed: 0.")
    if config.data.name == "folder" and not config.data["root"]:
        raise ConfigError("data=folder needs data.root=<folder of class folders>.")
    val_fraction = config.data["val_fraction"]
    if val_fraction >= 1 and val_fraction != int(val_fraction):
        raise ConfigError(
            f"data.val_fraction={val_fraction} is not allowed. Allowed: [0, 1), or a whole number from 1 on."
        )
    no_val = val_fraction == 0 and config.data.name != "folder"  # a folder may bring its own
    if no_val and needs_validation(config):
        raise ConfigError("early_stopping.patience and stop_at.val_* need validation data: data.val_fraction above 0.")
    if not 0 <= config.schedule.options.get("warmup_epochs", 0) < config.epochs:
        warmup = f"schedule.warmup_epochs={config.schedule['warmup_epochs']:g}"
        raise ConfigError(f"{warmup} is not allowed: it must be below epochs={config.epochs}.")
    if task == REGRESSION and (config.stop_at.train_accuracy is not None or config.stop_at.val_accuracy is not None):
        raise ConfigError(
            f"stop_at.*_accuracy does not fit data={config.data.name}: {task} has only losses to stop at."
        )


def check_impl(config: Config) -> None:
    """Refuse what a hand-written library does not have, or a way of computing that it does not know.

    Raises:
        ConfigError: names the setting, the reason and what is allowed instead.
    """
    impls = config.impls()
    named = {part: f"{part}.impl" if getattr(config, part).impl else "impl" for part in BUILT}
    for part, impl in impls.items():
        key, name = named[part], getattr(config, part).name
        there = ("concise", *IMPLS_OF[part].get(name, ()))
        if impl not in there:
            alone = f" {part}.impl=concise takes the {part} alone from torch."
            alone = "" if part == "model" or key != "impl" else alone
            raise ConfigError(f"{key}={impl} does not have {part}={name}. Allowed: {key}={listed(there)}.{alone}")
    if impls["model"] == "numpy" and config.model.options.get("batch_norm"):
        raise ConfigError("model.batch_norm=true: impl=numpy has none. Allowed: impl=scratch, autograd or concise.")
    options, device = config.device.options, config.device.name
    for part, impl in impls.items():
        said = f"{named[part]}={impl}"
        if impl == "numpy" and device in ("cuda", "mps"):
            raise ConfigError(f"device={device}: {said} computes on the CPU. Allowed: device=cpu, device=auto.")
        if impl != "concise" and options["precision"] in ("bf16", "fp16"):
            what = f"device.precision={options['precision']}: {said} computes in one type, without autocast."
            raise ConfigError(f"{what} Allowed: device.precision=fp32, fp64.")
        if impl != "concise" and options["compile"]:
            raise ConfigError(f"device.compile=true: {said} shows each step as it is written. Allowed: false.")
    said = f"{named['model']}={impls['model']}"
    if impls["model"] != "concise" and options["channels_last"] is True and "device.channels_last" in config.typed:
        raise ConfigError(f"device.channels_last=true would do nothing with {said}. Allowed: auto, false.")
    if impls["model"] == "numpy" and options["matmul"] == "onednn" and "device.matmul" in config.typed:
        raise ConfigError(f"device.matmul=onednn would do nothing with {said}. Allowed: auto, torch.")
