"""Training the last layer on what a frozen backbone gives it, computed once."""

from contextlib import closing
from dataclasses import replace

import torch
from torch import Tensor, nn

from trainer.config.options import origin_of
from trainer.config.schema import Config
from trainer.data.augment import UNCHANGED, augment_of
from trainer.data.batches import Batches
from trainer.data.splits import Split
from trainer.run.backbone import last_layer
from trainer.run.parts import Parts, eval_batches, placement, training_order
from trainer.utils.bar import Bar
from trainer.utils.screen import Screen

MAX_FEATURES = 4 * 2**30  # bytes of features


def on_features(config: Config, parts: Parts, screen: Screen) -> Parts:
    """The parts with what the frozen backbone makes of each image, computed once; the last layer trains on that.

    As they are where the backbone is not frozen for good, or the images of each epoch are others, or one process of
    several has a part of them only, or the network is a user's own, which may compute on after its last layer.
    """
    others = augment_of(config.data.options, 0) != UNCHANGED and not config.overfit_batches
    others |= origin_of("model", config.model.name) != ""
    if not config.finetune.is_frozen or others or config.ema_decay or parts.ranks.world > 1:
        return parts
    head, splits = last_layer(parts.model, parts.splits.num_outputs)[1], parts.splits
    assert isinstance(head.weight, Tensor), "last_layer finds layers with weights"
    n, width = len(splits.train) + len(splits.val), head.weight.shape[-1]
    # a limit that is the same everywhere: a run that continues elsewhere has to go the same way
    if head.weight.ndim > 2 or splits.of_epoch is not None or n * width * 4 > MAX_FEATURES:
        return parts
    with Bar("computing features", n, "images") as bar:
        train, val = (
            replace(split, x=features(config, parts, split, bar)) if len(split) else None
            for split in (splits.train, splits.val)
        )
    assert train is not None, "a run has training examples"
    rows = replace(splits, in_shape=(width,))
    where = placement(parts.machine)
    screen.say(
        f"the frozen backbone's {width:,} numbers for each of {n:,} images are computed once: "
        "an epoch trains the last layer on them"
    )
    return replace(
        parts,
        last=head,
        train=Batches(rows, train, where, **training_order(config)),
        val=Batches(rows, val, where) if val is not None else None,
    )


@torch.no_grad()
def features(config: Config, parts: Parts, split: Split, bar: Bar) -> Tensor:
    """What reaches the last layer for each example of a split: (N, D), on the CPU."""
    name, head = last_layer(parts.model, parts.splits.num_outputs)
    parent, _, leaf = name.rpartition(".")
    holder = parts.model.get_submodule(parent)
    parts.model.eval()
    setattr(holder, leaf, nn.Identity())
    try:
        with closing(eval_batches(config, parts.splits, split, parts.machine).epoch(0)) as batches:
            found = []
            for x, _ in bar.over(batches):
                with parts.machine.autocast():
                    found.append(parts.model(x).to(parts.machine.dtype).cpu())
    finally:
        setattr(holder, leaf, head)
    return torch.cat(found)
