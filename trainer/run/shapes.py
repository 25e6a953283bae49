"""What a model or a loss will refuse, found before the first step."""

import torch

from trainer import build
from trainer.config.fit import shape_of
from trainer.config.schema import Config
from trainer.data.splits import Splits
from trainer.run.checkpoint import WithoutDraws
from trainer.run.parts import Parts
from trainer.utils.errors import ConfigError


def check_images(config: Config) -> None:
    """Refuse a model that cannot take images of this shape, before they are downloaded, decoded and scaled.

    Raises:
        ConfigError: as the model raises it.
    """
    if (shape := shape_of(config.data)) is not None:
        with torch.device("meta"), WithoutDraws():
            build.build_model(config.model, config.impl, shape, 2)


def smallest_part(parts: Parts) -> tuple[int, int]:
    """The fewest examples that go through the model at once in an epoch, and how many its batch has on this rank."""
    ranks, found = parts.ranks, []
    for size in set(parts.train.sizes()):
        own = len(range(ranks.rank, size, ranks.world))  # as tensor_split: the first ranks have one more
        if own:
            part = -(-own // parts.num_parts)  # as chunk: all of this size, and one with the rest
            found.append((own % part or part, own))
    return min(found, default=(0, 0))


def check_smallest_part(config: Config, parts: Parts) -> None:
    """Refuse a lone example that batch normalisation cannot scale: its step may be the last one of an epoch.

    Raises:
        ConfigError: names the setting that leaves it, and what to type instead.
    """
    examples, of_batch = smallest_part(parts)
    if examples != 1 or config.finetune.is_frozen:  # whose statistics stay
        return
    try:
        with torch.device("meta"), WithoutDraws(), torch.no_grad():
            model = build.build_model(config.model, config.impl, parts.splits.in_shape, parts.splits.num_outputs)
            model.train()(torch.empty(1, *parts.splits.in_shape))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        n, batch_size = len(parts.splits.train), config.batch_size
        what = "of one example, which batch normalisation cannot scale in training"
        if of_batch > 1:
            left = f"accumulate_steps={config.accumulate_steps} computes a part {what}"
            advice = "another accumulate_steps or batch_size"
        elif batch_size == 1 or parts.ranks.world > 1:
            left, advice = f"batch_size={batch_size} leaves a batch {what}", "a larger batch_size"
        else:
            left = f"batch_size={batch_size} leaves a last batch {what}: there are {n:,} training examples"
            advice = "data.drop_last=true, or another batch_size or data.limit"
        raise ConfigError(f"{left}. Try {advice}.") from None


def check_targets(config: Config, splits: Splits, advice: str = "Allowed here: loss=mse, l1, huber.") -> None:
    """Refuse targets that no sigmoid reaches; `advice` says what to type instead."""
    y = splits.train.y
    if build.has_sigmoids(config.loss) and y.is_floating_point() and (y.min() < 0 or y.max() > 1):
        raise ConfigError(
            f"loss={config.loss.name} is for targets in [0, 1], but they go from {y.min():.3g} to {y.max():.3g}. "
            f"{advice}"
        )
