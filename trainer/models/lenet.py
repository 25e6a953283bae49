"""LeNet-5 in its modern form."""

import math
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Module

from trainer.models.checks import activation_layer, image_shape, pick
from trainer.utils.errors import ConfigError


class LeNet(Module):
    """Two 5x5 convolutions of 6 and 16 channels, each with 2x2 pooling, then fully connected 120, 84 and K.

    Images with a side below 32 are padded by 2, so that 28x28 gives the same 5x5 maps as 32x32. The layers keep the
    initial values that they drew themselves; with sigmoids the weights are Xavier uniform instead, as in d2l.

    Args:
        nn: the layer library.
        in_shape: (C, H, W) with sides of 12 or more.
        num_outputs: number of classes K.
        activation: relu, sigmoid or tanh.
        pooling: max or avg.
    Raises:
        ConfigError: the examples are not images or are too small, or the activation or pooling is unknown.
    Source: LeCun et al. 1998, fig. 2; d2l, section 7.6 (sigmoid, avg). Deviations from 1998: the second convolution
        sees all 6 maps, pooling has no weights, and the output is linear.
    """

    def __init__(
        self,
        nn: ModuleType,
        in_shape: tuple[int, ...],
        num_outputs: int,
        *,
        activation: str = "relu",
        pooling: str = "max",
    ) -> None:
        super().__init__()
        channels, height, width = image_shape("lenet", in_shape)
        padding = 2 if min(height, width) < 32 else 0
        # A 5x5 convolution takes 4 pixels off a side, pooling halves it: the maps that reach fc1.
        rows, columns = (((side + 2 * padding - 4) // 2 - 4) // 2 for side in (height, width))
        if min(rows, columns) < 1:
            raise ConfigError(f"model=lenet needs images of 12x12 or more, but the examples have shape {in_shape}.")
        self.conv1 = nn.Conv2d(channels, 6, kernel_size=5, padding=padding)
        self.conv2 = nn.Conv2d(6, 16, kernel_size=5)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(16 * rows * columns, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_outputs)
        self.activation = activation_layer(nn, activation)()
        self.pool = pick("model.pooling", pooling, {"max": nn.MaxPool2d, "avg": nn.AvgPool2d})(2)
        if activation == "sigmoid":
            # U(-a, a) with a = sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio 2010, eq. 16)
            for layer in (self.conv1, self.conv2, self.fc1, self.fc2, self.fc3):
                weight = layer.weight  # (out, in, ...)
                bound = math.sqrt(6.0 / ((weight.shape[0] + weight.shape[1]) * weight[0, 0].numel()))
                with torch.no_grad():
                    weight.uniform_(-bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, K)."""
        x = self.pool(self.activation(self.conv1(x)))  # (N, 6, H/2, W/2)
        x = self.pool(self.activation(self.conv2(x)))  # (N, 16, rows, columns)
        x = self.activation(self.fc1(self.flatten(x)))  # (N, 120)
        x = self.activation(self.fc2(x))  # (N, 84)
        return self.fc3(x)
