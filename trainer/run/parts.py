"""Everything a run computes with, built from its config."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainer import build, engine
from trainer.config.fit import NEEDS_VALIDATION, check_task, needs_validation
from trainer.config.roles import fingerprint
from trainer.config.schema import Config
from trainer.data.adapt import few_of
from trainer.data.augment import UNCHANGED, augment_of
from trainer.data.batches import Batches, Placement
from trainer.data.splits import Split, Splits
from trainer.engine import Evaluation, LossFn, Update
from trainer.run.backbone import backbone_of, hold_backbone
from trainer.run.checkpoint_files import FORMAT
from trainer.run.classes import weights_of_classes
from trainer.run.machine import Machine
from trainer.run.seeds import order_seed, seed_everything, seed_of_rank
from trainer.run.whitening import initial_model
from trainer.totals import Batch, Totals
from trainer.utils.bar import Bar
from trainer.utils.errors import ConfigError
from trainer.utils.ranks import AgreedStop, Ranks
from trainer.utils.signals import StopSignal

ALONE = Ranks()


@dataclass(frozen=True)
class Parts:
    """Everything a run computes with, built from its config."""

    machine: Machine  # where and how the numbers are computed
    splits: Splits  # the data, read
    model: nn.Module  # on its device, in its type and memory layout
    loss_fn: LossFn  # loss_fn(y_hat, y) -> 0-d tensor
    train_loss: LossFn  # the same, or one that weighs the classes differently
    optimizer: torch.optim.Optimizer  # of the model's parameters
    lr_at: Callable[[int], float]  # the learning rate of a step, counted from 0 over the whole run
    train: Batches  # batches of the training split
    val: Batches | None  # batches of the validation split; None: it has no examples
    is_sum: bool  # loss_fn adds over the batch instead of averaging
    num_parts: int  # that each batch is computed in, to save memory
    update: Update  # what is done with the gradients
    identity: dict[str, Any]  # what is the same in every checkpoint
    ranks: Ranks = ALONE  # which of several processes this is
    distributed: DistributedDataParallel | None = None  # the same model, averaging the gradients of several processes
    last: nn.Module | None = None  # its last layer, where train and val are what a frozen backbone gives that

    @property
    def measured(self) -> nn.Module:
        """The model that is evaluated: the running mean of the weights where there is one."""
        return self.model if self.update.ema is None else self.update.ema.module

    def totals(self) -> Totals:
        """Fresh sums on the run's device."""
        return Totals(self.machine.device, is_sum=self.is_sum, soft=bool(self.splits.classes))

    def steps(self, batches: Iterable[Batch], step: int, totals: Totals) -> Iterator[int]:
        """engine.train_epoch on these parts; `step` counts the updates done before."""
        if self.num_parts == 1 and self.ranks.world == 1:
            parts: Iterable[Iterable[engine.Part]] = engine.whole(batches)
        else:
            sizes = self.train.sizes(totals.num_examples) if self.ranks.world > 1 else None
            parts = engine.in_parts(
                batches, sizes, self.num_parts, totals, world=self.ranks.world, distributed=self.distributed
            )
        return engine.train_epoch(
            self.distributed or self.last or self.model,
            self.train_loss,
            self.optimizer,
            parts,
            lr_at=self.lr_at,
            step=step,
            totals=totals,
            autocast=self.machine.autocast,
            update=self.update,
        )

    def measure(self, batches: Batches, stop: StopSignal | AgreedStop | None = None) -> Evaluation:
        """Evaluate on a split. Of several processes each measures its part; the outputs are then those of its part.

        Args:
            batches: of the split.
            stop: may raise Interrupted before any batch.
        """
        self.ranks.overwrite(self.measured.buffers())  # running statistics: each rank has those of its own examples
        totals = self.totals()
        model = self.last if self.last is not None and batches is self.val else self.measured
        found = evaluate_split(model, self.loss_fn, batches, totals, self.machine, stop)
        if self.ranks.world == 1:
            return found
        totals.num_examples = len(batches.y)
        whole = self.whole(totals)
        return replace(found, loss=whole.loss, accuracy=None if found.accuracy is None else whole.accuracy)

    def whole(self, totals: Totals) -> Totals:
        """The sums of all ranks, from those of this one. Does not wait for a GPU."""
        if self.ranks.world == 1:
            return totals
        # one exchange for both; the sums of each rank are kept, since a resumed rank continues its own
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
        model = model.to(memory_format=torch.channels_last)  # the layout that the kernels of convolutions are made for
    if machine.compile:
        model.compile()
    return model


def eval_batches(config: Config, splits: Splits, split: Split, machine: Machine, ranks: Ranks = ALONE) -> Batches:
    """A split's batches in order and as they are."""
    return Batches(splits, split, placement(machine), rank=ranks.rank, world=ranks.world, **reading(config))


def training_order(config: Config) -> dict[str, Any]:
    """What decides which examples come when in training."""
    options = {key: config.data.options.get(key, False) for key in ("drop_last", "balance")}
    return options | {"batch_size": config.batch_size, "seed": order_seed(config)}


