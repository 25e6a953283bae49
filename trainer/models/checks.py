"""What several constructors refuse in the same words: an unknown choice, and examples that are not images."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TypeVar

import torch
from torch.nn import Module

from trainer.utils.errors import ConfigError, listed, nearest

T = TypeVar("T")


def pick(key: str, value: str, choices: Mapping[str, T]) -> T:
    """Return `choices[value]`.

    Args:
        key: dotted name of the option, for the message.
        value: what the user asked for.
        choices: everything that is allowed.
    Raises:
        ConfigError: `value` is none of the choices.
    """
    if value not in choices:
        raise ConfigError(f"{key}={value}: allowed are {listed(list(choices))}.{nearest(value, choices)}")
    return choices[value]


def activation_layer(nn: ModuleType, activation: str) -> Callable[[], Module]:
    """Return the class of `nn` for relu, sigmoid or tanh, or raise a ConfigError that names model.activation."""
    return pick("model.activation", activation, {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh})


def image_shape(model: str, in_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return `in_shape` as (C, H, W).

    Args:
        model: name of the model, for the message.
        in_shape: shape of one example.
    Raises:
        ConfigError: the examples are not images.
    """
    if len(in_shape) != 3:
        raise ConfigError(
            f"model={model} needs images of shape (C, H, W), but the examples have shape {in_shape}; "
            "rows of numbers go into linreg, softmax or mlp."
        )
    channels, height, width = in_shape
    return channels, height, width


def try_forward(model: Module, arch: str, in_shape: tuple[int, ...], num_outputs: int) -> None:
    """Send two blank images through a network of a library.

    Raises:
        ConfigError: it cannot take images of this size.
    """
    # In eval mode, so that neither the batch statistics nor the random numbers change.
    model.eval()
    try:
        with torch.no_grad():
            logits = model(torch.zeros(2, *in_shape))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"model.arch={arch} cannot take examples of shape {in_shape} ({error}): use larger images or another "
            "architecture; resnet18 takes every size."
        ) from error
    model.train()
    assert logits.shape == (2, num_outputs), f"{arch} returned {tuple(logits.shape)}"
