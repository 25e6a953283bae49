"""Which settings exist, and which values each one takes.

A group's YAML file in configs/ is the list of its options, the type of a default is the type of the option, and RANGES
limits the values further.
"""

import copy
import importlib.util
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from trainer.config.loggers import LOGGERS, Loggers
from trainer.config.ranges import AUGMENTS, OF_LAUNCHERS, RANGES, TEXT, OneOf, Range, Rule, Steps, as_yaml
from trainer.config.schema import GROUPS
from trainer.utils.errors import ConfigError, close_to, did_you_mean, listed, nearest
from trainer.utils.program import main_py

# names that other programs have
MEANT = {("device", "gpu"): "cuda", ("device", "metal"): "mps", ("schedule", "none"): "constant"}
TYPED = (*GROUPS, "experiment", "recipe", "seeds")  # what is typed and is no setting
MAX_ITEMS = 1000  # of a list: a model of that many layers is built in half a second
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@dataclass(frozen=True)
class Plugged:
    """A choice that a file of plugins= brings."""

    text: str  # what its file in configs/ would say
    rules: Mapping[str, Rule]  # what each of its own options takes
    origin: str  # the file and line, for messages


PLUGGED: dict[Path, Plugged] = {}  # by the path that the file would have; empty without plugins=


def text_of_yaml(path: Path) -> str:
    """What a file of configs/ says, or would say of a choice that plugins= brings."""
    return PLUGGED[path].text if path in PLUGGED else path.read_text(encoding="utf-8")


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of configs/ as plain data, with nothing resolved."""
    return copy.deepcopy(_parsed(text_of_yaml(path)))


@cache  # parsing takes up to a hundredth of a second, and a command reads some files several times
def _parsed(text: str) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(text)))


@cache
def choices_of(group: str) -> tuple[str, ...]:
    """The names that can be chosen in a group, from its YAML files and from plugins=."""
    plugged = [path for path in PLUGGED if path.parent == CONFIGS / group]
    return tuple(sorted(path.stem for path in (*(CONFIGS / group).glob("*.yaml"), *plugged)))


def origin_of(group: str, name: str) -> str:
    """The file and line of a choice that plugins= brings; "" where it is the program's own."""
    path = CONFIGS / group / f"{name}.yaml"
    return PLUGGED[path].origin if path in PLUGGED else ""


def plugged_rules(choices: Mapping[str, str]) -> dict[str, Rule]:
    """What the options take that plugins= brings with these choices, by dotted name."""
    paths = {group: CONFIGS / group / f"{name}.yaml" for group, name in choices.items()}
    found = {group: PLUGGED[path].rules for group, path in paths.items() if path in PLUGGED}
    return {f"{group}.{name}": rule for group, rules in found.items() for name, rule in rules.items()}


def check_choice(group: str, name: str) -> None:
    """Refuse a name that the group does not have."""
    if name in choices_of(group):
        return
    meant = MEANT.get((group, name.lower())) or next(iter(close_to(name, choices_of(group))), "")
    if group == "model" and name.lower() in of_torchvision():
        meant = f"torchvision model.arch={name.lower()}"
    hint = did_you_mean([f"{group}={meant}"] if meant else [])
    if "," in name:
        hint, meant = " A list needs -m in front.", ""
    said = f"{group}={name}: there is no such {group}.{hint} Choices: {listed(choices_of(group))}."
    raise ConfigError(said).instead(group, name, meant)


@cache
def of_torchvision() -> frozenset[str]:
    """The names of torchvision's classification models, read from its source: importing it takes seconds."""
    found = importlib.util.find_spec("torchvision")
    folders = [Path(path, "models") for path in (found.submodule_search_locations or ())] if found else []
    texts = [path.read_text(encoding="utf-8") for folder in folders for path in folder.glob("*.py")]
    return frozenset(name for text in texts for name in re.findall(r"^def ([a-z]\w+)\(\*, weights", text, re.MULTILINE))


def _options_of(group: str, name: str) -> Mapping[str, Any]:
    check_choice(group, name)
    path = CONFIGS / group / f"{name}.yaml"
    return _options_in(path, PLUGGED[path].text if path in PLUGGED else "")


@cache
def _options_in(path: Path, _text: str) -> Mapping[str, Any]:
    loaded = load_yaml(path)
    # A data set's file also brings settings of the run (epochs, batch_size), so its own options are one level deeper.
    return types.MappingProxyType(loaded["data"] if path.parent.name == "data" else loaded)


