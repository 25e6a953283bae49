"""The commands export and bench: a run is looked up and prepared as for predict. Torch-free until it is loaded."""

from trainer.commands.start import Prepared, prepare
from trainer.config.command_line import Command, expand, split_word
from trainer.config.verbs import OF_RUNS
from trainer.utils.errors import ConfigError
from trainer.utils.screen import Screen
from trainer.utils.signals import StopSignal

ON_DATA = ("data", "paths.data")


def run_export(command: Command, stop: StopSignal) -> None:
    """Write a run's model to a file that other programs read; ConfigError where it cannot be."""
    kind = command.value("format") or "onnx"
    prepared = prepared_as_for_predict(command, stop)
    from trainer.commands.export import export
    from trainer.run.failures import explaining

    assert prepared.target is not None
    with explaining(prepared.config):
        export(prepared.config, prepared.target, kind, command.value("output"), Screen())


def run_bench(command: Command, stop: StopSignal) -> None:
    """Measure how long a run's model takes for batches of several sizes."""
    prepared = prepared_as_for_predict(command, stop)
    from trainer.commands.bench import bench
    from trainer.run.failures import explaining

    assert prepared.target is not None
    with explaining(prepared.config):
        bench(prepared.config, prepared.target, Screen())


def prepared_as_for_predict(command: Command, stop: StopSignal) -> Prepared:
    """The settings of the run that a command names, and its file.

    Raises:
        ConfigError: there is no such run, or more than one is named.
    """
    keys = OF_RUNS[command.verb].keys
    words = [word for word in command.overrides if split_word(word)[0] not in keys]
    words += expand(f"checkpoint={command.names[0]}", False, None)
    if any(word.startswith("ensemble=") for word in words):
        raise ConfigError(f"{command.names[0]}: {command.verb} takes one run.")
    if not any(word.startswith(ON_DATA) for word in words):
        words.append("input='.'")  # a file that was brought here may not say where its data is; it can do without
    prepared = prepare(Command("predict", tuple(words)), stop)
    assert prepared is not None, "it has no flags"
    Screen().say(*prepared.lines)
    return prepared
