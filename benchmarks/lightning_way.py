"""The same training with Lightning, set up like lightning-hydra-template: metrics, callbacks and all.

python -m benchmarks.lightning_way --task mlp --epochs 3     prints one JSON line: the seconds of each epoch
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import hydra
import lightning as L
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics import Accuracy, MaxMetric, MeanMetric

from benchmarks.loops import image_sets, make_model, parser
from benchmarks.tasks import TASKS, Task
from trainer.config.options import CONFIGS


class Classifier(L.LightningModule):
    """A model with the mean loss and the accuracy of each split, and the best validation accuracy so far."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = make_model(task)
        self.task = task
        self.losses = nn.ModuleDict({f"{split}_loss": MeanMetric() for split in ("train", "val", "test")})
        self.accuracies = nn.ModuleDict(
            {f"{split}_acc": Accuracy(task="multiclass", num_classes=10) for split in ("train", "val", "test")}
        )
        self.best = MaxMetric()

    def measured(self, split: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Update and log the split's metrics, and return the loss of a batch."""
        x, y = batch
        logits = self.model(x)
        loss = F.cross_entropy(logits, y)
        mean, accuracy = self.losses[f"{split}_loss"], self.accuracies[f"{split}_acc"]
        mean(loss)
        accuracy(logits.argmax(1), y)
        self.log(f"{split}/loss", mean, on_step=False, on_epoch=True, prog_bar=True)  # type: ignore[arg-type]
        self.log(f"{split}/acc", accuracy, on_step=False, on_epoch=True, prog_bar=True)  # type: ignore[arg-type]
        return loss

    def on_train_start(self) -> None:
        """Reset the metrics after the sanity check."""
        self.losses["val_loss"].reset()  # type: ignore[operator]
        self.accuracies["val_acc"].reset()  # type: ignore[operator]
        self.best.reset()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the training loss."""
        return self.measured("train", batch)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Evaluate a batch of the validation part."""
        self.measured("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Evaluate a batch of the test part."""
        self.measured("test", batch)

    def on_validation_epoch_end(self) -> None:
        """Log the best accuracy; a number, because a MaxMetric would be reset after the epoch."""
        self.best(self.accuracies["val_acc"].compute())  # type: ignore[operator]
        self.log("val/acc_best", self.best.compute(), sync_dist=True, prog_bar=True)

    def configure_optimizers(self) -> Any:
        """Return the task's optimizer; Adam comes with a schedule that follows the validation loss."""
        if self.task.optimizer == "sgd":
            return torch.optim.SGD(self.parameters(), lr=self.task.lr)
        optimizer = torch.optim.Adam(self.parameters(), lr=self.task.lr)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="min", factor=0.1, patience=10)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val/loss"}}


class Clock(L.Callback):
    """Records when each epoch began, and when training ended."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def mark(self) -> None:
        """Record the time, once the device has finished its work."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append(time.perf_counter())

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validation and checkpoint of the previous epoch are done."""
        self.mark()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The last epoch is done."""
        self.mark()


def train(task: Task, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train, validate after each epoch, and test the best checkpoint."""
    sets = image_sets(task, args)
    how: dict[str, Any] = {"batch_size": task.batch_size, "num_workers": args.workers}
    val_batches: DataLoader[Any] = DataLoader(sets.val, **how)
    clock = Clock()
    trainer = L.Trainer(
        accelerator={"auto": "auto", "cpu": "cpu"}.get(args.device, "gpu"),
        devices=1,
        max_epochs=args.epochs,
        default_root_dir=folder,
        logger=TensorBoardLogger(folder),
        callbacks=[
            callbacks.ModelCheckpoint(folder / "checkpoints", monitor="val/acc", mode="max", save_last=True),
            callbacks.EarlyStopping(monitor="val/acc", mode="max", patience=100),
            callbacks.RichModelSummary(),
            callbacks.RichProgressBar(),
            clock,
        ],
    )
    model = Classifier(task)
    trainer.fit(model, DataLoader(sets.train, shuffle=True, **how), val_batches)
    tested = trainer.test(model, DataLoader(sets.test, **how), ckpt_path="best")
    seconds = [b - a for a, b in zip(clock.marks, clock.marks[1:], strict=False)]
    return {"seconds": seconds, "accuracy": tested[0]["test/acc"]}


def main() -> None:
    """Compose settings as such a program does, train, and print the times."""
    args = parser().parse_args()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        settings = hydra.compose("config", overrides=TASKS[args.task].words())
    L.seed_everything(settings.seed, workers=True)
    with tempfile.TemporaryDirectory() as folder:
        result = train(TASKS[args.task], args, Path(folder))
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main()
