"""The jobs of a sweep, run in this process: one after the other, or stacked together."""

import time
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.run import directory
from trainer.sweep.job import INTERRUPTED, Job, config_of_job, fail, note, objective_of, say, told_in
from trainer.utils import ranks
from trainer.utils.errors import BusyError, ConfigError, Interrupted, ProcessLost
from trainer.utils.files import open_regular
from trainer.utils.locks import try_lock
from trainer.utils.screen import Screen
from trainer.utils.signals import StopSignal
from trainer.utils.text import emit

if TYPE_CHECKING:
    from trainer.sweep.trial import Trial


def run_all(jobs: Sequence[Job], folder: Path, stop: StopSignal) -> None:
    """Run the jobs of a sweep in this process: those that can be stacked together, the others one after the other.

    Args:
        folder: outputs/<sweep>.
    """
    sources: dict[str, Any] = {}
    together = stacks_of(jobs, folder)
    for job in jobs:
        if job.number not in together:
            run_job(job, folder, stop, sources=sources)
        elif job is together[job.number][0]:
            run_together(together[job.number], folder, stop, sources)


def stacks_of(jobs: Sequence[Job], folder: Path) -> dict[int, list[Job]]:
    """For each job that is trained as one of several together, all of these; says why the others are not."""
    fine = [job for job in jobs if job.config is not None]
    if all(objective_of(job, folder / str(job.number)) is not None for job in fine):
        return {}  # without importing torch
    from trainer.sweep.stack.eligible import group_runs

    try:
        found = group_runs([config_of_job(job, folder) for job in fine])
    except ConfigError:  # a device that is not there: each job says so
        return {}
    for reason in dict.fromkeys(found.reasons.values()):
        alone = [str(fine[i].number) for i, why in found.reasons.items() if why == reason]
        which = f"jobs {', '.join(alone)}" if len(alone) < len(jobs) else "all jobs"
        emit(f"one after another, {which}: {reason}")
    stacks = [[fine[i] for i in members] for members in found.stacks]
    return {job.number: stack for stack in stacks for job in stack}


def run_together(jobs: Sequence[Job], folder: Path, stop: StopSignal, sources: MutableMapping[str, Any]) -> None:
    """As run_job, for jobs that are trained as one stacked model."""
    from trainer.sweep.stack.members import ApartError
    from trainer.sweep.stack.training import train_stack

    names = [f"{folder.name}/{job.number}" for job in jobs]
    for job, name in zip(jobs, names, strict=True):
        note(job, folder)
        say(f"[{name}] {job.text}, as one of {len(jobs)} together")
    began = time.monotonic()
    configs, screens = [config_of_job(job, folder) for job in jobs], [Screen(job=name) for name in names]
    try:
        outcomes = train_stack(configs, stop, sources=sources, screens=screens)
    except ApartError as error:
        warning = f"warning: {names[0]} to {names[-1]} are trained one after another: {error}"
        for job in jobs:
            run_job(job, folder, stop, sources=sources, warnings=[warning])
        return
    except Exception as error:  # before the first step: those that were done stay so
        outcomes = [error if objective_of(job, folder / str(job.number)) is None else 0.0 for job in jobs]
    except Interrupted as error:
        raise Interrupted(error.signum, INTERRUPTED) from None
    for job, outcome in zip(jobs, outcomes, strict=True):
        if isinstance(outcome, Exception):
            fail(job, folder, outcome)
    say(f"[{names[0]} to {names[-1]}] done in {time.monotonic() - began:.1f} s")


def run_job(
    job: Job,
    folder: Path,
    stop: StopSignal,
    *,
    trial: "Trial | None" = None,
    sources: MutableMapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
) -> float:
    """Train a job, resume it, or leave it alone if it is done; a failure is noted, and the other jobs still run.

    Args:
        job: the job.
        folder: outputs/<sweep>.
        stop: the signals.
        trial: of a search; gets the metric of each epoch and the objective.
        sources: see data.load.
        warnings: for its screen and log.
    Returns:
        The objective; nan where the job failed.
    Raises:
        Interrupted: the job can be resumed.
    """
    name, own = f"{folder.name}/{job.number}", folder / str(job.number)
    note(job, folder)
    objective = objective_of(job, own)
    if ranks.of_environment().world > 1:
        objective = ranks.join().share(objective)  # the others may be on machines without these files
    if objective is not None:
        say(f"[{name}] {job.text}: done before")
    else:
        say(f"[{name}] {job.text}")
        began = time.monotonic()
        try:
            objective = train_job(job, folder, stop, trial, sources, warnings)
        except ProcessLost:
            raise
        except Interrupted as error:
            raise Interrupted(error.signum, INTERRUPTED) from None
        except BusyError as error:  # somebody resumed it alone, or another process of the search has it
            return fail(job, folder, error)
        except Exception as error:
            if trial is not None:
                trial.failed(f"{type(error).__name__}: {error}")
            return fail(job, folder, error)
        say(f"[{name}] done in {time.monotonic() - began:.1f} s")
    if trial is not None:
        trial.done(objective)
    return objective


def train_job(
    job: Job,
    folder: Path,
    stop: StopSignal,
    trial: "Trial | None",
    sources: MutableMapping[str, Any] | None,
    warnings: Sequence[str],
) -> float:
    """Train a job under its name, or raise what is in its way."""
    if job.config is None:
        assert job.error is not None
        raise job.error
    from trainer.commands.train import train  # imports torch

    config = config_of_job(job, folder)
    report = trial.report if trial is not None else None
    screen = Screen(job=config.name or "")
    for warning in warnings:
        screen.say(warning)
    return train(config, stop, report=report, screen=screen, sources=sources)[1]


def wait_for_jobs(folder: Path, seconds: float = 30.0) -> None:
    """Wait until no process holds a run of the sweep: those that were told to stop have saved then."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and any(directory.is_held(folder / str(number)) for number in told_in(folder)):
        time.sleep(0.1)


@contextmanager
def on_a_gpu(job: Job, folder: Path) -> Iterator[Job]:
    """The job on a GPU that no other job of the sweep has for as long; waits for one.

    The locks are files in outputs/<sweep>, which go with the process that holds them.
    """
    import torch

    count = torch.cuda.device_count()
    config = job.config
    if config is not None and (not count or config.device.name not in ("auto", "cuda")):
        reason = f"device={config.device.name}" if count else "no CUDA GPU is visible"
        yield replace(job, config=None, error=ConfigError(f"hydra/launcher=gpus: {reason}."))
        return
    while config is not None:
        for index in range(count):
            with open_regular(folder / f"gpu-{index}.lock", "a", encoding="utf-8") as file:
                if not try_lock(file):
                    continue
                device = replace(config.device, name="cuda", options={**config.device.options, "index": index})
                yield replace(job, config=replace(config, device=device))
                return
        time.sleep(0.1)
    yield job
