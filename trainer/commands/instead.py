"""A whole command line to type in place of one that was refused: offered only where it would be accepted."""

import contextlib
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trainer.commands.start import prepare, target_of
from trainer.config.command_line import Command, parse_command, split_word
from trainer.config.compose import check_lists, compose, each_value, frozen, parse_overrides
from trainer.config.options import all_keys
from trainer.config.ranges import RANGES, FilePath
from trainer.config.roles import FREE_ON_RESUME, check_typed
from trainer.config.schema import Config
from trainer.config.tasks import REGRESSION, TASK_OF_DATA
from trainer.config.verbs import OF_RUNS, VERBS
from trainer.run import directory
from trainer.run.target import find_run, unknown_run
from trainer.utils import ranks
from trainer.utils.errors import ConfigError, PluginError, TrainerError, close_to
from trainer.utils.program import main_py
from trainer.utils.quotes import unquote
from trainer.utils.signals import StopSignal
from trainer.utils.text import in_brackets

ROUNDS = 8  # one for each mistake that is mended on a line, one for the spaces, one for -m
FLAGS = ("-m", "--multirun", "--cfg")


def type_instead(error: TrainerError, args: Sequence[str]) -> str:
    """A line that says what to type after a refusal, or "" where nothing was found that would be accepted."""
    words = None
    with contextlib.suppress(Exception):  # it is a guess: whatever is wrong with it must not hide the refusal
        words = mended(args) if isinstance(error, ConfigError) and not isinstance(error, PluginError) else None
    if words is None or words == list(args):
        return ""
    return f"\ntype: {main_py()} {shlex.join(words)}"


def mended(words: Sequence[str]) -> list[str] | None:
    """The words with each mistake replaced by what was probably meant; None where one is left.

    Words that would be accepted stay as they are: what was refused is then the data or a file, not the line.
    """
    words = list(words)
    for _ in range(ROUNDS):
        try:
            command = check_words(words)
        except ConfigError as error:
            better = as_files(words)
            if better == words:
                better = verb_first(words)
            if better == words:
                better = joined(words)
            if better == words and error.meant is not None:
                better = swap(words, *error.meant)
            if better == words:
                return None
            words = better
            continue
        if not lacks_multirun(command):
            return words
        together = [as_list(word) for word in words]
        words = together if together != words else ["-m", *words]
    return None


def as_list(word: str) -> str:
    """`logger=csv,mlflow` -> `logger=[csv,mlflow]`: a run for each is hardly meant."""
    key, value = split_word(word)
    return f"{key}=[{value}]" if key == "logger" and "," in value and "[" not in value else word


def as_files(words: Sequence[str]) -> list[str]:
    """The words of predict with ./ before each file that is named like a setting or a flag: -x.png, a=b.png."""
    marked = [word[0] == "-" or "=" in word if word else False for word in words]
    is_name = [words[0] == "predict" and odd and os.path.isfile(word) for word, odd in zip(words, marked, strict=True)]
    return [os.path.join(".", word) if odd else word for word, odd in zip(words, is_name, strict=True)]


def verb_first(words: Sequence[str]) -> list[str]:
    """The words with the command in front: `epochs=2 rerun mine`."""
    is_late = bool(words) and "=" in words[0]
    verb = next((word for word in words if is_late and word in VERBS and word != "train"), None)
    return list(words) if verb is None else [verb, *(word for word in words if word != verb)]


def check_words(words: Sequence[str]) -> Command:
    """The command of these words; what it is told of lists is left to a round with -m.

    Raises:
        ConfigError: it would be refused, for what can be seen without reading data.
    """
    ranks.of_environment()
    command = replace(parse_command(words), flags=())  # --cfg would print the settings
    if len(set(command.names)) < len(command.names):
        raise ConfigError(f"{command.verb} takes each run once.")
    for name in command.names:
        check_target(name, command)
    if command.verb in OF_RUNS:
        return command
    path = command.value("input") or "."
    if not path.startswith("[") and not os.path.exists(os.path.expanduser(path)):
        raise ConfigError("no such file")
    check_lists(command.overrides)
    if lacks_multirun(command):
        return command
    target = None if command.multirun else target_of(command)
    if target is not None:
        for each in (target, *map(unquote, in_brackets(command.value("ensemble") or ""))):
            check_target(each, command)
    elif command.verb == "train":
        check_new(command)
    config = first_of(command) if command.multirun else prepared(command)
    if config.device.name not in ("auto", "cpu"):
        from trainer.run.machine import find_device  # imports torch

        find_device(config.device.name, config.device.options.get("index", 0))
    return command


