"""The program: let Hydra compose the settings of a command line, freeze them, run the command.

This is the only file that imports hydra. Everything a user types wrong is refused here, in command_line.py or in
config.py, before torch is imported: start-up time is a feature.
"""

import contextlib
import hashlib
import itertools
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer import config as settings
from trainer import sweep
from trainer.command_line import GROUPS, PLUGINS, RECIPES, Command, prepare, quote, split_word, unquote
from trainer.utils import ranks, runs
from trainer.utils.board import Board
from trainer.utils.errors import ConfigError, Interrupted, SweepError, TrainerError, listed
from trainer.utils.signals import StopSignal, end_with_parent

# NumPy's threads would keep the cores busy for a tenth of a second after each product, while torch's wait for them:
# with impl=numpy a step takes four times as long. Read when NumPy is imported.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

# another value of these goes on with the same sweep
NOT_IN_THE_NAME = ("name", "hydra/launcher", "hydra.launcher.", "hydra.sweeper.n_jobs", "hydra.sweeper.n_trials")

HELP = """\
python main.py [train] [group=choice ...] [key=value ...]        train a model (train is the default)
python main.py eval    checkpoint=RUN|PATH [split=test] [...]    measure a trained model
python main.py predict checkpoint=RUN|PATH [input=FILE|FOLDER]   label pictures, or the test split
python main.py check-resume [group=choice ...] [key=value ...]   does a run like this survive interruptions to the bit?
python main.py compare-impl [group=choice ...] [key=value ...]   the same run in every library: curves, times, distances
python main.py -m key=value1,value2 ...                          one run for each combination of values
torchrun --nproc_per_node=N main.py ...                          train with N processes (docs/several-processes.md)

groups
{groups}
settings: every one of them stands with its unit and range in configs/*.yaml; --cfg job prints those of a command.
A pair of data and model brings tuned values by itself (configs/recipe); recipe=none leaves them out.

examples
  python main.py                                                 linear regression on made-up data, in seconds
  python main.py model=mlp data=fashion_mnist optimizer.lr=0.05
  python main.py model=resnet34 data=cifar10 device=cuda name=first
  python main.py resume=first                                    go on after an interruption
  python main.py eval checkpoint=first
  python main.py predict checkpoint=last input=photos/
  python main.py -m data=mnist model=softmax,mlp optimizer.lr=0.1,0.5
  python main.py -m hydra/launcher=processes hydra.launcher.n_jobs=2 model=mlp data=mnist seed=0,1,2,3
  python main.py -m hydra/sweeper=optuna model=mlp data=mnist optimizer.lr='tag(log, interval(1e-3,1))'
  tensorboard --logdir outputs
"""


def name_sweep(command: Command) -> str:
    """The name of a multirun: what name= says, else a digest of its settings, so that the same command finds it again.

    Where its jobs run, and how many a search has, is not part of it.

    Raises:
        ConfigError: name= is swept over or malformed, or resume= is given.
    """
    name = command.value("name")
    if command.value("resume"):
        raise ConfigError(
            "resume= goes on with one run; a sweep goes on by itself when the same command is given again."
        )
    if name is None:
        words = [word for word in command.overrides if not split_word(word)[0].startswith(NOT_IN_THE_NAME)]
        name = "sweep-" + hashlib.sha256("\n".join(words).encode()).hexdigest()[:8]
    elif "," in name:
        raise ConfigError(f"name={name}: name names the whole sweep; its runs are numbered.")
    folder = command.value("paths.outputs") or settings.run_settings()["paths.outputs"]
    if runs.exists(name, folder):
        raise ConfigError(f"name={name} is the name of a single run already. Choose another for the sweep.")
    return runs.check_name(name)


def saved_config(command: Command) -> Mapping[str, Any] | None:
    """The config of the run that eval, predict or resume go on with; None where nothing is gone on with."""
    defaults = settings.run_settings()
    folders = {key: command.value(f"paths.{key}") or defaults[f"paths.{key}"] for key in ("outputs", "checkpoints")}
    if command.verb in ("check-resume", "compare-impl"):
        return None
    target = command.value("resume" if command.verb == "train" else "checkpoint")
    if command.verb != "train" and target is None:
        raise ConfigError(f"{command.verb} needs checkpoint=<a run's name, last, or a checkpoint file>.")
    if target == "auto":
        name = command.value("name")
        if name is None:
            raise ConfigError("resume=auto needs name=<the run's name>.")
        target = name if runs.exists(name, folders["outputs"]) else None
    if target is None:
        return None
    if (found := runs.find(target, **folders)).run is not None:
        return runs.read_config(found.run)
    from trainer.utils import checkpoint  # imports torch

    saved = dict(checkpoint.read(found.file)["config"])
    own = Path(folders["checkpoints"]) / saved["name"] / found.file.name
    if not own.is_file() or not own.samefile(found.file):
        saved["paths"] = {}  # of the machine it was written on
    return saved


