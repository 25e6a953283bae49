"""The two models of one linear layer: linear regression and softmax regression."""

import math
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Module

from trainer.utils.errors import ConfigError


def init_linear(linear: Module, init_std: float | str, bias_std: float = 0.0) -> None:
    """Draw the weights of `linear` from N(0, init_std^2) and its bias from N(0, bias_std^2), from the global generator.

    Args:
        linear: a layer with `weight` (out, in, ...) and perhaps `bias` (out,), changed in place.
        init_std: a number; or fan_in for 1 / sqrt(inputs), which gives the outputs the spread of the inputs (Nielsen,
            ch. 3; LeCun et al. 1998); or torch to keep what the layer drew itself, bias included.
        bias_std: 0 sets the bias to 0.
    """
    if init_std == "torch":
        return
    with torch.no_grad():
        for name, parameter in linear.named_parameters():
            if name == "bias":
                parameter.normal_(0.0, bias_std) if bias_std else parameter.zero_()  # 0 draws no random numbers
            else:
                parameter.normal_(0.0, 1 / math.sqrt(parameter[0].numel()) if init_std == "fan_in" else float(init_std))


class LinearRegression(Module):
    """y_hat = x W^T + b.

    Args:
        nn: the layer library.
        in_shape: (D,).
        num_outputs: number of values predicted per example.
        init_std: standard deviation of the initial weights, fan_in or torch (init_linear); the bias starts at 0.
        start: a number that all weights and biases start at instead; None: init_std decides.
    Raises:
        ConfigError: the examples are not rows of numbers.
    Source: d2l, section 3.1 (linear regression) and 3.5 (its initial values).
    """

    def __init__(
        self,
        nn: ModuleType,
        in_shape: tuple[int, ...],
        num_outputs: int,
        *,
        init_std: float | str = 0.01,
        start: float | None = None,
    ) -> None:
        super().__init__()
        if len(in_shape) != 1:
            raise ConfigError(f"model=linreg needs rows of shape (D,), but the examples have shape {in_shape}.")
        self.linear = nn.Linear(in_shape[0], num_outputs)
        init_linear(self.linear, init_std)
        for parameter in self.linear.parameters() if start is not None else ():
            parameter.data.fill_(float(start or 0))

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, num_outputs)."""
        return self.linear(x)


class SoftmaxRegression(Module):
    """logits = flatten(x) W^T + b; the softmax is part of the loss, where it is stable.

    Args:
        nn: the layer library.
        in_shape: shape of one example, any number of axes.
        num_outputs: number of classes K.
        init_std: standard deviation of the initial weights, fan_in or torch (init_linear); the bias starts at 0.
    Source: d2l, section 4.1 (softmax regression) and 4.5 (its initial values).
    """

    def __init__(
        self, nn: ModuleType, in_shape: tuple[int, ...], num_outputs: int, *, init_std: float | str = 0.01
    ) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(math.prod(in_shape), num_outputs)  # draws its own values first, in every library
        init_linear(self.linear, init_std)

    def forward(self, x: Tensor) -> Tensor:
        """(N, *in_shape) -> logits (N, K)."""
        return self.linear(self.flatten(x))
