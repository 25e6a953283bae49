"""The rerun command: a run trained once more from its own settings, and whether the same came out to the last bit."""

from dataclasses import replace
from itertools import count
from pathlib import Path

from trainer.config.command_line import Command
from trainer.config.compose import compose, frozen
from trainer.config.options import PLUGGED
from trainer.run import directory
from trainer.run.brief import brief_of
from trainer.run.directory import Run
from trainer.run.target import Target, existing_run
from trainer.utils.errors import ConfigError
from trainer.utils.screen import Screen
from trainer.utils.signals import StopSignal

MOST_SHOWN = 3  # differences


def run_rerun(command: Command, stop: StopSignal) -> None:
    """Train a run again under another name, and say whether its weights are equal.

    Raises:
        ConfigError: there is no such run, or its settings cannot be used any more.
    """
    from trainer.commands.start import run_verb
    from trainer.run.pretrained import FOR_WEIGHTS

    target = existing_run(command.names[0], **command.folders)
    outputs = command.folders["outputs"]
    name = directory.check_name(command.value("name") or new_name_for(target.run.name, outputs), outputs)
    if directory.exists(name, outputs):
        raise ConfigError(f"name={name} exists already. Choose another name=, or leave it out.")
    saved = target.saved_config
    words = [f"{group}={choice}" for group, choice in saved["choices"].items()]
    typed = Command("train", (f"name={name}", *(word for word in command.overrides if not word.startswith("name="))))
    with stop.held():
        composed = compose(typed, [*words, *typed.overrides])
        assert composed is not None  # no flags
        config = frozen(*composed, typed, saved)
        # what was saved holds: nothing is chosen anew, neither for weights nor for a budget
        config = replace(config, budget=None, typed=(*config.typed, *FOR_WEIGHTS))
    screen = Screen()
    screen.say(*target.changed_plugins(), f"{name} repeats {target.run.name}")
    run_verb("train", config, None, stop, screen)
    screen.say(*said_of(target, directory.locate(name, **command.folders)))


def new_name_for(name: str, outputs: str) -> str:
    """The first of clothes-again, clothes-again-2, ... that no run has."""
    plain = name.replace("/", "-")[:80]
    names = (f"{plain}-again{f'-{i}' if i > 1 else ''}" for i in count(1))
    return next(each for each in names if not Path(outputs, each).exists())


def said_of(target: Target, new: Run) -> list[str]:
    """Whether a run and its repetition are equal, and if not, in what they and what they ran on differ."""
    from trainer.commands.check_resume import differences_between, how_much  # import torch
    from trainer.run.checkpoint_files import steps_in
    from trainer.run.safe_load import read_checkpoint

    old = target.run
    if (state := brief_of(old.name, old.outputs).state) not in ("done", "trial"):
        return [f"{old.name} is {state}: there is no end of it to compare with."]
    files = [steps_in(run.checkpoints)[-1:] for run in (old, new)]
    if not all(files):
        return [f"{old.checkpoints} has no step file of {old.name} any more: its weights cannot be compared."]
    one, other = (
        read_checkpoint(path) | {"metrics": directory.read_metrics(run.outputs)}
        for run, (path,) in zip((old, new), files, strict=True)
    )
    differences = list(differences_between(one, other))
    if not differences:
        return [f"bit-identical to {old.name}: {how_much(one)}"]
    lines = [f"not bit-identical to {old.name}. {len(differences)} differ{'s' if len(differences) == 1 else ''}:"]
    lines += [f"  {line}" for line in differences[:MOST_SHOWN]]
    changed = [
        f"{key} {one['env'].get(key)} -> {now}" for key, now in other["env"].items() if now != one["env"].get(key)
    ]
    why = (
        f"It was computed with other {'; '.join(changed)}."
        if changed
        else "The machine is the same as far as is known."
    )
    plugin = " Files of plugins= may have changed." if PLUGGED else ""
    return [*lines, f"{why}{plugin} What was changed on resume, or data that changed, differs as well."]
