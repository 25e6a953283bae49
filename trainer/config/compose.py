"""Hydra composes the settings of a command line, and its refusals are put into plain words."""

import contextlib
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from trainer.config.command_line import RECIPES, TYPED_GROUPS, Command, choices_in, split_word
from trainer.config.freeze import freeze, with_values
from trainer.config.options import (
    CONFIGS,
    PLUGGED,
    TYPED,
    any_default,
    check_value,
    defaults_of,
    group_choices,
    load_yaml,
    plugged_rules,
    unknown_key,
)
from trainer.config.plugins import recorded
from trainer.config.schema import Config
from trainer.utils.errors import ConfigError
from trainer.utils.text import emit


def compose(command: Command, words: Sequence[str]) -> tuple[Any, Mapping[str, str]] | None:
    """The settings of one run as Hydra composes them, and its group choices; None where it only printed (--cfg).

    Raises:
        ConfigError: Hydra refused the words.
    """
    if command.flags:
        run_hydra(command, words, lambda _: None)
        return None
    with composing(words) as by_hydra:
        composed = by_hydra(words)
    choices = composed.hydra.runtime.choices
    return with_values(composed, {}, choices), choices


@contextlib.contextmanager
def composing(words: Sequence[str]) -> Iterator[Callable[[Sequence[str]], Any]]:
    """Hydra, ready to compose settings of these words. hydra.main would compose them twice, a tenth of a second each.

    Raises:
        ConfigError: Hydra refused the words.
    """
    import hydra
    from hydra.errors import HydraException

    try:
        with hydra_alone([]), hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
            yield lambda own: hydra.compose("config", overrides=list(own), return_hydra_config=True)
    except HydraException as error:
        raise ConfigError(explain_refusal(error, words)) from None


def run_hydra(command: Command, words: Sequence[str], job: Callable[[Any], Any]) -> None:
    """Let Hydra compose the settings of each job and call `job` with them.

    Raises:
        ConfigError: Hydra refused the words.
    """
    import hydra
    from hydra.errors import HydraException

    typed = [*command.flags, *(["--multirun"] if command.multirun else []), *words]
    printed = io.StringIO()
    try:
        with hydra_alone(typed), contextlib.redirect_stdout(printed) if command.flags else contextlib.nullcontext():
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")(job)()
    except HydraException as error:
        raise ConfigError(explain_refusal(error, words)) from None
    emit(*printed.getvalue().splitlines())  # what --cfg prints: Hydra fails where stdout is closed or full


@contextlib.contextmanager
def hydra_alone(words: Sequence[str]) -> Iterator[None]:
    """Let hydra.main read these words as its command line; at the end, what others set up in Hydra is there again."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    store = ConfigStore.instance()
    for path in PLUGGED:  # a launcher hands these on to its processes
        package = "_global_" if path.parent.name == "data" else None
        store.store(name=path.stem, group=path.parent.name, node=load_yaml(path), package=package)
    alone, own = GlobalHydra.instance(), HydraConfig.instance()
    before = sys.argv, os.environ.get("HYDRA_FULL_ERROR"), alone.hydra, own.cfg
    # hydra.main reads the command line itself; there is no other public way to run sweepers and launchers
    sys.argv = [sys.argv[0], *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints the error and exits with 1
    alone.clear()
    try:
        yield
    finally:
        for path in PLUGGED:
            del store.repo[path.parent.name][path.name]
        GlobalHydra.set_instance(alone)  # initialize_config_dir leaves another
        sys.argv, full, alone.hydra, own.cfg = before
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full


def frozen(
    composed: Any, choices: Mapping[str, str], command: Command, saved: Mapping[str, Any] | None = None
) -> Config:
    """The Config of what Hydra composed from these group choices, with the files of the recipes it found."""
    config = freeze(composed, choices, list(command.values), saved)
    found = [CONFIGS / group / f"{choices[group]}.yaml" for group in RECIPES] if saved is None else []
    recipes = [path.relative_to(CONFIGS.parent).as_posix() for path in found if path.is_file()]
    return replace(config, recipes=recipes, plugins=recorded())


def parse_overrides(words: Sequence[str], loader: Any = None) -> list[Any]:
    """Words parsed by Hydra's grammar; with a loader, glob() finds the choices of a group."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create(config_loader=loader).parse_overrides(list(words))


def each_value(override: Any) -> list[str]:
    """`key=a,b` -> [`key=a`, `key=b`]; ranges, globs and choices too, and one value as a list of one."""
    if not override.is_sweep_override():
        return [override.input_line]
    if getattr(override.value(), "shuffle", False):
        raise ConfigError(f"{override.input_line}: the same command has to find the same jobs. Leave shuffle out.")
    if not override.is_discrete_sweep():
        raise ConfigError(f"{override.input_line}: an interval is not a list. It is for hydra/sweeper=optuna.")
    from hydra.errors import HydraException

    try:
        return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    except (ValueError, HydraException):  # OmegaConf's too: range() among other values, a step of 0
        said = f"{override.input_line}: this list cannot be read"
        raise ConfigError(f"{said}. Allowed: values such as 0,1,2, or one range(0,3) alone.") from None


def leave_out(command: Command, warned: Container[str]) -> Command:
    """The command without settings that have no effect on it, whose values have to be allowed all the same.

    Raises:
        ConfigError: as check_value.
    """
    for override in parse_overrides([word for word in command.overrides if split_word(word)[0] in warned]):
        key = override.get_key_element()
        if "/" not in key and key not in TYPED and not override.is_sweep_override():
            check_value(key, override.value(), any_default(key))
    return command.without(warned)


def check_lists(words: Sequence[str]) -> None:
    """Refuse a sweep with a value that no job can have, before its first job starts.

    Raises:
        ConfigError: names all of them.
    """
    from hydra.errors import HydraException

    refused = []
    try:
        overrides = parse_overrides(words)
    except HydraException as error:
        raise ConfigError(explain_refusal(error, words)) from None
    choices = choices_in(words)
    rules = plugged_rules(choices)
    for override in overrides:
        key = override.get_key_element()
        is_list = override.is_discrete_sweep() and "glob(" not in override.input_line
        if key in TYPED_GROUPS or key.startswith("hydra") or not is_list:
            continue
        for text in each_value(override):
            try:
                check_value(key, parse_overrides([text])[0].value(), any_default(key, choices), rules.get(key))
            except ConfigError as error:
                refused.append(str(error))
    if refused:
        raise ConfigError(" ".join(dict.fromkeys(refused)))


def explain_refusal(error: Exception, words: Sequence[str]) -> str:
    """A refusal of words by Hydra, in ours. The keys exist: what remains are values, and options of another choice."""
    message = str(error)
    if match := re.search(r"Could not override '([^']+)'", message):
        key = match[1]
        typed = dict(map(split_word, words))
        lists = {group: value.split(",") for group in TYPED_GROUPS if (value := typed.get(group, "null")) != "null"}
        for values in itertools.product(*lists.values()):  # in a sweep, only some combinations lack the option
            chosen = group_choices(dict(zip(lists, values, strict=True)))
            if key not in defaults_of(chosen):
                return str(unknown_key(key, chosen))
    if "multirun" in message:
        return "a list of values trains one run for each: put -m in front. For one value that is a list, write [1,2]."
    if (unread := getattr(error, "override", None)) is None:  # the word that Hydra's grammar does not take
        return f"cannot read the command line: {message.strip().splitlines()[0]}"
    text = f"\"{unread.partition('=')[0]}='a, b'\""
    return f"{unread}: this value cannot be read. Lists are a,b or [a,b]; a text with commas or brackets is {text}."
