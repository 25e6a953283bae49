"""The train command: opens the run's directory, has the parts built, trained and measured, and says how it ended.

The epochs themselves are in training.py; eval and predict are in measure.py.
"""

import errno
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer import build, data, report, state, training
from trainer.config import Config, flatten
from trainer.state import Parts, Progress
from trainer.utils import checkpoint, runs, runtime
from trainer.utils.errors import BusyError, ConfigError, DivergedError, Interrupted, ResourceError
from trainer.utils.recorder import Recorder, read_metrics
from trainer.utils.screen import Screen


def train(config: Config) -> float:
    """Train a model, from its initial weights or from where an interrupted run stopped.

    Returns:
        The best validation metric: accuracy, for regression loss; of training where there is no validation.
    Raises:
        ConfigError, DivergedError, ResourceError, BusyError, Interrupted: see trainer.utils.errors.
    """
    refuse_strangers(config)
    screen = Screen()
    machine = state.machine_of(config)
    runs.check_writable(Path(config.paths.outputs), Path(config.paths.checkpoints))
    run, found = find_run(config)
    existed = run.outputs.is_dir()
    config = replace(config, name=run.name, epochs=1 if config.fast_dev_run else config.epochs)
    with ExitStack() as held:
        changed = check_changes(config, found, screen)
        if existed:
            if (finished := already_done(config, run, found, changed, screen)) is not None:
                return finished
            held.enter_context(runs.hold(run))
        start = newest(run, found)
        parts, progress = get_ready(config, run, start, machine, screen)
        if any(key.startswith(state.HOW_FAR) for key in changed):
            progress.stopped = ""
        if not existed:
            make(run)
            held.enter_context(runs.hold(run))
        started = open_files(config, run, machine, screen)
        describe(parts, progress, screen, resumed=start)
        try:
            recorder = Recorder(run.outputs, epochs_done=progress.epoch - 1, steps_done=progress.step)
            held.callback(recorder.close)
            with runtime.StopSignal() as stop, screen:
                training.train_epochs(config, parts, progress, run, recorder, screen, stop)
                finish(config, parts, progress, run, recorder, screen, stop)
        except BaseException as error:
            told = in_our_words(error, config)
            give_up(run, started, told, screen)
            raise told from error.__cause__
        runs.write_status(run, "done", started)
    return float(progress.best["value"])


def refuse_strangers(config: Config) -> None:
    """Refuse settings that are for the other commands."""
    for key in ("checkpoint", "input", "split"):
        if key in config.typed:
            goes_on = "To go on with a run: resume=. To start from weights: init_from=."
            raise ConfigError(f"{key}= is for eval and predict. {goes_on}")


def get_ready(
    config: Config, run: runs.Run, start: Path | None, machine: runtime.Machine, screen: Screen
) -> tuple[Parts, Progress]:
    """Read files and data, build the parts and put a checkpoint or initial weights into them."""
    content = checkpoint.read(start) if start is not None else None
    path = file_of(config, config.init_from) if config.init_from is not None and content is None else None
    weights = checkpoint.read_weights(path) if path is not None else {}
    announce(config, machine, screen)
    splits = data.load(config.data, config.paths)
    if content is not None:  # the same numbers, also where they come from a sample of a streamed set
        moments = content["preprocess"]
        splits = replace(splits, mean=tuple(moments["mean"]), std=tuple(moments["std"]))
    parts = state.assemble(config, splits, machine)
    progress = Progress()
    if content is not None and start is not None:
        progress = state.unpack(content, config, parts, start)
        rewind(run, start, progress, config.epochs, screen)
        warn_of_rounding(content["env"], parts, screen)
    elif path is not None:
        left_out = checkpoint.load_backbone(parts.model, weights, path)
        screen.say(f"weights from {path}; start afresh: {', '.join(left_out) or 'none'}")
    return parts, progress


def find_run(config: Config) -> tuple[runs.Run, runs.Found | None]:
    """The run, and what resume= points at (None: a new run).

    Raises:
        ConfigError: the name is taken, or there is nothing to resume.
    """
    folders = {"outputs": config.paths.outputs, "checkpoints": config.paths.checkpoints}
    target = config.resume
    if target == "auto":
        assert config.name is not None, "main.py asks for it"
        target = config.name if runs.exists(config.name, config.paths.outputs) else None
    if target is None:
        run = runs.locate(config.name or runs.new_name(config.data.name, config.model.name), **folders)
        job = "/" in run.name  # of a sweep: it may have failed before it made its files
        if runs.exists(run.name, config.paths.outputs):
            raise ConfigError(f"name={run.name} exists already. resume={run.name} goes on; another name= starts anew.")
        if (run.outputs.exists() and not job) or checkpoint.steps_in(run.checkpoints):
            taken = run.outputs if run.outputs.exists() else run.checkpoints
            raise ConfigError(
                f"name={run.name}: {taken} is there already and is not a run to go on with. Choose another."
            )
        return run, None
    found = runs.find(target, **folders)
    run = found.run or runs.locate(checkpoint.read(found.file)["config"]["name"], **folders)
    if "name" in config.typed and config.name != run.name:
        raise ConfigError(f"name={config.name}: resume goes on with {run.name} under its own name.")
    return run, found


