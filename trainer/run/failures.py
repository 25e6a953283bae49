"""When a run fails or is interrupted: what is said, what to type next, and what is noted in its files."""

import contextlib
import errno
from collections.abc import Iterator

import torch

from trainer.config.plugins import blamed
from trainer.config.schema import Config
from trainer.run import directory, folders
from trainer.run.checkpoint_files import FULL
from trainer.run.directory import Run, command_for
from trainer.run.environment import peak_memory
from trainer.utils.errors import (
    ConfigError,
    DivergedError,
    Interrupted,
    PluginError,
    ProcessLost,
    ResourceError,
    TrainerError,
    WorkerError,
)
from trainer.utils.screen import Screen


def explain(error: BaseException, config: Config, run: Run | None = None) -> BaseException:
    """An error of torch or of the system as one of this program that says what to change; any other one as it is.

    torch has no classes for most of its errors: they are known by words of their messages, which tests keep an eye on.

    Args:
        error: what was raised.
        config: of the run, which has its name.
        run: the one that was being trained; None: none was, or it has no files yet.
    """
    if isinstance(error, ProcessLost):
        return error
    if isinstance(error, Interrupted):
        how = f" {how_to_go_on(config, run)}."
        if run is not None and not directory.exists(run.name, config.paths.outputs):  # resume=NAME would not find it
            gone = folders.why(run.outputs / "config.json", OSError(errno.ENOENT, ""))
            how = f" {gone}{directory.how_to_continue(run)}"
        return Interrupted(error.signum, f"interrupted;{how}")
    text = str(error) or type(error).__name__
    if isinstance(error, (ConfigError, ResourceError)) and "Original Traceback" in text:  # raised in a worker process
        kind = type(error)
        return kind(str(error.args[0]).strip().splitlines()[-1].partition(f"{kind.__name__}: ")[2])
    if isinstance(error, OSError) and error.errno in FULL:
        return ResourceError(f"the disk is full: {error}. Make room, then give the command again or resume=.")
    no_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text
    if not no_memory and (told := blamed(error)) is not None:
        return PluginError(told) if run is None else TrainerError(told)
    if (told := folders.trouble(error, filter(None, vars(config.paths).values()))) is not None:
        saved = directory.how_to_continue(run) if run is not None else ""
        return ResourceError(f"{told}{saved or ' Then give the same command again.'}")
    if (no_memory or "shared memory" in text) and not isinstance(error, ResourceError):
        peak = f", {peak_memory() / 2**20:,.0f} MiB at the peak" if peak_memory() else ""
        said = f"out of memory with batch_size={config.batch_size}{peak}: {text.splitlines()[0]}"
        fewer = ", or data.workers=0" if config.data.options.get("workers") else ""
        return ResourceError(f"{said} Try a smaller batch_size, or accumulate_steps=2 or more{fewer}.")
    if isinstance(error, (ConnectionResetError, ConnectionRefusedError, EOFError)) or "DataLoader worker" in text:
        without = "; data.workers=0 trains without such processes" if run and "workers" in config.data.options else ""
        return WorkerError(
            f"a process that decodes images was ended from outside ({text.splitlines()[0]}). Memory may be short: "
            f"{how_to_go_on(config, run)}{without}."
        )
    return error


def how_to_go_on(config: Config, run: Run | None) -> str:
    """What continues the work that ended; resume= would continue one job of a sweep, of which a search learns nothing.

    Args:
        config: of the run, which has its name.
        run: the one that was being trained; None: there is nothing to resume.
    """
    if config.resume == "auto" and "/" in (config.name or ""):  # a user may resume a job, but by its name
        return "the same command continues the sweep"
    return f"{command_for(config, 'resume')} continues" if run is not None else "give the same command again"


@contextlib.contextmanager
def explaining(config: Config) -> Iterator[None]:
    """Explain what is raised inside; see explain."""
    try:
        yield
    except (Exception, SystemExit) as error:  # a file of plugins= may call sys.exit()
        raise explain(error, config) from error.__cause__


def note_failure(run: Run, started: str, error: BaseException, screen: Screen) -> None:
    """Note in status.json why the run ended, and say it in train.log."""
    if isinstance(error, KeyboardInterrupt) and not isinstance(error, ProcessLost):
        kind = "interrupted"
    else:
        kind = "diverged" if isinstance(error, DivergedError) else "failed"
    reason = f"{type(error).__name__}: {error}"
    with contextlib.suppress(OSError):  # the disk may be full, and that may be the reason
        directory.write_status(run, kind, started, reason)
    screen.note(f"{kind}: {reason}")
