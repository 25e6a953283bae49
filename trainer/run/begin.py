"""The beginning of a run: its name, directory and files, and what it resumes from."""

from collections.abc import MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from trainer import build, data
from trainer.config.schema import Config
from trainer.data.splits import Source
from trainer.run import directory, resume
from trainer.run.checkpoint import check_architecture, load_backbone, unpack
from trainer.run.checkpoint_files import remove_temporary, steps_in
from trainer.run.directory import Found, Run
from trainer.run.environment import provenance
from trainer.run.epochs import STEPS_BETWEEN_TALKS
from trainer.run.machine import Machine
from trainer.run.parts import ALONE, Parts, assemble, distribute
from trainer.run.progress import Progress
from trainer.run.recorder import Recorder
from trainer.run.resume import Start
from trainer.run.safe_load import read_checkpoint, read_weights
from trainer.utils.errors import BusyError, ConfigError
from trainer.utils.files import write_json
from trainer.utils.ranks import Ranks
from trainer.utils.screen import Screen


@dataclass(frozen=True)
class Opened:
    """The run to train, and what is there of it: rank 0 finds it and tells the others. Plain types, so that it can."""

    name: str
    is_new: bool = True
    changed: Sequence[str] = ()  # settings that are others than before
    path: str = ""  # the checkpoint to go on from
    content: dict[str, Any] = field(default_factory=dict)  # what is in it
    finished: float | None = None  # the objective, where there is nothing left to do

    def found(self, config: Config) -> tuple[Run, Start | None]:
        """The run, and where it goes on from."""
        run = directory.locate(self.name, outputs=config.paths.outputs, checkpoints=config.paths.checkpoints)
        return run, Start(Path(self.path), self.content) if self.path else None


def open_run(config: Config, screen: Screen, held: ExitStack) -> Opened:
    """Find the run and what it goes on from, and hold its directory where there is one.

    Raises:
        ConfigError, BusyError: it is not to be had, or not to be gone on with.
    """
    directory.check_writable(Path(config.paths.outputs), Path(config.paths.checkpoints))
    run, found, content = find_run(config)
    config = with_name(config, run)
    changed = resume.check_changes(config, found, content and content["config"], screen)
    if found is not None:
        if (finished := resume.already_done(config, run, found, changed, screen)) is not None:
            return Opened(run.name, finished=finished)
        if run.outputs.is_dir():
            held.enter_context(directory.hold(run))
            remove_temporary(run.checkpoints)
    start = resume.find_start(run, found, screen)
    if start is None:
        return Opened(run.name, found is None, changed)
    resume.check_owner(run, start, config.resume_allow, screen)
    return Opened(run.name, found is None, changed, str(start.path), start.content)


def with_name(config: Config, run: Run) -> Config:
    """The config with the name of the run, and the epochs that it comes to."""
    return replace(config, name=run.name, epochs=1 if config.fast_dev_run else config.epochs)


def check_processes(config: Config, machine: Machine, ranks: Ranks, screen: Screen) -> None:
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
    if machine.device.type not in STEPS_BETWEEN_TALKS:
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


def find_run(config: Config) -> tuple[Run, Found | None, dict[str, Any] | None]:
    """The run, what resume= points at (None: a new run), and the content of the file where it names one.

    Raises:
        ConfigError: the name is taken, or there is nothing to resume.
    """
    folders = {"outputs": config.paths.outputs, "checkpoints": config.paths.checkpoints}
    target = config.resume
    if target == "auto":
        assert config.name is not None, "main.py asks for it"
        target = config.name if directory.exists(config.name, config.paths.outputs) else None
    if target is None:
        run = directory.locate(config.name or directory.new_name(config.data.name, config.model.name), **folders)
        if directory.exists(run.name, config.paths.outputs):
            raise ConfigError(f"name={run.name} exists already. resume={run.name} goes on; another name= starts anew.")
        if taken := directory.strangers_in(run):
            raise ConfigError(
                f"name={run.name}: {taken} is there already and is not a run to go on with. Choose another."
            )
        return run, None, None
    found = directory.find(target, **folders)
    content = read_checkpoint(found.file) if found.run is None else None
    run = found.run or directory.locate(content["config"]["name"] if content else "", **folders)
    if "name" in config.typed and config.name != run.name:
        raise ConfigError(f"name={config.name}: resume goes on with {run.name} under its own name.")
    return run, found, content


