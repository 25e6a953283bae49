"""Any architecture of timm (PyTorch Image Models), an extra package, fitted to channels, size and classes."""

import importlib.util
import os
from types import ModuleType

import torch
from torch.nn import Module

from trainer.models.checks import image_shape, try_forward
from trainer.models.torchvision import Published
from trainer.utils.errors import ConfigError, nearest

LIST_OF_TIMM = 'python -c "import timm; print(*timm.list_models())"'
FILES = "https://huggingface.co"  # where timm keeps its weights; $HF_ENDPOINT names another server


def timm_model(nn: ModuleType, in_shape: tuple[int, ...], num_outputs: int, *, arch: str = "resnet18") -> Module:
    """Build `arch` with random weights as timm draws them.

    A transformer gets the images' size where timm lets it be chosen. Two blank images are sent through the model to
    check that their size fits.

    Args:
        nn: must be torch.nn: timm brings its own layers.
        in_shape: (C, H, W).
        num_outputs: number of classes K.
        arch: a name of timm.list_models().
    Returns:
        A module (N, C, H, W) -> logits (N, K).
    Raises:
        ConfigError: timm is not installed, `nn` is another library, the examples are not images, the architecture is
            unknown, or it cannot take images of this size.
    """
    timm = timm_package()
    if nn is not torch.nn:
        raise ConfigError("model=timm brings the layers of torch.nn, so model.impl cannot be another library.")
    channels, height, width = image_shape("timm", in_shape)
    known = timm.list_models()
    if arch not in known:  # hf-hub:NAME would be looked up on a server
        hint = nearest(arch.partition(".")[0], known)
        raise ConfigError(f"model.arch={arch} is unknown to timm.{hint} The names are listed by: {LIST_OF_TIMM}")
    wanted = {"num_classes": num_outputs, "in_chans": channels}
    try:
        try:
            model: Module = timm.create_model(arch, img_size=(height, width), **wanted)
        except TypeError:  # a convolutional network, which takes any size
            model = timm.create_model(arch, **wanted)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise ConfigError(f"model.arch={arch} cannot be built for examples of shape {in_shape}: {error}") from error
    try_forward(model, arch, in_shape, num_outputs)
    return model


def timm_package() -> ModuleType:
    """The package.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec("timm") is None:
        raise ConfigError("model=timm needs timm: pip install -r requirements-timm.txt")
    import timm  # type: ignore[import-not-found,import-untyped,unused-ignore]  # takes three seconds

    return timm  # type: ignore[no-any-return,unused-ignore]


def published_by_timm(arch: str, wanted: str) -> Published | None:
    """The weights of this tag (a1_in1k), in any case, or the `default` ones; None: timm has none such for it."""
    names = {name.lower(): name for name in tags_of(arch)}
    if not names or wanted.lower() not in ("default", *names):
        return None
    timm = timm_package()
    tag = None if wanted.lower() == "default" else names[wanted.lower()]
    found = timm.get_pretrained_cfg(arch if tag is None else f"{arch}.{tag}")
    server = os.environ.get("HF_ENDPOINT", FILES).rstrip("/")
    address, file = f"{server}/{found.hf_hub_id}/resolve/main/model.safetensors", f"{arch}.{found.tag}.safetensors"
    if not found.hf_hub_id:  # a few older ones lie elsewhere
        address, file = found.url, ""
    way = found.interpolation if found.interpolation in ("bilinear", "bicubic") else "bilinear"
    size, moments = found.input_size[-1], (tuple(found.mean), tuple(found.std))
    return Published(found.tag, address, None, size, *moments, way, file)


def tags_of(arch: str) -> list[str]:
    """The tags of the weights that timm has for a network; none for one that it does not know."""
    names: list[str] = timm_package().list_pretrained(f"{arch}.*")
    return [name.partition(".")[2] for name in names]
