"""The compare command: whether one run, or one setting over its seeds, is better than another, in one sentence."""

from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.command_line import Command
from trainer.run import directory
from trainer.run.looks import looks_of, right_of
from trainer.run.target import find_run, name_of, unknown_run
from trainer.sweep.table import rows_of, swept
from trainer.utils.errors import ConfigError, DamagedError, listed
from trainer.utils.evidence import CHANCE, difference, mcnemar, mean_of
from trainer.utils.objective import score
from trainer.utils.program import main_py
from trainer.utils.screen import table
from trainer.utils.signals import StopSignal
from trainer.utils.text import emit


@dataclass(frozen=True)
class Side:
    """One of those that are compared.

    Attributes:
        name: as typed.
        metric: test_accuracy or test_loss.
        values: of each run.
        tests: of each run, test.json.
        parts: of each run, what it was tested on: equal where it is the same.
        targets: the columns that the runs predict, of tables.
        missing: runs of the sweep that are not done.
    """

    name: str
    metric: str
    values: Sequence[float]
    tests: Sequence[Mapping[str, Any]]
    parts: Sequence[tuple[Any, ...]]
    targets: Set[str]
    missing: int = 0


def run_compare(command: Command, _stop: StopSignal) -> None:
    """Print the test figures of runs or of sweeps over seeds, and whether the first differs from each other one.

    Raises:
        ConfigError: fewer than two, one that is unknown, not done or no sweep over seeds alone, or other test data.
    """
    if len(command.names) < 2:
        raise ConfigError(f"compare needs two runs, or two sweeps over seeds: {main_py()} compare RUN RUN.")
    first, *others = [side_of(name, command.folders) for name in command.names]
    for other in others:
        check_alike(first, other)
    rows = [{"run": side.name, side.metric: mean_of(side.values, side.metric)} for side in (first, *others)]
    emit(*table(rows), "", *(sentence(first, other) for other in others))
    for side in (first, *others):
        if side.missing:
            of = side.missing + len(side.values)
            left_out = f"{side.missing} of {of} jobs are not done and left out"
            emit(f"{side.name}: {left_out}: those that are may be the better ones.")
    looks = max(int(test["looks"]) for side in (first, *others) for test in side.tests)
    if looks > 1:
        emit(f"A test split was looked at {looks} times: a choice made by it is no longer a fair test.")


def side_of(name: str, folders: Mapping[str, str]) -> Side:
    """A run, or the runs of a sweep over seeds."""
    found = find_run(name, **folders)
    name = found.run.name if found is not None else name_of(name, **folders)
    folder, missing = Path(folders["outputs"], name), 0
    if not directory.JOB.fullmatch(name) or not folder.is_dir():
        raise unknown_run(name, *map(Path, folders.values()))
    runs = [folder]
    if (folder / "sweep.json").is_file():
        rows = rows_of(folder)
        keys = [key for key in swept(rows) if key != "seed"] if rows else []
        if differing := [key for key in keys if len({row[key] for row in rows}) > 1]:
            raise ConfigError(f"{name} is a sweep over {listed(differing)}: name two of its jobs, {name}/0 {name}/1.")
        runs = [folder / str(row["job"]) for row in rows if row["status"] == "done"]
        missing = len(rows) - len(runs)
    results = [directory.read_result(each) for each in runs]
    if any(result is not None and result.get("fast_dev_run") for result in results):
        raise ConfigError(f"{name} was a trial by fast_dev_run=true: the figures of one batch are no result.")
    figures = [result["test"] for result in results if result is not None]
    if not figures or len(figures) < len(runs):
        told = folder / ("sweep.csv" if (folder / "sweep.json").is_file() else "status.json")
        raise ConfigError(f"{name} is not done: there is no test figure to compare. See {told}.")
    metric = "accuracy" if all("accuracy" in test for test in figures) else "loss"
    values = [float(test[metric]) for test in figures]
    tests = [looks_of(each) for each in runs]
    for each, test, figure in zip(runs, tests, figures, strict=True):
        if not test["sha256"] or {len(test.get(key, ())) for key in ("true", "predicted")} - {0, figure["n"]}:
            raise ConfigError(
                f"{each / 'test.json'}, which says what {name} was tested on, is missing or damaged. Train it anew."
            )
    parts = [(test["sha256"], figure["n"], test.get("true")) for test, figure in zip(tests, figures, strict=True)]
    targets = {target for each in runs if (target := column_of(each)) is not None}
    return Side(name, f"test_{metric}", values, tests, parts, targets, missing)


def column_of(folder: Path) -> str | None:
    """The column of a table that a run predicts; None: it is of no table, or its settings are gone."""
    with suppress(DamagedError):
        return directory.read_config(folder).get("data", {}).get("target")
    return None


def check_alike(a: Side, b: Side) -> None:
    """Refuse figures that say nothing about each other."""
    if a.metric != b.metric:
        raise ConfigError(f"{a.name} has {a.metric}, {b.name} has {b.metric}: they cannot be compared.")
    if any(part != a.parts[0] for side in (a, b) for part in side.parts) or len(a.targets | b.targets) > 1:
        raise ConfigError(f"{a.name} and {b.name} were tested on other data: their figures cannot be compared.")
    if (len(a.values) == 1) != (len(b.values) == 1):
        counts = f"{a.name} has n = {len(a.values)}, {b.name} n = {len(b.values)}"
        raise ConfigError(f"{counts}: compare one run with one run, or several seeds with several.")
    if len(a.values) == 1 and None in (right_of(a.tests[0]), right_of(b.tests[0])):
        raise ConfigError(
            f"one run each of {a.name} and {b.name} says nothing about chance: train several of each, seeds=5."
        )


def sentence(a: Side, b: Side) -> str:
    """Whether a is better than b, and how sure that is."""
    name = a.metric.replace("_", " ")
    if len(a.values) > 1:
        apart, low, high = difference(a.values, b.values, a.metric)
        is_clear = not low <= 0 <= high
        how = f"a difference of {apart:+.4f}, with 95 % interval {low:+.4f} to {high:+.4f} over the seeds"
        how += f" (Welch's t, n = {len(a.values)} and {len(b.values)})"
    else:
        pairs = list(zip(right_of(a.tests[0]) or (), right_of(b.tests[0]) or (), strict=True))
        only_a, only_b = pairs.count((True, False)), pairs.count((False, True))
        p = mcnemar(only_a, only_b)
        is_clear = p < CHANCE
        how = f"of {len(pairs):,} test examples the first alone has {only_a:,} right and the second alone {only_b:,}"
        how += f" (McNemar's test, p = {p:.2g}; one run each, so that another seed may say otherwise)"
    means = [mean_of(side.values).value for side in (a, b)]
    a_is_better = score(a.metric, means[0]) >= score(a.metric, means[1])
    figures = f"{name} {means[0]:.4f} against {means[1]:.4f}"
    word = "better" if a_is_better else "worse"
    clear, unclear = f"{a.name} is {word} than {b.name}", f"{a.name} and {b.name} differ by no more than chance may"
    return f"{clear if is_clear else unclear}: {figures}; {how}."
