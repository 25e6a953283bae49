"""The train command: opens the run's directory, has the parts built, trained and measured, and says how it ended.

The epochs themselves are in training.py, what resume= needs in resume.py; eval and predict are in measure.py.
"""

import contextlib
import errno
from collections.abc import MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from trainer import build, data, device, engine, report, resume, state, training
from trainer.config import Config, from_dict
from trainer.data.splits import Source
from trainer.state import Parts, Progress
from trainer.training import Report, Session
from trainer.utils import checkpoint, runs, runtime
from trainer.utils.errors import (
    BusyError,
    ConfigError,
    DivergedError,
    Interrupted,
    ProcessLost,
    ResourceError,
    WorkerError,
)
from trainer.utils.ranks import Ranks, join
from trainer.utils.recorder import Recorder
from trainer.utils.runs import read_metrics
from trainer.utils.screen import Screen
from trainer.utils.signals import StopSignal


def train(
    config: Config,
    stop: StopSignal,
    *,
    batches: int = 0,
    report: Report | None = None,
    screen: Screen | None = None,
    sources: MutableMapping[str, Source] | None = None,
) -> float:
    """Train a model, from its initial weights or from where an interrupted run stopped.

    Args:
        batches: of each split that are used; 0: all.
        report: is told the validation metric after each epoch, and says why training ends there, or nothing.
        screen: where the run is to be seen; None: on a screen of its own.
        sources: see data.load.
    Returns:
        The best validation metric: accuracy, for regression loss; of training where there is no validation. Of several
        processes all call this, and all get or raise the same.
    Raises:
        ConfigError, DivergedError, ResourceError, BusyError, Interrupted: see trainer.utils.errors.
    """
    refuse_strangers(config)
    screen, ranks = screen or Screen(), join()
    chosen = [key for key, value in config.device.options.items() if value == "auto"]
    with ExitStack() as held:
        stopped = held.enter_context(ranks.watching(stop))
        with ranks.together():
            config, machine = device.settle(config, ranks.local if ranks.world > 1 else None)
            check_processes(config, machine, ranks, screen)
            opened = open_run(config, screen, held) if ranks.is_first else Opened("")
        opened = Opened(**ranks.share(vars(opened)))
        if opened.finished is not None:
            return opened.finished
        run, start = opened.found(config)
        config = named(config, run)
        announce(config, machine, chosen, screen)
        parts, progress = get_ready(config, run, start, machine, screen, batches, sources, ranks)
        if any(key.startswith(state.HOW_FAR) for key in opened.changed):
            progress.stopped = ""
        with ranks.together():
            if ranks.is_first and (opened.is_new or not run.outputs.is_dir()):
                held.enter_context(make(run))
            started = open_files(config, run, machine, screen) if ranks.is_first else ""
        try:
            describe(parts, progress, screen, start)
            with ranks.together():
                recorder = open_recorder(run, progress, screen) if ranks.is_first else None
                if recorder is not None:
                    held.callback(recorder.close)
            session = Session(config, parts, progress, run, recorder, screen, stopped, started, report)
            with screen:
                training.train_epochs(session)
                finish(session)
        except BaseException as error:
            told = ranks.known(in_our_words(error, config))
            if ranks.is_first:
                give_up(run, started, told, screen)
            raise told from error.__cause__
    return float(ranks.share(progress.best["value"]))


@dataclass(frozen=True)
class Opened:
    """The run to train, and what is there of it: rank 0 finds it and tells the others. Plain types, so that it can."""

    name: str
    is_new: bool = True
    changed: Sequence[str] = ()  # settings that are others than before
    path: str = ""  # the checkpoint to go on from
    content: dict[str, Any] = field(default_factory=dict)  # what is in it
    finished: float | None = None  # the objective, where there is nothing left to do

    def found(self, config: Config) -> tuple[runs.Run, resume.Start | None]:
        """The run, and where it goes on from."""
        run = runs.locate(self.name, outputs=config.paths.outputs, checkpoints=config.paths.checkpoints)
        return run, resume.Start(Path(self.path), self.content) if self.path else None


