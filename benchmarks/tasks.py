"""What is timed: data, model and sizes, the same for every variant. Torch-free, since run.py has to be."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Task:
    """A training that is the same in every variant.

    Attributes:
        num_train: number of images that an epoch trains on.
        num_eval: number of images that it evaluates.
        options: options of the model.
        slow_epochs: epochs of books and Lightning; the first is not counted.
        fast_epochs: epochs of loader and bare; the first is not counted.
        product_epochs: epochs of the two runs of main.py whose difference is timed.
        goals: least ratio of the seconds of a variant to those of main.py.
    """

    title: str
    data: str
    model: str
    batch_size: int
    num_train: int = 50_000
    num_eval: int = 10_000
    options: Mapping[str, Any] = field(default_factory=dict)
    optimizer: str = "sgd"
    lr: float = 0.1
    augment: str = "none"
    slow_epochs: int = 2
    fast_epochs: int = 3
    product_epochs: tuple[int, int] = (1, 3)
    rounds: int = 2
    goals: Mapping[str, float] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Number of parameter updates in an epoch."""
        return -(-self.num_train // self.batch_size)

    def words(self) -> list[str]:
        """Return the command line of main.py that trains the same."""
        options = [f"model.{key}={value}".replace(" ", "") for key, value in self.options.items()]
        return [
            *(f"data={self.data}", "recipe=none", f"model={self.model}", *options, "loss=cross_entropy"),
            *(f"optimizer={self.optimizer}", f"optimizer.lr={self.lr}", "schedule=constant"),
            *(f"batch_size={self.batch_size}", f"data.val_fraction={self.num_eval}"),
            *("data.normalize=own", f"data.augment={self.augment}"),
        ]


TASKS = {
    "softmax": Task(
        "softmax regression, Fashion-MNIST, batches of 256",
        "fashion_mnist",
        "softmax",
        256,
        fast_epochs=31,
        product_epochs=(2, 62),
        rounds=3,
        goals={"books w0": 33, "Lightning w0": 40},
    ),
    "mlp": Task(
        "MLP 784-256-10, Fashion-MNIST, batches of 256",
        "fashion_mnist",
        "mlp",
        256,
        fast_epochs=11,
        product_epochs=(2, 22),
        rounds=3,
        goals={"books w0": 11, "Lightning w0": 15, "bare": 1 / 0.70},
    ),
    "lenet": Task(
        "LeNet (ReLU, max pooling), Fashion-MNIST, batches of 128",
        "fashion_mnist",
        "lenet",
        128,
        goals={"books w0": 2.2, "Lightning w0": 2.9},
    ),
    "lenet_cifar": Task(
        "LeNet, CIFAR-10 with crop and flip, batches of 128",
        "cifar10",
        "lenet",
        128,
        num_train=40_000,  # the training part has 50,000, and main.py holds out 10,000 of them
        augment="crop_flip",
        goals={"books w0": 2.2, "Lightning w0": 2.8},
    ),
    "template": Task(
        "MLP 784-64-128-64-10 with batch normalization, MNIST, Adam, batches of 128",
        "mnist",
        "mlp",
        128,
        num_train=55_000,
        num_eval=5_000,
        options={"num_hiddens": [64, 128, 64], "batch_norm": True},
        optimizer="adam",
        lr=0.001,
        product_epochs=(2, 10),
        goals={"per epoch": 12, "whole command": 6},
    ),
    "resnet34": Task(
        "ResNet-34 with the CIFAR stem, CIFAR-10 with crop and flip, batches of 128, training only",
        "cifar10",
        "resnet34",
        128,
        num_train=512,
        num_eval=0,
        augment="crop_flip",
        product_epochs=(1, 2),
        rounds=1,
        goals={"books w0": 2.2},
    ),
}
