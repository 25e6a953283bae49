"""Parts and progress become the plain content of a checkpoint, and come back from one."""

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trainer import build
from trainer.config.schema import Config
from trainer.data.splits import Splits
from trainer.run.environment import rounding
from trainer.run.gate import check_description
from trainer.run.parts import Parts
from trainer.run.progress import EARLY_STOP, Progress
from trainer.run.safe_load import weights_to_use
from trainer.run.seeds import restore_rng, rng_state
from trainer.utils.errors import ConfigError, DamagedError, listed
from trainer.utils.text import one_line


def pack(parts: Parts, progress: Progress) -> dict[str, Any]:
    """The content of a checkpoint: plain types and tensors only. All ranks call it; rank 0 writes what it returns."""
    return parts.identity | {
        "created": time.time(),
        "model": tensors_of(parts.model),
        "optimizer": {
            "name": parts.identity["config"]["choices"]["optimizer"],
            "state": optimizer_state(parts.optimizer, parts.model),
        },
        "scaler": parts.update.scaler.state_dict() or None,  # a disabled one has no state
        "ema": tensors_of(parts.update.ema.module) if parts.update.ema is not None else None,
        "progress": {k: v for k, v in vars(progress).items() if k not in ("best", *EARLY_STOP)},
        "early_stop": {k: getattr(progress, k) for k in EARLY_STOP},
        "best": dict(progress.best),
        "rng": parts.ranks.gather(rng_state(parts.machine.device)),
        "env": rounding(parts.machine) | {"world": parts.ranks.world},
    }


