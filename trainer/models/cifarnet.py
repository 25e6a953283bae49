"""A small fast network for small images."""

import itertools
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import Module

from trainer.models.checks import image_shape
from trainer.utils.errors import ConfigError


class CifarNet(Module):
    """A 3x3 convolution, stages that halve the image, maximum over what is left of it, Linear.

    The first convolution has two channels for each number that it sees, as many as whiten=true fills. The first stage
    halves the image by a stride instead of pooling: nothing wide then has the size of the image, which costs more time
    than arithmetic.

    Args:
        nn: the layer library.
        in_shape: (C, H, W).
        num_outputs: number of classes K.
        widths: channels of each stage of two 3x3 convolutions.
        identity_init: start the first filters of each convolution as the identity of its input channels.
        logit_scale: the logits are multiplied by it.
        gelu: GELU (Hendrycks & Gimpel 2016) in place of ReLU in the stages.
    Raises:
        ConfigError: the examples are not images, or too small for so many stages.
    Source: after the network of cifar10-airbench (Jordan 2024, arXiv 2404.00498). Deviations, each for speed on a CPU:
        ReLU for GELU unless gelu says otherwise, even sides, the stride.
    """

    def __init__(
        self,
        nn: ModuleType,
        in_shape: tuple[int, ...],
        num_outputs: int,
        *,
        widths: Sequence[int] = (64, 256, 256),
        identity_init: bool = True,
        logit_scale: float = 0.1111,
        gelu: bool = False,
    ) -> None:
        super().__init__()
        channels, *sides = image_shape("cifarnet", in_shape)
        if not widths or min(sides) < 2 ** len(widths):
            said = f"model.widths={list(widths)} is not for images of {in_shape}"
            raise ConfigError(f"{said}: there is one width at least, and each halves the image.")
        self.logit_scale = logit_scale
        num_in = 2 * 9 * channels
        self.first = nn.Conv2d(channels, num_in, kernel_size=3, padding=1)
        self.relu = nn.ReLU()
        activation, stages = nn.GELU if gelu else nn.ReLU, []
        for stage, (before, width) in enumerate(itertools.pairwise((num_in, *widths))):
            pool = [nn.MaxPool2d(2)] if stage else []
            stages += [nn.Conv2d(before, width, kernel_size=3, stride=1 if stage else 2, padding=1, bias=False), *pool]
            stages += [nn.BatchNorm2d(width), activation()]
            stages += [
                nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                activation(),
            ]
        self.stages = nn.Sequential(*stages)
        self.maximum = nn.AdaptiveMaxPool2d(1)  # any size of image becomes one number for each channel
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(widths[-1], num_outputs, bias=False)
        with torch.no_grad():
            for module in self.stages:
                if isinstance(module, nn.BatchNorm2d):
                    module.weight.requires_grad_(False)  # the next convolution has a scale of its own
                elif identity_init and isinstance(module, nn.Conv2d):
                    same = range(min(module.weight.shape[:2]))
                    module.weight[same] = 0
                    module.weight[same, same, 1, 1] = 1

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, K)."""
        x = self.stages(self.relu(self.first(x)))
        return self.fc(self.flatten(self.maximum(x))) * self.logit_scale
