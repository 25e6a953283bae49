"""Names and options become objects, through tables: what is not in a table cannot be built, whoever asks for it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trainer.config.schema import Choice
from trainer.config.tasks import IMPLS_OF
from trainer.engine import LossFn
from trainer.models import MODELS
from trainer.schedules import SCHEDULES
from trainer.scratch import by_hand, formulas, optim, with_numpy
from trainer.scratch.nn import layers
from trainer.utils.unwrapped import without_wrappers


def mse(y_hat: Tensor, y: Tensor, *, form: str) -> Tensor:
    """Squared error of (N, M) predictions: mean, half the mean (d/dy_hat = (y_hat - y) / N as in the books), or sum."""
    loss = F.mse_loss(y_hat, y, reduction="sum" if form == "sum" else "mean")
    return loss / 2 if form == "half" else loss


def l1(y_hat: Tensor, y: Tensor) -> Tensor:
    """Mean absolute error of (N, M) predictions."""
    return F.l1_loss(y_hat, y)


def huber(y_hat: Tensor, y: Tensor, *, delta: float) -> Tensor:
    """Mean Huber loss of (N, M) predictions: e^2 / 2 for |e| <= delta, else delta * (|e| - delta / 2)."""
    return F.huber_loss(y_hat, y, delta=delta)


def cross_entropy(
    logits: Tensor, labels: Tensor, *, label_smoothing: float, class_weights: Tensor | None = None
) -> Tensor:
    """Mean softmax cross-entropy in nats of (N, K) logits and (N,) int64 labels, each times its class's weight (K,).

    Labels may also be shares of the classes (N, K). The mean is over the examples, not over the weights as torch has
    it, so that the parts of a batch add up.
    """
    if class_weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    each = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
    return (each * (labels @ class_weights if labels.is_floating_point() else class_weights[labels])).mean()


def sigmoid_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of K sigmoids, summed over K, mean over N (Nielsen, eq. 63): (N, K) logits, y as for quadratic."""
    y = formulas.one_hot(labels, logits)
    return F.binary_cross_entropy_with_logits(logits, y, reduction="sum") / len(logits)


def quadratic(logits: Tensor, labels: Tensor) -> Tensor:
    """||a - y||^2 / 2 with a = sigmoid(logits) (N, K), mean over N (Nielsen, eq. 6).

    y is the one-hot vector of (N,) int64 labels, or (N, K) targets in [0, 1].
    """
    y = formulas.one_hot(labels, logits)
    return F.mse_loss(logits.sigmoid(), y, reduction="sum") / (2 * len(logits))


def by_target(losses: Mapping[str, Callable[..., Tensor]]) -> dict[str, Callable[..., Tensor]]:
    """The losses with `auto`: of (N,) class numbers the cross-entropy, of (N, M) targets half the squared error."""

    def auto(y_hat: Tensor, y: Tensor) -> Tensor:
        if y.dtype == torch.int64:
            return losses["cross_entropy"](y_hat, y, label_smoothing=0.0)
        return losses["mse"](y_hat, y, form="half")

    return {**losses, "auto": auto}


LOSSES: dict[str, Callable[..., Tensor]] = by_target(
    {
        "mse": mse,
        "l1": l1,
        "huber": huber,
        "cross_entropy": cross_entropy,
        "sigmoid_cross_entropy": sigmoid_cross_entropy,
        "quadratic": quadratic,
    }
)
OPTIMIZERS: dict[str, Callable[..., Any]] = {  # fused: one kernel for all tensors, never slower
    "sgd": partial(without_wrappers(torch.optim.SGD), fused=True),
    "adam": partial(without_wrappers(torch.optim.Adam), fused=True),
    "adamw": partial(without_wrappers(torch.optim.AdamW), fused=True),
    "rmsprop": without_wrappers(torch.optim.RMSprop),  # has no fused kernel
    "muon": optim.Muon,  # torch's takes matrices alone, and rounds them to bfloat16
}
BY_HAND = {"sgd": optim.SGD, "adam": optim.Adam, "adamw": optim.AdamW, "muon": optim.Muon}


@dataclass(frozen=True)
class Library:
    """What `impl=` chooses: the layers (names as in torch.nn), losses and optimizers that everything is built from."""

    layers: Any
    losses: Mapping[str, Callable[..., Tensor]]
    optimizers: Mapping[str, Callable[..., Any]]


def by_name(impl: str, operations: Any) -> dict[str, Callable[..., Tensor]]:
    """The losses that a library has, by tasks.IMPLS_OF, from its operations."""
    own = {name for name, impls in IMPLS_OF["loss"].items() if impl in impls} - {"auto"}
    return by_target({name: getattr(operations, name) for name in own})