def open_run(config: Config, screen: Screen, held: ExitStack) -> Opened:
    """Find the run and what it goes on from, and hold its directory where there is one.

    Raises:
        ConfigError, BusyError: it is not to be had, or not to be gone on with.
    """
    runs.check_writable(Path(config.paths.outputs), Path(config.paths.checkpoints))
    run, found, content = find_run(config)
    config = named(config, run)
    changed = resume.check_changes(config, found, content and content["config"], screen)
    if found is not None:
        if (finished := resume.already_done(config, run, found, changed, screen)) is not None:
            return Opened(run.name, finished=finished)
        if run.outputs.is_dir():
            held.enter_context(runs.hold(run))
            checkpoint.sweep(run.checkpoints)
    start = resume.find_start(run, found, screen)
    if start is None:
        return Opened(run.name, found is None, changed)
    resume.check_owner(run, start, config.resume_allow, screen)
    return Opened(run.name, found is None, changed, str(start.path), start.content)


def named(config: Config, run: runs.Run) -> Config:
    """The config with the name of the run, and the epochs that it comes to."""
    return replace(config, name=run.name, epochs=1 if config.fast_dev_run else config.epochs)


def check_processes(config: Config, machine: runtime.Machine, ranks: Ranks, screen: Screen) -> None:
    """Refuse what several processes cannot do, and warn of what does nothing with one, or with several.

    Raises:
        ConfigError: names the setting.
    """
    if ranks.world == 1:
        if config.sync_batch_norm:
            screen.say("warning: sync_batch_norm=true has no effect on one process")
        return
    impls = config.impls()
    if "numpy" in impls.values():
        raise ConfigError("impl=numpy is for one process. Allowed with torchrun: impl=concise, autograd, scratch.")
    if machine.device.type not in training.STEPS_BETWEEN_TALKS:
        raise ConfigError(f"device={machine.device.type}: several processes need device=cpu or device=cuda.")
    if config.sync_batch_norm and (machine.device.type != "cuda" or impls["model"] != "concise"):
        reason = "torch has it for GPUs only" if machine.device.type != "cuda" else "it is for impl=concise"
        raise ConfigError(f"sync_batch_norm=true: {reason}. Allowed here: false.")
    if "device.index" in config.typed:
        screen.say("warning: device.index has no effect: torchrun gives each process a GPU of its own")


def refuse_strangers(config: Config) -> None:
    """Refuse settings that are for the other commands."""
    for key in ("checkpoint", "input", "split"):
        if key in config.typed:
            goes_on = "To go on with a run: resume=. To start from weights: init_from=."
            raise ConfigError(f"{key}= is for eval and predict. {goes_on}")