def check_savable(parts: Parts) -> None:
    """Refuse a run none of whose checkpoints could be read again: known now, and not after its last epoch.

    Raises:
        ConfigError: names what no checkpoint may hold.
    """
    model, has_ema = parts.model, parts.update.ema is not None
    most = len(model.state_dict()) * (2 if has_ema else 1) + 3 * len(list(model.parameters())) + 4 * parts.ranks.world
    try:
        check_description(parts.identity, most)
    except DamagedError as error:
        raise ConfigError(f"no checkpoint of this run could be read again: {error}.") from None


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers by name."""
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def unpack(content: dict[str, Any], config: Config, parts: Parts, path: Path) -> Progress:
    """Put a checkpoint's content into freshly assembled parts.

    Raises:
        ConfigError: it is of another model, optimizer or data set; the message names both.
    """
    check_fits(content, parts.splits, path)
    if content["data"]["sha256"] not in (parts.splits.sha256, parts.splits.earlier_sha256):
        raise ConfigError(
            f"{path} was trained on other data than data={config.data.name} holds now: resume needs the same."
        )
    if content["optimizer"]["name"] != config.optimizer.name:
        raise ConfigError(f"{path} holds optimizer={content['optimizer']['name']}, not {config.optimizer.name}.")
    load_model(parts.model, content["model"], path)
    load_optimizer(parts.optimizer, parts.model, content["optimizer"]["state"], path)
    try:
        if content["scaler"] is not None:  # None: fp16 is new, by resume_allow
            parts.update.scaler.load_state_dict(content["scaler"])
        if (ema := parts.update.ema) is not None:
            load_model(ema.module, weights_to_use(content), path)
            ema.n_averaged.fill_(content["progress"]["step"])
        if parts.ranks.is_first or parts.ranks.rank < len(content["rng"]):  # a rank that is new has its seed
            restore_rng(content["rng"][parts.ranks.rank], parts.machine.device)
        progress = Progress(**content["progress"], **content["early_stop"], best=content["best"])
        if any(type(value) is not type(getattr(Progress(), key)) for key, value in vars(progress).items()):
            raise TypeError("its progress is made of other types")
        if not all(type(value) is float for value in progress.loss_sums):
            raise TypeError("its sums are no numbers")
        if progress.epoch < 1 or progress.step < 0 or not 0 <= progress.samples <= len(parts.train.y):
            raise ValueError("its progress is not one of this data")
        if progress.best and not all(type(progress.best[k]) is int for k in ("epoch", "step")):
            raise TypeError("its best epoch is no number")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ConfigError(f"{path} does not hold the state of this run: {type(error).__name__} {error}.") from None
    if progress.epoch - 1 > config.epochs:
        raise ConfigError(f"epochs={config.epochs}: {path} has already trained {progress.epoch - 1} epochs.")
    if config.max_steps is not None and progress.step > config.max_steps:
        raise ConfigError(f"max_steps={config.max_steps}: {path} has already trained {progress.step:,} steps.")
    return progress


def check_fits(content: dict[str, Any], splits: Splits, path: Path) -> None:
    """Refuse data that a checkpoint's model was not made for.

    Raises:
        ConfigError: input shape, or the names or order of the classes differ.
    """
    check_shape(content, splits.in_shape, path)
    if content["classes"] != list(splits.classes):
        was, now = (
            listed([one_line(name, 60) for name in names]) or "none" for names in (content["classes"], splits.classes)
        )
        raise ConfigError(f"{path} knows the classes {was}; this data has {now}, or the same in another order.")


def check_shape(content: Mapping[str, Any], shape: tuple[int, ...], path: Path, *, is_folder: bool = False) -> None:
    """Refuse examples of another shape than the model's inputs; `is_folder`: of images that can have any.

    Raises:
        ConfigError: says both shapes, and what to type where that helps.
    """
    own = tuple(content["arch"]["in_shape"])
    if own == shape:
        return
    advice = ""
    if len(own) == len(shape) == 3 and is_folder:
        advice = f" Type data.channels={own[0]} data.size={own[1]}."
    elif len(own) == len(shape) == 3 and own[0] == shape[0]:
        advice = f" Type data.size={own[1]}."
    raise ConfigError(f"{path} takes inputs of shape {own}; this data has {shape}.{advice}")


class WithoutDraws(TorchFunctionMode):
    """Skips Tensor.normal_: for a tensor without memory torch would import its compiler, which takes a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch in the place of each of its functions."""
        return args[0] if func is Tensor.normal_ else func(*args, **(kwargs or {}))


def check_architecture(config: Config, content: Mapping[str, Any], path: Path) -> None:
    """Compare the shapes of a file's weights with the model that it names, before memory is taken for that model.

    Raises:
        ConfigError: they disagree.
    """
    arch = content["arch"]
    try:
        with torch.device("meta"), WithoutDraws():
            model = build.build_model(config.model, config.impl, tuple(arch["in_shape"]), arch["num_outputs"])
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ConfigError(f"{path}: no model can be built for {arch['in_shape']}: {error}.") from None
    check_shapes(model, content["model"], path)


def check_shapes(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights whose names or shapes are not the model's.

    Raises:
        ConfigError: names the first one.
    """
    own = model.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        here = tuple(own[name].shape) if name in own else "absent"
        there = tuple(weights[name].shape) if name in weights else "absent"
        if here != there:
            raise ConfigError(f"{path} does not fit the model: {name} is {there} in the file and {here} in the model.")