def prepare_parts(
    config: Config,
    run: Run,
    start: Start | None,
    machine: Machine,
    screen: Screen,
    batches: int,
    sources: MutableMapping[str, Source] | None,
    ranks: Ranks = ALONE,
) -> tuple[Parts, Progress]:
    """Read files and data, build the parts and put a checkpoint or initial weights into them."""
    with ranks.together():
        path = file_of(config, config.init_from) if config.init_from is not None and start is None else None
        weights = read_weights(path) if path is not None else {}
        if start is not None:
            check_architecture(config, start.content, start.path)
        if ranks.local == 0:  # it may download or decode, which the others of its machine then need not
            splits = data.load(config.data, config.paths, sources)
    with ranks.together():
        if ranks.local != 0:
            splits = data.load(config.data, config.paths, sources)
        if start is not None:  # the same numbers, also where they come from a sample of a streamed set
            moments = start.content["preprocess"]
            splits = replace(splits, mean=tuple(moments["mean"]), std=tuple(moments["std"]))
        parts = assemble(config, splits, machine, batches=batches, ranks=ranks)
    parts = distribute(config, parts)
    with ranks.together():
        progress = Progress()
        if start is not None:
            progress = unpack(start.content, config, parts, start.path)
            if ranks.is_first:
                resume.rewind(run, start, progress, config.epochs, screen)
            resume.warn_of_rounding(start.content["env"], parts, screen)
        elif path is not None:
            left_out = load_backbone(parts.model, weights, path)
            screen.say(f"weights from {path}; start afresh: {', '.join(left_out) or 'none'}")
    return parts, progress


def announce(config: Config, machine: Machine, chosen: Sequence[str], screen: Screen) -> None:
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


def make_directory(run: Run) -> IO[str]:
    """Make the directory of a new run and hold it; BusyError where another process did so a moment ago."""
    run.outputs.mkdir(parents=True, exist_ok=True)  # a killed start may have left it empty
    held = directory.hold(run)
    if (run.outputs / "config.json").exists():
        held.close()
        raise BusyError(f"{run.outputs} was made by another process a moment ago.")
    return held


def open_files(config: Config, run: Run, machine: Machine, screen: Screen) -> str:
    """Write config.json and status.json and open train.log; returns when the run was started."""
    screen.log_to(run.outputs / "train.log")
    now = datetime.now(UTC).isoformat()
    started = directory.read_status(run).get("started", now)
    saved = replace(config, name=run.name, resume=None, resume_allow=[])
    write_json(run.outputs / "config.json", {"config": saved.to_dict()} | provenance(machine))
    directory.write_status(run, "running", started)
    return str(started)


def open_recorder(run: Run, progress: Progress, screen: Screen) -> Recorder:
    """The files of numbers over time, without what was written past `progress`."""
    return Recorder(
        run.outputs,
        epochs_done=progress.epoch - 1,
        steps_done=progress.step,
        waiting=progress.waiting,
        warn=screen.say,
    )


def describe_parts(parts: Parts, progress: Progress, screen: Screen, start: Start | None) -> None:
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


def file_of(config: Config, target: str) -> Path:
    """The checkpoint file that a RUN (its best unless it says :last) or PATH means."""
    found = directory.find(target, outputs=config.paths.outputs, checkpoints=config.paths.checkpoints)
    if found.run is None:
        return found.file
    if found.which == "last" and (files := steps_in(found.run.checkpoints)):
        return files[-1]
    path = found.run.checkpoints / "best.pt"
    if not path.is_file():
        raise ConfigError(f"{found.run.name} has no {path.name} yet: it is written at the end of its first epoch.")
    return path
