"""Which values a setting takes: a table of ranges by dotted name, and which models and losses are for which task.

The YAML files of configs/ say which settings exist and of which type they are; options.py applies both.
"""

import math
import os
import re
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainer.config.duration import Duration
from trainer.config.loggers import Loggers
from trainer.config.schema import BUILT, DEPTHS
from trainer.utils.errors import listed
from trainer.utils.objective import OF_CLASSES
from trainer.utils.text import short_repr


def as_yaml(value: Any) -> str:
    """A value as YAML writes it, for messages: a large one shortened, an address without its password."""
    if isinstance(value, (list, dict, tuple, set)):  # in an untrusted file a few bytes can stand for 2^60 items
        return reprlib.repr(value)
    if isinstance(value, int) and abs(value) > 10**4000:  # str() fails on some
        return short_repr(value)
    text = str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
    return f"***@{text.rpartition('@')[2]}" if "@" in text else text


@dataclass(frozen=True)
class Range:
    """Numbers from low to high.

    Attributes:
        low: the smallest number; with open_low the number above which they begin.
        high: the largest number; with open_high the number below which they end.
        whole: whole numbers only.
        length: how many items a list of such numbers has; None: any number.
    """

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False
    whole: bool = False
    length: int | None = None

    def __str__(self) -> str:
        kind = "whole numbers" if self.whole else "numbers"
        low, high = (f"{bound:,}" if self.whole else f"{bound:g}" for bound in (self.low, self.high))
        return f"{kind} {'above' if self.open_low else 'from'} {low} {'to below' if self.open_high else 'to'} {high}"

    def __call__(self, value: Any) -> Any:
        """Return the value in its final type, or raise ValueError."""
        # True is an int for Python; NaN would pass every comparison below
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError
        if self.whole and not isinstance(value, int):
            raise ValueError
        if not (self.low < value if self.open_low else self.low <= value):
            raise ValueError
        if not (value < self.high if self.open_high else value <= self.high):
            raise ValueError
        return value if self.whole else float(value)


@dataclass(frozen=True)
class OneOf:
    """One of a few words (or true and false)."""

    words: tuple[Any, ...]

    def __str__(self) -> str:
        return listed([as_yaml(word) for word in self.words])

    def __call__(self, value: Any) -> Any:
        """Return the value in its final type, or raise ValueError."""
        # by identity, since 1 == True, and a list cannot be hashed
        if not any(value is w or (isinstance(w, str) and value == w) for w in self.words):
            raise ValueError
        return value


@dataclass(frozen=True)
class Normalize:
    """own, none or [mean, std]: each a number, or a list of one number for each of 1 or 3 channels."""

    def __str__(self) -> str:
        return "own, none, or [mean, std] with std above 0, each a number or a list of one per channel"

    def __call__(self, value: Any) -> Any:
        """Return the value in its final type, or raise ValueError."""
        if value in ("own", "none"):
            return value
        if not isinstance(value, list) or len(value) != 2:
            raise ValueError
        each = zip((Range(-1000, 1000), Range(0, 1000, open_low=True)), value, strict=True)
        return [[rule(n) for n in v] if isinstance(v, list) and v else rule(v) for rule, v in each]


FLIPS = ("flip", "alternate_flip", "crop_flip")
AUGMENTS = (*FLIPS, "translate", "shift", "resized_crop", "color", "trivial", "randaugment", "erasing")


@dataclass(frozen=True)
class Steps:
    """none, a name of AUGMENTS, or a list of some, each once; a list of one becomes its name."""

    def __str__(self) -> str:
        return f"none, {', '.join(AUGMENTS)}, or a list of these steps, each once"

    def __call__(self, value: Any) -> Any:
        """Return the value in its final type, or raise ValueError."""
        names = value if isinstance(value, list) else [value]
        if value == "none":
            return value
        if not names or any(name not in AUGMENTS for name in names) or len(set(names)) < len(names):
            raise ValueError
        return names if len(names) > 1 else names[0]


@dataclass(frozen=True)
class ClassWeights:
    """A list of numbers from 0 on, one of them above 0."""

    def __str__(self) -> str:
        return "one number for each class, 0 or more and not all 0"

    def __call__(self, value: Any) -> Any:
        """Return the value in its final type, or raise ValueError."""
        found = [Range(0, 1e6)(each) for each in value] if isinstance(value, list) and len(value) <= 1000 else []
        if not any(found):
            raise ValueError
        return found


@dataclass(frozen=True)
class Span:
    """[low, high]."""

    def __str__(self) -> str:
        return "[low, high]"

    def __call__(self, value: Any) -> Any:
        """Return the value in its final type, or raise ValueError."""
        low, high = (Range(-1e6, 1e6)(bound) for bound in value) if isinstance(value, list) else (1, 0)
        if low > high:
            raise ValueError
        return [low, high]


