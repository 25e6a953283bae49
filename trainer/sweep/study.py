"""A search: Optuna's study, which several processes share.

Every process asks for the next trial under a lock on outputs/<sweep>/study.lock, so that all together never start more
than n_trials. Byte 0 of that file is the study's lock, byte 1 + n is held by the process that has trial n in hand: such
a lock goes with its process, however it ends, and that is how the trial of a killed process is known and taken over.
Optuna is imported where it is used: whoever does not search does not wait for it.
"""

import contextlib
import hashlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from trainer.config.ranges import as_yaml
from trainer.config.roles import identifies
from trainer.run import directory
from trainer.sweep.search_space import Space, check_numbers, differences, points, word
from trainer.sweep.trial import (
    SearchSettings,
    load_optuna,
    pruner_of,
    search_settings,
    storage_of,
    to_write,
    told_of_study,
    trial_in,
)
from trainer.utils import screen
from trainer.utils.errors import ConfigError, listed
from trainer.utils.files import open_regular
from trainer.utils.locks import try_lock, unlock, wait_for_lock
from trainer.utils.text import emit

if TYPE_CHECKING:
    import optuna

MIN_FOR_IMPORTANCE = 10  # complete trials: with fewer the figures are noise


def seed_of_trial(seed: int, number: int) -> int:
    """The seed of one suggestion: the same after a restart, another one for every trial, whichever process asks."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "big")


def sampler_of(settings: SearchSettings, space: Space, number: int) -> "optuna.samplers.BaseSampler":
    """What suggests the values of trial `number`."""
    from optuna import samplers

    seed = seed_of_trial(settings.seed, number)
    if settings.sampler == "random":
        return samplers.RandomSampler(seed=seed)
    if settings.sampler == "grid":  # trial n is point n of a shuffled list, which has to be one for all processes
        return samplers.GridSampler(points(space), seed=0)
    if settings.sampler == "cmaes":
        return samplers.CmaEsSampler(
            seed=seed, n_startup_trials=max(1, settings.n_startup_trials), warn_independent_sampling=False
        )
    return samplers.TPESampler(seed=seed, n_startup_trials=settings.n_startup_trials)


def suggest(trial: "optuna.trial.Trial", key: str, one: "optuna.distributions.BaseDistribution") -> Any:
    """A value for one setting; the one it has where it was suggested before."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(one, CategoricalDistribution):
        return trial.suggest_categorical(key, one.choices)
    if isinstance(one, IntDistribution):
        return trial.suggest_int(key, one.low, one.high, step=one.step, log=one.log)
    assert isinstance(one, FloatDistribution), one
    return trial.suggest_float(key, one.low, one.high, step=one.step, log=one.log)


def tell_of_lost_study(settings: SearchSettings, folder: Path) -> None:
    """Say that there are runs of a search here without the database that knew of them."""
    path = folder / "study.db"
    if settings.storage is None and not path.exists() and any(entry.name.isdecimal() for entry in folder.iterdir()):
        emit(
            f"warning: {path} is gone, with the results that the search has seen. Its trials are asked for again from "
            "the first one on; those that get the values of a run that is done are not trained again."
        )


