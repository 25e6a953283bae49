"""A sweep: one of its jobs after the other, and what they leave behind together: table, CSV files, pictures.

What is known of a job stands in its own files, and what it was told in outputs/<sweep>/jobs/<number>.json, so that it
does not matter which process it ran in. Torch-free until a job is trained: a finished sweep prints its table at once.
"""

import contextlib
import fcntl
import math
import shlex
import statistics
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config import OF_THE_COMMAND, Config, flatten
from trainer.utils import ranks, runs
from trainer.utils.errors import BusyError, ConfigError, Interrupted, ProcessLost, TrainerError, listed
from trainer.utils.screen import Screen, is_terminal, shown, table
from trainer.utils.signals import StopSignal

if TYPE_CHECKING:
    from trainer.search import Trial

TO_GO_ON = "interrupted; the same command goes on with the sweep."
# settings that may be others when a sweep goes on; the runs themselves check those that change their numbers
MAY_CHANGE = (
    *("name", "plots", "paths.", "device", "save.", "record.", "sweep.", "hydra"),
    *("epochs", "early_stopping.", "stop_at."),
)
FIGURES = ("val_loss", "val_accuracy", "test_loss", "test_accuracy", "seconds")  # what is averaged over seeds


@dataclass(frozen=True)
class Job:
    """A run of a sweep: outputs/<sweep>/<number>."""

    number: int
    overrides: Mapping[str, str]  # what is swept over, as typed
    config: Config | None  # None: it was refused
    error: Exception | None = None  # why

    @property
    def text(self) -> str:
        """`optimizer.lr=0.1 seed=2`."""
        return runs.words(self.overrides)


def check_same(folder: Path, sweeper: str, words: Mapping[str, str]) -> None:
    """Refuse a name that another sweep has; outputs/<sweep>/sweep.json says what that one is made of.

    Args:
        sweeper: basic or optuna.  words: key -> value of what was typed.
    Raises:
        ConfigError: names the settings that are others.
    """
    made_of = {key: value for key, value in sorted(words.items()) if not key.startswith(MAY_CHANGE)}
    content = {"sweeper": sweeper, "made_of": made_of}
    path = folder / "sweep.json"
    before = runs.read_json(path) if path.is_file() else None
    if before is None:
        runs.write_json(path, content)
    elif before != content:
        was = before.get("made_of", {}) | {"hydra/sweeper": before.get("sweeper")}
        now = made_of | {"hydra/sweeper": sweeper}
        others = sorted(key for key in was | now if was.get(key) != now.get(key))
        raise ConfigError(f"name={folder.name} is a sweep with other settings: {listed(others)}. Choose another name=.")


def run_all(jobs: Sequence[Job], folder: Path, stop: StopSignal) -> None:
    """Run the jobs of a sweep in this process: those that can be stacked together, the others one after the other.

    Args:
        folder: outputs/<sweep>.
    """
    sources: dict[str, Any] = {}
    together = stacks_of(jobs, folder)
    for job in jobs:
        if job.number not in together:
            run(job, folder, stop, sources=sources)
        elif job is together[job.number][0]:
            run_together(together[job.number], folder, stop, sources)


def stacks_of(jobs: Sequence[Job], folder: Path) -> dict[int, list[Job]]:
    """For each job that is trained as one of several together, all of these; says why the others are not."""
    fine = [job for job in jobs if job.config is not None]
    if all(objective_of(job, folder / str(job.number)) is not None for job in fine):
        return {}  # without importing torch
    from trainer import groups

    try:
        found = groups.groups([named(job, folder) for job in fine])
    except ConfigError:  # a device that is not there: each job says so
        return {}
    for reason in dict.fromkeys(found.reasons.values()):
        alone = [str(fine[i].number) for i, why in found.reasons.items() if why == reason]
        which = f"jobs {', '.join(alone)}" if len(alone) < len(jobs) else "all jobs"
        print(f"one after another, {which}: {reason}", flush=True)
    stacks = [[fine[i] for i in members] for members in found.stacks]
    return {job.number: stack for stack in stacks for job in stack}


