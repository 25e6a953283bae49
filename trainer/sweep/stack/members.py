"""The runs of a stack: their directories, the checkpoints they resume from, their files."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer.config.roles import HOW_FAR
from trainer.config.schema import Config
from trainer.run import directory, failures, resume
from trainer.run.begin import (
    announce,
    describe_parts,
    find_run,
    make_directory,
    open_files,
    open_recorder,
    refuse_strangers,
)
from trainer.run.checkpoint_files import step_of, steps_in
from trainer.run.directory import Found, Run
from trainer.run.end import note_failure
from trainer.run.epochs import Reporter, Session
from trainer.run.machine import Machine, resolve_auto
from trainer.run.parts import Parts
from trainer.run.progress import Progress
from trainer.run.resume import Start
from trainer.run.safe_load import read_checkpoint
from trainer.utils.errors import DamagedError, DivergedError
from trainer.utils.screen import Screen
from trainer.utils.signals import StopSignal

Outcome = float | Exception  # the objective of a run, or what ended it


class ApartError(Exception):
    """These runs cannot go on together; the message says why."""


@dataclass
class Member:
    """A run of the stack. `outcome` is None as long as there is something left to do."""

    config: Config
    screen: Screen
    report: Reporter | None
    run: Run
    found: Found | None
    outcome: Outcome | None = None
    started: str = ""
    session: Session | None = None
    rng: dict[str, Any] = field(default_factory=dict)  # the generators as this run's initial weights left them

    @property
    def s(self) -> Session:
        """The session, of a run that has one."""
        assert self.session is not None
        return self.session

    @property
    def is_training(self) -> bool:
        """Whether this run has epochs left."""
        if self.session is None or self.outcome is not None:
            return False
        return self.s.progress.epoch <= self.config.epochs and not self.s.progress.stopped


def look_up(configs: Sequence[Config], screens: Sequence[Screen], reports: Sequence[Reporter | None]) -> list[Member]:
    """The runs with their directories, and how those ended that have.

    Raises:
        ApartError, ConfigError: a run is not what it was when the others were begun; nothing was changed.
    """
    members = []
    settled = resolve_auto(configs[0])[0].device  # which is the same for all
    for config, screen, report in zip(configs, screens, reports, strict=True):
        refuse_strangers(config)
        config = replace(config, resume="auto", device=settled)
        run, found, _ = find_run(config)
        changed = resume.check_changes(config, found, None, screen)
        if any(key.startswith(HOW_FAR) for key in changed):
            raise ApartError(f"{changed[0]} is another than before")
        member = Member(config, screen, report, run, found)
        member.outcome = resume.already_done(config, run, found, changed, screen)
        status = directory.read_status(run)
        if status.get("state") == "diverged":
            member.outcome = DivergedError(str(status["reason"]).removeprefix("DivergedError: "))
        members.append(member)
    directory.check_writable(*(Path(getattr(configs[0].paths, name)) for name in ("outputs", "checkpoints")))
    return members


def find_starts(members: Sequence[Member]) -> dict[str, Start]:
    """The checkpoints that the unfinished runs go on from, by the run's name; none of them: all from the beginning.

    Raises:
        ApartError: some have been trained without the others, or their files are gone.
    """
    left = [member.run for member in members if member.outcome is None]
    some_are_done = any(isinstance(member.outcome, float) for member in members)
    found = {run.name: newest_in(run) for run in left}
    newest = {name: start for name, start in found.items() if start is not None}
    if any(start.content["env"].get("stack", 1) != len(members) for start in newest.values()):
        raise ApartError("a run was gone on with alone, or in another company")
    if without := [run for run in left if run.name not in newest]:
        ended = any(start.content["progress"]["epoch"] > 2 for start in newest.values())
        if ended or some_are_done or any(has_lost(run) for run in without):
            raise ApartError("a run has no checkpoint, while others are further")
        return {}  # killed before or during the first save
    stopped = {name: start for name, start in newest.items() if start.content["early_stop"]["stopped"]}
    starts = newest_of_all([run for run in left if run.name not in stopped])
    if some_are_done and any(s.content["progress"]["epoch"] <= members[0].config.epochs for s in starts.values()):
        raise ApartError("some runs are finished while others are not")
    return stopped | starts


def newest_in(run: Run) -> Start | None:
    """The newest checkpoint of a run that can be read; None where there is none."""
    for path in reversed(steps_in(run.checkpoints)):
        try:
            return Start(path, read_checkpoint(path))
        except DamagedError:
            continue
    return None


def has_lost(run: Run) -> bool:
    """Whether a run without a checkpoint had one."""
    return bool(directory.read_status(run).get("checkpoint")) or len(directory.read_metrics(run.outputs)) > 1


def newest_of_all(of: Sequence[Run]) -> dict[str, Start]:
    """The checkpoints of the newest step that all these runs have: a kill may have come between their saves."""
    files = {run.name: {step_of(path): path for path in steps_in(run.checkpoints)} for run in of}
    for step in sorted(set.intersection(*map(set, files.values())), reverse=True) if files else ():
        try:
            return {name: Start(paths[step], read_checkpoint(paths[step])) for name, paths in files.items()}
        except DamagedError:
            continue
    if files:
        raise ApartError("the runs' checkpoints are of different steps")
    return {}


def open_member(
    member: Member,
    parts: Parts,
    progress: Progress,
    machine: Machine,
    start: Start | None,
    held: ExitStack,
    stop: StopSignal,
) -> None:
    """What commands.train does between the building of the parts and the first step."""
    config, run, screen = member.config, member.run, member.screen
    announce(config, machine, [], screen)
    if start is not None:
        resume.check_owner(run, start, config.resume_allow, screen)
        resume.rewind(run, start, progress, config.epochs, screen)
        resume.warn_of_rounding(start.content["env"], parts, screen)
    if member.found is None:
        held.enter_context(make_directory(run))
    member.started = open_files(config, run, machine, screen)
    describe_parts(parts, progress, screen, start)
    recorder = open_recorder(run, progress, screen)
    held.callback(recorder.close)
    member.session = Session(config, parts, progress, run, recorder, screen, stop, member.started, member.report)


def end_member(member: Member, error: BaseException) -> None:
    """Note how a run ended, if it had not ended before."""
    if member.outcome is not None:
        return
    told = failures.explain(error, member.config)
    if isinstance(told, Exception):
        member.outcome = told
    if member.session is not None:
        note_failure(member.run, member.started, told, member.screen)
        if isinstance(told, Exception):
            member.screen.say(f"warning: it ends here, the others go on: {told}")
