"""Numbers over time: metrics.jsonl, which is always written, and what logger= names."""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.run import records
from trainer.run.loggers import Sender, figures_in
from trainer.run.services import open_service, source_tags
from trainer.utils.files import csv_bytes, open_regular, replacing
from trainer.utils.text import one_line

# TensorBoard sorts the groups, named before the slash, and opens the first two. So that these are accuracy and loss,
# with a card for train and one for val, no other tag may come before "loss" in the alphabet.
TAGS = {
    "train_loss": "loss/train",
    "train_accuracy": "accuracy/train",
    "val_loss": "loss/val",
    "val_accuracy": "accuracy/val",
    "val_macro_f1": "per_class/macro_f1",
    "val_balanced_accuracy": "per_class/balanced_accuracy",
    "lr": "lr",
    "samples_per_second": "samples_per_second",
}

MOST_CURVES = 10  # classes that get one
LARGEST_WEIGHT = 1e20  # that has a histogram; none where one is not finite
BINS = 120  # equal ones: TensorBoard draws 30, and its own, which grow by a tenth, take five times as long to count


class Recorder:
    """Writes the metrics of one run; `step` counts parameter updates over the whole run.

    A full disk does not stop training: the lines of metrics.jsonl wait until there is room again, any other logger is
    given up with a warning.

    Args:
        folder: outputs/<run>.
        loggers: of logger=.
        epochs_done: of a resumed run; what the interrupted process wrote past them is dropped, so that no epoch and no
            step appears twice.
        steps_done: the same of steps.
        waiting: lines that the interrupted process could not write.
        warn: is told, once each, what could not be written.
    """

    def __init__(
        self,
        folder: Path,
        loggers: Sequence[str] = ("tensorboard",),
        *,
        epochs_done: int = 0,
        steps_done: int = 0,
        waiting: str = "",
        warn: Callable[[str], None] = print,
    ) -> None:
        self.path = folder / "metrics.jsonl"
        self.warn = warn
        if self.path.exists() and not (self.path.is_file() or self.path.is_dir()):
            self.path.replace(self.path.with_suffix(".corrupt"))
            warn(f"warning: {self.path} is a pipe, a device or a socket; it is kept as metrics.corrupt.")
        rows, damaged = records.whole_rows(records.text_of(self.path)) if self.path.is_file() else ([], False)
        if damaged:
            shutil.copyfile(self.path, self.path.with_suffix(".corrupt"))
            warn(f"warning: {self.path} has unreadable lines; it is kept as metrics.corrupt.")
        by_epoch = {row["epoch"]: row for row in [*records.whole_rows(waiting)[0], *rows]}
        with replacing(self.path) as temporary:
            kept = [by_epoch[epoch] for epoch in sorted(by_epoch) if epoch <= epochs_done]
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self.waiting, self.writer, self.table = "", None, None
        if "tensorboard" in loggers:
            from torch.utils.tensorboard import SummaryWriter  # 0.1 s

            threading.excepthook = silent_for_tensorboard
            lacks = [] if any(folder.glob("tb/events*")) else kept  # it was off before
            self.writer = SummaryWriter(str(folder / "tb"), purge_step=steps_done + 1)
            self._describe(folder, steps_done)
            for row in lacks:
                self._draw(row)
        if "csv" in loggers:
            self.table = EpochTable(folder / "metrics.csv", kept)
            self._tabulate(kept)
        elsewhere = [name for name in ("mlflow", "wandb") if name in loggers]
        opened = partial(open_service, folder=folder, epochs_done=epochs_done)
        self.senders = [Sender(name, folder, partial(opened, name), warn) for name in elsewhere]
        for sender in self.senders:
            sender.tell("epochs", kept)  # one that is new, was off or was killed before it had written them lacks some

    def epoch(self, row: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl, and its metrics in TensorBoard."""
        is_news = not self.waiting
        self.waiting += json.dumps(row) + "\n"
        try:
            self.flush()
        except OSError as error:
            if is_news:
                self.warn(f"warning: {self.path} cannot be written ({error.strerror}); its lines wait for room.")
        self._draw(row)
        self._tabulate([row])
        for sender in self.senders:
            sender.tell("epochs", [row])

    def _draw(self, row: Mapping[str, Any]) -> None:
        self.scalars({tag: row[name] for name, tag in TAGS.items() if row.get(name) is not None}, row["step"])

    def _tabulate(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if self.table is None:
            return
        try:
            self.table.add(rows)
        except OSError as error:
            self.warn(f"warning: metrics.csv is off, it cannot be written ({error.strerror}).")
            self.table = None

    def flush(self) -> None:
        """Write the lines that wait; OSError where there still is no room."""
        if self.waiting:
            self._write(self.waiting)
            self.waiting = ""

    def _write(self, lines: str) -> None:
        size = self.path.stat().st_size
        try:
            with open_regular(self.path, "a", encoding="utf-8") as file:
                file.write(lines)
        except OSError:
            if self.path.is_file():
                os.truncate(self.path, size)  # no half line
            raise

    def _board(self, method: str, *args: Any, **options: Any) -> None:
        """Call a method of the writer, and give TensorBoard up where it cannot write.

        Its errors come from a thread of its own, in whatever call is the next.
        """
        if self.writer is None:
            return
        # a damaged record may hold half of a character
        given = [arg.encode("utf-8", "backslashreplace").decode() if isinstance(arg, str) else arg for arg in args]
        try:
            attrgetter(method)(self.writer)(*given, **options)
        except OSError as error:
            self.writer = None
            self.warn(f"warning: TensorBoard is off, {self.path.parent / 'tb'} cannot be written: {error}")

    def _describe(self, folder: Path, step: int) -> None:
        """The settings and the command, in the Text tab."""
        if not (folder / "config.json").is_file():
            return
        about = records.read_record(folder / "config.json", records.OF_CONFIG)
        settings = "".join(f"    {line}\n" for line in yaml_lines(about["config"]))  # indented: as it is, in Markdown
        self._board("add_text", "settings", settings, step)
        if command := source_tags(about, folder)["command"]:
            again = f"python main.py rerun {about['config']['name']}"  # of a sweep's job: of it alone
            self._board("add_text", "command", f"    {command}\n    {again}\n", step)

    def curves(self, classes: Sequence[str], chances: torch.Tensor, labels: torch.Tensor, step: int) -> None:
        """Precision over recall on the validation split, for each of the first MOST_CURVES classes.

        Args:
            classes: their names.
            chances: (N, K), of each class.
            labels: (N,) int64.
            step: of the weights.
        """
        if self.writer is None:
            return
        x, y = chances.float().cpu().numpy(), labels.cpu().numpy()
        for k, name in enumerate(classes[:MOST_CURVES]):
            self._board("add_pr_curve", f"val/{one_line(name)}", y == k, x[:, k], step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers within an epoch, to TensorBoard only."""
        if self.writer is None:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

        together = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._board("file_writer.add_summary", together, step)  # one event costs as much as one of them alone

    def histograms(self, model: nn.Module, step: int) -> None:
        """Each weight's histogram, and the L2 norm of each gradient as the last step left it."""
        for name, parameter in model.named_parameters():
            if parameter.numel() and parameter.abs().max() < LARGEST_WEIGHT:
                weights = parameter.detach().float().cpu()
                self._board("add_histogram", f"weights/{name}", weights, step, bins=BINS)
            if parameter.grad is not None:
                self._board("add_scalar", f"norm_of_gradient/{name}", torch.linalg.vector_norm(parameter.grad), step)

    def image(self, name: str, path: Path, step: int) -> None:
        """A PNG file as it is, as plots/<name>: reading and writing it anew would take longer than drawing it."""
        for sender in self.senders:
            sender.tell("picture", (name, path))
        if self.writer is None:
            return
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(path) as image:
            size = {"width": image.width, "height": image.height, "colorspace": len(image.getbands())}
        encoded = Summary.Image(**size, encoded_image_string=path.read_bytes())
        self._board("file_writer.add_summary", Summary(value=[Summary.Value(tag=f"plots/{name}", image=encoded)]), step)

    def hyperparameters(self, settings: Mapping[str, Any], metrics: Mapping[str, float], step: int) -> None:
        """The settings beside the final metrics, in this same TensorBoard run (add_hparams would open another)."""
        for sender in self.senders:
            sender.tell("final", metrics)
        if self.writer is None:
            return
        from torch.utils.tensorboard.summary import hparams

        plain = {k: v if isinstance(v, (bool, int, float)) else one_line(v) for k, v in settings.items()}
        # without the first summary, which would hold for all runs: TensorBoard then lists what each of them has
        for summary in hparams(plain, dict(metrics))[1:]:
            self._board("file_writer.add_summary", summary)
        self.scalars(metrics, step)

    def close(self) -> None:
        """Write out what is still in memory."""
        self._board("close")
        for sender in self.senders:
            sender.close()


class EpochTable:
    """metrics.csv: one line per epoch under a head, whose columns are those of the lines so far."""

    def __init__(self, path: Path, kept: Sequence[Mapping[str, Any]]) -> None:
        self.path, self.columns, self.rows = path, list[str](), list[dict[str, Any]]()
        path.unlink(missing_ok=True)  # of the interrupted process; it is written anew from metrics.jsonl

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append lines; with a new column, as a resumed run may bring, the file is written anew."""
        for row in map(figures_in, rows):
            self.rows.append(row)
            new = [key for key in row if key not in self.columns]
            self.columns += new
            if new:
                with replacing(self.path) as temporary:
                    temporary.write_bytes(csv_bytes([self._line(each) for each in self.rows]))
            else:
                with open_regular(self.path, "ab") as file:
                    file.write(csv_bytes([self._line(row)]).split(b"\n", 1)[1])

    def _line(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {key: row.get(key, "") for key in self.columns}


def yaml_lines(settings: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Nested settings as YAML; its values are written as JSON, which YAML contains."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:"
            yield from yaml_lines(value, indent + "  ")
        else:
            yield f"{indent}{key}: {json.dumps(value)}"


def silent_for_tensorboard(args: threading.ExceptHookArgs) -> None:
    """Print what ended a thread, but for an OSError of TensorBoard's: the next call of its writer raises that again."""
    if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
        threading.__excepthook__(args)


class SilentRecorder(Recorder):
    """Records nothing: for the ranks that do not write, and for plots that are drawn later."""

    def __init__(self) -> None:
        self.waiting, self.writer, self.table, self.senders = "", None, None, []

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Do nothing."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def image(self, name: str, path: Path, step: int) -> None:
        """Do nothing."""
