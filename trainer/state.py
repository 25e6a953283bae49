"""What a run consists of while it runs, and how that becomes a checkpoint and comes back from one."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.overrides import TorchFunctionMode

from trainer import build, engine
from trainer.config import Config, flatten, needs_validation
from trainer.data.batches import Batches, Placement, part_of
from trainer.data.splits import Split, Splits, stratified
from trainer.utils import checkpoint, runtime
from trainer.utils.errors import ConfigError
from trainer.utils.ranks import AgreedStop, Ranks
from trainer.utils.runtime import Machine
from trainer.utils.signals import StopSignal

# what resume may change: no number depends on it, or only on how far training goes. Another device or number of threads
# rounds differently, and a warning says so.
FREE_ON_RESUME = (
    "checkpoint",
    "choices.device",
    "data.mirror",
    "data.resident",
    "data.workers",
    "device.deterministic",
    "device.index",
    "device.num_threads",
    "early_stopping.",
    "epochs",
    "input",
    "name",
    "paths.",
    "plots",
    "record.",
    "reference.",
    "resume",
    "save.",
    "split",
    "stop_at.",
    "sweep.",
)
HOW_FAR = ("epochs", "early_stopping.", "stop_at.")  # those of them that say when training ends
EARLY_STOP = ("bad_epochs", "stopped")
ALONE = Ranks()


@dataclass(frozen=True)
class Parts:
    """Everything a run computes with, built from its config."""

    machine: Machine
    splits: Splits
    model: nn.Module
    loss_fn: build.LossFn
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

    def totals(self) -> engine.Totals:
        """Fresh sums on the run's device."""
        return engine.Totals(self.machine.device, is_sum=self.is_sum)

    def measure(self, batches: Batches, stop: StopSignal | AgreedStop | None = None) -> engine.Evaluation:
        """Evaluate on a split. With several processes, each measures its part; the outputs are then those of its part.

        Args:
            stop: may raise Interrupted before any batch.
        """
        self.ranks.overwrite(self.measured.buffers())  # running statistics: each rank has those of its own examples
        totals = self.totals()
        found = measure(self.measured, self.loss_fn, batches, totals, self.machine, stop)
        if self.ranks.world == 1:
            return found
        totals.num_examples = len(batches.y)
        whole = self.whole(totals)
        return replace(found, loss=whole.loss, accuracy=None if found.accuracy is None else whole.accuracy)

    def whole(self, totals: engine.Totals) -> engine.Totals:
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


@dataclass
class Progress:
    """How far a run is. `epoch` counts from 1; (epoch + 1, 0 samples) is how the end of an epoch is written."""

    epoch: int = 1
    samples: int = 0  # examples of this epoch that are done
    step: int = 0  # parameter updates of the whole run
    loss_sum: float = 0.0  # of this epoch's samples
    loss_sums: list[float] = field(default_factory=list)  # of each rank, which add up to it; with one process empty
    num_correct: int = 0
    seconds: float = 0.0  # of training in this epoch
    bad_epochs: int = 0  # since the validation metric last improved by more than min_delta
    stopped: str = ""  # why training ended before its last epoch
    waiting: str = ""  # lines of metrics.jsonl that a full disk did not take
    best: dict[str, Any] = field(default_factory=dict)  # metric, value, epoch, step, val_loss, val_accuracy

    def take(self, totals: engine.Totals, step: int, seconds: float) -> None:
        """Note the sums of the running epoch. Waits for the device."""
        self.samples, self.step, self.seconds = totals.num_examples, step, seconds
        self.loss_sum, self.num_correct = float(totals.loss_sum), int(totals.num_correct)
        self.loss_sums = totals.by_rank.tolist() if totals.by_rank is not None else []

    def give(self, totals: engine.Totals, ranks: Ranks = ALONE) -> engine.Totals:
        """Put the noted sums into fresh totals: those of the rank, or all into rank 0's if there were other ranks."""
        totals.num_examples = self.samples
        sums = self.loss_sums if len(self.loss_sums) == ranks.world else [self.loss_sum] + [0.0] * ranks.world
        totals.loss_sum.fill_(sums[ranks.rank])
        totals.num_correct.fill_(self.num_correct if ranks.is_first else 0)
        return totals


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


def measure(
    model: nn.Module,
    loss_fn: build.LossFn,
    batches: Batches,
    totals: engine.Totals,
    machine: Machine,
    stop: StopSignal | AgreedStop | None = None,
) -> engine.Evaluation:
    """Evaluate a model on a split."""
    with closing(batches.epoch(0)) as examples:
        watched = stop.watched(examples) if stop is not None else examples
        return engine.evaluate(model, loss_fn, watched, totals, machine.autocast)


def gathered(parts: Parts, batches: Batches, found: engine.Evaluation) -> engine.Evaluation:
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


