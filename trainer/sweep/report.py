"""The report command: report.html of a run or a sweep, written anew."""

from pathlib import Path

from trainer.config.command_line import Command
from trainer.config.verbs import PLACES_OF_DATA
from trainer.run.brief import REPORT, brief_of
from trainer.run.target import Target, find_run
from trainer.sweep.table import rows_of_sweep, swept
from trainer.utils.errors import ConfigError, TrainerError
from trainer.utils.signals import StopSignal
from trainer.utils.text import emit

MOVED_DATA = ("paths.data", "paths.cache", *PLACES_OF_DATA)  # where the examples are now


def run_report(command: Command, _stop: StopSignal) -> None:
    """Write report.html of a run or a sweep.

    Raises:
        ConfigError: there is no such run, or the plotting library is not installed.
    """
    name, folders = command.names[0], command.folders
    try:
        if (found := find_run(name, **folders)) is not None:
            emit(f"report       {report_of(found, command)}")
            return
        folder, rows = rows_of_sweep(name, **folders)
        from trainer.sweep.page import write_sweep_report  # imports matplotlib

        emit(f"report       {write_sweep_report(folder, rows, swept(rows))}")
    except ModuleNotFoundError as error:
        raise ConfigError(str(error)) from None


def report_of(found: Target, command: Command) -> Path:
    """Write the report of a run: of one that is done with what its test examples tell, else from its records."""
    from trainer.commands.data_set import homes_of
    from trainer.run.again import config_now, measured_again  # imports torch
    from trainer.run.report.of_run import write_report

    made, missing = None, ""
    if brief_of(found.run.name, found.run.outputs).state in ("done", "trial"):
        typed = {key: value for key in MOVED_DATA if (value := command.value(key)) is not None}
        try:
            config = config_now(found.run, typed)
            for path in homes_of(config):
                if not path.exists():  # it is not downloaded for a picture
                    raise ConfigError(f"{path} is missing. paths.data=, data.root= and data.path= say where it is now.")
            made = measured_again(found.run, config)
        except (TrainerError, OSError, RuntimeError) as error:  # its files or its data may be elsewhere
            missing = str(error)
            if (page := found.run.outputs / REPORT).is_file():
                told = "is left as it is, since it may show what is missing now; deleted, it is written without that"
                raise ConfigError(f"{missing} {page} {told}.") from None
            emit(f"warning: without what the test examples tell: {missing}")
    return write_report(found.run, made, missing)
