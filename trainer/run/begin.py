"""The beginning of a run: what it resumes from, its parts, its directory and files."""

from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer import data
from trainer.config.roles import HOW_FAR
from trainer.config.schema import Config
from trainer.data.splits import Source
from trainer.run import directory, resume
from trainer.run.announce import announce, describe_parts
from trainer.run.checkpoint import check_architecture, check_savable, load_backbone, unpack
from trainer.run.directory import Run
from trainer.run.distributed import check_processes, distribute
from trainer.run.environment import provenance
from trainer.run.finetune import on_features
from trainer.run.loggers import check_loggers
from trainer.run.machine import Machine, resolve_auto
from trainer.run.parts import Parts, assemble
from trainer.run.pretrained import for_fine_tuning, read_start
from trainer.run.progress import Progress
from trainer.run.recorder import Recorder, SilentRecorder
from trainer.run.resume import Start
from trainer.run.session import Reporter, Session
from trainer.run.shapes import check_images, check_plugged_parts, check_sizes, check_smallest_part, check_targets
from trainer.run.target import Target, find, resolve_resume
from trainer.utils.errors import ConfigError
from trainer.utils.files import remove_temporary, write_json
from trainer.utils.ranks import AgreedStop, Ranks
from trainer.utils.screen import Screen
from trainer.utils.signals import StopSignal


@dataclass(frozen=True)
class Begun:
    """The run to train, and what is there of it. Plain types only: rank 0 finds it and tells the others."""

    name: str = ""  # of the run
    is_new: bool = True  # whether it has never been started
    changed: Sequence[str] = ()  # settings that changed since
    path: str = ""  # the checkpoint to continue from; "" for none
    content: dict[str, Any] = field(default_factory=dict)  # what is in it
    finished: float | None = None  # the objective, where there is nothing left to do
    layout: Mapping[str, Any] = field(default_factory=dict)  # settings that its first start chose for its budget

    @property
    def start(self) -> Start | None:
        """The checkpoint to continue from."""
        return Start(Path(self.path), self.content) if self.path else None

    @property
    def goes_further(self) -> bool:
        """Whether a setting changed that says when training ends."""
        return any(key.startswith(HOW_FAR) for key in self.changed)


def choose_machine(config: Config, ranks: Ranks, screen: Screen) -> tuple[Config, Machine]:
    """The machine, set up; and the config with what each `auto` of the device came to."""
    with ranks.together():  # a rank that fails alone would leave the others waiting for it
        config, machine = resolve_auto(config, ranks.local if ranks.world > 1 else None)
        check_processes(config, machine, ranks, screen)
    return config, machine


def begin(config: Config, target: Target | None, ranks: Ranks, screen: Screen, held: ExitStack) -> tuple[Config, Begun]:
    """Find the run and what it resumes from; rank 0 does, for all. The config gets the run's name.

    Args:
        config: all settings.
        target: what resume= points at, where it was looked up already.
        ranks: of all processes.
        screen: is told of what is odd.
        held: keeps the lock on the run's directory.
    Raises:
        ConfigError: the name is taken, the run does not exist or cannot be resumed.
        BusyError: another process has the run.
    """
    config = replace(config, epochs=1 if config.fast_dev_run else config.epochs)  # what will be trained
    with ranks.together():
        if target is None:  # as typed: also the job of a sweep that is resumed, whose run began so
            config = for_fine_tuning(config, screen)
        begun = open_run(config, target, screen, held) if ranks.is_first else Begun()  # only rank 0 locks and renames
    begun = Begun(**ranks.share(vars(begun)))
    return replace(config, name=begun.name, **begun.layout), begun


def open_run(config: Config, target: Target | None, screen: Screen, held: ExitStack) -> Begun:
    """As begin, for one process."""
    folders = {"outputs": config.paths.outputs, "checkpoints": config.paths.checkpoints}
    check_loggers(config.logger)
    directory.check_writable(*map(Path, folders.values()))  # now: a read-only disk should not cost a download first
    if target is None and (resumed := resolve_resume(config.resume, config.name, config.paths.outputs)) is not None:
        target = find(resumed, **folders)
    if target is None:
        return Begun(new_run(config))
    run = target.run
    if "name" in config.typed and config.name != run.name:
        raise ConfigError(f"name={config.name}: a resumed run keeps its own name, which is {run.name}.")
    layout = resume.layout_of(config, target)
    config = replace(config, name=run.name, **layout)
    changed = resume.check_changes(config, target, screen)
    resume.warn_of_divergence(run, changed, screen)
    if (finished := resume.already_done(config, target, changed, screen)) is not None:
        return Begun(run.name, False, finished=finished, layout=layout)
    if run.outputs.is_dir():
        held.enter_context(directory.hold(run.outputs))  # before looking: another process may be saving
        for folder in (run.outputs, run.checkpoints):
            remove_temporary(folder)  # of a killed process, since the lock is ours
    start = resume.find_start(target, screen)
    if start is None:
        return Begun(run.name, False, changed, layout=layout)
    resume.check_owner(run, start, config.resume_allow, screen)
    return Begun(run.name, False, changed, str(start.path), start.content, layout=layout)