def steps_of_run(config: Config, train: Batches) -> int:
    """The steps of the whole run, not of what is left of it: a resumed run is then on the same curve."""
    return min(len(train) * config.epochs, config.max_steps or sys.maxsize)


def reading(config: Config) -> dict[str, Any]:
    """The data set's options that say where its images are kept and who decodes them."""
    return {key: config.data[key] for key in ("resident", "workers") if key in config.data.options}


def evaluate_split(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Batches,
    totals: Totals,
    machine: Machine,
    stop: StopSignal | AgreedStop | None = None,
) -> Evaluation:
    """Evaluate a model on a split; `stop` may raise Interrupted before any batch."""
    with closing(batches.epoch(0)) as examples, Bar("measuring", len(batches.y), "examples") as bar:
        watched = bar.over(stop.watched(examples) if stop is not None else examples)
        return engine.evaluate(model, loss_fn, watched, totals, machine.autocast)


def narrow(config: Config, splits: Splits, batches: int) -> Splits:
    """The splits as overfit_batches and fast_dev_run leave them, or cut to `batches` batches each."""
    batches = 1 if config.fast_dev_run else batches
    if config.overfit_batches:
        few = few_of(splits.train, config.overfit_batches * config.batch_size, config.seed)
        # validated on the same, in each epoch: can the model memorise them at all?
        return replace(splits, train=few, val=few, of_epoch=None)
    if batches:
        n = batches * config.batch_size
        return replace(splits, train=few_of(splits.train, n), val=few_of(splits.val, n), test=few_of(splits.test, n))
    return splits


def assemble(config: Config, splits: Splits, machine: Machine, *, batches: int = 0, ranks: Ranks = ALONE) -> Parts:
    """Build what the config names, with initial weights that depend on the seed alone.

    Args:
        config: all settings of the run.
        splits: the data, read.
        machine: where and how to compute.
        batches: of each split that are used; 0: all.
        ranks: which of several processes this is; each draws its dropout from a generator of its own.
    Raises:
        ConfigError: there is no full batch where drop_last needs one, or no validation part where a setting does.
    """
    n = len(splits.train)
    if n < config.batch_size and config.data.options.get("drop_last"):
        said = f"batch_size={config.batch_size} is more than the {n:,} training examples"
        raise ConfigError(f"{said}, and data.drop_last=true leaves such a batch out. Allowed: 1 to {n}.")
    if not len(splits.val) and needs_validation(config):
        raise ConfigError(f"{NEEDS_VALIDATION} need validation data: a larger data.val_fraction, or a count from 1 on.")
    check_task(config, (splits.task,), splits.table.said if splits.table else f"data={config.data.name}")
    splits = narrow(config, splits, batches)
    seed_everything(config.seed)  # nothing before this line may draw; what is drawn in between shifts all weights
    model = place(initial_model(config, splits), machine)
    hold_backbone(config, model, splits.num_outputs, 1)
    # in a group of its own also where it begins later: torch updates a group at once, by states of one age
    own = config.finetune.backbone_lr != 1 or config.finetune.unfreeze_epoch is not None
    slow = backbone_of(model, splits.num_outputs) if own else []
    train = Batches(
        splits,
        splits.train,
        placement(machine),
        # memorising means the same pixels each time
        augment=UNCHANGED if config.overfit_batches else augment_of(config.data.options, splits.num_outputs),
        rank=ranks.rank,
        world=ranks.world,
        **training_order(config),
        **reading(config),
    )
    if not ranks.is_first:  # after the weights, which all ranks share; else all would drop the same units
        seed_everything(seed_of_rank(config.seed, ranks.rank))
    ema = build.running_mean(model, config.ema_decay) if config.ema_decay else None
    # for float16 alone: bfloat16 has the exponents of float32, and nothing vanishes
    scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.autocast_to == torch.float16)
    return Parts(
        machine=machine,
        splits=splits,
        model=model,
        loss_fn=build.build_loss(config.loss, config.impl),
        train_loss=build.build_loss(config.loss, config.impl, weights_of_classes(config, splits, machine)),
        optimizer=build.build_optimizer(config.optimizer, config.impl, model, slow, config.finetune.backbone_lr),
        lr_at=build.build_schedule(config.schedule, config.optimizer["lr"], len(train), steps_of_run(config, train)),
        train=train,
        val=eval_batches(config, splits, splits.val, machine, ranks) if len(splits.val) else None,
        is_sum=build.is_sum(config.loss),
        num_parts=config.accumulate_steps,
        update=Update(scaler, config.clip_norm, ema),
        identity=identity(config, splits),  # once, since a small model is saved every few milliseconds
        ranks=ranks,
    )


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
        "preprocess": {
            "size": list(splits.in_shape[1:]),
            "mean": list(splits.mean),
            "std": list(splits.std),
            "depth": splits.depth,
        },
        "config": config.to_dict(),
        "fingerprint": fingerprint(config),
        "data": {
            "name": config.data.name,
            "sha256": splits.sha256,
            "n": len(splits.train),
            "split_seed": config.data.options.get("split_seed"),
        }
        | ({"spares": True} if splits.spares else {}),  # absent in runs of earlier versions, which keep their cut
        **({"table": splits.table.to_plain()} if splits.table else {}),
    }
