"""The end of a run: the best weights, the test split once, result.json, plots and status."""

from trainer import data
from trainer.config.freeze import from_dict
from trainer.engine import Evaluation
from trainer.run import directory
from trainer.run.checkpoint import load_model
from trainer.run.checkpoint_files import step_of, steps_in
from trainer.run.directory import Run
from trainer.run.distributed import gathered
from trainer.run.looks import note_look
from trainer.run.machine import resolve_auto
from trainer.run.parts import assemble, eval_batches
from trainer.run.progress import Progress
from trainer.run.recorder import SilentRecorder
from trainer.run.result import draw_run, hyperparameters, result_of, say_result
from trainer.run.resume import read_best
from trainer.run.safe_load import read_checkpoint, weights_to_use
from trainer.run.session import Session
from trainer.run.target import settings_of_run
from trainer.utils.files import write_json


def finish_run(s: Session) -> None:
    """Measure the best weights on the test split, once, and write result.json and the plots."""
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
    """Write result.json, the plots and, last, the status; the model holds the best weights, which reach `test`."""
    result = result_of(s.config, s.parts, s.progress, s.run, test)
    write_json(s.run.outputs / "result.json", result)
    final = {f"test/{key}": value for key, value in result["test"].items() if key != "n"}
    final["test/val_of_best"] = s.progress.best["value"]
    if not s.config.fast_dev_run:
        classes = {"true": test.labels.tolist(), "predicted": test.outputs.argmax(1).tolist()}
        note_look(s.run.outputs, s.parts.splits.sha256, classes if test.accuracy is not None else None)
        s.recorder.hyperparameters(hyperparameters(s.config), final, s.progress.step)
    if s.config.plots:
        few = s.config.plots == "auto" and s.run.is_job
        draw_run(s.config, s.parts, s.progress, s.run, test, s.recorder, few=few)
    say_result(s.screen, s.config, s.run, result)
    directory.write_status(s.run, "done", s.started)  # last: who reads "done" finds the rest


def draw_all(run: Run, cache: str) -> None:
    """Draw all plots of a run that is done, which were left out because it is a job of a sweep.

    Args:
        run: the run.
        cache: paths.cache of this command.
    """
    saved = settings_of_run(run)
    config, machine = resolve_auto(from_dict(saved | {"paths": saved["paths"] | {"cache": cache}}))
    best = run.checkpoints / "best.pt"
    content = read_checkpoint(best)
    parts = assemble(config, data.load(config.data, config.paths, like=content), machine)
    load_model(parts.measured, weights_to_use(content), best)
    test = parts.measure(eval_batches(config, parts.splits, parts.splits.test, machine))
    step = step_of(steps_in(run.checkpoints)[-1])
    progress = Progress(step=step, best=(directory.read_result(run.outputs) or {"best": content["best"]})["best"])
    draw_run(config, parts, progress, run, test, SilentRecorder())