def order_seed(config: Config) -> int:
    """What the order of the examples and their augmentation depend on."""
    own = config.data.options.get("order_seed")
    return config.seed if own is None else int(own)


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
    runtime.seed_everything(config.seed)
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
        runtime.seed_everything(seed_of_rank(config.seed, ranks.rank))
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


def seed_of_rank(seed: int, rank: int) -> int:
    """A seed for what a rank draws by itself."""
    return int.from_bytes(hashlib.sha256(f"{seed}/rank {rank}".encode()).digest()[:8], "big") >> 1


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
        settle_groups(parts, distributed)
    return parts


def settle_groups(parts: Parts, distributed: nn.Module) -> None:
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
        "format": checkpoint.FORMAT,
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


def pack(parts: Parts, progress: Progress) -> dict[str, Any]:
    """The content of a checkpoint: plain types and tensors only. All ranks call it; rank 0 writes what it returns."""
    return parts.identity | {
        "created": time.time(),
        "model": tensors_of(parts.model),
        "optimizer": {
            "name": parts.identity["config"]["choices"]["optimizer"],
            "state": checkpoint.optimizer_state(parts.optimizer, parts.model),
        },
        "scaler": parts.scaler.state_dict() if parts.scaler is not None else None,
        "ema": tensors_of(parts.ema.module) if parts.ema is not None else None,
        "progress": {k: v for k, v in vars(progress).items() if k not in ("best", *EARLY_STOP)},
        "early_stop": {k: getattr(progress, k) for k in EARLY_STOP},
        "best": dict(progress.best),
        "rng": parts.ranks.gather(runtime.rng_state(parts.machine.device)),
        "env": environment(parts.machine) | {"world": parts.ranks.world},
    }


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers by name."""
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def fingerprint(config: Config) -> str:
    """SHA-256 of the settings that the numbers depend on: equal for two runs that ought to be the same."""
    return hashlib.sha256(json.dumps(decisive(config.to_dict()), sort_keys=True).encode()).hexdigest()


def decisive(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the numbers depend on, by dotted name."""
    return {key: value for key, value in flatten(plain).items() if not key.startswith(FREE_ON_RESUME)}


def environment(machine: Machine) -> dict[str, Any]:
    """What rounding depends on besides the settings."""
    capability = torch.backends.cpu.get_cpu_capability()
    device = runtime.gpu_name(machine.device) or machine.device.type
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "cpu": capability,
        "device": device,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": machine.matmul,
        "stack": machine.stack,
    }


def unpack(content: dict[str, Any], config: Config, parts: Parts, path: Path) -> Progress:
    """Put a checkpoint's content into freshly assembled parts.

    Raises:
        ConfigError: it is of another model, optimizer or data set; the message names both.
    """
    check_fits(content, parts.splits, path)
    if content["data"]["sha256"] != parts.splits.sha256:
        raise ConfigError(
            f"{path} was trained on other data than data={config.data.name} holds now: resume needs the same."
        )
    if content["optimizer"]["name"] != config.optimizer.name:
        raise ConfigError(f"{path} holds optimizer={content['optimizer']['name']}, not {config.optimizer.name}.")
    checkpoint.load_model(parts.model, content["model"], path)
    checkpoint.load_optimizer(parts.optimizer, parts.model, content["optimizer"]["state"], path)
    try:
        if parts.scaler is not None and content["scaler"] is not None:  # None: fp16 is new, by resume_allow
            parts.scaler.load_state_dict(content["scaler"])
        if parts.ema is not None:
            checkpoint.load_model(parts.ema.module, checkpoint.weights_to_use(content), path)
            parts.ema.n_averaged.fill_(content["progress"]["step"])
        if parts.ranks.is_first or parts.ranks.rank < len(content["rng"]):  # a rank that is new has its seed
            runtime.restore_rng(content["rng"][parts.ranks.rank], parts.machine.device)
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
    return progress


def check_fits(content: dict[str, Any], splits: Splits, path: Path) -> None:
    """Refuse data that a checkpoint's model was not made for.

    Raises:
        ConfigError: input shape, or the names or order of the classes differ.
    """
    if tuple(content["arch"]["in_shape"]) != splits.in_shape:
        raise ConfigError(
            f"{path} takes inputs of shape {tuple(content['arch']['in_shape'])}; this data has {splits.in_shape}."
        )
    if content["classes"] != list(splits.classes):
        was, now = ", ".join(content["classes"]) or "none", ", ".join(splits.classes) or "none"
        raise ConfigError(f"{path} knows the classes {was}; this data has {now}, or the same in another order.")


class WithoutDraws(TorchFunctionMode):
    """Leaves Tensor.normal_ out: for a tensor without numbers torch would import its compiler, for a second."""

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
    checkpoint.check_shapes(model, content["model"], path)


def floating(model: nn.Module) -> list[Tensor]:
    """The parameters and buffers that hold real numbers."""
    return [t.detach() for t in model.state_dict().values() if t.is_floating_point()]