def lacks_multirun(command: Command) -> bool:
    """Whether a command has lists of values and no -m."""
    is_of_runs = command.verb in OF_RUNS  # its conditions are not Hydra's grammar
    return not (command.multirun or is_of_runs) and any(
        o.is_sweep_override() for o in parse_overrides(command.overrides)
    )


def prepared(command: Command) -> Config:
    """The settings of a command that is one run."""
    found = prepare(command, StopSignal())
    assert found is not None, "no flags"
    return found.config


def first_of(command: Command) -> Config:
    """The settings of the first job of a sweep."""
    check_typed("sweep", command.values)
    words = [each_value(o)[0] if o.is_discrete_sweep() else o.input_line for o in parse_overrides(command.overrides)]
    composed = compose(command, words)
    assert composed is not None, "no flags"
    return frozen(*composed, command)


def check_new(command: Command) -> None:
    """Refuse the name of a run or sweep that there is already.

    Raises:
        ConfigError: without a message for the user.
    """
    if (name := command.value("name")) is None:
        return
    directory.check_name(name, command.folders["outputs"])
    if directory.exists(name, command.folders["outputs"]):
        if command.multirun or command.value("overwrite") != "true":
            raise ConfigError("it is there already")
    elif not command.multirun:
        directory.check_free(directory.locate(name, **command.folders))


def check_target(name: str, command: Command) -> None:
    """Refuse a run that there is not, or that the command can do nothing with.

    Raises:
        ConfigError: without a message for the user, but for the name of the nearest run.
    """
    found = find_run(name, **command.folders)
    if found is None:
        if not os.path.isfile(name):
            raise unknown_run(name, *map(Path, command.folders.values()))
        return
    if command.verb in ("eval", "predict") and not (found.run.checkpoints / "best.pt").is_file():
        raise ConfigError("no weights")
    if command.verb == "predict" and TASK_OF_DATA.get(found.saved_config["choices"]["data"]) == REGRESSION:
        raise ConfigError("no classes")
    if command.verb == "train" and not all(key.startswith(FREE_ON_RESUME) for key in command.values):
        raise ConfigError("it would be another run")


def joined(args: Sequence[str]) -> list[str]:
    """The words as they would be without spaces and dashes, and with the command that takes files.

    `--lr 0.1`, `lr = 0.1`, `[128, 64]`, `0.1, 0.2` are one word each, and so is a path with spaces.
    """
    words: list[str] = []
    for word in args:
        before = words[-1] if words else ""
        is_open = before.count("[") > before.count("]") or before.count("(") > before.count(")")
        is_path = isinstance(RANGES.get(split_word(before)[0]), FilePath) and "=" in before
        is_key = len(words) == 1 and not close_to(before, VERBS) and close_to(before, all_keys())
        is_bare = before.startswith("-") or is_key
        if before.endswith(("=", ",")) or is_open or (before and word.startswith(("=", ","))):
            words[-1] += word
        elif is_path and "=" not in word and not word.startswith("-"):
            words[-1] += f" {word}"
        elif is_bare and before not in FLAGS and "=" not in before and not word.startswith("-"):
            words[-1] += f"={word}"
        else:
            words.append(word)
    words = [bracketed(word if word in FLAGS else word.lstrip("-")) for word in words]
    verb, *rest = words if words[0] in VERBS else ["", *words]
    files = [word for word in rest if "=" not in word and os.path.exists(word)]
    if files and verb in ("", "train"):
        return ["predict", "last", *rest]
    return ["predict" if verb == "eval" and len(rest) > 1 and files else verb, *rest] if verb else words


def bracketed(word: str) -> str:
    """`key=(128, 64)` -> `key=[128,64]`; a list without its spaces."""
    key, value = split_word(word)
    if "=" in word and value[:1] in ("(", "[") and value[-1:] in (")", "]") and "'" not in value:
        return f"{key}=[{value[1:-1].replace(' ', '')}]"
    return word


def swap(words: Sequence[str], key: str, value: str, meant: str) -> list[str]:
    """The words with what was meant: another value for a key, or, where `meant` ends in =, another key."""
    found: list[str] = []
    for word in words:
        name, text = split_word(word)
        if meant.endswith("=") and name == key:
            found.append(f"{meant}{text}")
        elif "=" in word and name == key and unquote(text) == value:
            found += f"{key}={meant}".split(" ")
        elif "=" in word and name == key and value in (parts := re.split(r"([][, ]+)", text)):
            found.append(f"{key}={''.join(meant if each == value else each for each in parts)}")
        elif (key in ("run", "data") and value in (word, text)) or (word == key and not value):
            found.append(f"{name}={meant}" if "=" in word else meant)
        else:
            found.append(word)
    return found
