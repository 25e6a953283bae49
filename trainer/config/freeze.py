"""From composed or saved settings to one frozen Config: every name, type and range is checked here.

A saved config is plain data and is checked against the same tables; it never passes through OmegaConf again, so nothing
in it is ever resolved.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from trainer.config.fit import check_fit
from trainer.config.options import check_value, defaults_of, flatten, unknown_key
from trainer.config.ranges import as_yaml
from trainer.config.roles import OF_THE_COMMAND
from trainer.config.schema import BUILT, GROUPS, Choice, Config
from trainer.utils.errors import ConfigError, listed


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
        raise ConfigError(f"choices={as_yaml(choices)}: a saved config names one choice for each of {listed(GROUPS)}.")
    defaults = defaults_of(choices)
    given = flatten({k: v for k, v in plain.items() if k != "choices"})
    for key in given:
        if key not in defaults:
            raise unknown_key(key, choices)
    flat = {key: check_value(key, given.get(key, default), default) for key, default in defaults.items()}
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
