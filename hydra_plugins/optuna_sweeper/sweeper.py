"""The sweeper that asks Optuna which settings to try next; the study itself is in trainer/sweep/study.py.

Hydra imports this file whenever it starts, so heavy imports stand inside the functions.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    QuotedString,
    RangeSweep,
    Sweep,
    Transformer,
)
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from trainer.utils.text import emit

if TYPE_CHECKING:
    from trainer.sweep.search_space import Space
    from trainer.sweep.study import Search


class OptunaSweeper(Sweeper):
    """Runs trials until the study has enough of them. Each job gets its number as hydra.job.name."""

    def __init__(self, **sweeper: Any) -> None:
        self.sweeper = sweeper
        self.hydra_context: HydraContext | None = None
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra passes in, and let it build the launcher."""
        from hydra.core.plugins import Plugins

        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the trials that are left; returns what the jobs of this process returned.

        Raises:
            ConfigError: the search space or a setting of the search is not allowed.
        """
        from trainer.config.roles import identifies
        from trainer.sweep.study import Search, summary
        from trainer.sweep.trial import load_optuna, search_settings

        assert self.config is not None
        assert self.launcher is not None
        settings = search_settings(self.sweeper)
        load_optuna()
        choices = self.config.hydra.runtime.choices
        space, fixed = self.split(arguments, choices)
        folder = Path(self.config.hydra.sweep.dir)
        of_study = sorted(word for word in fixed if identifies("study", word.partition("=")[0].lstrip("+")))
        maximize = is_maximized(space, choices, self.config, fixed)
        returned: list[Any] = []
        with Search(settings, space, folder, maximize=maximize, fixed=of_study) as study:
            if settings.n_jobs > 1 and (settings.pruner != "none" or settings.sampler in ("tpe", "cmaes")):
                emit(
                    f"hydra.sweeper.n_jobs={settings.n_jobs}: which values are tried and which trials are pruned "
                    "depends on those that have ended by then, and so may change when it is killed and continued; "
                    "not so with hydra.sweeper.sampler=random hydra.sweeper.pruner=none"
                )
            while batch := self.next_batch(study, fixed):
                results = self.launcher.launch(list(batch.values()), initial_job_idx=len(returned))
                returned += [value_of(result) for result in results]
                for number in batch:
                    study.release(number)
        emit("", *str(summary(self.sweeper, folder)).split("\n"))
        return returned

    def next_batch(self, study: "Search", fixed: Sequence[str]) -> dict[int, list[str]]:
        """The next trials, {number: overrides of its job}; empty when all have been started."""
        from trainer.sweep.search_space import word
        from trainer.sweep.trial import Trial

        batch: dict[int, list[str]] = {}
        while len(batch) < study.settings.n_jobs and (asked := study.ask()) is not None:
            number, params = asked
            words = [*fixed, *(f"{key}={word(value)}" for key, value in params.items()), f"hydra.job.name={number}"]
            try:
                self.validate_batch_is_legal([words])
            except HydraException as error:  # an option of another choice; each restart would meet it again
                with Trial(study.settings, study.folder, number) as trial:
                    trial.failed(str(error))
                raise
            batch[number] = words
        return batch

    def split(self, arguments: Sequence[str], choices: Mapping[str, str]) -> tuple["Space", list[str]]:
        """The search space, and the overrides that are the same in each trial."""
        from trainer.config.options import defaults_of
        from trainer.config.schema import GROUPS
        from trainer.utils.errors import ConfigError

        assert self.hydra_context is not None
        defaults = defaults_of({group: choices[group] for group in GROUPS})
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        words = [f"{key}={in_yaml(value)}" for key, value in self.sweeper["params"].items()]
        try:
            overrides = parser.parse_overrides([*words, *arguments])
        except HydraException as error:
            line = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"a search space cannot be read: {line}. Allowed: interval(1e-4,1), tag(log, interval(1e-4,1)), "
                "int(interval(1,8)), range(32,256,step=32), choice([64],[128,64]), or a list such as 64,128,256."
            ) from None
        last = {override.key_or_group: override for override in overrides}  # what is typed wins over YAML
        space = {key: distribution(one, defaults) for key, one in last.items() if one.is_sweep_override()}
        return space, [str(one.input_line) for one in last.values() if not one.is_sweep_override()]


def value_of(result: JobReturn) -> Any:
    """What a job returned; raises what it raised, without the line that Hydra prints before that."""
    with contextlib.redirect_stderr(io.StringIO()):
        return result.return_value


def in_yaml(value: Any) -> str:
    """A value of hydra.sweeper.params as it would be typed on the command line."""
    if isinstance(value, str):
        return value
    plain: Any = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return str(Transformer.str(plain))


def distribution(override: Override, defaults: Mapping[str, Any]) -> Any:
    """A parsed sweep as one of Optuna's distributions.

    Raises:
        ConfigError: Optuna has none for it.
    """
    from trainer.sweep.search_space import choices, interval, steps
    from trainer.utils.errors import ConfigError

    key, sweep = override.key_or_group, override.value()
    tags = sweep.tags if isinstance(sweep, Sweep) else set()
    log = "log" in tags and isinstance(sweep, IntervalSweep)
    if tags - ({"log"} if log else set()):
        raise ConfigError(f"{override.input_line} is not allowed. Allowed: tag(log, interval(...)) and no other tag.")
    if isinstance(sweep, (ChoiceSweep, RangeSweep)) and sweep.shuffle:
        raise ConfigError(f"{override.input_line} is not allowed: the sampler chooses the order. Allowed: no shuffle.")
    if isinstance(sweep, IntervalSweep):
        assert sweep.start is not None
        assert sweep.end is not None
        return interval(key, sweep.start, sweep.end, log=log, defaults=defaults)
    if isinstance(sweep, RangeSweep):
        assert sweep.start is not None
        assert sweep.stop is not None
        return steps(key, sweep.start, sweep.stop, sweep.step, defaults=defaults)
    values: list[Any] = list(override.sweep_iterator(Transformer.identity))
    plain = [value.text if isinstance(value, QuotedString) else value for value in values]
    return choices(key, plain, [Transformer.encode(value) for value in values], defaults=defaults)


def is_maximized(space: "Space", choices: Mapping[str, str], config: Any, fixed: Sequence[str] = ()) -> bool:
    """Whether the objective is an accuracy or F1, which is maximised, or a loss, by the task of the data and monitor=.

    Args:
        space: what is searched over.
        choices: of each group, where it is not searched over.
        config: the settings of a trial with the group's defaults for what is searched over.
        fixed: the words of all trials.
    Raises:
        ConfigError: it would not be the same in all trials, or depends on a table that is not read yet.
    """
    from trainer.config.options import CONFIGS, load_yaml
    from trainer.config.tasks import BOTH, REGRESSION, TASK_OF_DATA, TASKS_OF
    from trainer.utils.errors import ConfigError, listed
    from trainer.utils.objective import is_share

    def names(group: str) -> Sequence[str]:
        return getattr(space[group], "choices", ()) if group in space else (choices[group],)

    tasks = {TASK_OF_DATA[name] for name in names("data")}
    if len(tasks) > 1:
        said = f"data={listed(names('data'))}: an accuracy and a loss cannot be compared"
        raise ConfigError(f"{said}. Allowed: sets of one task.")
    if "monitor" in space:
        raise ConfigError("monitor= is what the search looks for, and cannot be searched over. Allowed: one value.")
    monitors = {config.monitor}
    settled = ("monitor=", "recipe=", "experiment=")
    if "model" in space and not any(word.lstrip("+").startswith(settled) for word in fixed):
        recipes = [CONFIGS / "recipe" / f"{set_}_{model}.yaml" for set_ in names("data") for model in names("model")]
        monitors = {load_yaml(path).get("monitor", "auto") if path.is_file() else "auto" for path in recipes}
    if len(monitors) > 1:
        said = f"model={listed(names('model'))}: their recipes watch other figures ({listed(sorted(monitors))})"
        raise ConfigError(f"{said}. Add monitor=val_loss, or another one, for all of them.")
    if (monitor := monitors.pop()) != "auto":
        return is_share(monitor)
    if tasks == {"auto"}:
        tasks = {config.data.get("task", "auto")} - {"auto"} or set(BOTH)
        for group in ("model", "loss"):
            tasks &= {task for name in names(group) for task in TASKS_OF[group].get(name, BOTH)}
        if len(tasks) > 1:
            raise ConfigError(
                f"data={listed(names('data'))}: the search has to know whether a high accuracy is looked for or a low "
                "loss. Add data.task=classification or data.task=regression."
            )
    return tasks != {REGRESSION}
