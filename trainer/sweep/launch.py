"""A multirun: its name, its jobs, and the sweeper and launcher that run them."""

import contextlib
import hashlib
import itertools
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.command_line import RECIPES, TYPED_GROUPS, Command, split_word
from trainer.config.compose import (
    check_lists,
    composing,
    each_value,
    explain_refusal,
    frozen,
    leave_out,
    parse_overrides,
    run_hydra,
)
from trainer.config.freeze import with_values
from trainer.config.options import CONFIGS, chosen_engines
from trainer.config.roles import check_typed, identifies, without_effect
from trainer.config.tasks import LAUNCHERS
from trainer.run import directory, folders, records
from trainer.run.loggers import check_loggers
from trainer.run.plugged import plugged
from trainer.sweep.board import Board
from trainer.sweep.job import INTERRUPTED, Job
from trainer.sweep.runner import on_a_gpu, run_all, run_job, wait_for_jobs
from trainer.sweep.table import finish_sweep
from trainer.utils import ranks
from trainer.utils.errors import ConfigError, Interrupted, ResourceError, SweepError, TrainerError, listed
from trainer.utils.files import write_json
from trainer.utils.quotes import quote, unquote
from trainer.utils.signals import StopSignal, end_with_parent
from trainer.utils.text import emit, quiet_libraries


def name_sweep(command: Command) -> str:
    """The name of a multirun: name=, else a digest of its settings, so that the same command finds the same sweep.

    Raises:
        ConfigError: name= is swept over or malformed, or a single run has it.
    """
    name = command.value("name")
    if name is None:
        words = [word for word in command.overrides if identifies("name", split_word(word)[0])]
        name = "sweep-" + hashlib.sha256("\n".join(words).encode()).hexdigest()[:8]
    elif "," in name:
        raise ConfigError(f"name={name}: name= is for the whole sweep, whose runs are numbered. Allowed: one name.")
    if directory.exists(name, command.folders["outputs"]):
        raise ConfigError(f"name={name} is a single run. Choose another name= for the sweep.")
    return directory.check_name(name, command.folders["outputs"])


def run_sweep(command: Command, stop: StopSignal) -> None:
    """Run every job of a multirun in directories of its own. A job that fails does not stop the others.

    Unless hydra/sweeper or hydra/launcher is chosen, the jobs run in this process, one after the other, and share one
    copy of the data set.

    Raises:
        SweepError: at least one job failed.
    """
    warnings = check_typed("sweep", command.values)
    folder = Path(command.folders["outputs"]) / name_sweep(command)
    command = leave_out(command, warnings)
    typed = {split_word(word)[0]: word for word in command.overrides}  # the last one wins
    words = [word for key, word in typed.items() if key != "name"]
    with stop.held():
        engines = chosen_engines(dict(map(split_word, words)))
    # before any folder is made, so that a refused sweep leaves nothing behind
    check_lists(words)
    jobs = compose_jobs(command, words, stop) if engines["hydra/sweeper"] == "basic" else []
    run_here = set(engines.values()) == {"basic"}
    if ranks.of_environment().world > 1 and not run_here:
        raise ConfigError("torchrun trains each run of a sweep with all its processes. Leave hydra/... out.")
    if not ranks.of_environment().is_first:  # rank 0 alone writes the files of the sweep
        run_all(jobs, folder, stop)
        return
    check_loggers([name for job in jobs if job.config is not None for name in job.config.logger])
    directory.check_writable(*map(Path, command.folders.values()))
    paths = [
        f"{key}={unquote(value)}" for key, value in map(split_word, words) if key.startswith(("paths.", "plugins"))
    ]
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    with contextlib.ExitStack() as held:
        folder.mkdir(parents=True, exist_ok=True)
        if engines["hydra/sweeper"] == "basic":  # several processes may share a study, but not a list of jobs
            held.enter_context(directory.hold(folder))
        check_same_sweep(folder, engines["hydra/sweeper"], dict(map(split_word, words)))
        configs = [job.config for job in jobs if job.config is not None and run_here]  # elsewhere each job says it
        found = [line for config in configs for line in without_effect("sweep", config)]
        for line in dict.fromkeys([*warnings.values(), *found]):
            emit(line)
        try:
            with Board(folder, {job.number: job.text for job in jobs}):
                if run_here:
                    run_all(jobs, folder, stop)
                else:
                    launch(command, words, folder, stop)
        except ConfigError:  # before the first job, so there is nothing to keep
            remove_empty(new)
            raise
        except BaseException:
            finish_sweep(folder, jobs, paths)
            raise
        rows = finish_sweep(folder, jobs, paths)
    if failed := [row for row in rows if row["error"]]:
        raise SweepError(f"{len(failed)} of {len(rows)} jobs failed; each log is in {folder}/<job>/train.log.")


