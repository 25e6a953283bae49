"""The backbone of a network, all but its last layer: frozen, or learning slowly."""

from torch import Tensor, nn

from trainer.config.schema import Config
from trainer.utils.errors import ConfigError


def last_layer(model: nn.Module, num_outputs: int) -> tuple[str, nn.Module]:
    """The name of the layer that gives the outputs, and the layer: the last one with so many."""
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(weight := getattr(module, "weight", None), Tensor) and weight.shape[:1] == (num_outputs,)
    ]
    layers = [(name, module) for name, module in found if module.weight.ndim > 1]
    if not layers:  # of a network of a user's own
        raise ConfigError(f"finetune.* and init_from= are for networks whose last layer has {num_outputs} outputs.")
    return layers[-1]


def backbone_of(model: nn.Module, num_outputs: int) -> list[nn.Parameter]:
    """The parameters of all but the last layer.

    Raises:
        ConfigError: there are none.
    """
    own = set(last_layer(model, num_outputs)[1].parameters())
    found = [p for p in model.parameters() if p not in own]
    if not found:
        raise ConfigError("finetune.* is for networks of several layers: this one is nothing but its last layer.")
    return found


def hold_backbone(config: Config, model: nn.Module, num_outputs: int, epoch: int) -> None:
    """Freeze the backbone, or let it learn, as this epoch has it; the same again changes nothing.

    Frozen parameters get no gradients, so that an optimizer neither changes nor decays them and keeps nothing for them.
    Frozen modules stay in eval mode: no dropout, and batch normalisation keeps its statistics.
    """
    if config.finetune.freeze == "none":
        return
    until = config.finetune.unfreeze_epoch
    frozen = until is None or epoch < until
    for parameter in backbone_of(model, num_outputs):
        parameter.requires_grad_(not frozen)
    name, head = last_layer(model, num_outputs)
    path = [model.get_submodule(".".join(name.split(".")[:depth])) for depth in range(name.count(".") + 1)]
    for module in (child for parent in path for child in parent.children() if child not in (*path, head)):
        module.__dict__.pop("train", None)
        module.train(not frozen)
        if frozen:
            module.__dict__["train"] = stay  # model.train() at the start of an epoch calls it for each child


def stay(mode: bool = True) -> None:
    """What train() is to a frozen module: nothing."""
