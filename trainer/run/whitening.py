"""The model as it begins: with weights drawn by its layers, or with a first convolution that whitens patches."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer import build
from trainer.config.schema import Config
from trainer.data.adapt import few_of
from trainer.data.batches import Batches, Placement
from trainer.data.splits import Splits
from trainer.utils.errors import ConfigError

MOST_IMAGES = 2_000  # that are looked at
ALONG = 16  # patches of each image along a side: so many to twice as many
UNFOLDED = 50  # images whose patches are in memory together
# Is added to each variance: directions with less hold noise. Half of those of CIFAR-10 as JPEG have less than 0.001.
VARIANCE_EPS = 0.05


def initial_model(config: Config, splits: Splits) -> nn.Module:
    """The model that the config names, on the CPU, with its initial weights from torch's global generator."""
    model = build.build_model(config.model, config.impl, splits.in_shape, splits.num_outputs)
    if config.whiten:
        whiten(model, splits, config.seed)
    return model


def whiten(model: nn.Module, splits: Splits, seed: int) -> None:
    """Let the first convolution of the model start as whitening filters, and keep them: it gets no gradient.

    Args:
        model: on the CPU.
        splits: of images (C, H, W), from whose training part up to 2,000 are taken, of all classes alike.
        seed: decides which.
    Raises:
        ConfigError: the model does not begin with a convolution of all channels of the images, or its window is larger
            than they are.
    """
    weight = next((p for p in model.parameters() if p.ndim == 4), None)
    if (
        weight is None
        or len(splits.in_shape) != 3
        or weight.shape[1] != splits.in_shape[0]
        or any(side > whole for side, whole in zip(weight.shape[2:], splits.in_shape[1:], strict=True))
    ):
        said = "whiten=true is for networks that begin with a convolution of the images, whose window fits into them."
        raise ConfigError(f"{said} Allowed: whiten=false.")
    few = few_of(splits.train, MOST_IMAGES, seed)
    moments, num_patches = torch.zeros(weight[0].numel(), weight[0].numel(), dtype=torch.float64), 0
    for batch, _ in Batches(splits, few, Placement(torch.device("cpu"), torch.float64)).epoch(0):
        for images in batch.split(UNFOLDED):
            strides = (max(1, images.shape[2] // ALONG), max(1, images.shape[3] // ALONG))
            patches = F.unfold(images, (weight.shape[2], weight.shape[3]), stride=strides)  # (N, C K K, patches)
            patches = patches.transpose(1, 2).flatten(0, 1)
            moments += patches.T @ patches
            num_patches += len(patches)
    filters = whitening_filters(moments / num_patches, len(weight))
    with torch.no_grad():
        weight[: len(filters)] = filters.view(-1, *weight.shape[1:])
    weight.requires_grad_(False)


def whitening_filters(moments: Tensor, n: int) -> Tensor:
    """Up to n filters (2 D at most, D) whose outputs on patches of these second moments (D, D) have variance 1.

    They are the directions of largest variance, each divided by its standard deviation, and then their negatives,
    since a ReLU lets one half of each through.

    Source: Page 2018, "How to train your ResNet"; the negatives as in cifar10-airbench (Jordan 2024, arXiv 2404.00498).
    """
    variances, directions = torch.linalg.eigh(moments)  # ascending
    directions = directions * directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()  # else either sign
    filters = (directions / (variances.clamp(min=0) + VARIANCE_EPS).sqrt()).T.flip(0)[: (n + 1) // 2]
    return torch.cat([filters, -filters])[:n]