@cache
def run_settings() -> Mapping[str, Any]:
    """The settings that belong to no group, by dotted name, with their defaults."""
    loaded = load_yaml(CONFIGS / "config.yaml")
    return types.MappingProxyType(flatten({k: v for k, v in loaded.items() if k not in ("defaults", "hydra")}))


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"save": {"every_steps": 0}} -> {"save.every_steps": 0}; nested deeper than any setting stays as it is."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        deeper = isinstance(value, Mapping) and prefix.count(".") < 2  # an untrusted dict may contain itself
        flat |= flatten(value, f"{prefix}{key}.") if deeper else {f"{prefix}{key}": value}
    return flat


def _defaults_in(path: str) -> dict[str, str]:
    """The group choices in the defaults list of a YAML file of configs/; none where there is no such file."""
    is_there = CONFIGS / path in PLUGGED or (CONFIGS / path).is_file()
    return _named_in(load_yaml(CONFIGS / path)) if is_there else {}


def _named_in(loaded: Mapping[str, Any]) -> dict[str, str]:
    named = [item for entry in loaded.get("defaults", []) if isinstance(entry, dict) for item in entry.items()]
    return {key.split()[-1].lstrip("/"): value for key, value in named}  # "override /model" -> "model"


def group_choices(typed: Mapping[str, str]) -> dict[str, str]:
    """The group choices that Hydra arrives at: the defaults, what data and experiment bring, and what was typed.

    Without Hydra, whose import takes a tenth of a second: a refusal is not worth that.
    """
    experiment = _defaults_in(f"experiment/{typed.get('experiment')}.yaml")
    choices = _defaults_in("config.yaml") | experiment | dict(typed)
    # The experiment and what was typed choose the data set, and then override what it brings: applied twice.
    choices |= _defaults_in(f"data/{choices['data']}.yaml") | experiment | dict(typed)
    return {group: choices[group] for group in GROUPS}


def experiment_settings(name: str) -> dict[str, Any]:
    """What an experiment sets, by dotted name; its choices as `choices.model`. What it sweeps over is left out."""
    loaded = load_yaml(CONFIGS / f"experiment/{name}.yaml")
    own = flatten({key: value for key, value in loaded.items() if key not in ("defaults", "hydra")})
    chosen = {f"choices.{group}": choice for group, choice in _named_in(loaded).items() if group in GROUPS}
    lists = _lists_in(loaded)
    return {key: value for key, value in (chosen | own).items() if key.removeprefix("choices.") not in lists}


def _lists_in(loaded: Mapping[str, Any]) -> dict[str, str]:
    lists: dict[str, str] = loaded.get("hydra", {}).get("sweeper", {}).get("params", {})
    return lists


def swept_by(experiment: str | None) -> dict[str, str]:
    """{key: list of values} that an experiment sweeps over; none where it brings a sweeper of its own."""
    path = CONFIGS / f"experiment/{experiment}.yaml"
    loaded = load_yaml(path) if path.is_file() else {}
    return {} if "hydra/sweeper" in _named_in(loaded) else _lists_in(loaded)


def chosen_engines(typed: Mapping[str, str]) -> dict[str, str]:
    """What chooses the jobs of a multirun (hydra/sweeper) and what runs them (hydra/launcher); basic: Hydra's own.

    Args:
        typed: {group: choice} of the command line; it wins over what an experiment brings.
    """
    brought = _defaults_in(f"experiment/{typed.get('experiment')}.yaml")
    return {key: typed.get(key, brought.get(key, "basic")) for key in ("hydra/sweeper", "hydra/launcher")}


def defaults_of(choices: Mapping[str, str]) -> dict[str, Any]:
    """Every dotted key that exists under these group choices, with its default."""
    flat = dict(run_settings())
    for group in GROUPS:
        flat |= flatten(_options_of(group, choices[group]), f"{group}.")
    return flat


def any_default(key: str, choices: Mapping[str, str] | None = None) -> Any:
    """The default of a setting, of an option under these choices or under the first one that has it."""
    of_choices = run_settings() if choices is None else defaults_of(choices)
    if key in of_choices:
        return of_choices[key]
    group, _, option = key.partition(".")
    options = [flatten(_options_of(group, name)) for name in choices_of(group)]
    return next((found[option] for found in options if option in found), None)


