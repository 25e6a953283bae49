"""The end of a run: the best weights, the test split once, result.json, plots, report and status."""

from trainer.engine import Evaluation
from trainer.run import directory
from trainer.run.checkpoint import load_model
from trainer.run.distributed import gathered
from trainer.run.looks import note_look
from trainer.run.parts import eval_batches
from trainer.run.result import hyperparameters, leave_pictures, result_of, say_result
from trainer.run.resume import read_best
from trainer.run.safe_load import weights_to_use
from trainer.run.session import Session
from trainer.utils.files import write_json


def finish_run(s: Session) -> None:
    """Measure the best weights on the test split, once, and write result.json, plots and report."""
    parts, ranks = s.parts, s.parts.ranks
    with ranks.together():
        if ranks.is_first:
            load_best(s)
    # rank 0 read the file, which the others may not have; all measure the same weights
    ranks.overwrite(parts.measured.state_dict().values())
    batches = eval_batches(s.config, parts.splits, parts.splits.test, parts.machine, ranks)
    test = gathered(parts, batches, parts.measure(batches, s.stop))
    with ranks.together():
        if ranks.is_first:
            conclude(s, test)


def load_best(s: Session) -> None:
    """Put the weights of best.pt into the model, and where that is not of the best epoch, say so and count it as best.

    It may be of another epoch, if the disk was full when the best one was saved, or the file was damaged later.
    """
    s.recorder.flush()  # what a full disk kept waiting: result.json is made from these lines
    best = s.run.checkpoints / "best.pt"
    content = read_best(s.run, s.progress.best["step"], s.screen)  # from the file: what is measured is what is kept
    load_model(s.parts.measured, weights_to_use(content), best)
    step, wanted = content["progress"]["step"], s.progress.best
    if step != wanted["step"]:
        rows = [row for row in directory.read_metrics(s.run.outputs) if row["step"] == step]
        found = rows and wanted["metric"] in rows[0]
        row = rows[0] | {"value": rows[0][wanted["metric"]]} if found else content["best"] or wanted  # its own best
        s.screen.say(f"warning: the file of epoch {wanted['epoch']} is gone; {best} is of epoch {row['epoch']}.")
        s.progress.best = wanted | {key: row.get(key) for key in ("value", "epoch", "step", "val_loss", "val_accuracy")}


def conclude(s: Session, test: Evaluation) -> None:
    """Write result.json, plots, report and, last, the status; the model holds the best weights, which reach `test`."""
    result = result_of(s.config, s.parts, s.progress, s.run, test)
    write_json(s.run.outputs / "result.json", result)
    final = {f"test/{key}": value for key, value in result["test"].items() if key != "n"}
    final["test/val_of_best"] = s.progress.best["value"]
    if not s.config.fast_dev_run:
        classes = {"true": test.labels.tolist(), "predicted": test.outputs.argmax(1).tolist()}
        note_look(s.run.outputs, s.parts.splits.sha256, classes if test.accuracy is not None else None)
        s.recorder.hyperparameters(hyperparameters(s.config), final, s.progress.step)
    leave_pictures(s.config, s.parts, s.progress, s.run, test, s.recorder, s.screen)
    say_result(s.screen, s.config, s.run, result)
    directory.write_status(s.run, "done", s.started)  # last: who reads "done" finds the rest