def launch(command: Command, words: Sequence[str], folder: Path, stop: StopSignal) -> None:
    """Let Hydra's sweeper and launcher run the jobs.

    Raises:
        SweepError: the launcher gave up, for example because one of its processes was killed.
    """
    root = str(CONFIGS.parent)  # the launcher's processes import trainer from there, wherever they start
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    from hydra.errors import HydraException

    try:
        typed, pairs = dict(map(split_word, words)), zip(words, parse_overrides(words), strict=True)
        # a job's name and its line in the table are made of the other settings
        fixed = {split_word(word)[0] for word, override in pairs if not override.is_sweep_override()}
        has_children = LAUNCHERS.get(chosen_engines(typed)["hydra/launcher"]) == "hydra-joblib-launcher"
        with stop.forwarded() if has_children else contextlib.nullcontext():
            run_hydra(command, [*words, f"hydra.sweep.dir={quote(str(folder))}"], RunJob(folder, fixed, command))
        if "joblib" in sys.modules:  # else loky warns about its worker processes when this one exits
            sys.modules["joblib.externals.loky"].get_reusable_executor().shutdown(wait=True)
    except HydraException as error:
        raise ConfigError(explain_refusal(error, words)) from None
    except Interrupted as error:
        raise Interrupted(error.signum, INTERRUPTED) from None
    except Exception as error:
        if stop.signum:  # Hydra or the launcher has wrapped the Interrupted
            raise Interrupted(stop.signum, INTERRUPTED) from None
        if isinstance(error, TrainerError):
            raise
        if (trouble := folders.trouble(error, command.folders.values())) is not None:
            raise ResourceError(f"{trouble} Then give the same command again to continue the sweep.") from error
        told = f"the launcher gave up ({type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')})."
        if type(error).__name__ == "TerminatedWorkerError":  # joblib's, which cannot tell either
            told = "a process of the launcher was killed, by somebody or for want of memory, and the others with it."
        raise SweepError(f"{told} Give the same command again to continue the sweep.") from error


def compose_jobs(command: Command, words: Sequence[str], stop: StopSignal) -> list[Job]:
    """All jobs of a multirun, each with its settings, or with the reason why they are refused.

    Hydra takes a tenth of a second to compose, so it composes once for each combination of group choices. Values that
    are swept over are set afterwards, which has the same result: overrides of values come last in Hydra, too.

    Raises:
        ConfigError: a word cannot be parsed, a choice lacks an option that was typed, two jobs are the same, or nothing
            is swept over.
    """
    from hydra.core.global_hydra import GlobalHydra

    composed: dict[tuple[str, ...], Any] = {}
    jobs, number_of_values = [], dict[str, int]()
    with composing(words) as by_hydra:
        parsed = zip(words, parse_overrides(words), strict=True)
        # a list may have one value, as where a script fills it in
        swept = [word for word, override in parsed if override.is_sweep_override()] or [
            word for word in words if identifies("sweep", split_word(word)[0])
        ]
        fixed = [word for word in words if word not in swept]
        loader = GlobalHydra.instance().config_loader()
        values_of = [each_value(override) for override in parse_overrides(swept, loader)]
        for number, chosen in enumerate(itertools.product(*values_of) if swept else ()):
            with stop.held():
                groups = tuple(word for word in chosen if split_word(word)[0] in (*TYPED_GROUPS, *RECIPES))
                if groups not in composed:
                    composed[groups] = by_hydra([*fixed, *groups])
                choices = composed[groups].hydra.runtime.choices
                overrides = parse_overrides([word for word in chosen if word not in groups])
                values = {override.key_or_group: override.value() for override in overrides}
                if (first := number_of_values.setdefault(f"{groups} {as_counted(values)}", number)) < number:
                    said = f"{' '.join(chosen)} would be trained twice, as jobs {first} and {number}"
                    raise ConfigError(f"{said}, and counted as two. Leave the repeated value out.")
                own = with_values(composed[groups], values, choices)
                jobs.append(make_job(number, dict(map(split_word, chosen)), own, choices, command))
    if not jobs:
        raise ConfigError("the sweep has no jobs. Write a list of values: key=value1,value2.")
    return jobs


