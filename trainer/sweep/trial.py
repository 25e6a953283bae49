"""One trial of a search, in the process that trains it: it needs the study's storage, its name and a number."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from trainer.config.ranges import TEXT, OneOf, Range, Rule, as_yaml
from trainer.utils.errors import ConfigError, ResourceError, TrainerError, nearest

if TYPE_CHECKING:
    import optuna

NOT_DAMAGE = ("locked", "readonly", "disk I/O error", "is full")  # in what SQLite says
COUNT = Range(0, 1_000_000, whole=True)
SEARCH_RULES: dict[str, Rule] = {
    "n_trials": Range(1, 1_000_000, whole=True),
    "n_jobs": Range(1, 1024, whole=True),
    "seed": Range(0, 2**31 - 1, whole=True),
    "sampler": OneOf(("tpe", "random", "grid", "cmaes")),
    "n_startup_trials": COUNT,
    "pruner": OneOf(("none", "median", "hyperband")),
    "pruner_startup_trials": COUNT,
    "pruner_warmup_epochs": COUNT,
    "pruner_min_epochs": Range(1, 100_000, whole=True),
    "pruner_reduction_factor": Range(2, 100, whole=True),
    "storage": TEXT,
}


@dataclass(frozen=True)
class SearchSettings:
    """hydra.sweeper.*, checked; configs/hydra/sweeper/optuna.yaml says what each one means."""

    n_trials: int
    n_jobs: int
    seed: int
    sampler: str
    n_startup_trials: int
    pruner: str
    pruner_startup_trials: int
    pruner_warmup_epochs: int
    pruner_min_epochs: int
    pruner_reduction_factor: int
    storage: str | None


def search_settings(sweeper: Mapping[str, Any]) -> SearchSettings:
    """The settings of a search.

    Args:
        sweeper: the node hydra.sweeper as plain data.
    Raises:
        ConfigError: a value that is not allowed; names key, value and what is.
    """
    values: dict[str, Any] = {}
    for name in (field.name for field in fields(SearchSettings)):
        value, rule = sweeper[name], SEARCH_RULES[name]
        try:
            values[name] = None if name == "storage" and value is None else rule(value)
        except ValueError:
            hint = nearest(as_yaml(value), [str(one) for one in rule.words]) if isinstance(rule, OneOf) else ""
            raise ConfigError(f"hydra.sweeper.{name}={as_yaml(value)} is not allowed.{hint} Allowed: {rule}.") from None
    return SearchSettings(**values)


def load_optuna() -> Any:
    """The library, silent; ConfigError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            f"hydra/sweeper=optuna needs a package that is not installed ({error}): pip install -r requirements.txt."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextlib.contextmanager
def told_of_study(settings: SearchSettings, folder: Path, kind: type[TrainerError] = ResourceError) -> Iterator[None]:
    """Turn what the database raises into one line: which file or address, what is wrong, what is kept, what to type.

    Args:
        settings: of the search.
        folder: outputs/<sweep>.
        kind: of the error: ConfigError before the first trial.
    """
    try:
        yield
    except (TrainerError, AssertionError, MemoryError, OSError):
        raise
    except Exception as error:  # SQLAlchemy's, its drivers' and Optuna's have no common base
        reason, kept = reason_of(error), "Jobs that are done are not trained again."
        if settings.storage is None:
            what = trouble_of_file(folder / "study.db", error, reason)
        else:
            what = f"the search cannot use hydra.sweeper.storage={as_yaml(settings.storage)} ({reason}). Mend that"
        raise kind(f"{what}, then give the same command again. {kept}") from error


def trouble_of_file(path: Path, error: Exception, reason: str) -> str:
    """What is wrong with a sweep's own database, and what to do with it: the beginning of a sentence."""
    back = "while the search ran. Bring it back, if you can"
    if not path.exists():
        return f"{path} is gone: it was moved or removed {back}"
    if path.is_dir():
        return f"{path} is a folder where a file belongs. Move it away"
    if isinstance(error, (KeyError, StopIteration)):
        return f"{path} does not hold this search any more: it was damaged or replaced {back}"
    if any(word in reason for word in NOT_DAMAGE):
        return f"{path} cannot be used just now ({reason}). Mend that"
    return f"{path} is damaged ({reason}). Move it away"


