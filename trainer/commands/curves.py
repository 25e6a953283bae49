"""The board command: TensorBoard on the runs below outputs/."""

import shlex
import subprocess
import sys
from pathlib import Path

from trainer.config.command_line import Command
from trainer.run.target import find_run, name_of, unknown_run
from trainer.utils.errors import ConfigError, TrainerError
from trainer.utils.signals import StopSignal
from trainer.utils.text import emit


def run_board(command: Command, _stop: StopSignal) -> None:
    """Start TensorBoard on all runs, or on one run or sweep, until Ctrl-C.

    Raises:
        ConfigError: there is no such run, or port= is no port.
        TrainerError: TensorBoard ended by itself, as it does where its port is taken.
    """
    port = command.value("port") or "6006"
    if not (port.isdecimal() and 1 <= int(port) <= 65535):
        raise ConfigError(f"port={port} is not allowed. Allowed: 1 to 65535.")
    folder = folder_of(command)
    words = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", port]
    emit(f"http://localhost:{port}/ shows {folder}; Ctrl-C ends it", shlex.join(words))
    process = subprocess.Popen(words)
    try:
        code = process.wait()
    finally:
        process.terminate()
        process.wait()
    if code:
        raise TrainerError(f"TensorBoard ended with exit code {code}. If the port is taken, choose another: port=6007.")


def folder_of(command: Command) -> Path:
    """What TensorBoard is to show."""
    outputs = Path(command.folders["outputs"])
    if not command.names:
        if not outputs.is_dir():
            raise ConfigError(f"{outputs}/ is not there yet: no run was started.")
        return outputs
    name = command.names[0]
    if (found := find_run(name, **command.folders)) is not None:
        return found.run.outputs
    if (outputs / name_of(name, **command.folders) / "sweep.json").is_file():
        return outputs / name_of(name, **command.folders)
    raise unknown_run(name, *map(Path, command.folders.values()))