def run_hydra(command: Command, words: Sequence[str], job: Callable[[Any], Any], stop: StopSignal) -> None:
    """Let Hydra compose the settings of each job and call `job` with them.

    Raises:
        ConfigError: Hydra refused the words.
    """
    import hydra
    from hydra.errors import HydraException

    sys.argv = [sys.argv[0], *command.flags, *(["--multirun"] if command.multirun else []), *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise instead of printing and leaving with 1
    try:
        hydra.main(version_base="1.3", config_path=str(settings.CONFIGS), config_name="config")(job)()
    except HydraException as error:
        if stop.signum:  # this is what they made of it
            raise Interrupted(stop.signum) from None
        raise ConfigError(explain(str(error), command)) from None


def frozen(
    composed: Any, choices: Mapping[str, str], command: Command, saved: Mapping[str, Any] | None = None
) -> settings.Config:
    """The Config of what Hydra composed from these group choices, with the names of the recipes it took."""
    config = settings.freeze(composed, choices, command.typed, saved)
    found = [settings.CONFIGS / group / f"{choices[group]}.yaml" for group in RECIPES] if saved is None else []
    return replace(config, recipes=[str(path.relative_to(settings.CONFIGS.parent)) for path in found if path.is_file()])


def run_one(command: Command, stop: StopSignal) -> None:
    """Run the verb of a command."""
    if (name := command.value("name")) is not None:
        runs.check_name(name)
    if command.verb != "train" and ranks.of_environment().world > 1:
        raise ConfigError(f"{command.verb} is for one process. Start it without torchrun.")
    saved = saved_config(command)
    words = list(command.overrides)
    if saved is not None:
        choices = settings.from_dict(saved).to_dict()["choices"]
        words = [f"{group}={name}" for group, name in choices.items() if group not in command.typed] + words

    errors: list[Exception] = []  # kept from Hydra, which would print them in its own words

    def job(composed: Any) -> None:
        from hydra.core.hydra_config import HydraConfig

        try:
            choices = HydraConfig.get().runtime.choices
            run_verb(command.verb, frozen(composed, choices, command, saved), stop)
        except Exception as error:
            errors.append(error)

    run_hydra(command, words, job, stop)
    if errors:
        raise errors[0]


def run_verb(verb: str, config: settings.Config, stop: StopSignal) -> float | None:
    """Run a command on frozen settings, and return train's objective; errors of torch and the system in our words."""
    from trainer import check_resume, commands, compare_impl, measure  # import torch

    try:
        if verb == "train":
            return commands.train(config, stop)
        {
            "eval": measure.evaluate,
            "predict": measure.predict,
            "check-resume": check_resume.check,
            "compare-impl": compare_impl.compare,
        }[verb](config)
        return None
    except Exception as error:
        raise commands.in_our_words(error, config) from error.__cause__


def run_sweep(command: Command, stop: StopSignal) -> None:
    """Run every job of a multirun in directories of its own; a job that fails does not stop the others.

    Without another sweeper or launcher, the jobs run in this process, one after the other, and share one data set.

    Raises:
        SweepError: at least one job failed.
    """
    folder = Path(command.value("paths.outputs") or settings.run_settings()["paths.outputs"]) / name_sweep(command)
    typed = {split_word(word)[0]: word for word in command.overrides}  # the last one wins
    words = [word for key, word in typed.items() if key != "name"]
    engines = settings.engines(dict(map(split_word, words)))
    jobs = compose_jobs(command, words) if set(engines.values()) == {"basic"} else []
    if ranks.of_environment().world > 1 and not jobs:
        raise ConfigError("torchrun trains each run of a sweep with all its processes: leave out hydra/... here.")
    if not ranks.of_environment().is_first:
        sweep.run_all(jobs, folder, stop)
        return
    paths = [f"{key}={unquote(value)}" for key, value in map(split_word, words) if key.startswith("paths.")]
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    with contextlib.ExitStack() as held:
        folder.mkdir(parents=True, exist_ok=True)
        if engines["hydra/sweeper"] == "basic":  # a study is made for many processes, a list of jobs is not
            held.enter_context(runs.hold(runs.Run(folder.name, folder, Path())))
        sweep.check_same(folder, engines["hydra/sweeper"], dict(map(split_word, words)))
        try:
            with Board(folder, {job.number: job.text for job in jobs}):
                if jobs:
                    sweep.run_all(jobs, folder, stop)
                else:
                    launch(command, words, folder, stop)
        except ConfigError:  # refused before a job began
            sweep.remove_empty(new)
            raise
        except BaseException:
            sweep.finish(folder, jobs, paths)
            raise
        rows = sweep.finish(folder, jobs, paths)
    if failed := [row for row in rows if row["error"]]:
        raise SweepError(f"{len(failed)} of {len(rows)} jobs failed; each log is in {folder}/<job>/train.log.")


def launch(command: Command, words: Sequence[str], folder: Path, stop: StopSignal) -> None:
    """Let Hydra's sweeper and launcher run the jobs.

    Raises:
        SweepError: the launcher gave up, as where a process of it was ended from outside.
    """
    root = str(Path(__file__).resolve().parent)  # other processes import our modules from there
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    from hydra.errors import HydraException

    try:
        typed, pairs = dict(map(split_word, words)), zip(words, parse(words), strict=True)
        fixed = {split_word(word)[0] for word, override in pairs if not override.is_sweep_override()}
        has_children = PLUGINS.get(settings.engines(typed)["hydra/launcher"]) == "hydra-joblib-launcher"
        with stop.forwarded() if has_children else contextlib.nullcontext():
            run_hydra(command, [*words, f"hydra.sweep.dir={quote(str(folder))}"], RunJob(folder, fixed, command), stop)
        if "joblib" in sys.modules:  # else it complains, at the end of this process, of what it left
            sys.modules["joblib.externals.loky"].get_reusable_executor().shutdown(wait=True)
    except TrainerError:
        raise
    except HydraException as error:
        raise ConfigError(explain(str(error), command)) from None
    except Interrupted as error:
        raise Interrupted(error.signum, sweep.TO_GO_ON) from None
    except Exception as error:
        if stop.signum:  # this is what the launcher made of it
            raise Interrupted(stop.signum, sweep.TO_GO_ON) from None
        told = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        raise SweepError(f"the launcher gave up ({told}); the same command goes on with the sweep.") from error


def compose_jobs(command: Command, words: Sequence[str]) -> list[sweep.Job]:
    """All jobs of a multirun, each with its settings, or with the reason why they are refused.

    Hydra composes once for each combination of group choices, which takes a tenth of a second; the values that are
    swept over are put in after that, as Hydra does it.

    Raises:
        ConfigError: a word cannot be read, a choice lacks an option that was typed, or nothing is swept over.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    composed: dict[tuple[str, ...], Any] = {}
    jobs = []
    try:
        swept = [word for word, override in zip(words, parse(words), strict=True) if override.is_sweep_override()]
        fixed = [word for word in words if word not in swept]
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(settings.CONFIGS)):
            values_of = [each(override) for override in parse(swept, GlobalHydra.instance().config_loader())]
            for number, chosen in enumerate(itertools.product(*values_of) if swept else ()):
                groups = tuple(word for word in chosen if split_word(word)[0] in GROUPS)
                if groups not in composed:
                    typed = [*fixed, *groups]
                    composed[groups] = hydra.compose("config", overrides=typed, return_hydra_config=True)
                choices = composed[groups].hydra.runtime.choices
                parsed = parse([word for word in chosen if word not in groups])
                values = {override.key_or_group: override.value() for override in parsed}
                own = settings.with_values(composed[groups], values, choices)
                overrides = dict(split_word(word) for word in chosen)
                jobs.append(make_job(number, overrides, own, choices, command))
    except HydraException as error:
        raise ConfigError(explain(str(error), command)) from None
    if not jobs:
        raise ConfigError("the sweep has no jobs: a list of values is written key=value1,value2.")
    return jobs


def make_job(number: int, overrides: Mapping[str, str], composed: Any, choices: Any, command: Command) -> sweep.Job:
    """A job with its frozen settings, or with the reason why they are refused."""
    try:
        return sweep.Job(number, overrides, frozen(composed, choices, command))
    except ConfigError as error:
        return sweep.Job(number, overrides, None, error)


def parse(words: Sequence[str], loader: Any = None) -> list[Any]:
    """Words as Hydra reads them; the loader knows what glob() finds."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create(config_loader=loader).parse_overrides(list(words))


def each(override: Any) -> list[str]:
    """`key=a,b` -> [`key=a`, `key=b`]; ranges, globs and choices too."""
    if getattr(override.value(), "shuffle", False):
        raise ConfigError(f"{override.input_line}: the same command has to find the same jobs. Leave shuffle out.")
    if not override.is_discrete_sweep():
        raise ConfigError(f"{override.input_line}: an interval has no end of values. It is for hydra/sweeper=optuna.")
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


@dataclass(frozen=True)
class RunJob:
    """What a launcher runs for each job of a sweep, in a process of its choice."""

    folder: Path
    fixed: set[str]  # the keys that have the same value in every job
    command: Command

    def __call__(self, composed: Any) -> float:
        """Train the job that Hydra composed and return its objective."""
        from hydra.core.hydra_config import HydraConfig

        own = HydraConfig.get()
        overrides = dict(split_word(word) for word in own.overrides.task)
        overrides = {key: value for key, value in overrides.items() if key not in self.fixed}
        searches = own.runtime.choices["hydra/sweeper"] == "optuna"
        number = int(own.job.name) if searches else own.job.num
        job = make_job(number, overrides, composed, own.runtime.choices, self.command)
        with contextlib.ExitStack() as held:
            stop = held.enter_context(StopSignal())
            if multiprocessing.parent_process() is not None:
                end_with_parent(signal.SIGTERM)
            if own.runtime.choices["hydra/launcher"] == "gpus":
                job = held.enter_context(sweep.on_a_gpu(job, self.folder))
            trial = None
            if searches:
                from trainer import search

                epochs = job.config.epochs if job.config is not None else 0
                trial = held.enter_context(search.trial_of(own.sweeper, self.folder, number, epochs))
            try:
                return sweep.run(job, self.folder, stop, trial=trial)
            except Interrupted as error:
                if multiprocessing.parent_process() is not None:
                    sweep.wait_for_jobs(self.folder)  # the launcher kills all its processes when the first one ends
                    os._exit(error.exit_code)
                raise


def explain(message: str, command: Command) -> str:
    """Hydra's own refusal in our words: it is left with values and with options of another choice."""
    if match := re.search(r"Could not override '([^']+)'", message):
        key = match[1]
        lists = {group: value.split(",") for group in GROUPS if (value := command.value(group))}
        for values in itertools.product(*lists.values()):  # the combination that lacks the option
            chosen = settings.settle(dict(zip(lists, values, strict=True)))
            if key not in settings.defaults_of(chosen):
                return str(settings.unknown_key(key, chosen))
    if "multirun" in message:
        return "a list of values trains one run for each: put -m in front. For one value that is a list, write [1,2]."
    return f"cannot read the command line: {message.strip().splitlines()[0]}"


def main() -> int:
    """Run the command line; returns the exit code."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        groups = "".join(f"  {group + '=':12} {listed(settings.choices_of(group))}\n" for group in GROUPS)
        print(HELP.format(groups=groups), end="")
        return 0
    try:
        if not ranks.of_environment().is_first:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (rank 0 speaks for all, to the end)
        with StopSignal() as stop:
            command = prepare(sys.argv[1:])
            (run_sweep if command.multirun else run_one)(command, stop)
    except TrainerError as error:
        return ranks.leave(error, f"error: {error}")
    except Interrupted as error:
        return ranks.leave(error, str(error))
    except Exception as error:
        if not (stop.signum and type(error).__module__.startswith("omegaconf.")):
            raise
        print("interrupted", file=sys.stderr)  # half-made settings fail while Interrupted passes through them
        return 128 + stop.signum
    finally:
        end_workers()
    return 0


def end_workers() -> None:
    """End the processes that a signal in an awkward moment left behind; Python's exit would wait for them for ever."""
    if processes := "multiprocessing" in sys.modules and sys.modules["multiprocessing"].active_children():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would report their end as an error
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)  # not every kind of process has kill()


if __name__ == "__main__":
    exit_code = main()
    with contextlib.suppress(OSError, AttributeError):  # the reader of a pipe may have left, or there is no output
        sys.stdout.flush()
        sys.stderr.flush()
    if "joblib" in sys.modules:  # it has folders to remove
        sys.exit(exit_code)
    os._exit(exit_code)  # everything is written; Python's own way out takes torch apart, for a second
