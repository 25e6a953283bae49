"""How far a run is, which epoch is the best so far, and whether training stops here."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.config.schema import Config
from trainer.totals import Totals
from trainer.utils.objective import deciding_metric, score
from trainer.utils.ranks import Ranks
from trainer.utils.text import number_of

EARLY_STOP = ("bad_epochs", "counted", "stopped")  # in a checkpoint they stand apart from the rest


@dataclass
class Progress:
    """How far a run is. `epoch` counts from 1; when epoch e is done, that is stored as epoch e + 1 with 0 samples."""

    epoch: int = 1  # the running one
    samples: int = 0  # examples of this epoch that are done
    step: int = 0  # parameter updates of the whole run
    loss_sum: float = 0.0  # of this epoch's samples
    # those of each rank, which add up to loss_sum; empty with one process
    loss_sums: list[float] = field(default_factory=list)
    num_correct: int = 0  # of this epoch's samples
    seconds: float = 0.0  # of training in this epoch
    bad_epochs: int = 0  # since the deciding metric last improved by more than early_stopping.min_delta
    counted: float = math.nan  # its value then; not a number: of the best epoch, as in a file of an earlier version
    stopped: str = ""  # why training ended before its last epoch
    gradient_norms: dict[str, float] = field(default_factory=dict)  # of the last step, with record.gradients
    waiting: str = ""  # lines of metrics.jsonl that a full disk did not take
    best: dict[str, Any] = field(default_factory=dict)  # metric, value, epoch, step, val_loss, val_accuracy of it

    def store(self, totals: Totals, step: int, seconds: float) -> None:
        """Note the sums of the running epoch. Waits for the device."""
        self.samples, self.step, self.seconds = totals.num_examples, step, seconds
        self.loss_sum, self.num_correct = float(totals.loss_sum), int(totals.num_correct)
        self.loss_sums = totals.by_rank.tolist() if totals.by_rank is not None else []

    def restore(self, totals: Totals, ranks: Ranks) -> Totals:
        """Put the noted sums into fresh totals.

        A rank gets its own sum, since the order of additions decides the last bit. Where there were other ranks, the
        first one gets the sum of all.
        """
        totals.num_examples = self.samples
        sums = self.loss_sums if len(self.loss_sums) == ranks.world else [self.loss_sum] + [0.0] * ranks.world
        totals.loss_sum.fill_(sums[ranks.rank])
        totals.num_correct.fill_(self.num_correct if ranks.is_first else 0)  # whole numbers: any rank may have them
        return totals

    def end_epoch(self, config: Config, row: Mapping[str, Any]) -> None:
        """Note the best epoch, decide whether training stops here, and move to the start of the next epoch.

        Args:
            config: says when to stop.
            row: the line of metrics.jsonl of the epoch that ends.
        """
        metric = deciding_metric(row)
        value = score(metric, row[metric])
        same = self.best.get("metric") == metric  # not where monitor= was changed by resume_allow: it starts anew
        before = score(metric, self.best["value"]) if same else -math.inf
        # min_delta decides about patience alone; small gains add up, since it is measured from the last that counted
        counted = before if math.isnan(self.counted) or not same else score(metric, self.counted)
        if value - counted > config.early_stopping.min_delta:
            self.bad_epochs, self.counted = 0, row[metric]
        else:
            self.bad_epochs += 1
        if value > before or metric.startswith("train"):  # training cannot show overfitting: the last epoch counts
            self.best = {"metric": metric, "value": row[metric], "epoch": row["epoch"], "step": row["step"]}
            self.best |= {key: row.get(key) for key in ("val_loss", "val_accuracy")}
        self.epoch, self.samples, self.seconds = self.epoch + 1, 0, 0.0  # a checkpoint now says: this epoch is done
        self.loss_sum, self.loss_sums, self.num_correct = 0.0, [], 0
        rule = config.early_stopping
        if rule.patience and self.bad_epochs >= rule.patience:
            gain = f"{metric} better by more than {rule.min_delta:g}" if rule.min_delta else f"better {metric}"
            self.stopped = f"no {gain} for {number_of(self.bad_epochs, 'epoch')} (early_stopping.patience)"
        for key, wanted in asdict(config.stop_at).items():
            if wanted is not None and score(key, row[key]) >= score(key, wanted):
                self.stopped = f"{key} {row[key]:.4f} reached stop_at.{key}={wanted:g}"
