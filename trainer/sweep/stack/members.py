"""The runs of a stack before they are stacked: each begun as a lone run is, then brought to a step that all have."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from trainer.config.schema import Config
from trainer.run import directory
from trainer.run.begin import Begun, begin, run_of
from trainer.run.checkpoint_files import path_of_step
from trainer.run.machine import resolve_auto
from trainer.run.parts import ALONE
from trainer.run.safe_load import read_checkpoint
from trainer.utils.errors import BusyError, ConfigError, DivergedError
from trainer.utils.screen import Screen

Outcome = float | Exception  # the objective of a run, or what ended it
Found = Mapping[int, tuple[Config, Begun]]  # the runs that have something left to do, by their place in the stack


class ApartError(Exception):
    """These runs cannot be trained together; the message says why."""


def begin_members(
    configs: Sequence[Config], screens: Sequence[Screen], held: ExitStack
) -> tuple[Found, dict[int, Outcome]]:
    """The runs of a stack that have something left to do, and how the others ended, by their places.

    Raises:
        ApartError: a run is not what it was when the others were begun.
    """
    found: dict[int, tuple[Config, Begun]] = {}
    outcomes: dict[int, Outcome] = {}
    try:
        device = resolve_auto(configs[0])[0].device  # the same for all
        for k, config in enumerate(configs):
            config = replace(config, resume="auto", device=device)
            status = directory.read_status(Path(config.paths.outputs, str(config.name)))
            if status.get("state") == "diverged":  # it would diverge again
                outcomes[k] = DivergedError(str(status.get("reason", "")).removeprefix("DivergedError: "))
                continue
            try:
                config, begun = begin(config, None, ALONE, screens[k], held)
            except BusyError as error:  # somebody resumed it alone; the others do not wait
                outcomes[k] = error
                continue
            if begun.finished is not None:
                outcomes[k] = begun.finished
            elif begun.goes_further:
                raise ApartError(f"{begun.changed[0]} is another than before")
            else:
                found[k] = (config, begun)
    except ConfigError as error:
        raise ApartError(str(error)) from None
    some_are_done = any(isinstance(outcome, float) for outcome in outcomes.values())
    return on_one_step(found, len(configs), some_are_done), outcomes


def on_one_step(found: Found, num_runs: int, some_are_done: bool) -> Found:
    """The runs from the newest step that they all have a checkpoint of: a kill may have come between their saves.

    Raises:
        ApartError: some have been trained without the others, or their files are gone.
    """
    starts = {k: begun.content for k, (_, begun) in found.items() if begun.path}
    if any(content["env"].get("stack", 1) != num_runs for content in starts.values()):
        raise ApartError("one run was resumed alone, or in another stack")
    if len(starts) < len(found):  # killed before or during the first save, after epoch 1: all begin anew
        if some_are_done or any(content["progress"]["epoch"] > 2 for content in starts.values()):
            raise ApartError("a run has no checkpoint, while others are further")
        return {k: (config, replace(begun, path="", content={})) for k, (config, begun) in found.items()}
    steps = {k: content["progress"] for k, content in starts.items() if not content["early_stop"]["stopped"]}
    if some_are_done and any(progress["epoch"] <= found[k][0].epochs for k, progress in steps.items()):
        raise ApartError("some runs are finished while others are not")
    common = min((progress["step"] for progress in steps.values()), default=0)
    together = dict(found)
    for k in [k for k, progress in steps.items() if progress["step"] != common]:
        config, begun = found[k]
        path = path_of_step(run_of(config).checkpoints, common)
        try:
            together[k] = (config, replace(begun, path=str(path), content=read_checkpoint(path)))
        except ConfigError:
            raise ApartError("the runs' checkpoints are of different steps") from None
    return together
