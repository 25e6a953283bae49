"""Everything a run computes with, built from its config."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trainer import build, engine
from trainer.build import LossFn
from trainer.config.fit import needs_validation
from trainer.config.roles import fingerprint
from trainer.config.schema import Config
from trainer.data.batches import Batches, Placement, part_of
from trainer.data.splits import Split, Splits, stratified
from trainer.engine import Evaluation
from trainer.run.checkpoint_files import FORMAT
from trainer.run.machine import Machine
from trainer.run.seeds import order_seed, seed_everything, seed_of_rank
from trainer.totals import Totals
from trainer.utils.errors import ConfigError
from trainer.utils.ranks import AgreedStop, Ranks
from trainer.utils.signals import StopSignal

ALONE = Ranks()


@dataclass(frozen=True)
class Parts:
    """Everything a run computes with, built from its config."""

    machine: Machine
    splits: Splits
    model: nn.Module
    loss_fn: LossFn
    optimizer: torch.optim.Optimizer
    lr_at: Callable[[int], float]
    train: Batches
    val: Batches | None
    is_sum: bool  # loss_fn adds over the batch
    scaler: torch.amp.GradScaler | None  # with fp16
    ema: AveragedModel | None  # with ema_decay
    identity: dict[str, Any]  # what is the same in every checkpoint
    ranks: Ranks = ALONE
    distributed: nn.Module | None = None  # with several processes: the same model, averaging their gradients

    @property
    def measured(self) -> nn.Module:
        """The model that is evaluated: the running mean of the weights where there is one."""
        return self.model if self.ema is None else self.ema.module

    def totals(self) -> Totals:
        """Fresh sums on the run's device."""
        return Totals(self.machine.device, is_sum=self.is_sum)

    def measure(self, batches: Batches, stop: StopSignal | AgreedStop | None = None) -> Evaluation:
        """Evaluate on a split. With several processes, each measures its part; the outputs are then those of its part.

        Args:
            stop: may raise Interrupted before any batch.
        """
        self.ranks.overwrite(self.measured.buffers())  # running statistics: each rank has those of its own examples
        totals = self.totals()
        found = evaluate_split(self.measured, self.loss_fn, batches, totals, self.machine, stop)
        if self.ranks.world == 1:
            return found
        totals.num_examples = len(batches.y)
        whole = self.whole(totals)
        return replace(found, loss=whole.loss, accuracy=None if found.accuracy is None else whole.accuracy)

    def whole(self, totals: Totals) -> Totals:
        """The sums of all ranks, from those of this one. Waits for nothing."""
        if self.ranks.world == 1:
            return totals
        sums = self.ranks.stacked(torch.stack([totals.loss_sum, totals.num_correct.to(totals.loss_sum)]))
        whole = self.totals()
        whole.num_examples = totals.num_examples
        whole.loss_sum.copy_(sums[:, 0].sum())
        whole.num_correct.copy_(sums[:, 1].sum())
        whole.by_rank = sums[:, 0]
        return whole


def placement(machine: Machine) -> Placement:
    """Where batches go for this machine."""
    return Placement(machine.device, machine.dtype)


def place(model: nn.Module, machine: Machine) -> nn.Module:
    """The model on its device, in its type and memory layout, compiled where that is asked for."""
    model = model.to(machine.device, machine.dtype)
    if machine.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if machine.compile:
        model.compile()
    return model


def eval_batches(config: Config, splits: Splits, split: Split, machine: Machine, ranks: Ranks = ALONE) -> Batches:
    """A split's batches in order and as they are."""
    place = placement(machine)
    return Batches(splits, split, place, rank=ranks.rank, world=ranks.world, **options_of_batches(config))


def options_of_batches(config: Config) -> dict[str, Any]:
    """The data set's options that say where its pictures are and who decodes them."""
    return {key: config.data[key] for key in ("resident", "workers") if key in config.data.options}


def evaluate_split(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Batches,
    totals: Totals,
    machine: Machine,
    stop: StopSignal | AgreedStop | None = None,
) -> Evaluation:
    """Evaluate a model on a split."""
    with closing(batches.epoch(0)) as examples:
        watched = stop.watched(examples) if stop is not None else examples
        return engine.evaluate(model, loss_fn, watched, totals, machine.autocast)


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


