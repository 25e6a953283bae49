"""A run that is done, measured once more: for plots and a report that were not made at its end."""

from collections.abc import Mapping
from typing import Any

from trainer import data
from trainer.config.freeze import from_dict
from trainer.config.schema import Config
from trainer.run import directory
from trainer.run.checkpoint import check_fits, load_model
from trainer.run.checkpoint_files import step_of, steps_in
from trainer.run.directory import Run
from trainer.run.machine import resolve_auto
from trainer.run.parts import assemble, eval_batches
from trainer.run.progress import Progress
from trainer.run.recorder import SilentRecorder
from trainer.run.report.of_run import Made
from trainer.run.result import draw_run
from trainer.run.safe_load import read_checkpoint, weights_to_use
from trainer.run.target import settings_of_run
from trainer.utils.errors import ConfigError


def config_now(run: Run, typed: Mapping[str, Any]) -> Config:
    """The settings of a run, with those by dotted name that this command has: where the data and the cache are now."""
    saved = settings_of_run(run)
    for key, value in typed.items():
        node, _, leaf = key.rpartition(".")
        saved[node] = saved[node] | {leaf: value}
    return from_dict(saved)


def measured_again(run: Run, config: Config) -> Made:
    """A run with its best weights, and what they come to on the test split.

    Args:
        run: the run.
        config: of config_now().
    Raises:
        ConfigError: its checkpoint or its data cannot be used, or the data is not that of the training.
    """
    config, machine = resolve_auto(config)
    best = run.checkpoints / "best.pt"
    content = read_checkpoint(best)
    splits = data.load(config.data, config.paths, like=content)
    check_fits(content, splits, best)
    if content["data"]["sha256"] not in (splits.sha256, splits.earlier_sha256):
        raise ConfigError(f"data={config.data.name} is not what it was in the training of {run.name}.")
    parts = assemble(config, splits, machine)
    load_model(parts.measured, weights_to_use(content), best)
    test = parts.measure(eval_batches(config, parts.splits, parts.splits.test, machine))
    steps = [step_of(path) for path in steps_in(run.checkpoints)] or [content["progress"]["step"]]
    progress = Progress(step=steps[-1], best=(directory.read_result(run.outputs) or {"best": content["best"]})["best"])
    return Made(config, parts, progress, test)


def draw_all(run: Run, cache: str) -> None:
    """Draw all plots of a run that is done, which were left out because it is a job of a sweep.

    Args:
        run: the run.
        cache: paths.cache of this command.
    """
    made = measured_again(run, config_now(run, {"paths.cache": cache}))
    draw_run(made.config, made.parts, made.progress, run, made.test, SilentRecorder())
