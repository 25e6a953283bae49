"""The tables of a sweep: sweep.csv, summary.csv, what is printed, and the plots."""

import contextlib
import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.config.options import run_settings
from trainer.run import directory, records
from trainer.run.brief import REPORT, state_of
from trainer.run.directory import Run
from trainer.run.loggers import loggers_of_sweep, where_to_look
from trainer.run.target import name_of, unknown_run
from trainer.sweep.job import Job, as_words, told_in
from trainer.sweep.seeds import groups_of, lines_on_seeds
from trainer.utils.errors import DamagedError, TrainerError, listed
from trainer.utils.evidence import mean_of
from trainer.utils.files import write_csv, write_json
from trainer.utils.objective import score
from trainer.utils.program import main_py, tensorboard
from trainer.utils.screen import shown, table
from trainer.utils.text import emit

FIGURES = ("val_loss", "val_accuracy", "test_loss", "test_accuracy", "test_rmse", "seconds")  # averaged over seeds


def rows_of(folder: Path, waiting: Sequence[Job] = ()) -> list[dict[str, Any]]:
    """A line for each job of the sweep in outputs/<sweep>, by number.

    Args:
        waiting: jobs that are to come; those that left nothing yet have a line too.
    """
    told = told_in(folder)
    for job in waiting:
        told.setdefault(job.number, {"job": job.number, "overrides": dict(job.overrides), "error": ""})
    keys = list(dict.fromkeys(key for job in told.values() for key in job["overrides"]))
    return [row_of_job(told[number], folder / str(number), keys) for number in sorted(told)]


def rows_of_sweep(target: str, *, outputs: str, checkpoints: str) -> tuple[Path, list[dict[str, Any]]]:
    """The folder and the rows of the sweep that was named; ConfigError where there is none."""
    name = name_of(target, outputs=outputs, checkpoints=checkpoints)
    folder = Path(outputs, name)
    rows = rows_of(folder) if directory.NAME.fullmatch(name) else []
    if not rows:
        raise unknown_run(target, Path(outputs), Path(checkpoints))
    return folder, rows


def row_of_job(job: Mapping[str, Any], own: Path, keys: Sequence[str]) -> dict[str, Any]:
    """The figures of one job, from the files in its own directory."""
    state = "failed" if job["error"] else state_of(own, {"state": "waiting"} | directory.read_status(own))
    result = directory.read_result(own) if state == "done" else None
    if result and result.get("fast_dev_run"):
        result = None
    best, test = (result["best"], result["test"]) if result else ({}, {})
    return {
        "job": job["job"],
        "overrides": as_words(job["overrides"]),
        **{key: job["overrides"].get(key) for key in keys},
        "status": state,
        "stopped": (result or {}).get("stopped"),
        "best_epoch": best.get("epoch"),
        "val_loss": best.get("val_loss"),
        "val_accuracy": best.get("val_accuracy"),
        "test_loss": test.get("loss"),
        "test_accuracy": test.get("accuracy"),
        "test_rmse": test.get("rmse"),
        "metric": result["objective"]["metric"] if result else None,
        "objective": result["objective"]["value"] if result else None,
        "seconds": result["seconds"] if result else None,
        "error": " ".join(job["error"].split("\n")),
    }


def best_first(rows: Sequence[Mapping[str, Any]], key: str = "objective") -> list[Mapping[str, Any]]:
    """The rows with the best objective first, metric by metric; those without one last, in their order."""
    done = [row for row in rows if row[key] is not None]
    done.sort(key=lambda row: (row["metric"], -score(row["metric"], row[key])))
    return done + [row for row in rows if row[key] is None]


