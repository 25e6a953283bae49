"""The layers: parameters, initial values and running statistics; the operations that they are given compute.

`layers(operations)` replaces torch.nn: its classes have the same names, arguments, state_dict keys, shapes and initial
values, as far as the models here need them. The operations are formulas.py, by_hand.py or with_numpy.py.
"""

import math
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Module, Parameter, Sequential


def drawn(shape: tuple[int, ...], fan_in: int) -> Parameter:
    """Draw a parameter from U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)) with the global generator, as torch.nn does."""
    bound = 1 / math.sqrt(fan_in)
    return Parameter(torch.empty(shape).uniform_(-bound, bound))


class Layer(Module):
    """A layer that computes with the `operations` of its library."""

    operations: ClassVar[Any]


class Linear(Layer):
    """y = x W^T + b: (N, in_features) -> (N, out_features)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = drawn((out_features, in_features), in_features)
        self.register_parameter("bias", drawn((out_features,), in_features) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_features) -> (N, out_features)."""
        return self.operations.linear(x, self.weight, self.bias)


class Conv2d(Layer):
    """Cross-correlation of (N, C, H, W) with `out_channels` filters."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        fan_in = in_channels * kernel_size**2
        self.weight = drawn((out_channels, in_channels, kernel_size, kernel_size), fan_in)
        self.register_parameter("bias", drawn((out_channels,), fan_in) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out_channels, (H + 2 padding - kernel_size) // stride + 1, ... W ...)."""
        return self.operations.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class _BatchNorm(Layer):
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = Parameter(torch.ones(num_features))
        self.bias = Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise by the batch's mean and variance in training, by the running ones in evaluation."""
        if not self.training:
            return self.operations.normalize(x, self.weight, self.bias, self.running_mean, self.running_var, self.eps)
        m = x.numel() // len(self.weight)
        if m == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
        y, mean, var = self.operations.batch_norm(x, self.weight, self.bias, self.eps)
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.detach(), self.momentum)
        self.running_var.lerp_(var.detach() * (m / (m - 1)), self.momentum)  # unbiased, as torch keeps it
        return y


class BatchNorm1d(_BatchNorm):
    """Normalise each of C features over the batch: (N, C)."""


class BatchNorm2d(_BatchNorm):
    """Normalise each of C channels over the batch and its pixels: (N, C, H, W)."""


class ReLU(Layer):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return self.operations.relu(x)


class Sigmoid(Layer):
    """1 / (1 + e^-x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return self.operations.sigmoid(x)


class Tanh(Layer):
    """(e^x - e^-x) / (e^x + e^-x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return self.operations.tanh(x)


class Dropout(Layer):
    """In training each number becomes 0 with probability p and is otherwise divided by 1 - p."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return self.operations.dropout(x, self.p) if self.training and self.p else x


class _Pool(Layer):
    def __init__(self, kernel_size: int, stride: int | None = None, padding: int = 0) -> None:
        super().__init__()
        self.window = kernel_size, stride or kernel_size, padding


class MaxPool2d(_Pool):
    """The largest number of each window."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, I, J)."""
        return self.operations.max_pool2d(x, *self.window)


class AvgPool2d(_Pool):
    """The mean of each window."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, I, J)."""
        return self.operations.avg_pool2d(x, *self.window)


class AdaptiveAvgPool2d(Layer):
    """The mean of each channel; the only output size is 1."""

    def __init__(self, output_size: int) -> None:
        super().__init__()
        assert output_size == 1, "only global average pooling is written here"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, 1, 1)."""
        return self.operations.global_avg_pool2d(x)


class Flatten(Module):
    """The numbers of each example in a row. The backward is the reverse reshape, so no operation is needed."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> (N, D)."""
        return x.flatten(1)


class Identity(Module):
    """Returns its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x


COMPUTING: tuple[type[Layer], ...] = (Linear, Conv2d, BatchNorm1d, BatchNorm2d, ReLU, Sigmoid, Tanh, Dropout)
COMPUTING += (MaxPool2d, AvgPool2d, AdaptiveAvgPool2d)


def layers(operations: ModuleType) -> SimpleNamespace:
    """Return the layers under the names of torch.nn, as new classes that compute with these operations."""
    computing = {layer.__name__: type(layer.__name__, (layer,), {"operations": operations}) for layer in COMPUTING}
    return SimpleNamespace(**computing, Flatten=Flatten, Identity=Identity, Sequential=Sequential)
