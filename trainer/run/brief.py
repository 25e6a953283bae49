"""What the records of a run say of it in brief: its state, settings and figures, whatever is missing. Torch-free."""

import math
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from operator import ge, gt, le, lt
from pathlib import Path
from typing import Any

from trainer.config.options import all_keys, flatten
from trainer.config.ranges import Such, as_yaml
from trainer.config.schema import GROUPS
from trainer.run import directory, records
from trainer.utils.errors import ConfigError, DamagedError, close_to, did_you_mean, listed
from trainer.utils.objective import deciding_metric, score

REPORT = "report.html"  # of a run, or of a sweep
FIELDS_BY_NAME = Such("fields by name", lambda value: isinstance(value, dict))
RECORD: records.Fields = {  # of config.json; its settings are shown as they are, since checking them takes longer
    "config": FIELDS_BY_NAME,
    "command?": Such("words", lambda value: isinstance(value, list) and all(isinstance(word, str) for word in value)),
    "versions?": FIELDS_BY_NAME,
    "git?": Such("fields by name or null", lambda value: value is None or isinstance(value, dict)),
}
FIGURES_OF_TEST = ("accuracy", "rmse", "loss")  # the first that a run has is shown
CONDITION = re.compile(r"\s*([\w./-]+?)\s*(<=|>=|!=|==?|<|>)\s*(.*?)\s*")
SIGNS: dict[str, Callable[[Any, Any], bool]] = {"<=": le, ">=": ge, "<": lt, ">": gt}
BETWEEN = re.compile(r",(?![^\[]*\])")  # a comma that is in no list
UNITS = (("d", 86400.0), ("h", 3600.0), ("min", 60.0))
AGE = re.compile(r"([0-9.]+) ?(d|h|min|s)")
WHOLE_LISTS = reprlib.Repr()
WHOLE_LISTS.maxlevel, WHOLE_LISTS.maxlist, WHOLE_LISTS.maxstring = 4, 1000, 1000


@dataclass(frozen=True)
class Brief:
    """A run in brief.

    Attributes:
        name: of the run.
        folder: outputs/<name>.
        state: running, done, interrupted, failed or diverged; trial for one of fast_dev_run.
        started: in ISO 8601.
        epochs: that are finished.
        seconds: that they took.
        best: (metric, value) of the best epoch; None before the first one.
        test: (metric, value); None before the end.
        settings: by dotted name, a group's choice by the name of the group; empty where config.json is damaged.
        record: the rest of config.json: versions, hardware, commit, command.
        result: result.json; None before the end.
    """

    name: str
    folder: Path
    state: str
    started: str
    epochs: int
    seconds: float
    best: tuple[str, float] | None
    test: tuple[str, float] | None
    settings: Mapping[str, Any]
    record: Mapping[str, Any]
    result: Mapping[str, Any] | None

    def cell(self, key: str) -> Any:
        """The value of a column, or of a setting; None where the run has none.

        `best` and `test` are numbers, and `age` is in seconds.
        """
        if key in ("best", "test"):
            figure = self.best if key == "best" else self.test
            return None if figure is None else figure[1]
        if key == "age":
            return (datetime.now(UTC) - datetime.fromisoformat(self.started)).total_seconds()
        return getattr(self, key) if key in OF_A_BRIEF and key not in GROUPS else self.settings.get(key)


OF_A_BRIEF = ("name", "data", "model", "state", "epochs", "best", "test", "seconds", "age")


def brief_of(name: str, folder: Path) -> Brief:
    """The run of this name in brief.

    Args:
        name: of the run.
        folder: outputs/<name>, with a status.json.
    """
    try:
        record = records.read_record(folder / "config.json", RECORD)
    except DamagedError:
        record = {"config": {}}
    saved = record.pop("config")
    choices = saved.get("choices")
    settings = flatten({key: value for key, value in saved.items() if key != "choices"})
    settings |= choices if isinstance(choices, dict) else {}
    status, result = directory.read_status(folder), directory.read_result(folder)
    state = state_of(folder, status)
    is_trial = settings.get("fast_dev_run") is True
    result = result if state == "done" else None
    rows = directory.read_metrics(folder) if result is None else []
    best = (result["objective"]["metric"], result["objective"]["value"]) if result else best_of(rows)
    test = result["test"] if result else {}
    return Brief(
        name=name,
        folder=folder,
        state="trial" if is_trial and state == "done" else state,
        started=status.get("started", datetime.now(UTC).isoformat()),
        epochs=result["epochs"] if result else max((row["epoch"] for row in rows), default=0),
        seconds=result["seconds"] if result else sum(row["seconds"] for row in rows),
        best=None if is_trial else best,
        test=None if is_trial else next(((key, test[key]) for key in FIGURES_OF_TEST if key in test), None),
        settings=settings,
        record=record,
        result=result,
    )


def state_of(folder: Path, status: Mapping[str, Any]) -> str:
    """The state of a run: one that is said to be running and is held by no process was killed."""
    state = str(status.get("state", "damaged"))
    return "interrupted" if state == "running" and not directory.is_held(folder) else state