def by_setting(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per setting: mean and standard deviation (n - 1) over the jobs that are done and differ in the seed only.

    The best first; the column `of` says of how many jobs.
    """
    keys = [key for key in swept(rows) if key != "seed"]
    found: list[dict[str, Any]] = []
    for setting, members in groups_of(rows, keys).items():
        line: dict[str, Any] = dict(zip(keys, setting, strict=True)) | {"of": len(members)}
        line["metric"] = members[0]["metric"]
        for figure in ("objective", *FIGURES):
            values = [row[figure] for row in members if row[figure] is not None]
            line[f"{figure}_mean"] = statistics.fmean(values) if values else None
            spread = len(values) > 1 and all(map(math.isfinite, values))  # a test loss may be too large for a float
            line[f"{figure}_std"] = statistics.stdev(values) if spread else None
        found.append(line)
    return [dict(line) for line in best_first(found, "objective_mean")]


def swept(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that are swept over: the columns between overrides and status."""
    columns = list(rows[0])
    return columns[columns.index("overrides") + 1 : columns.index("status")]


def finish_sweep(folder: Path, waiting: Sequence[Job], paths: Sequence[str]) -> list[dict[str, Any]]:
    """Write sweep.csv, summary.csv and the plots, print the table, the best job first, and return its rows.

    Args:
        folder: outputs/<sweep>.
        waiting: all jobs, where they are known beforehand.
        paths: the paths.* settings as typed, for the commands that are printed.
    """
    folders = dict(run_settings()) | dict(word.split("=", 1) for word in paths)  # never those that a job's files name
    rows = rows_of(folder, waiting)
    if not rows:  # a launcher that never came to a job
        return rows
    is_news = write_csv(folder / "sweep.csv", rows)
    settings = by_setting(rows)
    if settings:
        write_csv(folder / "summary.csv", settings)
    shown = ("job", "overrides", "status", *FIGURES, "stopped", "error")
    emit("", *table(without_empty([{key: row[key] for key in shown} for row in best_first(rows)])))
    if len(settings) > 1 and any(line["of"] > 1 for line in settings):
        emit("", *table(without_empty([in_short(line) for line in settings])))
    if lines := lines_on_seeds(folder, rows, swept(rows)):
        emit("", *lines)
    leave_report(folder, rows, is_news)
    metrics = {line["metric"] for line in settings}
    if len(metrics) > 1:
        parts = {metric.partition("_")[0] for metric in metrics}
        advice = ": data.val_fraction=0.1 monitor=val_loss gives all of them one figure" if len(parts) > 1 else ""
        emit(f"no best one: {listed(sorted(metrics))} cannot be compared{advice}")
    elif settings:
        others = [key for key in swept(rows) if key != "seed"]
        setting = tuple(settings[0][key] for key in others)  # the best on average over its seeds
        members = groups_of(rows, others)[setting]
        best = best_first(members)[0]
        note_best(folder, best["job"])
        plots = plots_of(folder / str(best["job"]))
        if plots and (is_news or not (folder / "plots").is_dir()):
            from trainer.plots.sweep import MAX_CURVES, draw_sweep  # matplotlib takes 0.4 s

            done = [row for row in best_first(rows) if row["objective"] is not None][:MAX_CURVES]
            curves = {row["overrides"]: directory.read_metrics(folder / str(row["job"])) for row in done}
            draw_sweep(rows, swept(rows), folder / "plots", {name: lines for name, lines in curves.items() if lines})
            if plots == "auto":
                draw_best(folder, best["job"], folders)
        words = "".join(f" {shlex.quote(word)}" for word in paths)
        if len(members) > 1 and len(settings) > 1:
            mean = mean_of([row["objective"] for row in members], best["metric"])
            emit(f"best setting {as_words(dict(zip(others, setting, strict=True)))}: {best['metric']} {mean}")
        say_best(best, bool(plots), folder, folders["paths.checkpoints"], words)
    return rows


def note_best(folder: Path, number: int) -> None:
    """Keep which job is the best one, for SWEEP:best."""
    with contextlib.suppress(DamagedError):
        path = folder / "sweep.json"
        content = records.read_record(path, records.OF_SWEEP)
        if content.get("best") != number:
            write_json(path, content | {"best": number})


def plots_of(own: Path) -> Any:
    """What plots= was for a job; False where its record is lost."""
    try:
        return directory.read_config(own).get("plots")
    except DamagedError:
        return False


def wants_report(own: Path) -> bool:
    """Whether the settings of a job ask for a report of its sweep; False where its record is lost."""
    try:
        saved = directory.read_config(own)
    except DamagedError:
        return False
    return saved.get("report") is True or bool(saved.get("report") and saved.get("plots"))


def leave_report(folder: Path, rows: Sequence[Mapping[str, Any]], is_news: bool) -> None:
    """Write report.html of a sweep whose jobs ask for one; without it a sweep is as good."""
    jobs = [folder / str(row["job"]) for row in rows if row["status"] != "waiting"]
    if not any(map(wants_report, jobs[:3])):
        return
    if is_news or not (folder / REPORT).is_file():
        try:
            from trainer.sweep.page import write_sweep_report  # matplotlib takes 0.4 s

            write_sweep_report(folder, rows, swept(rows))
        except Exception as error:
            emit(f"warning: without {folder / REPORT}: {str(error) or type(error).__name__}")


def draw_best(folder: Path, number: int, folders: Mapping[str, str]) -> None:
    """All plots of the best job, of which only the curves were drawn."""
    from trainer.run.again import draw_all  # imports torch

    name = f"{folder.name}/{number}"
    run = Run(name, folder / str(number), Path(folders["paths.checkpoints"]) / name)
    try:
        draw_all(run, folders["paths.cache"])
    except (TrainerError, OSError) as error:  # its files or its data may be elsewhere
        emit(f"warning: without plots of {name}: {error}")


def without_empty(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows without the columns that have nothing in any row."""
    kept = [key for key in rows[0] if any(row[key] not in (None, "") for row in rows)]
    return [{key: row[key] for key in kept} for row in rows]


def in_short(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of summary.csv for the screen: `mean +- std` in one column."""
    columns = list(line)
    short = {key: line[key] for key in columns[: columns.index("metric")]}
    for figure in FIGURES[:-1]:
        mean, std = line[f"{figure}_mean"], line[f"{figure}_std"]
        short[figure] = None if mean is None else shown(mean) + (f" +- {shown(std)}" if std is not None else "")
    return short


def say_best(best: Mapping[str, Any], has_plots: bool, folder: Path, checkpoints: str, paths: str) -> None:
    """The best job with its checkpoint, and what to type next; `paths` are the folders as typed."""
    run = f"{folder.name}/{best['job']}"
    emit(f"best         {run} ({best['overrides']}): {best['metric']} {shown(best['objective'])}")
    emit(f"checkpoint   {Path(checkpoints) / run / 'best.pt'}")
    emit(f"eval         {main_py()} eval checkpoint={run}{paths}")
    if any(folder.glob("*/tb")):  # not with logger=[]
        emit(f"tensorboard  {tensorboard(folder)}")
    for line in where_to_look(loggers_of_sweep(folder), str(folder.parent), folder, jobs="/*"):
        emit(line)
    if has_plots:
        emit(f"plots        {folder / 'plots'}")
    if (folder / REPORT).is_file():
        emit(f"report       {folder / REPORT}")
    emit(f"table        {folder / 'sweep.csv'}, {folder / 'summary.csv'}")
