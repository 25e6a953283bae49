"""The multilayer perceptron."""

import math
from collections.abc import Sequence
from types import ModuleType

from torch import Tensor
from torch.nn import Module

from trainer.models.checks import activation_layer
from trainer.models.linear import init_linear


class MLP(Module):
    """Hidden layers of Linear, optional batch normalisation, activation and dropout; then a Linear to the logits.

    Args:
        nn: the layer library.
        in_shape: shape of one example, any number of axes; it is flattened.
        num_outputs: number of classes K, or of values per example in a regression.
        num_hiddens: number of units of each hidden layer, from input to output.
        activation: relu, sigmoid or tanh.
        batch_norm: normalise over the batch before each activation (Ioffe & Szegedy 2015).
        dropout: probability in [0, 1) that a hidden unit is dropped in training.
        bias: whether the linear layers have biases.
        init_std: standard deviation of the initial weights, or fan_in, or torch (see init_linear).
        bias_std: standard deviation of the initial biases; 0 starts them at 0.
    Raises:
        ConfigError: `activation` is unknown.
    Source: d2l, section 5.2 (784-256-10, ReLU, weights N(0, 0.01^2)).
    """

    def __init__(
        self,
        nn: ModuleType,
        in_shape: tuple[int, ...],
        num_outputs: int,
        *,
        num_hiddens: Sequence[int] = (256,),
        activation: str = "relu",
        batch_norm: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        init_std: float | str = 0.01,
        bias_std: float = 0.0,
    ) -> None:
        super().__init__()
        activate = activation_layer(nn, activation)
        num_inputs = math.prod(in_shape)
        layers: list[Module] = [nn.Flatten()]
        for num_units in num_hiddens:
            # Dropout is added at 0 too: the place of a layer is its key in a checkpoint, and must not depend on it.
            norm = [nn.BatchNorm1d(num_units)] if batch_norm else []
            layers += [nn.Linear(num_inputs, num_units, bias=bias), *norm, activate(), nn.Dropout(dropout)]
            num_inputs = num_units
        self.layers = nn.Sequential(*layers, nn.Linear(num_inputs, num_outputs, bias=bias))
        for layer in self.layers:  # after all layers have drawn: the order of the draws decides the weights
            if isinstance(layer, nn.Linear):
                init_linear(layer, init_std, bias_std)

    def forward(self, x: Tensor) -> Tensor:
        """(N, *in_shape) -> (N, num_outputs)."""
        return self.layers(x)
