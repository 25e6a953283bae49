"""Which runs of a sweep are trained together as one stacked model, and why the others are not.

Runs are stacked where they differ in nothing but figures that a step can hold one of for each run: then they share
their batches, and one product takes the place of many small ones.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.config.options import flatten, origin_of
from trainer.config.roles import OF_THE_RUN
from trainer.config.schema import Config
from trainer.run.machine import find_device
from trainer.utils import ranks
from trainer.utils.errors import listed

# what may differ from run to run; with data.order_seed the seed too, which then decides on the initial weights alone
OWN = ("optimizer.lr", "optimizer.weight_decay", "optimizer.momentum", "model.init_std", "model.bias_std")
STACKABLE_MODELS = ("linreg", "softmax", "mlp")
STACKABLE_OPTIMIZERS = ("sgd", "adam", "adamw")
INPUTS = {"mnist": (784, 10), "fashion_mnist": (784, 10), "cifar10": (3072, 10)}  # numbers of an example, classes
MAX_RUNS = 64  # in a stack
# A step of a lone run is mostly overhead up to about here, counted in examples of the batch times weights: 784-16-10 in
# batches of 256 is below. Larger ones gain less and less (benchmarks/README.md); it was measured on CPUs only.
PAYS_UP_TO = 256 * 784 * 20


@dataclass(frozen=True)
class Grouping:
    """Which runs are trained together, by their positions."""

    stacks: Sequence[Sequence[int]]  # two or more runs each
    reasons: Mapping[int, str]  # why each other run is trained alone


def group_runs(configs: Sequence[Config]) -> Grouping:
    """Which of the runs of a sweep are trained together.

    It depends on the settings and the machine alone, not on what is done already: an interrupted stack
    has to be resumed as the same stack, or it would round differently.
    """
    reasons = {i: reason for i, config in enumerate(configs) if (reason := obstacle(config))}
    together: dict[str, list[int]] = {}
    for i, config in enumerate(configs):
        if i not in reasons:
            together.setdefault(repr(sorted(shared(config).items())), []).append(i)
    single = [members[0] for members in together.values() if len(members) == 1]
    reasons |= {i: without_partner(configs, i, [j for j in range(len(configs)) if j not in reasons]) for i in single}
    full = [list(part) for members in together.values() for part in parts_of(members)]
    return Grouping([members for members in full if len(members) > 1], dict(sorted(reasons.items())))


def parts_of(members: Sequence[int]) -> list[Sequence[int]]:
    """Members in parts of MAX_RUNS or less, as even as possible: their outputs are in memory together."""
    num_parts = -(-len(members) // MAX_RUNS)
    size = -(-len(members) // num_parts)
    return [members[start : start + size] for start in range(0, len(members), size)]


def shared(config: Config) -> dict[str, Any]:
    """The settings that have to be the same in all runs of a stack, by dotted name."""
    own = OWN if config.data.options.get("order_seed") is None else (*OWN, "seed")
    return {key: value for key, value in flatten(config.to_dict()).items() if key not in (*own, *OF_THE_RUN)}


def obstacle(config: Config) -> str:
    """Why this run is trained alone whatever the others are; "" if nothing is in the way."""
    model, options = config.model, config.model.options
    off = {
        "torchrun's processes train one run after the other": ranks.of_environment().world > 1,
        "sweep.stack=false": config.sweep.stack is False,
        f"model={model.name}: only {listed(STACKABLE_MODELS)} can be stacked": model.name not in STACKABLE_MODELS,
        "a loss of plugins=": bool(origin_of("loss", config.loss.name)),
        f"optimizer={config.optimizer.name}: only {listed(STACKABLE_OPTIMIZERS)} can be stacked": config.optimizer.name
        not in STACKABLE_OPTIMIZERS,
        "only impl=concise can be stacked": set(config.impls().values()) != {"concise"},
        "dropout: each run would draw its own": bool(options.get("dropout")),
        "batch normalisation keeps statistics of each run": bool(options.get("batch_norm")),
        "ema_decay": bool(config.ema_decay),
        "accumulate_steps": config.accumulate_steps > 1,
        "clip_norm: each run has its own norm": bool(config.clip_norm),
        "overfit_batches": bool(config.overfit_batches),
        "fast_dev_run": config.fast_dev_run,
        "max_steps": config.max_steps is not None,
        "budget": config.budget is not None,
        "monitor": config.monitor != "auto",
        "data.mixup": config.data.options.get("mixup", 0) > 0,
        "data.cutmix": config.data.options.get("cutmix", 0) > 0,
        "loss.class_weights": config.loss.options.get("class_weights", "none") != "none",
        "optimizer.vector_lr": config.optimizer.options.get("vector_lr", 1) != 1,
        "init_from": config.init_from is not None,
        "finetune.backbone_lr": config.finetune.backbone_lr != 1,
        f"device.precision={config.device['precision']}": config.device["precision"] in ("bf16", "fp16"),
        "device.compile": config.device["compile"],
    }
    reason = next((text for text, holds in off.items() if holds), "")
    return reason or (does_not_pay(config) if config.sweep.stack == "auto" else "")


def does_not_pay(config: Config) -> str:
    """Why runs like this one are not faster together; "" where they are. A rule, not a trial, so that it repeats."""
    device = find_device(config.device.name, config.device.options.get("index", 0)).type
    if device != "cpu":
        return f"sweep.stack=auto stacks on the CPU, where it was measured, not on {device}; sweep.stack=true does"
    weights = weights_of(config)
    if not weights:
        return f"sweep.stack=auto does not know the shape of data={config.data.name} beforehand; sweep.stack=true does"
    if config.batch_size * weights > PAYS_UP_TO:
        what = f"{weights:,} weights in batches of {config.batch_size}"
        return f"{what} gain little or nothing together (docs/speed.md); sweep.stack=true stacks all the same"
    return ""


def weights_of(config: Config) -> int:
    """The weights of the model without its biases; 0 where the shape of the data is not in the settings."""
    data = config.data.options
    shapes = INPUTS | {
        "synthetic": (len(data.get("w", ())), 1),
        "random": (data.get("num_inputs", 0), data.get("num_targets", 0)),
    }
    num_inputs, num_outputs = shapes.get(config.data.name, (0, 0))
    widths = [num_inputs, *config.model.options.get("num_hiddens", ()), num_outputs]
    return sum(math.prod(pair) for pair in itertools.pairwise(widths)) if num_inputs else 0


def without_partner(configs: Sequence[Config], i: int, others: Sequence[int]) -> str:
    """In what a run that could be stacked differs from the one that is most like it."""
    mine = shared(configs[i])
    differing: list[list[str]] = []
    for j in others:
        if j != i:
            theirs = shared(configs[j])
            keys = [key for key in mine | theirs if mine.get(key) != theirs.get(key)]
            differing.append([key.removeprefix("choices.") for key in keys])
    if not differing:
        return "there is no other run to stack it with"
    least = min(differing, key=len)
    hint = "; data.order_seed gives runs of different seeds the same batches" if least == ["seed"] else ""
    return f"no other run has the same {listed(least[:3])}{hint}"