def newest(run: runs.Run, found: runs.Found | None) -> Path | None:
    """The checkpoint to go on from; None: from step 0."""
    if found is None:
        return None
    if found.run is None:
        return found.file
    if found.which == "best":
        return run.checkpoints / "best.pt"
    files = checkpoint.steps_in(run.checkpoints)
    return files[-1] if files else None


def check_changes(config: Config, found: runs.Found | None, screen: Screen) -> list[str]:
    """Refuse a resume that would not be the same run; returns the settings that are others than before.

    Raises:
        ConfigError: names the setting, what it was and what it is now.
    """
    if found is None:
        return []
    saved = runs.read_config(found.run) if found.run is not None else checkpoint.read(found.file)["config"]
    before, now = flatten(saved), flatten(config.to_dict())
    changed = [key for key in now if key in before and now[key] != before[key]]
    if "epochs" in changed and config.schedule.name in ("cosine", "onecycle"):
        covers = f"schedule={config.schedule.name} now covers {config.epochs} epochs instead of {before['epochs']}"
        screen.say(f"warning: {covers}: this is not the run it would have been from the start.")
    for key in changed:
        shown = key.removeprefix("choices.")
        if shown not in config.resume_allow and not key.startswith(state.FREE_ON_RESUME):
            was = f"the run has {before[key]}, now it says {now[key]}"
            raise ConfigError(
                f"{shown}: {was}. That would be another run; resume_allow=[{shown}] does it all the same."
            )
    return changed


def rewind(run: runs.Run, start: Path, progress: Progress, epochs: int, screen: Screen) -> None:
    """Make the run's checkpoints what they were when `start` was written."""
    if progress.epoch > epochs and not read_metrics(run.outputs):  # a copy of a finished run's file
        raise ConfigError(f"{start} has all its {progress.epoch - 1} epochs done. epochs=N with a larger N goes on.")
    for path in checkpoint.steps_in(run.checkpoints):
        if checkpoint.step_of(path) > progress.step:
            path.rename(path.with_suffix(".old"))
    best = run.checkpoints / "best.pt"
    if progress.best.get("step") == progress.step and not progress.samples:
        checkpoint.keep_as_best(start, run.checkpoints)  # the process may have been killed just before it did so
    elif progress.best and not (best.is_file() and checkpoint.read(best)["progress"]["step"] == progress.best["step"]):
        screen.say(
            f"warning: {best} is not of epoch {progress.best['epoch']}, the best so far; the best is sought anew."
        )
        progress.best = {}


def warn_of_rounding(before: Mapping[str, Any], parts: Parts, screen: Screen) -> None:
    """Say what makes a resumed run round differently from the one that was interrupted."""
    now = state.environment(parts.machine)
    changed = [f"{key} {before.get(key)} -> {now[key]}" for key in now if now[key] != before.get(key)]
    if changed:
        screen.say(f"warning: not bit-exact: {', '.join(changed)}. The order of the examples is the same.")


def already_done(
    config: Config, run: runs.Run, found: runs.Found | None, changed: Sequence[str], screen: Screen
) -> float | None:
    """The objective of a finished run that is not to be extended; None where there is something left to do.

    Raises:
        ConfigError: fewer epochs are asked for than were trained.
    """
    path = run.outputs / "result.json"
    explicit = found is None or found.run is None or found.which != ""  # a file that was named is gone on from
    if explicit or runs.read_status(run).get("state") != "done" or not path.is_file():
        return None
    result = runs.read_json(path)
    if config.epochs > result["epochs"] and any(key.startswith(state.HOW_FAR) for key in changed):
        return None
    if config.epochs < result["epochs"] and config.resume != "auto" and "stopped" not in result:
        raise ConfigError(f"epochs={config.epochs}: {run.name} has already trained {result['epochs']} epochs.")
    reason = f" ({result['stopped']})" if "stopped" in result else ""
    screen.say(f"{run.name} is already complete: {result['epochs']} epochs{reason}. epochs=N with a larger N goes on.")
    return float(result["objective"]["value"])