def find_run(config: Config) -> tuple[runs.Run, runs.Found | None, dict[str, Any] | None]:
    """The run, what resume= points at (None: a new run), and the content of the file where it names one.

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
        if runs.exists(run.name, config.paths.outputs):
            raise ConfigError(f"name={run.name} exists already. resume={run.name} goes on; another name= starts anew.")
        if taken := runs.strangers_in(run):
            raise ConfigError(
                f"name={run.name}: {taken} is there already and is not a run to go on with. Choose another."
            )
        return run, None, None
    found = runs.find(target, **folders)
    content = checkpoint.read(found.file) if found.run is None else None
    run = found.run or runs.locate(content["config"]["name"] if content else "", **folders)
    if "name" in config.typed and config.name != run.name:
        raise ConfigError(f"name={config.name}: resume goes on with {run.name} under its own name.")
    return run, found, content


def get_ready(
    config: Config,
    run: runs.Run,
    start: resume.Start | None,
    machine: runtime.Machine,
    screen: Screen,
    batches: int,
    sources: MutableMapping[str, Source] | None,
    ranks: Ranks = state.ALONE,
) -> tuple[Parts, Progress]:
    """Read files and data, build the parts and put a checkpoint or initial weights into them."""
    with ranks.together():
        path = file_of(config, config.init_from) if config.init_from is not None and start is None else None
        weights = checkpoint.read_weights(path) if path is not None else {}
        if start is not None:
            state.check_architecture(config, start.content, start.path)
        if ranks.local == 0:  # it may download or decode, which the others of its machine then need not
            splits = data.load(config.data, config.paths, sources)
    with ranks.together():
        if ranks.local != 0:
            splits = data.load(config.data, config.paths, sources)
        if start is not None:  # the same numbers, also where they come from a sample of a streamed set
            moments = start.content["preprocess"]
            splits = replace(splits, mean=tuple(moments["mean"]), std=tuple(moments["std"]))
        parts = state.assemble(config, splits, machine, batches=batches, ranks=ranks)
    parts = state.distribute(config, parts)
    with ranks.together():
        progress = Progress()
        if start is not None:
            progress = state.unpack(start.content, config, parts, start.path)
            if ranks.is_first:
                resume.rewind(run, start, progress, config.epochs, screen)
            resume.warn_of_rounding(start.content["env"], parts, screen)
        elif path is not None:
            left_out = checkpoint.load_backbone(parts.model, weights, path)
            screen.say(f"weights from {path}; start afresh: {', '.join(left_out) or 'none'}")
    return parts, progress


def announce(config: Config, machine: runtime.Machine, chosen: Sequence[str], screen: Screen) -> None:
    """What was chosen, before anything is read; `chosen` names the settings of the device that were `auto`."""
    choices = " ".join(f"{group}={name}" for group, name in config.to_dict()["choices"].items() if group != "device")
    screen.say(f"{choices} device={machine.device} seed={config.seed}{library(config)}")
    how = {key: str(config.device[key]).lower() for key in ("precision", "channels_last")} | {"matmul": machine.matmul}
    auto = f" (auto: {', '.join(chosen)})" if chosen else ""
    screen.say(f"device: {' '.join(f'{key}={value}' for key, value in how.items())}{auto}")
    if config.recipes:
        screen.say(f"recipe: {', '.join(config.recipes)} (what you type wins; recipe=none leaves them out)")


def library(config: Config) -> str:
    """Where model, loss and optimizer come from, where that is not torch."""
    parts = [f" {part}.impl={impl}" for part, impl in config.impls().items()]
    if len(set(config.impls().values())) == 1:
        parts = [f" impl={config.impls()['model']}"]
    return "" if parts == [" impl=concise"] else "".join(parts)


def make(run: runs.Run) -> IO[str]:
    """Make the directory of a new run and hold it; BusyError where another process did so a moment ago."""
    run.outputs.mkdir(parents=True, exist_ok=True)  # a killed start may have left it empty
    held = runs.hold(run)
    if (run.outputs / "config.json").exists():
        held.close()
        raise BusyError(f"{run.outputs} was made by another process a moment ago.")
    return held


def open_files(config: Config, run: runs.Run, machine: runtime.Machine, screen: Screen) -> str:
    """Write config.json and status.json and open train.log; returns when the run was started."""
    screen.log_to(run.outputs / "train.log")
    now = datetime.now(UTC).isoformat()
    started = runs.read_status(run).get("started", now)
    saved = replace(config, name=run.name, resume=None, resume_allow=[])
    runs.write_json(run.outputs / "config.json", {"config": saved.to_dict()} | runtime.describe(machine))
    runs.write_status(run, "running", started)
    return str(started)


def open_recorder(run: runs.Run, progress: Progress, screen: Screen) -> Recorder:
    """The files of numbers over time, without what was written past `progress`."""
    return Recorder(
        run.outputs,
        epochs_done=progress.epoch - 1,
        steps_done=progress.step,
        waiting=progress.waiting,
        warn=screen.say,
    )


def describe(parts: Parts, progress: Progress, screen: Screen, start: resume.Start | None) -> None:
    """What is about to be trained on what."""
    splits = (("train", parts.splits.train), ("val", parts.splits.val), ("test", parts.splits.test))
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in splits)
    x = parts.train.x
    where = f"in memory, {x.nbytes / 1e6:.1f} MB" if isinstance(x, Tensor) else "streamed from disk"
    screen.say(f"{build.parameter_count(parts.model):,} parameters; examples: {sizes}; train {where}")
    if parts.ranks.world > 1:
        screen.say(f"{parts.ranks.world} processes, each of which takes its part of every batch")
    if start is not None:
        screen.say(f"going on from {start.path}: epoch {progress.epoch}, {progress.samples:,} examples of it done")


def finish(s: Session) -> None:
    """Measure the best weights on the test split, once, and write result.json and the pictures."""
    config, ranks = s.config, s.parts.ranks
    with ranks.together():
        if s.recorder is not None:
            s.recorder.flush()
            load_best(s)
    ranks.overwrite(s.parts.measured.state_dict().values())
    batches = state.eval_batches(config, s.parts.splits, s.parts.splits.test, s.parts.machine, ranks)
    test = state.gathered(s.parts, batches, s.parts.measure(batches, s.stop))
    with ranks.together():
        if s.recorder is not None:
            conclude(s, s.recorder, test)


def conclude(s: Session, recorder: Recorder, test: engine.Evaluation) -> None:
    """Write result.json, the pictures and, last, the status; the model holds the best weights, which reach `test`."""
    result = report.result_of(s.config, s.parts, s.progress, s.run, test)
    runs.write_json(s.run.outputs / "result.json", result)
    final = {f"test/{key}": result["test"][key] for key in ("loss", "accuracy") if key in result["test"]}
    final["best/val"] = s.progress.best["value"]
    recorder.hyperparameters(report.hyperparameters(s.config), final, s.progress.step)
    if s.config.plots:
        few = s.config.plots == "auto" and s.run.is_job
        report.draw(s.config, s.parts, s.progress, s.run, test, recorder, few=few)
    report.say_result(s.screen, s.config, s.run, result)
    runs.write_status(s.run, "done", s.started)


def draw_all(run: runs.Run) -> None:
    """Draw all pictures of a run that is done, which were left out because it is a job of a sweep."""
    config, machine = device.settle(from_dict(runs.read_config(run)))
    parts = state.assemble(config, data.load(config.data, config.paths), machine)
    best = run.checkpoints / "best.pt"
    checkpoint.load_model(parts.measured, checkpoint.weights_to_use(checkpoint.read(best)), best)
    test = parts.measure(state.eval_batches(config, parts.splits, parts.splits.test, machine))
    progress = Progress(
        step=read_metrics(run.outputs)[-1]["step"], best=runs.read_json(run.outputs / "result.json")["best"]
    )
    report.draw(config, parts, progress, run, test, None)


def load_best(s: Session) -> None:
    """Put the weights of best.pt into the model, and where that is not of the best epoch, say so and count it as best.

    It is not where the disk was full just then, or the file was damaged later.
    """
    best = s.run.checkpoints / "best.pt"
    if not best.is_file():
        checkpoint.keep_as_best(checkpoint.steps_in(s.run.checkpoints)[-1], s.run.checkpoints)
    content = checkpoint.read(best)
    checkpoint.load_model(s.parts.measured, checkpoint.weights_to_use(content), best)
    step, wanted = content["progress"]["step"], s.progress.best
    if step != wanted["step"]:
        row = next(row for row in read_metrics(s.run.outputs) if row["step"] == step)
        s.screen.say(f"warning: the file of epoch {wanted['epoch']} is gone; {best} is of epoch {row['epoch']}.")
        s.progress.best = wanted | {key: row.get(key) for key in ("epoch", "step", "val_loss", "val_accuracy")}
        s.progress.best["value"] = row[wanted["metric"]]


def in_our_words(error: BaseException, config: Config) -> BaseException:
    """An error of torch or of the system as one of ours that says what to change; any other error as it is."""
    if isinstance(error, ProcessLost):
        return error
    if isinstance(error, Interrupted):
        return Interrupted(error.signum, f"interrupted; {report.again(config, 'resume')} goes on.")
    text = str(error) or type(error).__name__
    if "more than 1 value per channel" in text:
        what = "a batch of one example, which batch normalisation cannot scale in training"
        return ConfigError(f"batch_size={config.batch_size} leaves {what}. Choose another batch_size or data.limit.")
    if isinstance(error, ConfigError) and "Original Traceback" in text:  # raised in a worker process
        return ConfigError(text.strip().splitlines()[-1].partition("ConfigError: ")[2])
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError(f"the disk is full: {error}. Make room, then give the command again or resume=.")
    no_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text
    if (no_memory or "shared memory" in text) and not isinstance(error, ResourceError):
        peak = runtime.peak_memory() / 2**20
        return ResourceError(
            f"out of memory with batch_size={config.batch_size}, {peak:,.0f} MiB at the peak: {text.splitlines()[0]} "
            "Try a smaller batch_size, accumulate_steps, or data.workers=0."
        )
    if isinstance(error, ConnectionResetError) or "DataLoader worker" in text:
        return WorkerError(
            f"a process that decodes pictures was ended from outside ({text.splitlines()[0]}). Memory may be short. "
            f"{report.again(config, 'resume')} goes on; data.workers=0 does without such processes."
        )
    return error


def give_up(run: runs.Run, started: str, error: BaseException, screen: Screen) -> None:
    """Note in status.json why the run ended, and say it in train.log."""
    if isinstance(error, KeyboardInterrupt) and not isinstance(error, ProcessLost):
        kind = "interrupted"
    else:
        kind = "diverged" if isinstance(error, DivergedError) else "failed"
    reason = f"{type(error).__name__}: {error}"
    with contextlib.suppress(OSError):  # the disk may be full, and that may be the reason
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
