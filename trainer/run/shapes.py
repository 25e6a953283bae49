"""What a model or a loss will refuse, found before the first step."""

from contextlib import closing

import torch
from torch import Tensor, nn

from trainer import build
from trainer.config.fit import shape_of
from trainer.config.options import origin_of
from trainer.config.plugins import blamed
from trainer.config.schema import Config
from trainer.data.splits import Splits
from trainer.run.checkpoint import WithoutDraws
from trainer.run.parts import Parts, eval_batches
from trainer.run.plugged import kind_of
from trainer.run.seeds import generators_kept
from trainer.utils.errors import ConfigError, PluginError


def check_images(config: Config) -> None:
    """Refuse a model that cannot take images of this shape, before they are downloaded, decoded and scaled.

    Raises:
        ConfigError: as the model raises it.
    """
    if (shape := shape_of(config.data)) is not None and not origin_of("model", config.model.name):
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
        # the user's own code may read numbers, which tensors without memory do not have
        place = "cpu" if origin_of("model", config.model.name) else "meta"
        with generators_kept(), torch.device(place), WithoutDraws(), torch.no_grad():
            model = build.build_model(config.model, config.impl, parts.splits.in_shape, parts.splits.num_outputs)
            channels, *sides = parts.splits.in_shape
            for shape in {tuple(sides), *((size, size) for size in parts.train.augmentation.sizes)}:
                model.train()(torch.zeros(1, channels, *shape))
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


def check_sizes(config: Config, parts: Parts) -> None:
    """Refuse smaller images for the first epochs that are not smaller, or that the model cannot take.

    Raises:
        ConfigError: names the size.
    """
    channels, full = parts.splits.in_shape[0], parts.splits.in_shape[-1]
    for size in dict.fromkeys(parts.train.augmentation.sizes):
        if len(parts.splits.in_shape) != 3 or size > full:
            what = "these are rows" if len(parts.splits.in_shape) != 3 else f"the images have {full} pixels"
            raise ConfigError(
                f"data.first_sizes: {size} is for larger images than these: {what}. Allowed: smaller sizes."
            )
        try:
            evaluated = parts.model.eval()
            with torch.inference_mode():
                evaluated(torch.zeros(1, channels, size, size, device=parts.machine.device, dtype=parts.machine.dtype))
        except (ConfigError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"data.first_sizes: model={config.model.name} takes {full} pixels, and not {size} ({reason}). "
                "Networks that end with a mean over all places take any: resnet18, resnet34, most of torchvision, timm."
            ) from None


def check_targets(config: Config, splits: Splits, advice: str = "Allowed here: loss=mse, l1, huber.") -> None:
    """Refuse targets that no sigmoid reaches; `advice` says what to type instead."""
    y = splits.train.y
    if build.has_sigmoids(config.loss) and y.is_floating_point() and (y.min() < 0 or y.max() > 1):
        raise ConfigError(
            f"loss={config.loss.name} is for targets in [0, 1], but they go from {y.min():.3g} to {y.max():.3g}. "
            f"{advice}"
        )


def check_outputs(config: Config, model: nn.Module, x: Tensor, num_outputs: int) -> Tensor:
    """The outputs for x of a model that plugins= brought.

    Raises:
        PluginError: they are no numbers of shape (examples, num_outputs).
    """
    y_hat, wanted = model(x), (len(x), num_outputs)
    if not isinstance(y_hat, Tensor) or tuple(y_hat.shape) != wanted or not y_hat.is_floating_point():
        found = f"{origin_of('model', config.model.name)}: inputs of shape {tuple(x.shape)} give {kind_of(y_hat)}"
        raise PluginError(f"{found}. Allowed: numbers of shape {wanted}, which is (examples, num_outputs).")
    return y_hat


def check_plugged_parts(config: Config, parts: Parts) -> None:
    """Try what plugins= brought on a few examples, so that a mistake in it is found before the first step.

    Raises:
        PluginError: the outputs have a wrong shape, there are no gradients, or the loss is a sum over the examples.
    """
    origins = {group: where for group in ("model", "loss") if (where := origin_of(group, getattr(config, group).name))}
    if not origins:
        return
    model, few = parts.model, parts.splits.train.take(torch.arange(min(4, len(parts.splits.train))))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with generators_kept(), closing(eval_batches(config, parts.splits, few, parts.machine).epoch(0)) as batches:
        x, y = next(batches)
        for training in (False, True):
            with parts.machine.autocast():
                y_hat = check_outputs(config, model.train(training), x, parts.splits.num_outputs)
                loss = parts.loss_fn(y_hat, y)
                twice = parts.loss_fn(y_hat.repeat(2, 1), torch.cat([y, y]))
    try:
        torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    except RuntimeError as error:
        if blamed(error):
            raise
        culprit = "model" if not y_hat.requires_grad else "loss" if not loss.requires_grad else ""
        where = origins.get(culprit) or " and ".join(origins.values())
        why = str(error).split(". ")[0]
        raise PluginError(f"{where}: the gradient of the loss cannot be computed: {why}.") from error
    for name, buffer in model.named_buffers():
        if name in before:  # last: a gradient may depend on it
            buffer.copy_(before[name])
    if "loss" in origins and loss and abs(float(twice.detach() / loss.detach()) - 2) < 1e-3:
        raise PluginError(
            f"{origins['loss']}: the loss of twice the examples is twice as large. Allowed: the mean over them."
        )
