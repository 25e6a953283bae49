"""How far a run is, which epoch is the best so far, and whether training stops here."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.config.schema import Config
from trainer.run.parts import ALONE
from trainer.totals import Totals
from trainer.utils.ranks import Ranks

EARLY_STOP = ("bad_epochs", "stopped")


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

    def take(self, totals: Totals, step: int, seconds: float) -> None:
        """Note the sums of the running epoch. Waits for the device."""
        self.samples, self.step, self.seconds = totals.num_examples, step, seconds
        self.loss_sum, self.num_correct = float(totals.loss_sum), int(totals.num_correct)
        self.loss_sums = totals.by_rank.tolist() if totals.by_rank is not None else []

    def give(self, totals: Totals, ranks: Ranks = ALONE) -> Totals:
        """Put the noted sums into fresh totals: those of the rank, or all into rank 0's if there were other ranks."""
        totals.num_examples = self.samples
        sums = self.loss_sums if len(self.loss_sums) == ranks.world else [self.loss_sum] + [0.0] * ranks.world
        totals.loss_sum.fill_(sums[ranks.rank])
        totals.num_correct.fill_(self.num_correct if ranks.is_first else 0)
        return totals


def advance(config: Config, progress: Progress, row: Mapping[str, Any]) -> None:
    """Move progress to the start of the next epoch, note the best epoch, and decide whether training stops here."""
    metric = next(m for m in ("val_accuracy", "val_loss", "train_accuracy", "train_loss") if m in row)
    sign = 1 if metric.endswith("accuracy") else -1
    best = progress.best.get("value", -sign * math.inf)
    gain = sign * (row[metric] - best)
    progress.bad_epochs = 0 if gain > config.early_stopping.min_delta else progress.bad_epochs + 1
    if gain > 0 or metric.startswith("train"):  # without validation the last epoch counts
        progress.best = {"metric": metric, "value": row[metric], "epoch": row["epoch"], "step": row["step"]}
        progress.best |= {key: row.get(key) for key in ("val_loss", "val_accuracy")}
    progress.epoch, progress.samples, progress.seconds = progress.epoch + 1, 0, 0.0
    progress.loss_sum, progress.loss_sums, progress.num_correct = 0.0, [], 0
    if config.early_stopping.patience and progress.bad_epochs >= config.early_stopping.patience:
        progress.stopped = f"no better {metric} for {progress.bad_epochs} epochs (early_stopping.patience)"
    for key, value in asdict(config.stop_at).items():
        if value is not None and (row[key] >= value if key.endswith("accuracy") else row[key] <= value):
            progress.stopped = f"{key} {row[key]:.4f} reached stop_at.{key}={value:g}"
