"""From composed or saved settings to one frozen Config: every name, type and range is checked here.

A saved config may come from an untrusted checkpoint. It is plain data, is checked against the same tables as typed
settings, and never passes through OmegaConf again, so that nothing in it is ever resolved.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from trainer.config.fit import check_fit
from trainer.config.options import check_value, defaults_of, flatten, plugged_rules, unknown_key
from trainer.config.plugins import check_plugged, check_unchanged
from trainer.config.ranges import as_yaml
from trainer.config.roles import OF_THE_COMMAND
from trainer.config.schema import BUILT, GROUPS, Choice, Config
from trainer.utils.errors import ConfigError, listed


def from_dict(plain: Mapping[str, Any], typed: Iterable[str] = (), *, complete: bool = True) -> Config:
    """Check plain nested data (a saved config, or what Hydra composed) and freeze it.

    Args:
        plain: settings nested as in YAML, and `choices`: {group: name}. A missing setting takes its default, as in a
            file that an earlier version wrote.
        typed: the dotted keys that were named on the command line.
        complete: nothing is added to them later, so that they have to go together.
    Raises:
        ConfigError: a name, type, range or combination is not allowed.
    """
    choices = plain.get("choices")
    if (
        not isinstance(choices, Mapping)
        or set(choices) != set(GROUPS)
        or not all(isinstance(v, str) for v in choices.values())
    ):
        raise ConfigError(f"choices={as_yaml(choices)}: a saved config names one choice for each of {listed(GROUPS)}.")
    check_plugged(plain)
    defaults, rules = defaults_of(choices), plugged_rules(choices)
    given = flatten({k: v for k, v in plain.items() if k != "choices"})
    try:
        for key in given:
            if key not in defaults:
                raise unknown_key(key, choices)
        flat = {
            key: check_value(key, given.get(key, default), default, rules.get(key)) for key, default in defaults.items()
        }
    except ConfigError as error:
        if not typed:
            check_unchanged(plain, error)
        raise
    impls = {group: flat.pop(f"{group}.impl") for group in BUILT}
    values: dict[str, Any] = {
        group: Choice(choices[group], _frozen_options(flat, group), impls.get(group)) for group in GROUPS
    }
    settings = [f for f in fields(Config) if f.name not in (*GROUPS, "typed", "recipes")]
    values |= {f.name: _node(cast(type, f.type), flat, f.name) for f in settings}
    config = Config(**values, typed=tuple(typed))
    if complete:
        check_fit(config)  # last, since it may rely on each value being allowed alone
    return config


def flat_settings(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved config by dotted name: with defaults for what an earlier version did not know; as it is where damaged."""
    try:
        return flatten(from_dict(saved, complete=False).to_dict())
    except ConfigError:
        return flatten(saved)


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
        composed: Hydra's result.
        choices: {group: name} of that result.
        typed: the dotted keys and groups named on the command line.
        saved: the plain config of the run or file that is started from: it gives the values, but for the rules below.
    Raises:
        ConfigError: as from_dict.
    """
    plain = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=False))
    plain["choices"] = {group: choices[group] for group in GROUPS}
    if saved is None:
        return from_dict(plain, typed)
    now, merged = flatten(plain), flatten({k: v for k, v in saved.items() if k != "choices"})
    merged_choices = {**saved["choices"], **{group: choices[group] for group in GROUPS if group in typed}}
    # a run's own choice typed again is no other choice: it keeps its options, whatever recipe or experiment would bring
    others = [group for group in GROUPS if group in typed and choices[group] != saved["choices"].get(group)]
    _take_groups(merged, now, others)
    for rule in (_take_settings, _spread_impl, _drop_optimizer, _take_the_command_s_own):
        rule(merged, now, typed)
    return from_dict(_nested(merged) | {"choices": merged_choices}, typed)


# How the command line changes a saved config. Each rule edits `merged`, the settings by dotted name; `now` are those
# that Hydra composed from the same command line.


def _take_groups(merged: dict[str, Any], now: Mapping[str, Any], others: Sequence[str]) -> None:
    """Rule 1: another choice of a group replaces all options of the group, since each choice has its own.

    The device keeps what both choices have: cpu and cuda take the same precision and layout, on which results depend.
    """
    for group in others:
        before = {key: merged.pop(key) for key in list(merged) if key.split(".")[0] == group}
        kept = before if group == "device" else {}
        merged |= {key: kept.get(key, value) for key, value in now.items() if key.startswith(f"{group}.")}


def _take_settings(merged: dict[str, Any], now: Mapping[str, Any], typed: Sequence[str]) -> None:
    """Rule 2: a typed setting wins, also over its group, so this comes after rule 1.

    device.*=auto is no new value: the run stays with what auto was when it was started.
    """
    for key in typed:
        if key in now and key not in GROUPS and not (key.startswith("device.") and now[key] == "auto"):
            merged[key] = now[key]


def _spread_impl(merged: dict[str, Any], now: Mapping[str, Any], typed: Sequence[str]) -> None:
    """Rule 3: impl= is for every part without an impl of its own on this command line, whatever was saved for it."""
    if "impl" in typed:
        merged |= {f"{part}.impl": now[f"{part}.impl"] for part in BUILT}


def _drop_optimizer(merged: dict[str, Any], now: Mapping[str, Any], typed: Sequence[str]) -> None:
    """Rule 4, after 3: eval and predict build no optimizer, so that impl= may name a library without the saved one."""
    if "checkpoint" in typed:
        merged["optimizer.impl"] = "concise"


def _take_the_command_s_own(merged: dict[str, Any], now: Mapping[str, Any], typed: Sequence[str]) -> None:
    """Rule 5: what belongs to one command is never inherited: a saved paths.outputs would redirect this command."""
    merged |= {key: now[key] for key in OF_THE_COMMAND if key in now}


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
