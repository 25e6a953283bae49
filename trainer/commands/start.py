"""From a command to its verb: the run it starts from and its frozen settings. Torch-free until the verb runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.config.command_line import Command
from trainer.config.compose import compose, frozen, leave_out
from trainer.config.freeze import from_dict
from trainer.config.roles import check_typed, without_effect
from trainer.config.schema import Config
from trainer.run import directory
from trainer.run.target import Target, find, resolve_resume
from trainer.utils import ranks
from trainer.utils.errors import ConfigError
from trainer.utils.screen import Screen
from trainer.utils.signals import StopSignal


def target_of(command: Command) -> str | None:
    """The run or file that eval, predict or resume starts from; None: a new run."""
    key = {"train": "resume", "eval": "checkpoint", "predict": "checkpoint"}.get(command.verb, "")
    target = command.value(key)
    if key == "checkpoint" and target is None:
        raise ConfigError(f"{command.verb} needs checkpoint=<a run's name, last, or a checkpoint file>.")
    return resolve_resume(target, command.value("name"), command.folders["outputs"]) if key == "resume" else target


@dataclass(frozen=True)
class Prepared:
    """What a verb runs on."""

    config: Config  # its frozen settings
    target: Target | None  # the run or file that it starts from; None: a new run
    lines: list[str]  # what of the settings is without effect


def prepare(command: Command, stop: StopSignal) -> Prepared | None:
    """Look up what a command starts from, and compose and freeze its settings; None where --cfg has printed them."""
    if (name := command.value("name")) is not None:
        directory.check_name(name, command.folders["outputs"])
    if command.verb != "train" and ranks.of_environment().world > 1:
        raise ConfigError(f"{command.verb} is for one process. Start it without torchrun.")
    target = target_of(command)
    # before any file is read, which would import torch
    use = "resume" if command.verb == "train" and target is not None else command.verb
    warnings = check_typed(use, command.values)
    command = leave_out(command, warnings)
    found = find(target, **command.folders) if target is not None else None
    saved = found.saved_config if found is not None else None
    words = list(command.overrides)
    if saved is not None:
        choices = from_dict(saved, complete=False).to_dict()["choices"]
        # first, so that Hydra knows the options of the saved choices, while typed choices still win
        words = [f"{group}={name}" for group, name in choices.items() if group not in command.values] + words

    with stop.held():
        if (composed := compose(command, words)) is None:
            return None
        try:
            config = frozen(*composed, command, saved)
        except ConfigError as error:
            raise told_of_file(error, found, saved) from None
    changed = found.changed_plugins() if found is not None and use != "resume" else []  # resume says more of it
    return Prepared(config, found, list(dict.fromkeys((*warnings.values(), *without_effect(use, config), *changed))))


def told_of_file(error: ConfigError, found: Target | None, saved: Mapping[str, Any] | None) -> ConfigError:
    """A refusal of settings, with the name of the file that they stand in where nothing that was typed is its cause."""
    if found is None or saved is None:
        return error
    try:
        from_dict(saved)
    except ConfigError as own:  # those of config.json were found to go together
        return ConfigError(f"{found.file or found.run.checkpoints}: {own}") if str(own) == str(error) else error
    return error


def run_one(command: Command, stop: StopSignal) -> str | None:
    """Run the verb of a command; returns the name of the run that was trained, for train."""
    if (prepared := prepare(command, stop)) is None:
        return None
    screen = Screen()
    screen.say(*prepared.lines)
    return run_verb(command.verb, prepared.config, prepared.target, stop, screen)


def run_verb(verb: str, config: Config, target: Target | None, stop: StopSignal, screen: Screen) -> str | None:
    """Run a command on frozen settings; errors of torch and of the system are put into the program's own words.

    Returns:
        The name of the run that was trained; None for the other verbs.
    """
    from trainer.commands.check_resume import run_check_resume  # import torch
    from trainer.commands.compare_impl import run_compare_impl
    from trainer.commands.data_set import run_data
    from trainer.commands.doctor import run_doctor
    from trainer.commands.evaluate import run_eval
    from trainer.commands.predict import run_predict
    from trainer.commands.summary import run_summary
    from trainer.commands.train import train
    from trainer.run import failures

    if verb == "train":  # it explains its errors itself, before it notes them in the run's files
        return train(config, stop, target=target, screen=screen)[0]
    with failures.explaining(config):
        if verb.startswith("data "):
            run_data(verb.removeprefix("data "), config)
            return None
        if target is not None:
            {"eval": run_eval, "predict": run_predict}[verb](config, target)
        else:
            {
                "check-resume": run_check_resume,
                "compare-impl": run_compare_impl,
                "summary": run_summary,
                "doctor": run_doctor,
            }[verb](config)
    return None