def named(job: Job, folder: Path) -> Config:
    """The settings of a job under its name, begun or gone on with."""
    assert job.config is not None
    return replace(job.config, name=f"{folder.name}/{job.number}", resume="auto")


def run_together(jobs: Sequence[Job], folder: Path, stop: StopSignal, sources: MutableMapping[str, Any]) -> None:
    """As run, for jobs that are trained as one stacked model."""
    from trainer import commands, stack

    names = [f"{folder.name}/{job.number}" for job in jobs]
    for job, name in zip(jobs, names, strict=True):
        note(job, folder)
        say(f"[{name}] {job.text}, as one of {len(jobs)} together")
    began = time.monotonic()
    configs, screens = [named(job, folder) for job in jobs], [Screen(job=name) for name in names]
    try:
        outcomes = stack.train_stack(configs, stop, sources=sources, screens=screens)
    except Interrupted as error:
        raise Interrupted(error.signum, TO_GO_ON) from None
    for job, config, outcome in zip(jobs, configs, outcomes, strict=True):
        if isinstance(outcome, Exception):
            fail(job, folder, commands.in_our_words(outcome, config))
    say(f"[{names[0]} to {names[-1]}] done in {time.monotonic() - began:.1f} s")


def run(
    job: Job,
    folder: Path,
    stop: StopSignal,
    *,
    trial: "Trial | None" = None,
    sources: MutableMapping[str, Any] | None = None,
) -> float:
    """Train a job, go on with it, or leave it where it is done; a failure is noted, said and does not stop the others.

    Args:
        folder: outputs/<sweep>.  sources: see commands.train.
        trial: what a search is told of it.
    Returns:
        The objective; nan where the job failed.
    Raises:
        Interrupted: the job can be gone on with.
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
            objective = train(job, folder, stop, trial, sources)
        except ProcessLost:
            raise
        except Interrupted as error:
            raise Interrupted(error.signum, TO_GO_ON) from None
        except BusyError as error:  # somebody goes on with it alone, or another process of the search
            return fail(job, folder, error)
        except Exception as error:
            if trial is not None:
                trial.failed(f"{type(error).__name__}: {error}")
            return fail(job, folder, error)
        say(f"[{name}] done in {time.monotonic() - began:.1f} s")
    if trial is not None:
        trial.done(objective)
    return objective


def train(
    job: Job, folder: Path, stop: StopSignal, trial: "Trial | None", sources: MutableMapping[str, Any] | None
) -> float:
    """Train a job under its name, or raise what is in its way."""
    if job.config is None:
        assert job.error is not None
        raise job.error
    from trainer import commands  # imports torch

    config = named(job, folder)
    report = trial.report if trial is not None else None
    try:
        return commands.train(config, stop, report=report, screen=Screen(job=config.name or ""), sources=sources)
    except Exception as error:
        raise commands.in_our_words(error, config) from error.__cause__


def fail(job: Job, folder: Path, error: BaseException) -> float:
    """Note and say why a job failed."""
    if not ranks.of_environment().is_first:
        return math.nan
    reason = f"{type(error).__name__}: {error}"
    note(job, folder, reason)
    log = folder / str(job.number) / "train.log"
    print(f"[{folder.name}/{job.number}] failed: {reason} See {log}.", file=sys.stderr, flush=True)
    runs.log_failure(log.parent, "".join(traceback.format_exception(error)))
    return math.nan


def wait_for_jobs(folder: Path, seconds: float = 30.0) -> None:
    """Wait until no process holds a run of the sweep: those that were told to stop have saved then."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and any(runs.is_held(folder / str(number)) for number in runs.told_in(folder)):
        time.sleep(0.1)


