"""The program: let Hydra compose the settings of a command line, freeze them, run the command.

This is the only file that imports hydra. Everything a user types wrong is refused here, in command_line.py or in
config.py, before torch is imported: start-up time is a feature.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.config.command_line import TYPED_GROUPS, Command, parse_command
from trainer.config.compose import frozen, run_hydra
from trainer.config.freeze import from_dict
from trainer.config.options import choices_of, run_settings
from trainer.config.schema import Config
from trainer.run import directory
from trainer.sweep.launch import run_sweep
from trainer.utils import ranks
from trainer.utils.errors import ConfigError, Interrupted, TrainerError, listed
from trainer.utils.signals import StopSignal

# NumPy's threads would keep the cores busy for a tenth of a second after each product, while torch's wait for them:
# with impl=numpy a step takes four times as long. Read when NumPy is imported.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
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


def saved_config(command: Command) -> Mapping[str, Any] | None:
    """The config of the run that eval, predict or resume go on with; None where nothing is gone on with."""
    defaults = run_settings()
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
        target = name if directory.exists(name, folders["outputs"]) else None
    if target is None:
        return None
    if (found := directory.find(target, **folders)).run is not None:
        return directory.read_config(found.run)
    from trainer.run.safe_load import read_checkpoint  # imports torch

    saved = dict(read_checkpoint(found.file)["config"])
    own = Path(folders["checkpoints"]) / saved["name"] / found.file.name
    if not own.is_file() or not own.samefile(found.file):
        saved["paths"] = {}  # of the machine it was written on
    return saved


def run_one(command: Command, stop: StopSignal) -> None:
    """Run the verb of a command."""
    if (name := command.value("name")) is not None:
        directory.check_name(name)
    if command.verb != "train" and ranks.of_environment().world > 1:
        raise ConfigError(f"{command.verb} is for one process. Start it without torchrun.")
    saved = saved_config(command)
    words = list(command.overrides)
    if saved is not None:
        choices = from_dict(saved).to_dict()["choices"]
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


def run_verb(verb: str, config: Config, stop: StopSignal) -> float | None:
    """Run a command on frozen settings, and return train's objective; errors of torch and the system in our words."""
    from trainer.commands.check_resume import run_check_resume  # import torch
    from trainer.commands.compare_impl import run_compare_impl
    from trainer.commands.evaluate import run_eval
    from trainer.commands.predict import run_predict
    from trainer.commands.train import train
    from trainer.run import failures

    try:
        if verb == "train":
            return train(config, stop)
        {
            "eval": run_eval,
            "predict": run_predict,
            "check-resume": run_check_resume,
            "compare-impl": run_compare_impl,
        }[verb](config)
        return None
    except Exception as error:
        raise failures.explain(error, config) from error.__cause__


def main() -> int:
    """Run the command line; returns the exit code."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        groups = "".join(f"  {group + '=':12} {listed(choices_of(group))}\n" for group in TYPED_GROUPS)
        print(HELP.format(groups=groups), end="")
        return 0
    try:
        if not ranks.of_environment().is_first:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (rank 0 speaks for all, to the end)
        with StopSignal() as stop:
            command = parse_command(sys.argv[1:])
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
