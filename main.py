"""The program: let Hydra compose the settings of a command line, freeze them, run the command.

What a user typed wrong is refused before torch is imported, which takes seconds: a typo is answered at once.
"""

import contextlib
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # Python -P leaves it out
from trainer.commands.completion import completion_for
from trainer.commands.instead import type_instead
from trainer.commands.start import run_one
from trainer.config.command_line import parse_command
from trainer.config.help import help_for
from trainer.run import folders
from trainer.run.plugged import plugged
from trainer.sweep.launch import run_sweep
from trainer.sweep.verbs import VERB_OF_RUNS
from trainer.utils import ranks
from trainer.utils.errors import Interrupted, TrainerError
from trainer.utils.signals import StopSignal, end_workers
from trainer.utils.text import emit, quiet_libraries

# NumPy's threads would spin for a tenth of a second after each product, on the cores that torch's threads need: with
# impl=numpy a step would take four times as long. OpenBLAS reads this when NumPy is imported, so it has to stand here.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")


def main() -> int:
    """Run the command line; returns the exit code."""
    args, held = sys.argv[1:], contextlib.ExitStack()
    try:
        if not ranks.of_environment().is_first:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (rank 0 speaks for all, to the end)
        quiet_libraries()
        with StopSignal() as stop:
            if (told := completion_for(args)) is None:
                held.enter_context(plugged(args))
                told = help_for(args)
            if told is not None:
                emit(*told.splitlines())
                return 0
            with stop.held():
                command = parse_command(args)
            with folders.explained(command.folders):
                run = run_sweep if command.multirun else run_one
                VERB_OF_RUNS.get(command.verb, run)(command, stop)
    except TrainerError as error:
        return ranks.leave(error, f"error: {error}{type_instead(error, args)}")
    except Interrupted as error:
        return ranks.leave(error, str(error))
    finally:
        held.close()
        end_workers()
    return 0


if __name__ == "__main__":
    exit_code = main()
    with contextlib.suppress(OSError, AttributeError):  # the reader of the pipe may be gone, or stdout may be None
        sys.stdout.flush()
        sys.stderr.flush()
    if "joblib" in sys.modules:  # it removes its temporary folders at exit
        sys.exit(exit_code)
    os._exit(exit_code)  # everything is written; a regular exit would spend a second on unloading torch
