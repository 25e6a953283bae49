"""How much each class counts in training."""

import torch
from torch import Tensor

from trainer.config.schema import Config
from trainer.data.splits import Splits
from trainer.run.machine import Machine
from trainer.utils.errors import ConfigError
from trainer.utils.text import number_of


def weights_of_classes(config: Config, splits: Splits, machine: Machine) -> Tensor | None:
    """The weight of each class in the training loss, (K,), on the device; None: all alike.

    `balanced` is N / (K n_k), as scikit-learn has it: every class weighs as much in all as if they were equally many.

    Raises:
        ConfigError: another number of weights than there are classes.
    """
    weights, labels, num_classes = config.loss.options.get("class_weights", "none"), splits.train.y, splits.num_outputs
    if weights == "none":
        return None
    if weights == "balanced":
        found = len(labels) / (num_classes * labels.bincount(minlength=num_classes).clamp(min=1)).double()
    elif len(weights) == num_classes:
        found = torch.tensor(weights, dtype=torch.float64)
    else:
        said = f"loss.class_weights has {number_of(len(weights), 'number')}"
        raise ConfigError(f"{said}. Allowed: one for each of {num_classes} classes.")
    return found.to(machine.device, machine.dtype)