def announce(config: Config, machine: runtime.Machine, screen: Screen) -> None:
    """What was chosen, before anything is read."""
    choices = " ".join(f"{group}={name}" for group, name in config.to_dict()["choices"].items() if group != "device")
    screen.say(f"{choices} device={machine.device} precision={config.device['precision']} seed={config.seed}")
    if config.recipes:
        screen.say(f"recipe: {', '.join(config.recipes)} (what you type wins; recipe=none leaves them out)")


def make(run: runs.Run) -> None:
    """Make the run's directory; it must not be there."""
    try:
        run.outputs.mkdir(parents=True)
    except FileExistsError:
        raise BusyError(f"{run.outputs} was made by another process a moment ago.") from None


def open_files(config: Config, run: runs.Run, machine: runtime.Machine, screen: Screen) -> str:
    """Write config.json and status.json and open train.log; returns when the run was started."""
    screen.log_to(run.outputs / "train.log")
    now = datetime.now(UTC).isoformat()
    started = runs.read_status(run).get("started", now)
    saved = replace(config, name=run.name, resume=None, resume_allow=[])
    runs.write_json(run.outputs / "config.json", {"config": saved.to_dict()} | runtime.describe(machine))
    runs.write_status(run, "running", started)
    return str(started)


def describe(parts: Parts, progress: Progress, screen: Screen, *, resumed: Path | None) -> None:
    """What is about to be trained on what."""
    splits = (("train", parts.splits.train), ("val", parts.splits.val), ("test", parts.splits.test))
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in splits)
    x = parts.train.x
    where = f"in memory, {x.nbytes / 1e6:.1f} MB" if isinstance(x, Tensor) else "streamed from disk"
    screen.say(f"{build.parameter_count(parts.model):,} parameters; examples: {sizes}; train {where}")
    if resumed is not None:
        screen.say(f"going on from {resumed}: epoch {progress.epoch}, {progress.samples:,} examples of it done")


def finish(
    config: Config,
    parts: Parts,
    progress: Progress,
    run: runs.Run,
    recorder: Recorder,
    screen: Screen,
    stop: runtime.StopSignal,
) -> None:
    """Measure the best weights on the test split, once, and write result.json and the pictures."""
    best = run.checkpoints / "best.pt"
    checkpoint.load_model(parts.measured, checkpoint.weights_to_use(checkpoint.read(best)), best)
    batches = state.eval_batches(config, parts.splits, parts.splits.test, parts.machine)
    test = parts.measure(batches, stop)
    result = report.result_of(config, parts, progress, run, test)
    runs.write_json(run.outputs / "result.json", result)
    final = {f"test/{key}": result["test"][key] for key in ("loss", "accuracy") if key in result["test"]}
    recorder.hyperparameters(
        report.hyperparameters(config), final | {"best/val": progress.best["value"]}, progress.step
    )
    if config.plots:
        report.draw(config, parts, progress, run, test, recorder)
    report.say_result(screen, config, run, result)


def in_our_words(error: BaseException, config: Config) -> BaseException:
    """A full disk or memory as a ResourceError that says what to change; any other error as it is."""
    if isinstance(error, Interrupted):
        return Interrupted(error.exit_code - 128, f"interrupted; {report.again(config, 'resume')} goes on.")
    if "more than 1 value per channel" in str(error):
        what = "a batch of one example, which batch normalisation cannot scale in training"
        return ConfigError(f"batch_size={config.batch_size} leaves {what}. Choose another batch_size or data.limit.")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError(f"the disk is full: {error}. Make room, then go on with resume=.")
    no_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
    if no_memory and not isinstance(error, ResourceError):
        return ResourceError(f"out of memory with batch_size={config.batch_size}: {error}. Try a smaller batch_size.")
    return error


def give_up(run: runs.Run, started: str, error: BaseException, screen: Screen) -> None:
    """Note in status.json why the run ended, and say it in train.log."""
    if isinstance(error, (Interrupted, KeyboardInterrupt)):
        kind = "interrupted"
    else:
        kind = "diverged" if isinstance(error, DivergedError) else "failed"
    reason = f"{type(error).__name__}: {error}"
    runs.write_status(run, kind, started, reason)
    screen.note(f"{kind}: {reason}")


def file_of(config: Config, target: str) -> Path:
    """The checkpoint file that a RUN (its best unless it says :last) or PATH means."""
    found = runs.find(target, outputs=config.paths.outputs, checkpoints=config.paths.checkpoints)
    if found.run is None:
        return found.file
    if found.which == "last" and (files := checkpoint.steps_in(found.run.checkpoints)):
        return files[-1]
    path = found.run.checkpoints / "best.pt"
    if not path.is_file():
        raise ConfigError(f"{found.run.name} has no {path.name} yet: it is written at the end of its first epoch.")
    return path