def new_run(config: Config) -> str:
    """The name of a new run.

    Raises:
        ConfigError: it is taken.
    """
    name = config.name or directory.new_name(config.data.name, config.model.name)
    if directory.exists(name, config.paths.outputs):
        if config.overwrite:
            directory.check_folders(run_of(config, name))  # now: the old run is deleted when the new one starts
            return name
        how = f"resume={name} continues it; another name= or overwrite=true starts anew."
        raise ConfigError(f"name={name} exists already. {how}")
    directory.check_free(run_of(config, name))
    return name


def run_of(config: Config, name: str | None = None) -> Run:
    """The run that the config names, or of another name in the same folders."""
    name = name or config.name
    assert name is not None, "begin names every run"
    return directory.locate(name, outputs=config.paths.outputs, checkpoints=config.paths.checkpoints)


def make_parts(
    config: Config,
    begun: Begun,
    machine: Machine,
    ranks: Ranks,
    screen: Screen,
    *,
    batches: int = 0,
    sources: MutableMapping[str, Source] | None = None,
) -> tuple[Parts, Progress]:
    """Read the data, build the parts, and put a checkpoint or initial weights into them.

    Args:
        config: all settings of the run.
        begun: what begin found.
        machine: where and how to compute.
        ranks: of all processes.
        screen: is told what is read.
        batches: of each split that are used; 0: all.
        sources: see data.load.
    Raises:
        ConfigError: a file or the data does not fit the settings, or cannot be read.
    """
    announce(config, machine, screen)
    start = begun.start
    like = start.content if start is not None else None
    with ranks.together():
        check_images(config)
        if start is not None:
            check_architecture(config, start.content, start.path)  # before the data, which may take minutes to read
        if ranks.local == 0:  # it may download or decode, which the others of its machine then need not
            pretrained = read_start(config) if start is None else None
            splits = data.load(config.data, config.paths, sources, like=like)
    with ranks.together():
        if ranks.local != 0:
            pretrained = read_start(config) if start is None else None
            splits = data.load(config.data, config.paths, sources, like=like)
        parts = assemble(config, resume.with_moments(splits, start), machine, batches=batches, ranks=ranks)
    parts = distribute(config, parts)
    with ranks.together():
        check_sizes(config, parts)
        check_smallest_part(config, parts)
        check_targets(config, parts.splits)
        check_plugged_parts(config, parts)
        progress = Progress()
        if start is not None:
            progress = put_in(start, config, parts, screen)
        elif pretrained is not None:
            # names and shapes that fit: another number of classes leaves only the last layer at its initial values
            screen.say(load_backbone(parts.model, pretrained, parts.splits.classes))
        parts = on_features(config, parts, screen)
    if begun.goes_further:
        progress.stopped = ""  # it was stopped by settings that have changed
    return parts, progress


def put_in(start: Start, config: Config, parts: Parts, screen: Screen) -> Progress:
    """Put a checkpoint into the parts, and make the run's files what they were when it was written."""
    progress = unpack(start.content, config, parts, start.path)
    if parts.ranks.is_first:
        resume.rewind(run_of(config), start, progress, config.epochs, screen)
    resume.warn_of_rounding(start.content["env"], parts, screen)
    return progress


def open_session(
    config: Config,
    begun: Begun,
    parts: Parts,
    progress: Progress,
    stop: StopSignal | AgreedStop,
    screen: Screen,
    held: ExitStack,
    report: Reporter | None = None,
) -> Session:
    """Make the run's directory and files: from here on the run exists, and how it ends is noted there."""
    run, ranks, started = run_of(config), parts.ranks, ""
    with ranks.together():
        check_savable(parts)
        if ranks.is_first:
            if begun.is_new or not run.outputs.is_dir():
                held.enter_context(directory.make(run, config.overwrite))
            started = write_first_files(config, run, parts.machine, screen)
    return Session(config, parts, progress, run, SilentRecorder(), screen, stop, started, report)


def write_first_files(config: Config, run: Run, machine: Machine, screen: Screen) -> str:
    """Write config.json and status.json and open train.log; returns when the run was started first."""
    screen.log_to(run.outputs / "train.log")
    # a resumed run keeps its first start, by which `last` means the newest run
    started = directory.read_status(run.outputs).get("started", datetime.now(UTC).isoformat())
    directory.set_aside_damaged(run, screen)
    saved = replace(config, resume=None, resume_allow=[])  # of this command: the next resume has its own
    write_json(run.outputs / "config.json", {"config": saved.to_dict()} | provenance(machine))
    directory.write_status(run, "running", started)
    return str(started)


def start_recording(s: Session, begun: Begun, held: ExitStack) -> None:
    """Say what is about to be trained, and open the files of numbers without what was written past `progress`."""
    describe_parts(s.config, s.parts, s.progress, s.screen, begun.path)
    with s.parts.ranks.together():
        if s.parts.ranks.is_first:
            # an epoch that was recorded but not saved is trained and recorded again
            done = {"epochs_done": s.progress.epoch - 1, "steps_done": s.progress.step}
            s.recorder = Recorder(s.run.outputs, s.config.logger, **done, waiting=s.progress.waiting, warn=s.screen.say)
            held.callback(s.recorder.close)