def reason_of(error: BaseException) -> str:
    """What the database's driver said, in one line: the innermost cause."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def storage_of(settings: SearchSettings, folder: Path, *, checked: bool = False) -> Iterator[Any]:
    """The database of the study, outputs/<sweep>/study.db unless another is named; closed at the end.

    Args:
        checked: its version was looked at before; takes 5 ms instead of 30.
    Raises:
        ConfigError: an address that was typed cannot be opened. Other errors are told_of_study's.
    """
    optuna = load_optuna()
    if checked and settings.storage is None and not (folder / "study.db").exists():
        raise KeyError("study.db")  # SQLite would make a new one
    url = settings.storage or f"sqlite:///{folder / 'study.db'}"
    # SQLite: wait for other processes that write, not only for five seconds; servers: they drop whom they do not hear
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    try:
        storage = optuna.storages.RDBStorage(url, engine_kwargs=options, skip_compatibility_check=checked)
    except Exception as error:  # as in told_of_study, which speaks of the sweep's own file and of what fails later
        if checked or settings.storage is None:
            raise
        why = f"{type(error).__name__}: {error}".splitlines()[0].replace(url, as_yaml(url))
        raise ConfigError(
            f"hydra.sweeper.storage={as_yaml(url)} cannot be opened ({why}). Allowed: null, or an address that "
            "SQLAlchemy knows, such as sqlite:///study.db, of an existing folder or a running database."
        ) from None
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def pruner_of(settings: SearchSettings) -> "optuna.pruners.BasePruner":
    """What decides whether a trial continues."""
    from optuna import pruners

    if settings.pruner == "none":
        return pruners.NopPruner()
    if settings.pruner == "median":
        return pruners.MedianPruner(
            n_startup_trials=settings.pruner_startup_trials,
            n_warmup_steps=settings.pruner_warmup_epochs + 1,  # the first step at which it decides; ours begin at 1
        )
    return pruners.HyperbandPruner(
        min_resource=settings.pruner_min_epochs, reduction_factor=settings.pruner_reduction_factor
    )


def trial_in(study: "optuna.Study", number: int) -> "optuna.trial.FrozenTrial":
    """What the study holds of the trial with this number."""
    return next(trial for trial in study.get_trials(deepcopy=False) if trial.number == number)


def to_write(study: "optuna.Study", number: int) -> "optuna.trial.Trial":
    """The trial with this number, to suggest and to report; Optuna itself hands out only new ones."""
    import optuna

    return optuna.trial.Trial(study, trial_in(study, number)._trial_id)


class Trial:
    """One trial, in the process that trains it: needs the study's storage, its name and a number, nothing else.

    A context manager: holds the database.
    """

    def __init__(self, settings: SearchSettings, folder: Path, number: int, epochs: int = 0) -> None:
        """As trial_of."""
        self.settings, self.folder, self.number, self.epochs = settings, folder, number, epochs
        self.held = contextlib.ExitStack()
        self.opened: optuna.Study | None = None

    def __enter__(self) -> "Trial":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.held.close()

    def study(self) -> "optuna.Study":
        """The study, opened at the first call."""
        if self.opened is None:
            optuna = load_optuna()
            storage = self.held.enter_context(storage_of(self.settings, self.folder, checked=True))
            sampler = optuna.samplers.RandomSampler()  # suggests nothing here
            self.opened = optuna.load_study(
                storage=storage, study_name=self.folder.name, sampler=sampler, pruner=pruner_of(self.settings)
            )
        return self.opened

    def report(self, epoch: int, value: float) -> str:
        """Tell the metric after an epoch, from 1 on; returns why training ends here, or nothing.

        An epoch that a resumed run repeats was told before, and decided unless it is the newest of those told: a kill
        may have come between the two. The last epoch ends by itself.
        """
        with told_of_study(self.settings, self.folder):
            frozen = trial_in(self.study(), self.number)
            told = frozen.intermediate_values
            if epoch in told and epoch < max(told):
                return ""
            if epoch in told and "pruned" in frozen.user_attrs:
                return str(frozen.user_attrs["pruned"])
            trial = to_write(self.study(), self.number)
            if epoch not in told:
                trial.report(value, epoch)
            if epoch == self.epochs or not trial.should_prune():
                return ""
            reason = f"pruned by {self.settings.pruner} at epoch {epoch}"
            trial.set_user_attr("pruned", reason)
            return reason

    def done(self, value: float) -> None:
        """Training ended with this objective, at its end or where the trial was pruned."""
        from optuna.trial import TrialState

        if not math.isfinite(value):
            self.failed(f"the objective is {value}")
            return
        with told_of_study(self.settings, self.folder):
            if "pruned" in trial_in(self.study(), self.number).user_attrs:
                self.study().tell(self.number, state=TrialState.PRUNED, skip_if_finished=True)
            else:
                self.study().tell(self.number, value, skip_if_finished=True)

    def failed(self, reason: str) -> None:
        """Training ended without an objective; the trial counts, and is not begun again."""
        from optuna.trial import TrialState

        with told_of_study(self.settings, self.folder):
            if not trial_in(self.study(), self.number).state.is_finished():
                to_write(self.study(), self.number).set_user_attr("reason", reason)
                self.study().tell(self.number, state=TrialState.FAIL)


def trial_of(sweeper: Mapping[str, Any], folder: Path, number: int, epochs: int = 0) -> Trial:
    """The trial that a job is, in whatever process it runs.

    Args:
        sweeper: the node hydra.sweeper as plain data.
        folder: outputs/<sweep>.
        number: of the trial.
        epochs: of the whole run: after its last one nothing is pruned.
    """
    return Trial(search_settings(sweeper), folder, number, epochs)
