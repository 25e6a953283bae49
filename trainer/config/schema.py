"""The settings of a run as frozen dataclasses: Config and its parts. configs/*.yaml says what each setting means."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

GROUPS = ("data", "model", "loss", "optimizer", "schedule", "device")
BUILT = ("model", "loss", "optimizer")  # impl= chooses the library that they come from
DEPTHS = (8, 10, 12, 14, 16)  # bits of the values in 16-bit grey files, as cameras have them
FITTED = ("folder", "shards")  # data sets of image files of any size, which are fitted to data.size


@dataclass(frozen=True)
class Choice:
    """What was chosen from a group, and its options: config.model.name, config.model["pooling"]."""

    name: str
    options: Mapping[str, Any]
    impl: str | None = None  # model, loss, optimizer: the library it comes from; None: Config.impl

    def __getitem__(self, option: str) -> Any:
        return self.options[option]


@dataclass(frozen=True)
class Save:
    """When checkpoints are written, besides at the end of each epoch; 0 is never."""

    every_steps: int
    every_seconds: float


@dataclass(frozen=True)
class EarlyStopping:
    """Stop after `patience` epochs in which the deciding metric improved by no more than min_delta; 0 is never."""

    patience: int
    min_delta: float


@dataclass(frozen=True)
class StopAt:
    """Stop after the epoch in which a metric reaches its value; None is never."""

    train_loss: float | None
    train_accuracy: float | None
    val_loss: float | None
    val_accuracy: float | None


@dataclass(frozen=True)
class Sweep:
    """How the runs of a sweep are trained; stack is auto, True or False."""

    stack: str | bool


@dataclass(frozen=True)
class Record:
    """How often something is written to TensorBoard: every N steps, and histograms every N epochs."""

    every_steps: int
    histograms_every: int | None
    gradients: bool  # each layer's length in metrics.jsonl


@dataclass(frozen=True)
class Finetune:
    """How weights that others trained are trained on; the backbone is all but the last layer."""

    freeze: str  # none, or backbone, which then keeps its weights and statistics
    unfreeze_epoch: int | None  # the first one in which the backbone is trained too; None: never
    backbone_lr: float  # the learning rate of the backbone, as a factor

    @property
    def is_frozen(self) -> bool:
        """Whether the backbone is never trained."""
        return self.freeze != "none" and self.unfreeze_epoch is None


@dataclass(frozen=True)
class Paths:
    """The folders a run reads and writes, relative to where the program was started."""

    data: str
    outputs: str
    checkpoints: str
    cache: str
    weights: str | None  # of others; None: where torch.hub keeps them


@dataclass(frozen=True)
class Reference:
    """A published figure, and where it was published."""

    source: str | None
    metric: str | None
    value: float | None
    tolerance: float  # how far a result may be from it and still count as the same


@dataclass(frozen=True)
class Config:
    """All settings of a run; configs/config.yaml says what each one means."""

    data: Choice
    model: Choice
    loss: Choice
    optimizer: Choice
    schedule: Choice
    device: Choice
    name: str | None  # of the run; None: one is made up
    seed: int  # initial weights, dropout, and the order of the examples unless data.order_seed says another
    epochs: int  # passes over the training split, counted from the start of the run, also when it is resumed
    max_steps: int | None  # steps of the whole run, where they end before the epochs do
    budget: str | None  # the time that epochs and max_steps are laid out for; None: they are given
    batch_size: int  # examples in a step
    accumulate_steps: int  # parts that a batch is computed in, to save memory; the numbers stay those of the batch
    clip_norm: float  # the longest gradient, as an L2 norm; 0: any
    ema_decay: float  # of the running mean of the weights; 0: none is kept
    overfit_batches: int  # train and validate on so many batches; 0: on all
    fast_dev_run: bool  # one epoch of one batch: does everything run?
    sync_batch_norm: bool  # statistics over all processes instead of each one's own
    impl: str  # concise, autograd, scratch or numpy
    resume: str | None  # a run, last, a file, or auto
    resume_allow: Sequence[str]  # settings that may be others than before, although the numbers depend on them
    overwrite: bool  # whether a new run takes the place of one of the same name
    checkpoint: str | None  # what eval and predict measure
    ensemble: Sequence[str]  # further runs and files, whose probabilities are averaged with it
    input: str | list[str] | None  # what predict labels; None: the test split
    output: str | None  # where predict writes; None: a name of its own making
    top_k: int  # classes that predict writes for each example
    probabilities: bool  # whether predict writes the probability of each class
    split: str  # that eval measures
    tta: str  # none, or flip: eval and predict average over each image and its mirror image
    whiten: bool  # the first convolution starts as filters that whiten patches, and keeps them
    init_from: str | None  # a run or file whose weights a new run starts from
    plots: str | bool  # auto, True or False
    report: str | bool  # likewise
    logger: Sequence[str]  # what takes the metrics besides metrics.jsonl
    plugins: Sequence[str]  # files of one's own that brought choices, each with its digest
    monitor: str  # the metric that says which epoch is best; auto: validation accuracy, for regression the loss
    save: Save
    early_stopping: EarlyStopping
    stop_at: StopAt
    finetune: Finetune
    sweep: Sweep
    record: Record
    paths: Paths
    reference: Reference
    typed: Sequence[str] = field(default=(), compare=False)  # dotted keys named on the command line, groups by name
    recipes: Sequence[str] = field(default=(), compare=False)  # the files of tuned values that were applied

    def impls(self) -> dict[str, str]:
        """The library that model, loss and optimizer come from."""
        return {part: getattr(self, part).impl or self.impl for part in BUILT}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and checkpoints: the settings nested as in YAML, and `choices`: {group: name}."""
        plain = asdict(self)
        del plain["typed"], plain["recipes"]
        choices = {group: plain[group]["name"] for group in GROUPS}
        impls = {group: {"impl": plain[group]["impl"]} if group in BUILT else {} for group in GROUPS}
        return plain | {group: impls[group] | plain[group]["options"] for group in GROUPS} | {"choices": choices}
