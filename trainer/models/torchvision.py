"""Any classification architecture of torchvision.models, fitted to the data's channels and classes, and its weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch.nn import Module

from trainer.models.checks import image_shape, try_forward
from trainer.utils.errors import ConfigError, nearest

LIST_COMMAND = 'python -c "import torchvision.models as m; print(*m.list_models(module=m))"'


def torchvision_model(nn: ModuleType, in_shape: tuple[int, ...], num_outputs: int, *, arch: str = "resnet18") -> Module:
    """Build `arch` with random weights as torchvision draws them.

    GoogLeNet and Inception come without their auxiliary classifiers (a deviation: in training they would return
    several outputs). Two blank images are sent through the model to check that their size fits.

    Args:
        nn: must be torch.nn: torchvision brings its own layers.
        in_shape: (C, H, W); many architectures have a smallest size, the transformers a fixed one of 224.
        num_outputs: number of classes K.
        arch: a name of torchvision.models.list_models(module=torchvision.models).
    Returns:
        A module (N, C, H, W) -> logits (N, K).
    Raises:
        ConfigError: `nn` is another library, the examples are not images, the architecture is unknown or does not
            classify images, or it cannot take images of this size.
    """
    import torchvision  # type: ignore[import-untyped]  # takes a second, so only where it is used

    if nn is not torch.nn:
        raise ConfigError("model=torchvision brings the layers of torch.nn, so model.impl cannot be another library.")
    channels, _, _ = image_shape("torchvision", in_shape)
    known = torchvision.models.list_models(module=torchvision.models)
    if arch not in known:
        other = arch in torchvision.models.list_models()
        reason = "does not classify images, or is quantized" if other else "is unknown"
        raise ConfigError(f"model.arch={arch} {reason}.{nearest(arch, known)} The names are listed by: {LIST_COMMAND}")
    extra: dict[str, Any] = {}
    if arch in ("googlenet", "inception_v3"):
        extra = {"aux_logits": False, "init_weights": True}
    model: Module = torchvision.models.get_model(arch, weights=None, num_classes=num_outputs, **extra)
    stem = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    assert (stem.in_channels, stem.groups) == (3, 1), f"the first convolution is not the stem: {stem}"
    if channels != 3:
        # Repeat the input slices 0, 1, 2, 0, ... of the stem, which keeps the spread that the architecture chose.
        stem.in_channels = channels
        stem.weight = torch.nn.Parameter(stem.weight.detach()[:, [c % 3 for c in range(channels)]])
    try_forward(model, arch, in_shape, num_outputs)
    return model


@dataclass(frozen=True)
class Published:
    """Weights of torchvision or of timm.

    Attributes:
        name: such as IMAGENET1K_V1.
        address: where the file is.
        classes: names, in the order of the outputs; None: nobody says.
        size: pixels of the images.
        mean: of each channel, for pixels in [0, 1].
        std: likewise.
        interpolation: bilinear or bicubic.
        file: its name on disk; "": as the address has it.
    """

    name: str
    address: str
    classes: Sequence[str] | None
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    file: str = ""


def published(arch: str, wanted: str) -> Published | None:
    """The weights of this name, in any case, or the `default` ones; None: torchvision has none such for it."""
    import torchvision

    names = {name.lower(): name for name in weight_names(arch)}
    if not names or wanted.lower() not in ("default", *names):
        return None
    known = torchvision.models.get_model_weights(arch)
    found = known.DEFAULT if wanted.lower() == "default" else known[names[wanted.lower()]]
    images = found.transforms()
    # torchvision puts a conversion to (x - 0.5) / 0.5 in front of these two, from what it normalises by
    halves = arch in ("googlenet", "inception_v3")
    mean, std = ((0.5,) * 3,) * 2 if halves else (tuple(images.mean), tuple(images.std))
    return Published(
        found.name, found.url, found.meta["categories"], images.crop_size[0], mean, std, images.interpolation.value
    )


def weight_names(arch: str) -> list[str]:
    """The names of the weights that torchvision has for a network; none for one that it does not know."""
    import torchvision

    known = arch in torchvision.models.list_models(module=torchvision.models)
    return [each.name for each in torchvision.models.get_model_weights(arch)] if known else []
