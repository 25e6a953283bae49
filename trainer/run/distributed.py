"""What several processes need that train one model together, besides the ranks' talk: torchrun starts them."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer.config.schema import Config
from trainer.data.batches import Batches, part_of
from trainer.engine import Evaluation, LossFn
from trainer.run.machine import Machine
from trainer.run.parts import Parts
from trainer.utils.errors import ConfigError
from trainer.utils.ranks import Ranks
from trainer.utils.screen import Screen

STEPS_BETWEEN_TALKS = {"cpu": 1, "cuda": 10}  # after so many steps they agree whether to stop or save


def check_processes(config: Config, machine: Machine, ranks: Ranks, screen: Screen) -> None:
    """Refuse what several processes cannot do, and warn of what does nothing with one, or with several.

    Raises:
        ConfigError: names the setting.
    """
    if ranks.world == 1:
        if config.sync_batch_norm:
            screen.say("warning: sync_batch_norm=true has no effect on one process")
        return
    impls = config.impls()
    if "numpy" in impls.values():
        raise ConfigError("impl=numpy is for one process. Allowed with torchrun: impl=concise, autograd, scratch.")
    if machine.device.type not in STEPS_BETWEEN_TALKS:
        raise ConfigError(f"device={machine.device.type}: several processes need device=cpu or device=cuda.")
    if config.sync_batch_norm and (machine.device.type != "cuda" or impls["model"] != "concise"):
        reason = "torch has it for GPUs only" if machine.device.type != "cuda" else "it is for impl=concise"
        raise ConfigError(f"sync_batch_norm=true: {reason}. Allowed here: false.")
    if config.finetune.unfreeze_epoch is not None:  # torch averages the gradients that there are at the start
        raise ConfigError("finetune.unfreeze_epoch is for one process. Start it without torchrun.")
    if "device.index" in config.typed:
        screen.say("warning: device.index has no effect: torchrun gives each process a GPU of its own")


def distribute(config: Config, parts: Parts) -> Parts:
    """The parts with their model in torch's DistributedDataParallel; as they are where there is one process.

    Every rank's model gets the weights and buffers of rank 0 here. What is put into the model later stays in it.
    """
    if parts.ranks.world == 1:
        return parts
    model, device = parts.model, parts.machine.device
    if config.sync_batch_norm:  # in place: a ResNet is no BatchNorm itself
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    distributed = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    parts = replace(parts, distributed=distributed)
    parts = replace(parts, loss_fn=loss_or_zero(parts.loss_fn), train_loss=loss_or_zero(parts.train_loss))
    if parts.ranks.world > 2:
        fix_ddp_buckets(parts, distributed)
    return parts


def loss_or_zero(loss_fn: LossFn) -> LossFn:
    """The loss, and for a rank that has no example of a short batch a 0 with gradients of 0: all ranks go backward."""

    def of_some_or_none(y_hat: Tensor, y: Tensor) -> Tensor:
        return loss_fn(y_hat, y) if len(y) else y_hat.sum() * 0

    return of_some_or_none


def fix_ddp_buckets(parts: Parts, distributed: nn.Module) -> None:
    """Run one dummy step, so that the first real step rounds like all later ones.

    DistributedDataParallel sends gradients in buckets, which it makes anew after its first backward pass. The sum of
    three numbers depends on their order, which depends on the buckets: a resumed run would round its first step in
    another way than the run that was not interrupted.
    """
    before = [buffer.clone() for buffer in parts.model.buffers()]
    nothing = torch.zeros(2, *parts.splits.in_shape, device=parts.machine.device, dtype=parts.machine.dtype)
    with parts.machine.autocast():
        y_hat = distributed(nothing)
    (y_hat.sum() * 0).backward()
    parts.optimizer.zero_grad()
    for buffer, value in zip(parts.model.buffers(), before, strict=True):
        buffer.copy_(value)


def gathered(parts: Parts, batches: Batches, found: Evaluation) -> Evaluation:
    """The evaluation with the outputs of all ranks, in the order of the split; on the CPU where there are several."""
    ranks = parts.ranks
    if ranks.world == 1:
        return found
    outputs, labels = [], []
    of_ranks = ranks.gather((found.outputs.cpu(), found.labels.cpu()))
    starts = [0] * ranks.world
    for size in batches.sizes():
        for rank, (y_hat, y) in enumerate(of_ranks):
            n = len(part_of(torch.arange(size), rank, ranks.world))
            outputs.append(y_hat[starts[rank] : starts[rank] + n])
            labels.append(y[starts[rank] : starts[rank] + n])
            starts[rank] += n
    return replace(found, outputs=torch.cat(outputs), labels=torch.cat(labels))