def narrow(config: Config, splits: Splits, batches: int) -> Splits:
    """The splits as overfit_batches and fast_dev_run leave them, or cut to their first `batches` batches each."""
    batches = 1 if config.fast_dev_run else batches
    if batches and not config.overfit_batches:
        n = batches * config.batch_size
        parts = {name: getattr(splits, name) for name in ("train", "val", "test")}
        return replace(splits, **{name: part.take(torch.arange(min(n, len(part)))) for name, part in parts.items()})
    if config.overfit_batches:
        n = min(config.overfit_batches * config.batch_size, len(splits.train))
        chosen, _ = stratified(splits.train.y if splits.classes else None, len(splits.train), n, config.seed)
        few = splits.train.take(chosen)
        return replace(splits, train=few, val=few)
    return splits


def assemble(config: Config, splits: Splits, machine: Machine, *, batches: int = 0, ranks: Ranks = ALONE) -> Parts:
    """Build what the config names, with initial weights that depend on the seed alone.

    Args:
        batches: of each split that are used; 0: all.
        ranks: which of several processes this is; each draws its dropout from a generator of its own.
    Raises:
        ConfigError: the data is too small for the batch size, or lacks the validation part that a setting needs.
    """
    n = len(splits.train)
    if n < config.batch_size:
        raise ConfigError(
            f"batch_size={config.batch_size} is more than the {n:,} training examples. Allowed: 1 to {n}."
        )
    if not len(splits.val) and needs_validation(config):
        raise ConfigError("early_stopping.patience and stop_at.val_* need validation data: a larger data.val_fraction.")
    splits = narrow(config, splits, batches)
    seed_everything(config.seed)
    model = place(build.build_model(config.model, config.impl, splits.in_shape, splits.num_outputs), machine)
    train = Batches(
        splits,
        splits.train,
        placement(machine),
        batch_size=config.batch_size,
        seed=order_seed(config),
        augment="none" if config.overfit_batches else config.data.options.get("augment", "none"),
        rank=ranks.rank,
        world=ranks.world,
        **options_of_batches(config),
    )
    if not ranks.is_first:
        seed_everything(seed_of_rank(config.seed, ranks.rank))
    mean_of_weights = None
    if config.ema_decay:
        mean_of_weights = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)
    return Parts(
        machine=machine,
        splits=splits,
        model=model,
        loss_fn=build.build_loss(config.loss, config.impl),
        optimizer=build.build_optimizer(config.optimizer, config.impl, model),
        lr_at=build.build_schedule(config.schedule, config.optimizer["lr"], len(train), config.epochs),
        train=train,
        val=eval_batches(config, splits, splits.val, machine, ranks) if len(splits.val) else None,
        is_sum=build.is_sum(config.loss),
        scaler=torch.amp.GradScaler(machine.device.type) if machine.autocast_to == torch.float16 else None,
        ema=mean_of_weights,
        identity=identity(config, splits),
        ranks=ranks,
    )


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
    if parts.ranks.world > 2:
        fix_ddp_buckets(parts, distributed)
    return parts


def fix_ddp_buckets(parts: Parts, distributed: nn.Module) -> None:
    """Do a step of nothing, so that the first one of a process is as the others.

    DistributedDataParallel sends gradients in groups, which it makes anew after its first backward pass. The sum of
    three numbers depends on their order, which depends on the groups: a resumed run would round its first step in
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


def identity(config: Config, splits: Splits) -> dict[str, Any]:
    """What is the same in every checkpoint of a run."""
    return {
        "format": FORMAT,
        "kind": "train",
        "app": "trainer",
        "arch": {
            "name": config.model.name,
            "num_outputs": splits.num_outputs,
            "in_shape": list(splits.in_shape),
            "args": dict(config.model.options),
        },
        "classes": list(splits.classes),
        "preprocess": {"size": list(splits.in_shape[1:]), "mean": list(splits.mean), "std": list(splits.std)},
        "config": config.to_dict(),
        "fingerprint": fingerprint(config),
        "data": {
            "name": config.data.name,
            "sha256": splits.sha256,
            "n": len(splits.train),
            "split_seed": config.data.options.get("split_seed"),
        },
    }


def floating(model: nn.Module) -> list[Tensor]:
    """The parameters and buffers that hold real numbers."""
    return [t.detach() for t in model.state_dict().values() if t.is_floating_point()]
