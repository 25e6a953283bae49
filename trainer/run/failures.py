"""Errors of torch and of the system, said in the terms of the program, with what to type next."""

import errno

import torch

from trainer.config.schema import Config
from trainer.run import directory
from trainer.run.environment import peak_memory
from trainer.utils.errors import ConfigError, Interrupted, ProcessLost, ResourceError, WorkerError


def explain(error: BaseException, config: Config) -> BaseException:
    """An error of torch or of the system as one of ours that says what to change; any other error as it is."""
    if isinstance(error, ProcessLost):
        return error
    if isinstance(error, Interrupted):
        return Interrupted(error.signum, f"interrupted; {directory.again(config, 'resume')} goes on.")
    text = str(error) or type(error).__name__
    if "more than 1 value per channel" in text:
        what = "a batch of one example, which batch normalisation cannot scale in training"
        return ConfigError(f"batch_size={config.batch_size} leaves {what}. Choose another batch_size or data.limit.")
    if isinstance(error, ConfigError) and "Original Traceback" in text:  # raised in a worker process
        return ConfigError(text.strip().splitlines()[-1].partition("ConfigError: ")[2])
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError(f"the disk is full: {error}. Make room, then give the command again or resume=.")
    no_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text
    if (no_memory or "shared memory" in text) and not isinstance(error, ResourceError):
        peak = peak_memory() / 2**20
        return ResourceError(
            f"out of memory with batch_size={config.batch_size}, {peak:,.0f} MiB at the peak: {text.splitlines()[0]} "
            "Try a smaller batch_size, accumulate_steps, or data.workers=0."
        )
    if isinstance(error, ConnectionResetError) or "DataLoader worker" in text:
        return WorkerError(
            f"a process that decodes pictures was ended from outside ({text.splitlines()[0]}). Memory may be short. "
            f"{directory.again(config, 'resume')} goes on; data.workers=0 does without such processes."
        )
    return error
