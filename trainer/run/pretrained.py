"""Weights that others trained, for model.weights=: which there are, their file, and the images that they expect."""

import re
from dataclasses import asdict, replace
from pathlib import Path
from urllib.parse import urlsplit

import torch

from trainer.config.fit import has_open_end, shape_of
from trainer.config.schema import FITTED, Choice, Config, Finetune
from trainer.data import files
from trainer.models import timm, torchvision
from trainer.models.torchvision import Published
from trainer.run.checkpoint import Weights
from trainer.run.safe_load import read_weights
from trainer.run.target import path_of
from trainer.utils.errors import ConfigError, listed, nearest
from trainer.utils.screen import Screen
from trainer.utils.text import emit

FOR_WEIGHTS = ("recipe", "data.size", "data.interpolation", "data.normalize")  # chosen for them unless it was typed
LARGEST = 4 * 2**30  # bytes; torchvision's largest file has 2.6 GB


def named_weights(model: Choice) -> Published | None:
    """What model.weights= names of torchvision's, or timm's; None: nothing, a file or a run."""
    wanted = model.options.get("weights", "none")
    find = timm.published_by_timm if model.name == "timm" else torchvision.published
    return None if wanted == "none" else find(arch_of(model), wanted)


def arch_of(model: Choice) -> str:
    """The name that its library has for the network."""
    return str(model.options.get("arch", model.name))


def for_fine_tuning(config: Config, screen: Screen) -> Config:
    """The config as typed, as its weights need it: their images, and for your own images the backbone with care.

    The last layer, which begins at random, is trained alone for the first third: its first gradients would spoil the
    rest. Then the rest learns too, at a tenth of the rate; with a budget, whose epochs are not known yet, from the
    start. What was typed of finetune. stays, as without a recipe.
    """
    config = with_their_images(config, screen)
    typed = "recipe" in config.typed or any(key.startswith("finetune.") for key in config.typed)
    if config.data.name not in FITTED or config.model.options.get("weights", "none") == "none" or typed:
        return config
    first = 1 if has_open_end(config) else config.epochs // 3 + 1
    care = Finetune("backbone", first, 0.1) if first > 1 else Finetune("none", None, 0.1)
    words = [f"finetune.{key}={value}" for key, value in asdict(care).items() if value not in ("none", None)]
    screen.say(f"model.weights: {' '.join(words)} (what you type wins: finetune.*; recipe=none leaves them out)")
    return replace(config, finetune=care)


def with_their_images(config: Config, screen: Screen) -> Config:
    """The config of a new run with size, interpolation, mean and std of the images that its weights were trained on.

    What was typed stays. A ResNet gets the stem of torchvision's. Grey images get the means over the colours.
    """
    if (found := named_weights(config.model)) is None:
        return config
    model, data = dict(config.model.options), dict(config.data.options)
    if model.get("stem") == "auto":
        model["stem"] = "imagenet"
    if "data.size" not in config.typed and "size" in data:
        data["size"] = found.size
    if "data.interpolation" not in config.typed and "interpolation" in data:
        data["interpolation"] = found.interpolation
    shape = shape_of(replace(config.data, options=data))
    if "data.normalize" not in config.typed and shape is not None:
        grey = shape[0] == 1
        data["normalize"] = [round(sum(v) / 3, 6) if grey else list(v) for v in (found.mean, found.std)]
    if shape is None:
        return replace(config, model=replace(config.model, options=model))
    screen.say(
        f"model.weights={found.name}: images of {data.get('size')} x {data.get('size')} pixels, normalised by "
        f"{data['normalize']}, {data.get('interpolation', 'bilinear')}, as it was trained (what you type wins: "
        "data.size, data.normalize, data.interpolation)"
    )
    return replace(config, model=replace(config.model, options=model), data=replace(config.data, options=data))


def find_weights(config: Config) -> Path | None:
    """The file of init_from= or model.weights=, downloaded where it has to be; None: the model begins at random.

    Raises:
        ConfigError: there is no such file or run, or it is damaged or cannot be downloaded.
    """
    folders = {"outputs": config.paths.outputs, "checkpoints": config.paths.checkpoints}
    wanted = config.model.options.get("weights", "none")
    if wanted == "none":
        return path_of(config.init_from, **folders) if config.init_from is not None else None
    found = named_weights(config.model)
    if found is None:
        try:
            return path_of(wanted, **folders)
        except ConfigError as error:
            whose = "timm" if config.model.name == "timm" else "torchvision"
            names = (timm.tags_of if whose == "timm" else torchvision.weight_names)(arch_of(config.model))
            close = nearest(wanted, ["none", "default", *names])
            own = f"{whose} has {listed(names) or 'none'} for {arch_of(config.model)}"
            raise ConfigError(f"model.weights={wanted}: {own}.{close} Else it is a file or a run: {error}") from None
    folder = config.paths.weights
    where = Path(folder) if folder is not None else Path(torch.hub.get_dir(), "checkpoints")
    path = where / (found.file or Path(urlsplit(found.address).path).name)
    if not path.is_file():
        download_weights(found.address, path)
    elif not files.digest(files.read(path)).startswith(digest_in(path.name)):
        raise ConfigError(f"{path} is damaged: its SHA-256 does not begin as its name says. Delete it.")
    return path


def digest_in(name: str) -> str:
    """The beginning of the SHA-256 in the name of a file, as torch.hub has it: resnet18-f37072fd.pth; "" for none."""
    found = re.search(r"-([0-9a-f]{8,})\.", name)
    return found[1] if found else ""


def download_weights(address: str, path: Path) -> None:
    """Fetch a file of weights, and keep it.

    Raises:
        ConfigError: it did not come, or came damaged; says where to put it.
    """

    def check(data: bytes) -> bytes:
        if not files.digest(data).startswith(digest_in(path.name)):
            raise ValueError(f"sends something else: its SHA-256 begins with {files.digest(data)[:8]}")
        return data

    emit(f"downloading {address} to {path}")
    try:
        data = files.fetch([address], check, LARGEST)
    except ConnectionError as error:
        raise ConfigError(
            f"{path} is missing and could not be downloaded:",
            *str(error).split("\n"),
            f"Without a network: download it on another machine and put it into {path.parent} under the name "
            f"{path.name}, or name the folder where it is so: paths.weights=FOLDER, or the file: model.weights=FILE.",
        ) from error
    files.save(path, data)
    if not path.is_file():
        raise ConfigError(f"{path.parent} cannot be written to. Another folder: paths.weights=FOLDER.")


def read_start(config: Config) -> Weights | None:
    """The weights that a new run starts from, of init_from= or model.weights=; None: it begins at random.

    Raises:
        ConfigError: the file is missing or damaged, cannot be downloaded, or holds no weights.
    """
    if (path := find_weights(config)) is None:
        return None
    weights, classes = read_weights(path)
    # torchvision's files for DenseNet have names of an older torch: norm.1 instead of norm1
    weights = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2.", name): w for name, w in weights.items()}
    named = named_weights(config.model)
    return Weights(path, weights, named.classes if named is not None and named.classes is not None else classes)