LIBRARIES = {
    "concise": Library(nn, LOSSES, OPTIMIZERS),
    "autograd": Library(layers(formulas), by_name("autograd", formulas), BY_HAND),
    "scratch": Library(layers(by_hand), by_name("scratch", by_hand), BY_HAND),
    "numpy": Library(layers(with_numpy), by_name("numpy", with_numpy), {"sgd": with_numpy.SGD}),
}


def build_model(choice: Choice, impl: str, in_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """The model of a choice, on the CPU in float32, with initial weights from torch's global generator.

    Args:
        choice: the model and its options.
        impl: the library, unless the choice names one of its own.
        in_shape: of one example: (C, H, W) or (D,).
        num_outputs: classes, or targets of a regression.
    Raises:
        ConfigError: the model cannot take examples of this shape.
    """
    nn = LIBRARIES[choice.impl or impl].layers
    options = {key: value for key, value in choice.options.items() if key != "weights"}  # which are put in later
    return MODELS[choice.name](nn, in_shape, num_outputs, **options)


def build_loss(choice: Choice, impl: str, class_weights: Tensor | None = None) -> LossFn:
    """loss_fn(y_hat, y) -> 0-d tensor: the mean over the batch, or its sum where the loss says so (see is_sum)."""
    options = {key: value for key, value in choice.options.items() if key != "class_weights"}
    if class_weights is not None:
        options["class_weights"] = class_weights
    return partial(LIBRARIES[choice.impl or impl].losses[choice.name], **options)


def probabilities(choice: Choice, outputs: Tensor) -> Tensor:
    """What a classifier trained with this loss says of each class: (N, K) outputs -> (N, K), float64."""
    # float64, so that probabilities near 1 still differ
    return outputs.double().sigmoid() if has_sigmoids(choice) else outputs.double().softmax(1)


def has_sigmoids(choice: Choice) -> bool:
    """Whether this loss takes a sigmoid for each class, instead of a softmax over all of them."""
    return choice.name in ("sigmoid_cross_entropy", "quadratic")


def is_sum(choice: Choice) -> bool:
    """Whether this loss adds over the batch instead of averaging."""
    return choice.options.get("form") == "sum"


def build_optimizer(
    choice: Choice, impl: str, model: nn.Module, slow: Sequence[nn.Parameter] = (), factor: float = 1.0
) -> torch.optim.Optimizer:
    """The optimizer of all parameters of the model, which is already on its device.

    Vectors (biases, scales and shifts of normalisation layers) have the learning rate times vector_lr, and with
    decay_all=false no weight decay. The `slow` parameters have the learning rate times `factor`.
    """
    options, others = dict(choice.options), set(slow)
    parts = [({}, [p for p in model.parameters() if p not in others]), ({"lr_factor": factor}, list(slow))]
    groups: list[dict[str, Any]] = [{"params": params} | of_part for of_part, params in parts if params]
    decay_all, vector_lr = options.pop("decay_all", True), options.pop("vector_lr", 1.0)
    if not decay_all or vector_lr != 1:
        # He et al. 2019 (arXiv 1812.01187), section 3.1: "no bias decay"
        decay = {} if decay_all else {"weight_decay": 0.0}
        groups = [
            group | {"params": [p for p in group["params"] if (p.ndim < 2) == vectors]} | changes
            for group in groups
            for vectors, changes in ((False, {}), (True, decay | {"lr_factor": vector_lr * group.get("lr_factor", 1)}))
        ]
    optimizer: torch.optim.Optimizer = LIBRARIES[choice.impl or impl].optimizers[choice.name](groups, **options)
    return optimizer


def build_schedule(choice: Choice, lr: float, steps_per_epoch: int, total_steps: int) -> Callable[[int], float]:
    """lr_at(step) for steps counted from 0 over the whole run."""
    # planned, not done: the curve must not depend on where a run was interrupted
    total = {"steps_per_epoch": steps_per_epoch, "total_steps": total_steps}
    factor: Callable[..., float] = partial(SCHEDULES[choice.name], **total, **choice.options)
    return lambda step: lr * factor(step)


def running_mean(model: nn.Module, decay: float) -> AveragedModel:
    """The running mean of the weights and buffers, with decay min(decay, (1 + t) / (10 + t)) after t updates.

    With 0.999 from the start, a mean of the first thousand steps would be mostly initial weights.
    """

    def average(means: Any, now: Any, num_updates: Any) -> None:
        t = int(num_updates)
        get_ema_multi_avg_fn(min(decay, (1 + t) / (10 + t)))(means, now, num_updates)

    # with buffers: mean weights need the mean of the statistics that they were normalised by
    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


def parameter_count(model: nn.Module) -> int:
    """Numbers that training changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