def best_of(rows: Sequence[Mapping[str, Any]]) -> tuple[str, float] | None:
    """The metric that decides and its best value in lines of metrics.jsonl; None: there are none."""
    if not rows:
        return None
    metric = deciding_metric(rows[-1])
    return metric, max((row[metric] for row in rows if metric in row), key=lambda value: score(metric, value))


def all_briefs(outputs: Path) -> list[Brief]:
    """Every run below a folder, the newest first."""
    found = [brief_of(p.parent.relative_to(outputs).as_posix(), p.parent) for p in directory.all_runs(outputs)]
    return sorted(found, key=lambda run: run.started, reverse=True)


def select(runs: Sequence[Brief], conditions: str) -> list[Brief]:
    """The runs that meet all of some conditions: `model=mlp,test>0.9`, `name=clothes*`.

    Raises:
        ConfigError: a condition that cannot be read, or names what no run has.
    """
    kept = list(runs)
    for condition in BETWEEN.split(conditions):
        match = CONDITION.fullmatch(condition)
        if match is None:
            raise ConfigError(f"where={conditions}: {condition!r} is no condition such as model=mlp or test>0.9.")
        key, sign, wanted = match.groups()
        check_column("where", key, runs, f"{sign}{wanted}")
        if key == "age" and (age := AGE.fullmatch(wanted)):
            wanted = str(float(age[1]) * dict(UNITS).get(age[2], 1.0))
        if sign in SIGNS and not is_number(wanted) and any(is_number(run.cell(key)) for run in runs):
            units = " Allowed: seconds, or 5min, 3h, 2d." if key == "age" else ""
            raise ConfigError(f"where={key}{sign}{wanted}: {key} is a number, and {wanted!r} is none.{units}")
        kept = [run for run in kept if meets(run.cell(key), sign, wanted)]
    return kept


def named_in(conditions: str) -> list[str]:
    """The columns and settings that conditions are about."""
    return [match[1] for each in BETWEEN.split(conditions) if (match := CONDITION.fullmatch(each))]


def is_number(value: Any) -> bool:
    """Whether this is a number, or a text that is one."""
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def meets(value: Any, sign: str, wanted: str) -> bool:
    """Whether a value is as a condition says: as a number where both are numbers, else as text, in which * is free."""
    are_numbers = type(value) in (int, float) and is_number(wanted)
    text = setting_text(value).replace(", ", ",")
    if sign in ("=", "==", "!="):
        wanted = wanted.lower() if isinstance(value, bool) else wanted.replace(", ", ",")
        is_so = are_numbers and value == float(wanted)
        return (is_so or fnmatchcase(text, wanted.replace("[", "[[]"))) == (sign != "!=")
    if value is None or (is_number(wanted) and not are_numbers):
        return False
    return SIGNS[sign](value, float(wanted)) if are_numbers else SIGNS[sign](text, wanted)


def setting_text(value: Any) -> str:
    """A setting as it is shown, a list with all its items: in the last of them runs may differ."""
    return WHOLE_LISTS.repr(value) if isinstance(value, (list, dict)) else as_yaml(value)


def check_column(word: str, key: str, runs: Sequence[Brief], rest: str = "") -> None:
    """Refuse a name that is no column and no setting; ConfigError names the nearest."""
    known = {*OF_A_BRIEF, *all_keys(), *(key for run in runs for key in run.settings)}
    if key in known:
        return
    close = close_to(key, known)
    error = ConfigError(
        f"{word}={key}{rest}: {key} is no column and no setting.{did_you_mean([f'{word}={c}{rest}' for c in close])} "
        f"Columns: {listed(OF_A_BRIEF)}."
    )
    raise error.instead(word, f"{key}{rest}", f"{close[0]}{rest}" if close else "")


def sort_runs(runs: Sequence[Brief], column: str) -> list[Brief]:
    """The runs in the order of a column or setting: figures the best first, age the newest first, others upwards.

    A `-` in front turns the order round; runs without a value come last.

    Raises:
        ConfigError: there is no such column.
    """
    key = column.removeprefix("-")
    check_column("sort", key, runs)
    values = {run.name: run.cell(key) for run in runs}
    values = {name: value for name, value in values.items() if value is not None and value == value}  # no nan
    having = [run for run in runs if run.name in values]

    def place(run: Brief) -> Any:
        if key in ("best", "test"):
            figure = run.best if key == "best" else run.test
            assert figure is not None
            return figure[0], -score(*figure)
        value = values[run.name]
        return (0, value, "") if type(value) in (int, float) else (1, 0, setting_text(value))

    ordered = sorted(having, key=place, reverse=column.startswith("-"))
    return ordered + [run for run in runs if run.name not in values]


def ago(seconds: float) -> str:
    """How long ago something was, or will take: 12 s, 5 min, 3 h, 2 d."""
    unit, size = next(((unit, size) for unit, size in UNITS if seconds >= size), ("s", 1.0))
    return f"{max(0, int(seconds / size))} {unit}"
