"""ResNet-18 and ResNet-34. The weights have torchvision's names, so that its checkpoints load."""

import math
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import Module

from trainer.models.checks import image_shape, pick


class BasicBlock(Module):
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)), 3x3 convolutions, the stride in the first.

    The shortcut (`downsample`, torchvision's name) is a 1x1 convolution with batch normalisation where the shape
    changes or where `project` asks for it, otherwise the identity.

    Source: He et al. 2015 (arXiv 1512.03385), fig. 2 and section 3.3, option B.
    """

    def __init__(self, nn: ModuleType, num_in: int, num_out: int, stride: int, *, project: bool = False) -> None:
        super().__init__()
        # No bias in the convolutions: the batch normalisation after each one subtracts it again.
        self.conv1 = nn.Conv2d(num_in, num_out, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_out)
        self.relu = nn.ReLU()
        self.downsample = nn.Identity()
        if project or stride != 1 or num_in != num_out:
            projection = nn.Conv2d(num_in, num_out, kernel_size=1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(num_out))

    def forward(self, x: Tensor) -> Tensor:
        """(N, num_in, H, W) -> (N, num_out, ceil(H / stride), ceil(W / stride))."""
        y = self.relu(self.bn1(self.conv1(x)))  # the stride is here, not in conv2
        y = self.bn2(self.conv2(y))  # no ReLU before the sum: the block adds a change of either sign
        return self.relu(y + self.downsample(x))


class ResNet(Module):
    """Stem, four stages of basic blocks with 64, 128, 256 and 512 channels, global average pooling, Linear.

    Args:
        nn: the layer library.
        in_shape: (C, H, W), any size.
        num_outputs: number of classes K.
        stem: imagenet is the paper's 7x7 convolution of stride 2 and 3x3 max pooling of stride 2, which divide a
            side by 4; cifar is a 3x3 convolution of stride 1 without pooling; auto takes cifar where no side is
            longer than 64 pixels.
        zero_init_residual: start each block as the identity, with the scale of its last batch normalisation at 0
            (Goyal et al. 2017, arXiv 1706.02677, section 5.1).
        project_stage1: put a 1x1 convolution into the first shortcut of stage 1 too, where the shape does not
            change, as pytorch-book's ResNet34 does.
    Raises:
        ConfigError: the examples are not images, or the stem is unknown.
    Source: He et al. 2015 (arXiv 1512.03385), table 1; convolutions start as in He et al. 2015 (arXiv 1502.01852),
        eq. 14: N(0, 2 / (out_channels * window)). Deviation: the paper's own CIFAR nets have three stages; the
        cifar stem on this net is what the public CIFAR tables use.
    """

    num_blocks: ClassVar[tuple[int, int, int, int]]  # basic blocks in each stage

    def __init__(
        self,
        nn: ModuleType,
        in_shape: tuple[int, ...],
        num_outputs: int,
        *,
        stem: str = "auto",
        zero_init_residual: bool = False,
        project_stage1: bool = False,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape("resnet", in_shape)
        small = pick("model.stem", stem, {"auto": max(height, width) <= 64, "cifar": True, "imagenet": False})
        if small:
            self.conv1 = nn.Conv2d(channels, 64, kernel_size=3, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        # The order below is the order of the random draws: changing it changes the initial weights of every seed.
        self.layer1 = _stage(nn, 64, 64, self.num_blocks[0], stride=1, project=project_stage1)
        self.layer2 = _stage(nn, 64, 128, self.num_blocks[1], stride=2)
        self.layer3 = _stage(nn, 128, 256, self.num_blocks[2], stride=2)
        self.layer4 = _stage(nn, 256, 512, self.num_blocks[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)  # any size of image becomes 512 numbers
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(512, num_outputs)
        # Batch normalisation already starts at scale 1 and shift 0, and `fc` keeps what the layer drew.
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    num_out, _, rows, columns = module.weight.shape
                    module.weight.normal_(0.0, math.sqrt(2.0 / (num_out * rows * columns)))
                elif zero_init_residual and isinstance(module, BasicBlock):
                    module.bn2.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, K)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # (N, 64, H, W), or H/4, W/4 with the imagenet stem
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (N, 512, H/8, W/8) of that
        return self.fc(self.flatten(self.avgpool(x)))


class ResNet18(ResNet):
    """2, 2, 2, 2 basic blocks."""

    num_blocks = (2, 2, 2, 2)


class ResNet34(ResNet):
    """3, 4, 6, 3 basic blocks: 21,282,122 parameters with the cifar stem, 3 channels and 10 classes."""

    num_blocks = (3, 4, 6, 3)


def _stage(nn: ModuleType, num_in: int, num_out: int, num_blocks: int, *, stride: int, project: bool = False) -> Module:
    blocks = [BasicBlock(nn, num_in, num_out, stride, project=project)]
    blocks += [BasicBlock(nn, num_out, num_out, 1) for _ in range(num_blocks - 1)]
    return nn.Sequential(*blocks)
