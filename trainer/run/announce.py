"""What a run says before its first epoch."""

from torch import Tensor

from trainer import build
from trainer.config.schema import Config
from trainer.run.machine import Machine
from trainer.run.parts import Parts
from trainer.run.progress import Progress
from trainer.utils.screen import Screen


def announce(config: Config, machine: Machine, screen: Screen) -> None:
    """Say what was chosen, before anything is read."""
    choices = " ".join(f"{group}={name}" for group, name in config.to_dict()["choices"].items() if group != "device")
    screen.say(f"{choices} device={machine.device} seed={config.seed}{library(config)}")
    how = {key: str(config.device[key]).lower() for key in ("precision", "channels_last")} | {"matmul": machine.matmul}
    auto = f" (auto: {', '.join(machine.chosen)})" if machine.chosen else ""
    screen.say(f"device: {' '.join(f'{key}={value}' for key, value in how.items())}{auto}")
    if config.recipes:
        screen.say(f"recipe: {', '.join(config.recipes)} (what you type wins; recipe=none leaves them out)")


def library(config: Config) -> str:
    """Where model, loss and optimizer come from, where that is not torch."""
    parts = [f" {part}.impl={impl}" for part, impl in config.impls().items()]
    if len(set(config.impls().values())) == 1:
        parts = [f" impl={config.impls()['model']}"]
    return "" if parts == [" impl=concise"] else "".join(parts)


def describe_parts(config: Config, parts: Parts, progress: Progress, screen: Screen, path: str) -> None:
    """Say what is about to be trained on what, and from which checkpoint it continues."""
    void = dict.fromkeys(parts.splits.ignores, "the set brings its own parts")
    void |= {"normalize": "it is for images, and these are rows"} if "normalize" in void else {}
    if isinstance(parts.splits.train.x, Tensor):
        void["workers"] = "the images are in memory"
    void |= {"cache_gb": "the files are on disk"} if "cache_gb" in void else {}
    for option, why in void.items():
        if f"data.{option}" in config.typed:
            screen.say(f"warning: data.{option} has no effect: {why}")
    if (n := len(parts.splits.train)) < config.batch_size and not config.overfit_batches:
        every = f"all {n:,} training examples" if n > 1 else "the only training example"
        screen.say(f"each step takes {every}: batch_size={config.batch_size} is more than there are")
    for gap in parts.splits.gaps:
        screen.say(f"warning: {gap}")
    splits = (("train", parts.splits.train), ("val", parts.splits.val), ("test", parts.splits.test))
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in splits)
    x = parts.train.x
    where = f"in memory, {x.nbytes / 1e6:.1f} MB" if isinstance(x, Tensor) else "streamed from disk"
    trained, total = build.parameter_count(parts.model), sum(p.numel() for p in parts.model.parameters())
    parameters = f"{total:,} parameters" if trained == total else f"{trained:,} of {total:,} parameters are trained"
    screen.say(f"{parameters}; examples: {sizes}; train {where}")
    end = len(parts.train) * config.epochs
    first_sizes = list(parts.train.augmentation.sizes)
    full = parts.splits.in_shape[-1]
    all_smaller = len(first_sizes) * len(parts.train) >= min(end, config.max_steps or end) and full not in first_sizes
    if first_sizes and all_smaller:
        screen.say(f"warning: data.first_sizes={first_sizes}: no epoch is left for images of {full} pixels")
    if config.max_steps is not None and config.max_steps > end:
        screen.say(f"warning: max_steps={config.max_steps} has no effect: epochs={config.epochs} end with step {end:,}")
    elif config.max_steps is not None and config.max_steps < end:
        screen.say(f"training ends with step {config.max_steps:,}: {config.max_steps / len(parts.train):.2f} epochs")
        warmup = config.schedule.options.get("warmup_epochs", 0)
        if warmup * len(parts.train) >= config.max_steps:
            screen.say(f"warning: schedule.warmup_epochs={warmup:g} is all of it: the learning rate only rises")
    if parts.ranks.world > 1:
        screen.say(f"{parts.ranks.world} processes, each of which takes its part of every batch")
    if path:
        screen.say(f"continuing from {path}: epoch {progress.epoch}, {progress.samples:,} examples of it done")
        last = progress.step + (config.epochs - progress.epoch + 1) * len(parts.train)
        if not progress.samples and last < min(end, config.max_steps or end):
            said = (
                f"warning: max_steps had ended an epoch early, whose rest is left out: training ends with step {last:,}"
            )
            is_laid_out = config.schedule.name != "constant"
            screen.say(f"{said}, and schedule={config.schedule.name} is laid out for {end:,}" if is_laid_out else said)