def all_keys() -> set[str]:
    """Every dotted key of any choice, and the groups."""
    keys = set(run_settings()) | {*TYPED}
    return keys.union(*(flatten(_options_of(g, name), f"{g}.") for g in GROUPS for name in choices_of(g)))


def owners_of(key: str) -> list[str]:
    """The choices of a group that have an option."""
    group = key.split(".")[0]
    names = choices_of(group) if group in GROUPS else ()
    return [name for name in names if key in flatten(_options_of(group, name), f"{group}.")]


def unknown_key(key: str, choices: Mapping[str, str] | None = None) -> ConfigError:
    """The refusal of a key that does not exist, or not under these choices."""
    group = key.split(".")[0]
    owners = owners_of(key)
    if owners and choices is not None:
        own = listed([f"{group}.{option}" for option in _options_of(group, choices[group])]) or "none"
        return ConfigError(
            f"{key} is no option of {group}={choices[group]} (it belongs to {listed(owners)}). Its options: {own}."
        )
    close = close_to(key, all_keys())
    hint = did_you_mean(close)
    if choices is not None and close and close[0] not in {*defaults_of(choices), *TYPED}:
        of = close[0].split(".")[0]
        hint = f" Did you mean {close[0]}? It belongs to {of}={' and '.join(owners_of(close[0]))}."
        close = []
    if not hint and choices is not None and group in GROUPS:
        hint = f" Options of {group}={choices[group]}: {listed(sorted(_options_of(group, choices[group])))}."
    error = ConfigError(f"{key} is not a setting.{hint or f' {main_py()} --help lists them.'}")
    return error.instead(key, "", f"{close[0]}=" if close else "")


def check_value(key: str, value: Any, default: Any, rule: Rule | None = None) -> Any:
    """The value of one setting in its final type.

    Args:
        key: its dotted name.
        value: to check.
        default: of the setting.
        rule: what it takes, where plugins= brings it; None: RANGES says it.
    Raises:
        ConfigError: wrong type, not finite, or out of range; names key, value and what is allowed.
    """
    # every number and every word out of a few is in RANGES: what remains is true, false or free text
    rule = rule or RANGES.get(key) or (OneOf((True, False)) if isinstance(default, bool) else TEXT)
    by_item = isinstance(default, list) and not isinstance(rule, Loggers)
    try:
        if value is None and not isinstance(rule, Loggers):
            if default is not None:
                raise ValueError
            return None
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(t, str) and "${" in t for t in texts):  # resolved, it could carry a secret into saved files
            raise ConfigError(f"{key}={as_yaml(value)}: ${{...}} is not resolved here. Allowed: the value itself.")
        if by_item:
            return [] if value == default == [] else _list(value, rule)
        return rule(value)
    except (ValueError, OverflowError):  # a whole number can be too large for a float
        allowed = (
            f"a list of at most {MAX_ITEMS:,}, each of {rule}"
            if isinstance(default, list) and not isinstance(rule, Loggers)
            else str(rule)
        )
        allowed += " or null" if default is None and "null" not in allowed else ""
        words = (
            rule.words
            if isinstance(rule, OneOf)
            else ("none", *AUGMENTS)
            if isinstance(rule, Steps)
            else LOGGERS
            if isinstance(rule, Loggers)
            else ()
        )
        odd = [item for item in value if item not in words][:1] if isinstance(value, list) and words else [value]
        close = close_to(as_yaml(odd[0]), [as_yaml(w) for w in words]) if odd and words else []
        if isinstance(rule, Range) and rule.whole and isinstance(value, float) and value.is_integer():
            close = [str(int(value))]
        hint = did_you_mean([word if isinstance(value, list) else f"{key}={word}" for word in close[:1]])
        error = ConfigError(f"{key}={as_yaml(value)} is not allowed.{hint} Allowed: {allowed}.")
        raise error.instead(key, as_yaml(odd[0] if close else value), close[0] if close else "") from None


def check_hydra_option(group: str, choice: str, option: str, value: str) -> None:
    """Refuse an option that a sweeper or launcher does not have, or a value that RANGES does not allow.

    Args:
        group: hydra/sweeper or hydra/launcher.
        choice: one of its files.
        option: without hydra.sweeper. in front.
        value: as typed.
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
    if (
        not isinstance(value, list)
        or len(value) > MAX_ITEMS
        or (isinstance(rule, Range) and (len(value) != rule.length if rule.length else not value))
    ):
        raise ValueError
    return [rule(item) for item in value]