@dataclass(frozen=True)
class Such:
    """Values that fulfil a condition, and its wording for messages."""

    wording: str
    accepts: Callable[[Any], bool]

    def __str__(self) -> str:
        return self.wording

    def __call__(self, value: Any) -> Any:
        """Return the value in its final type, or raise ValueError."""
        if not self.accepts(value):
            raise ValueError
        return value


@dataclass(frozen=True)
class FilePath:
    """A path, or a name that may stand in its place; ~ is the home directory."""

    def __str__(self) -> str:
        return "text"

    def __call__(self, value: Any) -> Any:
        """Return the path without ~, or raise ValueError."""
        return os.path.expanduser(TEXT(value))


@dataclass(frozen=True)
class FilePaths(FilePath):
    """A path or a list of them."""

    def __str__(self) -> str:
        return "text or a list of texts"

    def __call__(self, value: Any) -> Any:
        """Return the paths without ~, or raise ValueError."""
        one = super().__call__
        return [one(path) for path in value] if isinstance(value, list) and value else one(value)


@dataclass(frozen=True)
class Either:
    """A value that one of two rules allows."""

    first: "Rule"
    second: "Rule"

    def __str__(self) -> str:
        return f"{self.first}, or {self.second}"

    def __call__(self, value: Any) -> Any:
        """Return the value in its final type, or raise ValueError."""
        try:
            return self.first(value)
        except ValueError:
            return self.second(value)