def as_counted(value: Any) -> Any:
    """A value of a list as it counts: 1.0 is 1."""
    if isinstance(value, dict):
        return {key: as_counted(one) for key, one in value.items()}
    if isinstance(value, list):
        return [as_counted(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def make_job(number: int, overrides: Mapping[str, str], composed: Any, choices: Any, command: Command) -> Job:
    """A job with its frozen settings, or with the reason why they are refused."""
    try:
        return Job(number, overrides, frozen(composed, choices, command))
    except ConfigError as error:
        return Job(number, overrides, None, error)


@dataclass(frozen=True)
class RunJob:
    """What a launcher calls for each job of a sweep, in a process of its choice.

    Attributes:
        folder: outputs/<sweep>.
        fixed: the keys that have the same value in every job.
        command: the command line of the sweep.
    """

    folder: Path
    fixed: set[str]
    command: Command

    def __call__(self, composed: Any) -> float:
        """Train the job that Hydra composed; returns its objective."""
        from hydra.core.hydra_config import HydraConfig

        own = HydraConfig.get()
        overrides = dict(split_word(word) for word in own.overrides.task)
        overrides = {key: value for key, value in overrides.items() if key not in self.fixed}
        searches = own.runtime.choices["hydra/sweeper"] == "optuna"
        number = int(own.job.name) if searches else own.job.num  # a study numbers its trials itself
        with contextlib.ExitStack() as held:
            quiet_libraries()  # in the launcher's process
            stop = held.enter_context(StopSignal())
            held.enter_context(plugged(self.command.overrides))
            job = make_job(number, overrides, composed, own.runtime.choices, self.command)
            if multiprocessing.parent_process() is not None:  # else a killed sweep would leave its jobs running
                end_with_parent(saving=True)
            if own.runtime.choices["hydra/launcher"] == "gpus":
                job = held.enter_context(on_a_gpu(job, self.folder))
            trial = None
            if searches:
                from trainer.sweep.trial import trial_of

                epochs = job.config.epochs if job.config is not None else 0
                trial = held.enter_context(trial_of(own.sweeper, self.folder, number, epochs))
            try:
                void = without_effect("sweep", job.config) if job.config is not None else []
                return run_job(job, self.folder, stop, trial=trial, warnings=void)
            except Interrupted as error:
                if multiprocessing.parent_process() is not None:
                    wait_for_jobs(self.folder)  # when one process ends, the launcher kills the others
                    os._exit(error.exit_code)
                raise


def check_same_sweep(folder: Path, sweeper: str, words: Mapping[str, str]) -> None:
    """Refuse a name that another sweep has. outputs/<sweep>/sweep.json holds the settings of that one.

    Args:
        folder: outputs/<sweep>.
        sweeper: basic or optuna.
        words: {key: value} of what was typed.
    Raises:
        ConfigError: names the settings that differ.
    """
    made_of = {key: value for key, value in sorted(words.items()) if identifies("sweep", key)}
    path = folder / "sweep.json"
    if reason := directory.set_aside(path, records.OF_SWEEP):
        emit(f"warning: {reason} It is kept as sweep.corrupt; the jobs are compared with these settings one by one.")
    if not path.is_file():
        write_json(path, {"sweeper": sweeper, "made_of": made_of})
        return
    before = records.read_record(
        path, records.OF_SWEEP
    )  # an earlier version may have counted more settings among these
    was = {key: value for key, value in before.get("made_of", {}).items() if identifies("sweep", key)}
    was |= {"hydra/sweeper": before.get("sweeper")}
    now = made_of | {"hydra/sweeper": sweeper}
    if others := sorted(key for key in was | now if was.get(key) != now.get(key)):
        raise ConfigError(f"name={folder.name} is a sweep with other settings: {listed(others)}. Choose another name=.")


def remove_empty(new: Sequence[Path]) -> None:
    """Remove the folders that were made for a sweep which was then refused; the first one is the sweep's own."""
    ours = ("sweep.json", "study.lock", "run.lock")
    with contextlib.suppress(OSError):  # another process may have started it meanwhile; Windows keeps an open run.lock
        if new and {path.name for path in new[0].iterdir()} <= set(ours):
            for name in ours:
                (new[0] / name).unlink(missing_ok=True)
        for folder in new:
            folder.rmdir()
