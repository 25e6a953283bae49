"""What a sweep leaves behind: a line for each job in sweep.csv, and the table on the screen."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.utils import runs
from trainer.utils.screen import table


def finish(jobs: Sequence[Mapping[str, Any]], folder: Path, paths: str) -> None:
    """Write outputs/<sweep>/sweep.csv and print it, the best job first.

    Args:
        jobs: number, swept overrides and error of each job that was started.  folder: outputs/<sweep>.
        paths: the paths.* settings as typed, for the command that is printed.
    """
    rows = [row_of(job, folder / str(job["job"])) for job in jobs]
    folder.mkdir(parents=True, exist_ok=True)
    runs.write_csv(folder / "sweep.csv", rows)
    done = [row for row in rows if row["status"] == "done"]
    done.sort(key=lambda row: -row["objective"] if row["metric"].endswith("accuracy") else row["objective"])
    hidden = ("metric", "objective")
    shown = [{key: row[key] for key in row if key not in hidden} for row in done + [r for r in rows if r not in done]]
    print("\n" + table(shown))
    if done:
        print(f"best: python main.py eval checkpoint={folder.name}/{done[0]['job']}{paths}")


def row_of(job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The figures of one job, from the files in its own directory."""
    status = runs.status_in(folder)
    row = {
        "job": job["job"],
        "overrides": job["overrides"],
        "status": "failed" if job["error"] else status.get("state", "interrupted"),
    }
    result = runs.read_json(folder / "result.json") if row["status"] == "done" else None
    best, test = (result["best"], result["test"]) if result else ({}, {})
    return row | {
        "best_epoch": best.get("epoch"),
        "val_loss": best.get("val_loss"),
        "val_accuracy": best.get("val_accuracy"),
        "test_loss": test.get("loss"),
        "test_accuracy": test.get("accuracy"),
        "metric": result["objective"]["metric"] if result else None,
        "objective": result["objective"]["value"] if result else None,
        "seconds": result["seconds"] if result else None,
        "error": job["error"],
    }