Rule = Callable[[Any], Any]
TEXT = Such("text", lambda value: isinstance(value, str) and value != "")
# a user name or password would be printed and saved with the other settings
ADDRESS = Such(
    "http://... or https://..., without a user name or password",
    lambda value: isinstance(value, str) and value.startswith(("http://", "https://")) and "@" not in value,
)
SEED = Range(0, 2**63 - 1, whole=True)
SHARE = Range(0, 1, open_high=True)
POSITIVE = Range(0, 1e6, open_low=True)
LAYER = r"conv[1-9]\d{0,4}x[1-9]\d{0,2}(p\d{1,2})?|(max|avg)[1-9]\d?|fc[1-9]\d{0,5}"  # of model=convnet
OF_NUMBERS = ("test_rmse", "test_mae", "test_r2")  # of a table whose target is a number
REFERENCE_METRICS = ("test_accuracy", "test_loss", "train_loss", "weight_error", "vote_accuracy", *OF_NUMBERS)
IMPLS = ("concise", "autograd", "scratch", "numpy")
RANGES: dict[str, Rule] = {
    **{key: FilePath() for key in ("resume", "checkpoint", "ensemble", "output", "init_from", "model.weights")},
    **{f"data.{key}": FilePath() for key in ("root", "test_root", "path", "test_path")},
    "input": FilePaths(),
    **{f"paths.{folder}": FilePath() for folder in ("data", "outputs", "checkpoints", "cache", "weights")},
    "seed": SEED,
    "epochs": Range(1, 100_000, whole=True),
    "max_steps": Range(1, 10**12, whole=True),
    "budget": Duration(),
    "batch_size": Range(1, 1_000_000, whole=True),
    "accumulate_steps": Range(1, 1_000_000, whole=True),
    "clip_norm": Range(0, 1e9),
    **dict.fromkeys(("ema_decay", "model.dropout", "loss.label_smoothing", "optimizer.momentum"), SHARE),
    "finetune.freeze": OneOf(("none", "backbone")),
    "finetune.unfreeze_epoch": Range(2, 100_000, whole=True),
    "finetune.backbone_lr": Range(0, 1, open_low=True),
    "overfit_batches": Range(0, 1_000_000, whole=True),
    "impl": OneOf(IMPLS),
    **{f"{part}.impl": OneOf((None, *IMPLS)) for part in BUILT},
    "plots": OneOf(("auto", True, False)),
    "report": OneOf(("auto", True, False)),
    "logger": Loggers(),
    "split": OneOf(("train", "val", "test")),
    "tta": OneOf(("none", "flip")),
    "top_k": Range(1, 1000, whole=True),
    "monitor": OneOf(("auto", "val_accuracy", "val_loss", *OF_CLASSES)),
    "save.every_steps": Range(0, 10**12, whole=True),
    "save.every_seconds": Range(0, 1e9),
    "early_stopping.patience": Range(0, 100_000, whole=True),
    "early_stopping.min_delta": Range(0, 1e9),
    **{f"stop_at.{split}_loss": Range(0, 1e9) for split in ("train", "val")},
    **{f"stop_at.{split}_accuracy": Range(0, 1) for split in ("train", "val")},
    "sweep.stack": OneOf(("auto", True, False)),
    "record.every_steps": Range(1, 10**9, whole=True),
    "record.histograms_every": Range(0, 100_000, whole=True),
    "reference.metric": OneOf((None, *REFERENCE_METRICS)),
    "reference.value": Range(-1e9, 1e9),
    "reference.tolerance": Range(0, 1e9),
    **dict.fromkeys(("data.w", "data.b"), Range(-1e6, 1e6)),
    "data.noise": Range(0, 1e6),
    "data.inputs": Either(OneOf(("normal",)), Span()),
    **dict.fromkeys(("data.num_inputs", "data.num_targets"), Range(1, 10**6, whole=True)),
    "data.num_examples": Range(2, 10**8, whole=True),
    "data.data_seed": SEED,
    "data.mirror": ADDRESS,
    "data.val_fraction": Range(0, 1e9),
    "data.split_seed": Range(0, 2**62, whole=True),
    "data.order_seed": SEED,
    **dict.fromkeys(("data.limit", "data.eval_limit"), Range(1, 10**9, whole=True)),
    "data.normalize": Normalize(),
    "data.expand": OneOf(("none", "shift")),
    "data.augment": Steps(),
    **dict.fromkeys(("data.mixup", "data.cutmix", "model.bias_std"), Range(0, 100)),
    **dict.fromkeys(("data.size", "data.first_sizes"), Range(8, 1024, whole=True)),
    "data.channels": OneOf((1, 3)),
    "data.fit": OneOf(("crop", "pad", "squash")),
    "data.interpolation": OneOf(("bilinear", "bicubic")),
    "data.max_megapixels": Range(0, 10_000, open_low=True),
    "data.cache_gb": POSITIVE,
    "data.depth": OneOf(("auto", *DEPTHS)),
    "data.test_fraction": Range(0, 1, open_low=True, open_high=True),
    "data.task": OneOf(("auto", "regression", "classification")),
    "data.on_error": OneOf(("fail", "skip")),
    "data.resident": OneOf(("auto", True, False)),
    "data.workers": Range(0, 64, whole=True),
    "model.init_std": Either(OneOf(("fan_in", "torch")), Range(0, 100)),
    "model.start": Range(-1e6, 1e6),
    "model.num_hiddens": Range(1, 10**6, whole=True),
    "model.widths": Range(1, 4096, whole=True),
    "model.activation": OneOf(("relu", "sigmoid", "tanh")),
    "model.layers": Such(
        "conv20x5 (20 channels of 5x5), conv20x5p2 (padded by 2), max2, avg2 or fc100",
        lambda value: isinstance(value, str) and bool(re.fullmatch(LAYER, value)),
    ),
    "model.pooling": OneOf(("max", "avg")),
    "model.stem": OneOf(("auto", "cifar", "imagenet")),
    "loss.class_weights": Either(OneOf(("none", "balanced")), ClassWeights()),
    "loss.form": OneOf(("half", "mean", "sum")),
    **dict.fromkeys(("loss.delta", "model.logit_scale"), POSITIVE),
    **dict.fromkeys(("optimizer.lr", "optimizer.vector_lr"), Range(0, 1000, open_low=True)),
    "optimizer.ns_steps": Range(1, 100, whole=True),
    "optimizer.weight_decay": Range(0, 1000),
    "optimizer.betas": Range(0, 1, open_high=True, length=2),
    "optimizer.eps": Range(0, 1, open_low=True),
    "optimizer.alpha": SHARE,
    "schedule.step_size": Range(1, 100_000, whole=True),
    "schedule.gamma": Range(0, 10, open_low=True),
    "schedule.warmup_epochs": Range(0, 100_000),
    "schedule.warmup_fraction": SHARE,
    **dict.fromkeys(("schedule.initial_factor", "schedule.final_factor"), Range(0, 1)),
    "schedule.anneal": OneOf(("cos", "linear")),
    "device.num_threads": Range(0, 1024, whole=True),
    "device.precision": OneOf(("auto", "fp32", "bf16", "fp16", "fp64")),
    "device.channels_last": OneOf(("auto", True, False)),
    "device.matmul": OneOf(("auto", "torch", "onednn", "tf32")),
    "device.index": Range(0, 63, whole=True),
}
OF_LAUNCHERS: dict[str, Rule] = {  # of configs/hydra/launcher; the launchers check their other options themselves
    "n_jobs": Either(OneOf((-1,)), Range(1, 1024, whole=True)),
    "timeout_min": Range(1, 10**6, whole=True),
    "cpus_per_task": Range(1, 1024, whole=True),
    "gpus_per_node": Range(1, 1024, whole=True),
}