class Search:
    """This process's part in a study: asks for trials, new ones and those that a killed process left.

    A context manager: holds files and the database. One at a time for each folder and process, since closing a file
    gives up all locks that the process has on it.
    """

    def __init__(
        self, settings: SearchSettings, space: Space, folder: Path, *, maximize: bool, fixed: Sequence[str] = ()
    ) -> None:
        """Open the study, or make it.

        Args:
            settings: of the search.
            space: what is searched.
            folder: outputs/<sweep>; its name is the study's.
            maximize: the objective, else minimize it.
            fixed: the settings that are the same for all trials, as typed.
        Raises:
            ConfigError: nothing to search, the sampler cannot do it, or the study was made for something else.
        """
        optuna = load_optuna()
        if not space:
            raise ConfigError(
                "hydra/sweeper=optuna: there is nothing to search. Write a space, for example "
                "optimizer.lr='tag(log, interval(1e-3,1))' or batch_size=64,128,256."
            )
        self.settings, self.space, self.folder = settings, space, folder
        self.total = settings.n_trials
        if settings.sampler == "grid":
            self.total = min(self.total, math.prod(map(len, points(space).values())))
        if settings.sampler == "cmaes":
            check_numbers(space)
            try:
                import cmaes  # type: ignore[import-untyped]  # noqa: F401  (Optuna says so only at the second trial)
            except ImportError:
                raise ConfigError("hydra.sweeper.sampler=cmaes needs cmaes: pip install -r requirements.txt.") from None
        self.mine: set[int] = set()  # the trials that this process has had in hand: none is taken twice
        folder.mkdir(parents=True, exist_ok=True)
        tell_of_lost_study(settings, folder)
        with contextlib.ExitStack() as held:
            self.lock = held.enter_context(open_regular(folder / "study.lock", "a+", encoding="utf-8"))
            with self.alone(), told_of_study(settings, folder, ConfigError):
                storage = held.enter_context(storage_of(settings, folder))
                self.study = optuna.create_study(
                    storage=storage,
                    study_name=folder.name,
                    direction="maximize" if maximize else "minimize",
                    load_if_exists=True,
                    pruner=pruner_of(settings),
                )
                self.check_same(maximize, fixed)
            self.held = held.pop_all()

    def __enter__(self) -> "Search":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.held.close()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the other processes from asking."""
        wait_for_lock(self.lock)
        try:
            yield
        finally:
            unlock(self.lock)

    def check_same(self, maximize: bool, fixed: Sequence[str]) -> None:
        """Refuse a study of another space or of other settings; a new one gets a note of its own."""
        from optuna.distributions import distribution_to_json

        space = {key: distribution_to_json(one) for key, one in self.space.items()}
        words = dict(word.partition("=")[::2] for word in fixed)
        note = {"space": space, "fixed": words, "maximize": maximize}
        old = self.study.user_attrs.get("note")
        if old is None:
            if self.study.get_trials(deepcopy=False):
                raise ConfigError(f"{self.where()} holds a study that is not ours. Choose another name=.")
            self.study.set_user_attr("note", note)
            return
        was = {key: value for key, value in old["fixed"].items() if identifies("study", key)}  # once it held more keys
        changed = differences(old["space"], space) + differences(was, words)
        if changed or old["maximize"] != maximize:
            what = listed(changed) or "metric"
            raise ConfigError(f"{self.where()} was begun with another {what}. Give the same, or choose another name=.")

    def where(self) -> str:
        """The study, for messages."""
        return f"the study {self.folder.name} in {as_yaml(self.settings.storage or str(self.folder / 'study.db'))}"

    def ask(self) -> tuple[int, dict[str, Any]] | None:
        """The next trial and its values: one that a killed process left, else a new one; None when all are begun.

        This process has it in hand until `release`.
        """
        import optuna

        with self.alone(), told_of_study(self.settings, self.folder):
            trials = self.study.get_trials(deepcopy=False)
            number = next((trial.number for trial in trials if self.take_over(trial)), None)
            if number is None:
                if len(trials) >= self.total:
                    return None
                self.study.sampler = optuna.samplers.RandomSampler()  # suggests nothing yet
                number = self.study.ask().number
                wait_for_lock(self.lock, 1 + number)
            self.mine.add(number)
            (self.folder / str(number)).mkdir(parents=True, exist_ok=True)
            self.study.sampler = sampler_of(self.settings, self.space, number)
            trial = to_write(self.study, number)  # a process may have been killed while it asked for the values
            return number, {key: suggest(trial, key, one) for key, one in self.space.items()}

    def take_over(self, trial: "optuna.trial.FrozenTrial") -> bool:
        """Take a trial in hand that was begun and that no process has; whether that is so.

        A trial of another machine without a common folder cannot be judged from here, and is left alone.
        """
        folder = self.folder / str(trial.number)
        here = self.settings.storage is None or folder.exists()
        if trial.state.is_finished() or trial.number in self.mine or not here:
            return False
        if not try_lock(self.lock, 1 + trial.number):
            return False
        # in use: by a launcher's process that has survived the one that asked; finished: since the trials were read
        in_use = directory.is_held(folder) or trial_in(self.study, trial.number).state.is_finished()
        if in_use:
            self.release(trial.number)
        return not in_use

    def release(self, number: int) -> None:
        """The trial is over, or was given up."""
        unlock(self.lock, 1 + number)


@dataclass(frozen=True)
class Summary:
    """Where a study stands; str() of it is what a user reads."""

    counts: Mapping[str, int]  # by state: complete, pruned, fail, running
    number: int | None  # of the best complete trial
    value: float | None
    params: Mapping[str, Any]
    importance: Mapping[str, float]  # shares of 1, the greatest first; empty with few trials

    def __str__(self) -> str:
        counts = listed([f"{count} {state}" for state, count in self.counts.items()])
        lines = [f"search: {sum(self.counts.values())} trials: {counts}"]
        if self.value is not None:
            values = " ".join(f"{key}={word(value)}" for key, value in self.params.items())
            lines.append(f"best: trial {self.number} with {screen.shown(self.value)}: {values}")
        if self.importance:
            shares = listed([f"{key} {share:.2f}" for key, share in self.importance.items()])
            lines.append(f"importance for the best tenth (PED-ANOVA): {shares}")
        return "\n".join(lines)


def summary(sweeper: Mapping[str, Any], folder: Path) -> Summary:
    """Where the study in outputs/<sweep> stands.

    Raises:
        ConfigError: there is none.
    """
    optuna, settings = load_optuna(), search_settings(sweeper)
    with told_of_study(settings, folder), storage_of(settings, folder) as storage:
        try:
            study = optuna.load_study(storage=storage, study_name=folder.name)
        except KeyError:
            raise ConfigError(f"there is no study {folder.name} in this storage.") from None
        trials = study.get_trials(deepcopy=False)
        states = [trial.state.name.lower() for trial in trials]
        counts = {state: states.count(state) for state in ("complete", "pruned", "fail", "running") if state in states}
        if "complete" not in counts:
            return Summary(counts, None, None, {}, {})
        importance: dict[str, float] = {}
        if counts["complete"] >= MIN_FOR_IMPORTANCE:
            with warnings.catch_warnings():  # it says where all trials are equally good
                warnings.simplefilter("ignore")
                evaluator = optuna.importance.PedAnovaImportanceEvaluator()
                importance = dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
        best = study.best_trial
        return Summary(counts, best.number, best.value, best.params, importance)
