"""The program: let Hydra compose the settings of a command line, freeze them, run the command.

What a user typed wrong is refused before torch is imported, which takes seconds: a typo is answered at once.
"""

import contextlib
import os
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # Python -P leaves it out
from trainer.commands.experiments import run_experiments
from trainer.commands.instead import type_instead
from trainer.config.command_line import Command, parse_command
from trainer.config.compose import compose, frozen
from trainer.config.freeze import from_dict
from trainer.config.help import help_for
from trainer.config.roles import check_typed, without_effect
from trainer.config.schema import Config
from trainer.run import directory, folders
from trainer.run.target import Target, find, resolve_resume
from trainer.sweep.compare import run_compare
from trainer.sweep.launch import run_sweep
from trainer.utils import ranks
from trainer.utils.errors import ConfigError, Interrupted, TrainerError
from trainer.utils.screen import Screen
from trainer.utils.signals import KILL, StopSignal
from trainer.utils.text import emit

# NumPy's threads would spin for a tenth of a second after each product, on the cores that torch's threads need: with
# impl=numpy a step would take four times as long. OpenBLAS reads this when NumPy is imported, so it has to stand here.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")


def target_of(command: Command) -> str | None:
    """The run or file that eval, predict or resume starts from; None: a new run."""
    key = {"train": "resume", "eval": "checkpoint", "predict": "checkpoint"}.get(command.verb, "")
    target = command.value(key)
    if key == "checkpoint" and target is None:
        raise ConfigError(f"{command.verb} needs checkpoint=<a run's name, last, or a checkpoint file>.")
    return resolve_resume(target, command.value("name"), command.folders["outputs"]) if key == "resume" else target


def run_one(command: Command, stop: StopSignal) -> None:
    """Run the verb of a command."""
    if (name := command.value("name")) is not None:
        directory.check_name(name, command.folders["outputs"])
    if command.verb != "train" and ranks.of_environment().world > 1:
        raise ConfigError(f"{command.verb} is for one process. Start it without torchrun.")
    target = target_of(command)
    # before any file is read, which would import torch
    use = "resume" if command.verb == "train" and target is not None else command.verb
    warnings = check_typed(use, command.values)
    command = command.without(warnings)
    found = find(target, **command.folders) if target is not None else None
    saved = found.saved_config if found is not None else None
    words = list(command.overrides)
    if saved is not None:
        choices = from_dict(saved, complete=False).to_dict()["choices"]
        # first, so that Hydra knows the options of the saved choices, while typed choices still win
        words = [f"{group}={name}" for group, name in choices.items() if group not in command.values] + words

    with stop.held():
        if (composed := compose(command, words)) is None:  # --cfg has printed them
            return
        config = frozen(*composed, command, saved)
    screen = Screen()
    for line in dict.fromkeys((*warnings.values(), *without_effect(use, config))):
        screen.say(line)
    run_verb(command.verb, config, found, stop, screen)


def run_verb(verb: str, config: Config, target: Target | None, stop: StopSignal, screen: Screen) -> None:
    """Run a command on frozen settings; errors of torch and of the system are put into the program's own words."""
    from trainer.commands.check_resume import run_check_resume  # import torch
    from trainer.commands.compare_impl import run_compare_impl
    from trainer.commands.evaluate import run_eval
    from trainer.commands.predict import run_predict
    from trainer.commands.train import train
    from trainer.run import failures

    if verb == "train":  # it explains its errors itself, before it notes them in the run's files
        train(config, stop, target=target, screen=screen)
        return
    try:
        if target is not None:
            {"eval": run_eval, "predict": run_predict}[verb](config, target)
        else:
            {"check-resume": run_check_resume, "compare-impl": run_compare_impl}[verb](config)
    except Exception as error:
        raise failures.explain(error, config) from error.__cause__


def main() -> int:
    """Run the command line; returns the exit code."""
    try:
        if (told := help_for(args := sys.argv[1:])) is not None:
            emit(*told.splitlines())
            return 0
        if not ranks.of_environment().is_first:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (rank 0 speaks for all, to the end)
        with StopSignal() as stop:
            with stop.held():
                command = parse_command(args)
            with folders.explained(command.folders):
                run = run_sweep if command.multirun else run_one
                {"compare": run_compare, "experiments": run_experiments}.get(command.verb, run)(command, stop)
    except TrainerError as error:
        return ranks.leave(error, f"error: {error}{type_instead(error, args)}")
    except Interrupted as error:
        return ranks.leave(error, str(error))
    finally:
        end_workers()
    return 0


def end_workers() -> None:
    """End the worker processes that a signal left behind; Python would wait for them for ever on exit."""
    if processes := "multiprocessing" in sys.modules and sys.modules["multiprocessing"].active_children():
        if hasattr(signal, "SIGCHLD"):  # torch's handler would report each killed worker as an error
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for process in processes:
            with contextlib.suppress(OSError):  # it has ended
                os.kill(process.pid, KILL)  # some kinds of process have no kill()


if __name__ == "__main__":
    exit_code = main()
    with contextlib.suppress(OSError, AttributeError):  # the reader of the pipe may be gone, or stdout may be None
        sys.stdout.flush()
        sys.stderr.flush()
    if "joblib" in sys.modules:  # it removes its temporary folders at exit
        sys.exit(exit_code)
    os._exit(exit_code)  # everything is written; a regular exit would spend a second on unloading torch
