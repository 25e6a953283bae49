"""Resuming a run: which of its files to trust, what may have changed since, and what else has to be put back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.config.freeze import flat_settings
from trainer.config.options import flatten
from trainer.config.ranges import as_yaml
from trainer.config.roles import FREE_ON_RESUME, HOW_FAR, OF_THIS_MACHINE
from trainer.config.schema import Config
from trainer.data.splits import Splits
from trainer.run import directory
from trainer.run.checkpoint_files import give_name, keep_as_best, named_like_steps, path_of_step, step_of, steps_in
from trainer.run.directory import Run
from trainer.run.environment import rounding
from trainer.run.parts import Parts
from trainer.run.progress import Progress
from trainer.run.safe_load import read_checkpoint
from trainer.run.target import Target, decisive_elsewhere
from trainer.utils.errors import ConfigError, DamagedError, MissingPluginError, ResourceError, nearest
from trainer.utils.screen import Screen
from trainer.utils.text import number_of

# the checkpoint would not fit, or the new weights would not be used
NEVER_ON_RESUME = ("choices.data", "choices.model", "choices.optimizer", "init_from", "budget")


@dataclass(frozen=True)
class Start:
    """The checkpoint that a run continues from, and what is in it."""

    path: Path
    content: dict[str, Any]


def find_start(target: Target, screen: Screen) -> Start | None:
    """The checkpoint to continue from; None: from step 0, because none was ever written.

    A file that was named is taken or refused. For a run, the newest file that is whole is taken; damaged ones after it
    are kept as *.corrupt.

    Raises:
        ConfigError: there are checkpoints, or were, and none of them can be read; no file is touched.
    """
    run = target.run
    if target.file is not None:
        return Start(target.file, dict(target.content))
    if target.which == "best":
        return Start(run.checkpoints / "best.pt", read_checkpoint(run.checkpoints / "best.pt"))
    for path in named_like_steps(run.checkpoints):
        if not path.is_file():
            screen.say(f"warning: {path} is no file and is passed over. Move it away.")
    damaged: dict[Path, DamagedError] = {}
    for path in reversed(steps_in(run.checkpoints)):
        try:
            start = Start(path, read_checkpoint(path))
        except DamagedError as error:
            damaged[path] = error
            continue
        for bad, reason in damaged.items():  # renamed only now: if all are damaged, nothing is touched
            bad.replace(bad.with_suffix(".corrupt"))
            screen.say(f"warning: {reason} It is kept as {bad.stem}.corrupt; {path.name} is taken instead.")
        return start
    if damaged:
        hint = f"If {run.checkpoints / 'best.pt'} is whole, resume={run.name}:best continues from it."
        reasons = [f"  {reason}" for reason in damaged.values()]
        raise ConfigError(f"{run.name} has no checkpoint that can be read; nothing was changed.", *reasons, hint)
    check_never_saved(run)
    return None


def with_moments(splits: Splits, start: Start | None) -> Splits:
    """The splits with the mean and standard deviation of the checkpoint: a streamed set takes its own from a sample."""
    if start is None:
        return splits
    moments = start.content["preprocess"]
    return replace(splits, mean=tuple(moments["mean"]), std=tuple(moments["std"]))


def check_never_saved(run: Run) -> None:
    """Refuse to start over a run whose step files are gone.

    Raises:
        ConfigError: something says that there were some.
    """
    if run.checkpoints.exists() and not run.checkpoints.is_dir():
        raise ConfigError(f"{run.name} is not started over: {run.checkpoints} is no folder. Move it away.")
    rest = sorted(path.name for path in run.checkpoints.glob("*") if path.suffix in (".pt", ".corrupt", ".old"))
    first = directory.read_status(run.outputs).get("checkpoint")
    epochs = len(directory.read_metrics(run.outputs))
    if rest or first or epochs > 1:  # one line of metrics may have been written just before the first checkpoint
        what = f"only {', '.join(rest)}" if rest else f"nothing, though {first or number_of(epochs, 'epoch')} was there"
        raise ConfigError(
            f"{run.name} is not started over: {run.checkpoints} holds {what}. Bring the step files back, continue from "
            f"one of these with resume=<file>, or start anew under another name=."
        )


def check_owner(run: Run, start: Start, allowed: Sequence[str], screen: Screen) -> None:
    """Compare the settings in a file with those in the config.json of the run that it is to continue.

    Raises:
        ConfigError: a file that was named is of another run of the same name.
    """
    try:
        own = decisive_elsewhere(directory.read_config(run.outputs))
    except DamagedError:  # there is no such run here, or its record is lost
        return
    of_file = decisive_elsewhere(start.content["config"])
    odd = [f"{key} {of_file.get(key)}, not {own.get(key)}" for key in own | of_file if own.get(key) != of_file.get(key)]
    if odd and not allowed:
        shown = f"{start.path} was written with other settings than {run.outputs} has: {', '.join(odd[:3])}"
        if start.path.parent.resolve() != run.checkpoints.resolve():
            raise ConfigError(f"{shown}. Name other folders with paths.outputs and paths.checkpoints.")
        screen.say(f"warning: {shown}")


def check_changes(config: Config, target: Target, screen: Screen) -> list[str]:
    """Refuse a resume that would not be the same run; returns the settings that changed.

    Raises:
        ConfigError: names the setting, what it was and what it is now.
    """
    try:
        saved, now = target.saved_config, flatten(config.to_dict())
    except DamagedError as error:
        if config.resume != "auto" or isinstance(error, MissingPluginError):
            raise
        check_never_saved(target.run)
        screen.say(f"warning: {error} Nothing was saved: {target.run.name} starts anew.")
        return []
    for line in target.changed_plugins():
        screen.say(f"{line} The run continues with it as it is now: no bit for bit as if it had never stopped.")
    known = flatten(saved)  # what a file does not choose did not have its default
    before = {k: was for k, was in flat_settings(saved).items() if k in known or not k.startswith(OF_THIS_MACHINE)}
    for name in config.resume_allow:
        names = {key.removeprefix("choices.") for key in now}
        if name not in names:
            raise ConfigError(f"resume_allow=[{name}]: {name} is not a setting of this run.{nearest(name, names)}")
    changed = [key for key in now if key in before and now[key] != before[key]]
    longer = [key for key in changed if key in ("epochs", "max_steps")]
    for key in longer if config.schedule.name in ("cosine", "onecycle") else []:
        covers = f"schedule={config.schedule.name} now covers {key}={as_yaml(now[key])} instead of {before[key]}"
        screen.say(f"warning: {covers}: this is not the run it would have been from the start.")
    for key in sorted(changed, key=lambda key: not key.startswith("choices.")):  # a choice before its options
        shown = key.removeprefix("choices.")
        if key.startswith(FREE_ON_RESUME) or (shown in config.resume_allow and key not in NEVER_ON_RESUME):
            continue
        was = f"the run has {as_yaml(before[key])}, now it says {as_yaml(now[key])}"
        to_do = f"resume_allow=[{shown}] allows it."
        if key in NEVER_ON_RESUME:
            to_do = f"Start a new one: init_from={target.run.name} takes its weights."
        if target.run.is_job and config.resume == "auto":  # of a search whose database is gone, or sweep.json
            to_do = "Choose another name= for the sweep."
        raise ConfigError(f"{shown}: {was}. That would be another run. {to_do}")
    return changed


def layout_of(config: Config, target: Target) -> dict[str, Any]:
    """The epochs and max_steps that the first start of a run chose for its budget, where no others are typed.

    The job of a sweep that is resumed comes without them: its settings are those that were typed.
    """
    try:
        saved = flatten(target.saved_config)
    except DamagedError:
        return {}
    chosen = {"epochs", "max_steps"} - set(config.typed) if saved.get("budget") and saved.get("max_steps") else set()
    return {key: saved[key] for key in chosen}


def warn_of_divergence(run: Run, changed: Sequence[str], screen: Screen) -> None:
    """Say what to type where a run diverged: it does the same again, bit for bit."""
    status = directory.read_status(run.outputs)
    if status.get("state") == "diverged" and all(key.startswith(FREE_ON_RESUME) for key in changed):
        what = "With the same settings it will again. Continue it with optimizer.lr=<less> resume_allow=[optimizer.lr]"
        screen.say(f"warning: {run.name} diverged. {what}, or start anew with name={run.name} overwrite=true.")


def already_done(config: Config, target: Target, changed: Sequence[str], screen: Screen) -> float | None:
    """The objective of a finished run that is not to be extended; None where there is something left to do.

    Raises:
        ConfigError: fewer epochs are asked for than were trained.
    """
    run = target.run
    if target.file is not None or target.which:  # a file that was named is continued from, done or not
        return None
    result = directory.read_result(run.outputs)
    if directory.read_status(run.outputs).get("state") != "done" or result is None:  # a damaged one is made again
        return None
    rows, last = directory.read_metrics(run.outputs), config.max_steps
    has_steps_left = last is None or not rows or rows[-1]["step"] < last
    if config.epochs > result["epochs"] and has_steps_left and any(key.startswith(HOW_FAR) for key in changed):
        return None
    if config.epochs < result["epochs"] and config.resume != "auto" and "stopped" not in result:
        raise ConfigError(
            f"epochs={config.epochs}: {run.name} has already trained {number_of(result['epochs'], 'epoch')}."
        )
    reason = f" ({result['stopped']})" if "stopped" in result else ""
    how = "epochs=N with a larger N" + (f", and max_steps=null instead of {last}," if last is not None else "")
    screen.say(f"{run.name} is already complete: {number_of(result['epochs'], 'epoch')}{reason}. {how} continues.")
    return float(result["objective"]["value"])


def rewind(run: Run, start: Start, progress: Progress, epochs: int, screen: Screen) -> None:
    """Make the run's checkpoints what they were when `start` was written: later ones become *.old.

    The order matters: whatever moment the process is killed at, the folder holds a step file to continue from.

    Raises:
        ConfigError: a copy of a finished run's file was named, and there is nothing left to train.
    """
    own = path_of_step(run.checkpoints, progress.step)
    is_copy = not own.is_file() or not own.samefile(start.path)  # else its outputs were lost, and are made again
    if progress.epoch > epochs and not run.outputs.is_dir() and is_copy:
        raise ConfigError(
            f"{start.path} has all its {progress.epoch - 1} epochs done. epochs=N with a larger N continues."
        )
    if not own.is_file():
        give_name(start.path, own)
    for path in steps_in(run.checkpoints):
        if step_of(path) > progress.step:
            path.replace(path.with_suffix(".old"))
    best, wanted = run.checkpoints / "best.pt", progress.best.get("step")
    has = step_of_best(best, screen)
    if has is not None and has > progress.step:  # of an epoch that is trained again
        best.replace(best.with_suffix(".old"))
    if wanted is None or has == wanted:
        return
    of_best = path_of_step(run.checkpoints, wanted)
    if wanted == progress.step and not progress.samples:
        keep_as_best(start.path, run.checkpoints)  # a kill may have come between the two
    elif of_best.is_file():
        keep_as_best(of_best, run.checkpoints)
    else:
        screen.say(f"warning: the file of epoch {progress.best['epoch']}, the best so far, is gone.")


def step_of_best(best: Path, screen: Screen) -> int | None:
    """The step that best.pt was written at; None where there is no such file, or a damaged one, which is set aside."""
    if not best.is_file():
        return None
    try:
        return int(read_checkpoint(best)["progress"]["step"])
    except DamagedError as error:
        best.replace(best.with_suffix(".corrupt"))
        screen.say(f"warning: {error} It is kept as best.corrupt.")
        return None


def read_best(run: Run, step: int, screen: Screen) -> dict[str, Any]:
    """What best.pt holds; where it is gone or damaged, a step file takes its place: of the best epoch, else the newest.

    Args:
        run: the run.
        step: at which the best epoch ended.
        screen: is told of damaged files, which are kept as *.corrupt.
    Raises:
        ResourceError: no file is left that can be read.
    """
    best, damaged = run.checkpoints / "best.pt", list[str]()
    files = steps_in(run.checkpoints)[::-1]
    files.sort(key=lambda path: step_of(path) != step)  # stable: the others stay in their order, the newest first
    for path in (best, *files):
        try:
            content = read_checkpoint(path)
        except ConfigError as error:
            damaged.append(str(error))
            continue
        if path != best:
            if best.is_file():
                best.replace(best.with_suffix(".corrupt"))
            keep_as_best(path, run.checkpoints)
            screen.say(f"warning: {damaged[0]} {path.name} takes its place.")
        return content
    what = "is trained, but no checkpoint of it can be read any more, so that there is nothing to measure"
    raise ResourceError(f"{run.name} {what}: {' '.join(damaged)}")


def warn_of_rounding(before: Mapping[str, Any], parts: Parts, screen: Screen) -> None:
    """Say what makes a resumed run round differently from the one that was interrupted."""
    now = rounding(parts.machine) | {"world": parts.ranks.world}
    before = {"world": 1, "stack": 1} | dict(before)  # older files do not say it
    changed = [f"{key} {before.get(key)} -> {now[key]}" for key in now if now[key] != before.get(key)]
    if changed:
        screen.say(f"warning: not bit for bit: {', '.join(changed)}. The order of the examples is the same.")
