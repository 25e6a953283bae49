"""What several constructors refuse in the same words: an unknown choice, and data that are no pictures."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TypeVar

from torch.nn import Module

from trainer.utils.errors import ConfigError, listed, nearest

T = TypeVar("T")


def pick(key: str, value: str, choices: Mapping[str, T]) -> T:
    """`choices[value]`.

    Raises:
        ConfigError: `value` is none of them; `key` is the option's dotted name for the message.
    """
    if value not in choices:
        raise ConfigError(f"{key}={value}: allowed are {listed(list(choices))}.{nearest(value, choices)}")
    return choices[value]


def activation_layer(nn: ModuleType, activation: str) -> Callable[[], Module]:
    """The class of `nn` for relu, sigmoid or tanh, or a ConfigError that names model.activation."""
    return pick("model.activation", activation, {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh})


def picture_shape(model: str, in_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """`in_shape` as (C, H, W).

    Raises:
        ConfigError: the examples are not pictures; `model` is the name for the message.
    """
    if len(in_shape) != 3:
        raise ConfigError(
            f"model={model} needs pictures of shape (C, H, W), but the examples have shape {in_shape}; "
            "rows of numbers go into linreg, softmax or mlp."
        )
    channels, height, width = in_shape
    return channels, height, width
