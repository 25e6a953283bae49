"""Several trained models as one, and views of an image: eval and predict take the mean of what they say."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer import build
from trainer.config.freeze import from_dict
from trainer.config.schema import Config
from trainer.run.checkpoint import check_architecture, load_model
from trainer.run.machine import Machine
from trainer.run.parts import place
from trainer.run.ready import option_of, stored_of
from trainer.run.safe_load import weights_to_use
from trainer.run.target import find
from trainer.utils.errors import ConfigError, listed


class Mirrored(nn.Module):
    """The mean of a model's outputs for images (N, C, H, W) and for their mirror images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K)."""
        mean: Tensor = (self.model(x) + self.model(x.flip(-1))) / 2
        return mean


class Ensemble(nn.Module):
    """The mean of the probabilities of several classifiers, or of the outputs of several regressions.

    Args:
        models: with equal inputs and classes.
        sigmoids: whether each class has a sigmoid of its own, instead of a softmax over all.
        classes: whether they are classifiers.
    """

    def __init__(self, models: Sequence[nn.Module], *, sigmoids: bool, classes: bool) -> None:
        super().__init__()
        self.models, self.sigmoids, self.classes = nn.ModuleList(models), sigmoids, classes

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> (N, K): such that softmax, or sigmoid, of it is the mean of the probabilities."""
        outputs = torch.stack([model(x).float() for model in self.models])  # (M, N, K)
        if not self.classes:
            return outputs.mean(0)
        if self.sigmoids:  # log(p / (1 - p)), and the number of models cancels
            return F.logsigmoid(outputs).logsumexp(0) - F.logsigmoid(-outputs).logsumexp(0)
        mean: Tensor = outputs.log_softmax(2).logsumexp(0) - outputs.new_tensor(len(outputs)).log()
        return mean


def others_of(
    config: Config, first: Path, content: Mapping[str, Any], machine: Machine
) -> dict[Path, tuple[nn.Module, Any, Path]]:
    """The further models of checkpoint=[...]: {file: (the model, the content of the file, where results go)}.

    Args:
        config: with the names, where runs are, and the library that computes.
        first: the first file.
        content: of it.
        machine: where all of them compute.
    Raises:
        ConfigError: one is missing or damaged, or does not fit the first.
    """
    found: dict[Path, tuple[nn.Module, Any, Path]] = {}
    for name in config.ensemble:
        target = find(name, outputs=config.paths.outputs, checkpoints=config.paths.checkpoints)
        path, other = target.read()
        check_together(content, other, path)
        own = from_dict(target.saved_config, complete=False)
        if build.has_sigmoids(own.loss) != build.has_sigmoids(config.loss):
            raise ConfigError(f"{path}: its loss, {own.loss.name}, makes other probabilities than {config.loss.name}.")
        check_architecture(own, other, path)
        arch = other["arch"]
        impl = config.impls()["model"] if {"impl", "model.impl"} & {*config.typed} else own.impls()["model"]
        model = build.build_model(replace(own.model, impl=impl), impl, tuple(arch["in_shape"]), arch["num_outputs"])
        model = place(model, machine)
        load_model(model, weights_to_use(other), path)
        if any(path.samefile(before) for before in (first, *found)):
            raise ConfigError(f"checkpoint= has {path} twice: it would count twice.")
        found[path] = (model, other, target.results(path, config.paths.outputs))
    return found


def check_together(first: Mapping[str, Any], other: Mapping[str, Any], path: Path) -> None:
    """Refuse a model that takes other inputs than the first one, or says something else.

    Raises:
        ConfigError: names the file and what differs.
    """
    same = {
        "classes": [content["classes"] for content in (first, other)],
        "shape of the inputs": [content["arch"]["in_shape"] for content in (first, other)],
        "number of outputs": [content["arch"]["num_outputs"] for content in (first, other)],
        "normalisation": [[content["preprocess"][key] for key in ("mean", "std")] for content in (first, other)],
        "columns of the table": [content.get("table") for content in (first, other)],
        "way from a file to an image": [
            [
                *(option_of(content, key) for key in ("fit", "interpolation")),
                stored_of(content),
                content["preprocess"].get("depth", 16),
            ]
            for content in (first, other)
        ],
    }
    if odd := [what for what, (a, b) in same.items() if a != b]:
        raise ConfigError(
            f"{path} and the first model differ in {listed(odd)}: models that are averaged see the same inputs."
        )
