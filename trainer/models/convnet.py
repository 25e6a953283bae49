"""A convolutional network written as a list of layers."""

import itertools
import math
import re
from collections.abc import Sequence
from types import ModuleType

from torch import Tensor
from torch.nn import Module

from trainer.models.checks import activation_layer, image_shape
from trainer.models.linear import init_linear
from trainer.utils.errors import ConfigError

WORD = re.compile(r"(conv|max|avg|fc)(\d+)(?:x(\d+))?(?:p(\d+))?")  # config/ranges.py says what may be typed
# of the convolutions, for an image: 25 times those of a ResNet-34 on 224 x 224. A file could ask for days
MAX_WORK = 10**11


class ConvNet(Module):
    """Convolutions and pooling, then fully connected layers, as `layers` lists them; then a Linear to the logits.

    Args:
        nn: the layer library.
        in_shape: (C, H, W).
        num_outputs: number of classes K.
        layers: conv20x5 is a convolution to 20 channels of 5x5 with the activation, conv20x5p2 one with 2 zeros round
            the image; max2 and avg2 are 2x2 pooling; fc100 is fully connected to 100 units with the activation.
        activation: relu, sigmoid or tanh.
        dropout: probability in [0, 1) that an input of a fully connected layer, the last one included, is dropped in
            training.
        init_std: standard deviation of the initial weights, or fan_in, or torch (see init_linear).
        bias_std: standard deviation of the initial biases; 0 starts them at 0.
    Raises:
        ConfigError: the examples are not images, a layer finds no image of its size, or an image is too much work.
    Source: the networks of Nielsen, ch. 6.
    """

    def __init__(
        self,
        nn: ModuleType,
        in_shape: tuple[int, ...],
        num_outputs: int,
        *,
        layers: Sequence[str] = ("conv20x5", "max2", "conv40x5", "max2", "fc100"),
        activation: str = "relu",
        dropout: float = 0.0,
        init_std: float | str = "torch",
        bias_std: float = 0.0,
    ) -> None:
        super().__init__()
        activate = activation_layer(nn, activation)
        channels, *sides = image_shape("convnet", in_shape)
        num_inputs, made = 0, list[Module]()  # num_inputs: of the next fully connected layer; 0: images still
        before, work = "", 0
        for word, after in itertools.pairwise([*layers, f"fc{num_outputs}", ""]):
            found = WORD.fullmatch(word)
            if found is None or (num_inputs and found[1] != "fc"):
                what = "comes after a fully connected layer" if found else "is no layer"
                raise ConfigError(f"model.layers: {word} {what}. Write for example [conv20x5,max2,fc100].")
            kind, size, side, padding = found[1], *(int(number or 0) for number in found.groups()[1:])
            if kind == "fc":
                made += [] if num_inputs else [nn.Flatten()]
                # Dropout is added at 0 too: the place of a layer is its key in a checkpoint, and must not depend on it.
                made += [nn.Dropout(dropout), nn.Linear(num_inputs or channels * math.prod(sides), size), activate()]
                num_inputs = size
            elif kind == "conv":
                sides = [s + 2 * padding - side + 1 for s in sides]
                work += math.prod(sides) * size * channels * side**2
                if min(sides) > 0 and work > MAX_WORK:
                    raise ConfigError(f"model.layers: to {word} an image takes over {MAX_WORK:,} multiplications.")
                made += [nn.Conv2d(channels, size, kernel_size=side, padding=padding)]
                # After the maximum: the same numbers, since no activation ever falls, for a quarter of the work.
                made += [] if after.startswith("max") else [activate()]
                channels = size
            else:
                made += [(nn.MaxPool2d if kind == "max" else nn.AvgPool2d)(size)]
                made += [activate()] if kind == "max" and before == "conv" else []
                sides = [s // size for s in sides]
            if min(sides) < 1:
                raise ConfigError(f"model.layers: {word} needs larger images than {in_shape}.")
            before = kind
        made.pop()  # the logits have no activation
        self.layers = nn.Sequential(*made)
        for layer in self.layers:  # after all layers have drawn: the order of the draws decides the weights
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                init_linear(layer, init_std, bias_std)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, K)."""
        return self.layers(x)