def load_model(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Put the weights of a checkpoint into a model of the same architecture; ConfigError as check_shapes."""
    check_shapes(model, weights, path)
    model.load_state_dict(dict(weights))


@dataclass(frozen=True)
class Weights:
    """What a new run starts from."""

    path: Path  # the file
    tensors: Mapping[str, Tensor]
    classes: Sequence[str] | None = None  # that they were trained for; None: the file names none


def load_backbone(model: nn.Module, pretrained: Weights, classes: Sequence[str] = ()) -> str:
    """Put in the weights whose name and shape fit; the rest of the model keeps its initial values.

    A first convolution for three colours is summed over them where the model takes grey images: three equal colours
    would give the same.

    Args:
        model: the model.
        pretrained: the weights.
        classes: of the data.
    Returns:
        What was taken: the names of the tensors that are absent in the file or have another shape there, and whether
        the last layer was learnt for other classes.
    Raises:
        ConfigError: nothing fits.
    """
    own, path, weights, theirs = model.state_dict(), pretrained.path, pretrained.tensors, pretrained.classes
    if all(name.startswith("module.") for name in weights):  # of a model that several processes trained
        weights = {name.removeprefix("module."): w for name, w in weights.items()}
    summed = [name for name, w in weights.items() if name in own and is_for_colours(w, own[name])]
    weights = {name: w.sum(1, keepdim=True) if name in summed else w for name, w in weights.items()}
    fitting = {name: w for name, w in weights.items() if name in own and own[name].shape == w.shape}
    if not fitting:
        said = f"none of its {len(weights)} tensors has a name and shape of this model"
        raise ConfigError(f"{path}: {said}. init_from= and model.weights= take weights of the same network.")
    model.load_state_dict(fitting, strict=False)
    left_out = sorted(own.keys() - fitting.keys())
    said = f"weights from {path}; start afresh: {', '.join(left_out) or 'none'}"
    if summed:
        said += f". {', '.join(summed)}: summed over the colours"
    if classes and list(own)[-1] in fitting and list(theirs or ()) != list(classes):
        known = (
            "classes that the file does not name"
            if theirs is None
            else listed([one_line(name, 60) for name in theirs[:10]])
        )
        return f"{said}. The last layer comes with the rest; it was trained for {known}"
    return said


def is_for_colours(theirs: Tensor, own: Tensor) -> bool:
    """Whether these weights of a convolution differ in having three colours instead of one."""
    return theirs.ndim == 4 and theirs.shape[1] == 3 and own.shape == (theirs.shape[0], 1, *theirs.shape[2:])


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The optimizer's buffers by parameter name: {"fc.weight": {"momentum_buffer": ...}}; {} before its first step."""
    named = {name: optimizer.state.get(p, {}) for name, p in model.named_parameters()}
    return {name: {k: v for k, v in state.items() if isinstance(v, Tensor)} for name, state in named.items()}


def buffers_of(optimizer: torch.optim.Optimizer) -> set[str]:
    """The names of what an optimizer keeps for each parameter, seen on another one of its kind after a step."""
    kind, parameter = type(optimizer), nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    known = inspect.signature(kind).parameters
    other = kind([parameter], **{key: value for key, value in optimizer.defaults.items() if key in known})
    other.step()
    return {key for key, value in other.state[parameter].items() if isinstance(value, Tensor)}


def load_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, state: Mapping[str, Mapping[str, Tensor]], path: Path
) -> None:
    """Give the optimizer its buffers back.

    Raises:
        ConfigError: a buffer belongs to no parameter, or has another name or shape than this optimizer gives it.
    """
    names = {p: name for name, p in model.named_parameters()}
    in_order = [p for group in optimizer.param_groups for p in group["params"]]  # how torch numbers them
    numbers = {names[p]: i for i, p in enumerate(in_order)}
    shapes = {name: p.shape for name, p in model.named_parameters()}
    expected = buffers_of(optimizer)
    if state.keys() != shapes.keys():
        odd = listed(sorted(state.keys() ^ shapes.keys()))
        raise ConfigError(f"{path} does not fit the optimizer: it lacks, or has too much, the buffers of {odd}.")
    for name, buffers in state.items():
        real = isinstance(buffers, Mapping) and all(
            isinstance(b, Tensor) and b.is_floating_point() for b in buffers.values()
        )
        if not real or (buffers and set(buffers) != expected):
            found, wanted = listed(sorted(map(str, buffers))), listed(sorted(expected)) or "none"
            raise ConfigError(f"{path} does not fit the optimizer: {name} has the buffers {found}, not {wanted}.")
        if any(b.shape != (torch.Size() if key == "step" else shapes[name]) for key, b in buffers.items()):
            raise ConfigError(f"{path} does not fit the optimizer: its buffers for {name} do not fit the model.")
    whole = optimizer.state_dict()
    whole["state"] = {numbers[name]: dict(buffers) for name, buffers in state.items() if buffers}
    optimizer.load_state_dict(whole)