def remove_empty(new: Sequence[Path]) -> None:
    """Remove the folders that were made for a sweep which was then refused; the first is its own."""
    ours = {"run.lock", "study.lock", "sweep.json"}
    if new and {path.name for path in new[0].iterdir()} <= ours:
        for name in ours:
            (new[0] / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another process may have begun it meanwhile
        for folder in new:
            folder.rmdir()


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
            with open(folder / f"gpu-{index}.lock", "a") as file:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    continue
                device = replace(config.device, name="cuda", options={**config.device.options, "index": index})
                yield replace(job, config=replace(config, device=device))
                return
        time.sleep(0.1)
    yield job


def say(line: str) -> None:
    """Print a line where no board shows the same."""
    if not is_terminal():
        print(line, flush=True)


def note(job: Job, folder: Path, error: str = "") -> None:
    """Write outputs/<sweep>/jobs/<number>.json: what the job was told, and why it failed."""
    if not ranks.of_environment().is_first:
        return
    (folder / "jobs").mkdir(parents=True, exist_ok=True)
    content = {"job": job.number, "overrides": dict(job.overrides), "error": error}
    if runs.told_in(folder, f"{job.number}.json").get(job.number) != content:  # a finished sweep is left as it is
        runs.write_json(folder / "jobs" / f"{job.number}.json", content)


def objective_of(job: Job, own: Path) -> float | None:
    """The objective of a job that is done, with these very settings; None where there is something to do."""
    result = runs.result_in(own)
    if job.config is None or runs.status_in(own).get("state") != "done" or result is None:
        return None
    try:
        saved = runs.read_config(runs.Run("", own, Path()))
    except ConfigError:
        return None
    was, now = (
        {key: value for key, value in flatten(plain).items() if key not in (*OF_THE_COMMAND, "name")}
        for plain in (saved, job.config.to_dict())
    )
    settled = {key for key, value in now.items() if key.startswith("device.") and value == "auto"}
    settled |= {"choices.device", "device.index"}  # where it ran
    if any(was.get(key) != now[key] for key in now if key not in settled):
        return None
    return float(result["objective"]["value"])


def rows_of(folder: Path, waiting: Sequence[Job] = ()) -> list[dict[str, Any]]:
    """A line for each job of the sweep in outputs/<sweep>, by number.

    Args:
        waiting: jobs that are to come; those that left nothing yet have a line too.
    """
    told = runs.told_in(folder)
    for job in waiting:
        told.setdefault(job.number, {"job": job.number, "overrides": dict(job.overrides), "error": ""})
    keys = list(dict.fromkeys(key for job in told.values() for key in job["overrides"]))
    return [row_of(told[number], folder / str(number), keys) for number in sorted(told)]


def row_of(job: Mapping[str, Any], own: Path, keys: Sequence[str]) -> dict[str, Any]:
    """The figures of one job, from the files in its own directory."""
    state = "failed" if job["error"] else runs.status_in(own).get("state", "waiting")
    result = runs.result_in(own) if state == "done" else None
    best, test = (result["best"], result["test"]) if result else ({}, {})
    return {
        "job": job["job"],
        "overrides": runs.words(job["overrides"]),
        **{key: job["overrides"].get(key) for key in keys},
        "status": state,
        "stopped": (result or {}).get("stopped"),
        "best_epoch": best.get("epoch"),
        "val_loss": best.get("val_loss"),
        "val_accuracy": best.get("val_accuracy"),
        "test_loss": test.get("loss"),
        "test_accuracy": test.get("accuracy"),
        "metric": result["objective"]["metric"] if result else None,
        "objective": result["objective"]["value"] if result else None,
        "seconds": result["seconds"] if result else None,
        "error": job["error"],
    }


def best_first(rows: Sequence[Mapping[str, Any]], key: str = "objective") -> list[Mapping[str, Any]]:
    """The rows with the best objective first, metric by metric; those without one last, in their order."""
    done = [row for row in rows if row[key] is not None]
    done.sort(key=lambda row: (row["metric"], -row[key] if row["metric"].endswith("accuracy") else row[key]))
    return done + [row for row in rows if row[key] is None]


def settings_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per setting: mean and standard deviation (n - 1) over the jobs that are done and differ in the seed only.

    The best first; the column `of` says of how many jobs.
    """
    keys = [key for key in swept(rows) if key != "seed"]
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["objective"] is not None:
            groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    found: list[dict[str, Any]] = []
    for setting, members in groups.items():
        line: dict[str, Any] = dict(zip(keys, setting, strict=True)) | {"of": len(members)}
        line["metric"] = members[0]["metric"]
        for figure in ("objective", *FIGURES):
            values = [row[figure] for row in members if row[figure] is not None]
            line[f"{figure}_mean"] = statistics.fmean(values) if values else None
            line[f"{figure}_std"] = statistics.stdev(values) if len(values) > 1 else None
        found.append(line)
    return [dict(line) for line in best_first(found, "objective_mean")]


def swept(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that are swept over: the columns between overrides and status."""
    columns = list(rows[0])
    return columns[columns.index("overrides") + 1 : columns.index("status")]


def finish(folder: Path, waiting: Sequence[Job], paths: Sequence[str]) -> list[dict[str, Any]]:
    """Write sweep.csv, summary.csv and the pictures, print the table, the best job first, and return its rows.

    Args:
        folder: outputs/<sweep>.  waiting: all jobs, where they are known beforehand.
        paths: the paths.* settings as typed, for the commands that are printed.
    """
    rows = rows_of(folder, waiting)
    if not rows:  # a launcher that never came to a job
        return rows
    is_news = runs.write_csv(folder / "sweep.csv", rows)
    settings = settings_of(rows)
    if settings:
        runs.write_csv(folder / "summary.csv", settings)
    shown = ("job", "overrides", "status", *FIGURES, "stopped", "error")
    print("\n" + table(without_empty([{key: row[key] for key in shown} for row in best_first(rows)])))
    if len(settings) > 1 and any(line["of"] > 1 for line in settings):
        print("\n" + table(without_empty([in_short(line) for line in settings])))
    metrics = {line["metric"] for line in settings}
    if len(metrics) > 1:
        print(f"no best one: {listed(sorted(metrics))} cannot be compared")
    elif settings:
        best = best_first(rows)[0]
        saved = runs.read_config(runs.Run("", folder / str(best["job"]), Path()))
        if saved["plots"] and (is_news or not (folder / "plots").is_dir()):
            from trainer.utils import sweep_plots  # matplotlib takes 0.4 s

            sweep_plots.draw(rows, swept(rows), folder / "plots")
            if saved["plots"] == "auto":
                draw_best(folder, best["job"], saved)
        say_best(best, saved, folder, "".join(f" {shlex.quote(word)}" for word in paths))
    return rows


def draw_best(folder: Path, number: int, saved: Mapping[str, Any]) -> None:
    """All pictures of the best job, of which only the curves were drawn."""
    from trainer import commands  # imports torch

    name = f"{folder.name}/{number}"
    run = runs.Run(name, folder / str(number), Path(saved["paths"]["checkpoints"]) / name)
    try:
        commands.draw_all(run)
    except (TrainerError, OSError) as error:  # its files or its data may be elsewhere
        print(f"warning: without pictures of {name}: {error}")


def without_empty(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows without the columns that have nothing in any row."""
    kept = [key for key in rows[0] if any(row[key] not in (None, "") for row in rows)]
    return [{key: row[key] for key in kept} for row in rows]


def in_short(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of summary.csv for the screen: `mean +- std` in one column."""
    columns = list(line)
    short = {key: line[key] for key in columns[: columns.index("metric")]}
    for figure in FIGURES[:-1]:
        mean, std = line[f"{figure}_mean"], line[f"{figure}_std"]
        short[figure] = None if mean is None else f"{mean:.4f}" + (f" +- {std:.4f}" if std is not None else "")
    return short


def say_best(best: Mapping[str, Any], saved: Mapping[str, Any], folder: Path, paths: str) -> None:
    """The best job with its checkpoint, and what to type next; `saved` are its settings."""
    run = f"{folder.name}/{best['job']}"
    print(f"best         {run} ({best['overrides']}): {best['metric']} {shown(best['objective'])}")
    print(f"checkpoint   {Path(saved['paths']['checkpoints']) / run / 'best.pt'}")
    print(f"eval         python main.py eval checkpoint={run}{paths}")
    print(f"tensorboard  tensorboard --logdir {shlex.quote(str(folder))}")
    if saved["plots"]:
        print(f"pictures     {folder / 'plots'}")
    print(f"table        {folder / 'sweep.csv'}, {folder / 'summary.csv'}")
