"""report.html of a sweep: its jobs, what its options do, the mean over seeds. Imported where one is written."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from trainer.plots.page.charts import chart, curve, dots, labels, parallel, whiskers
from trainer.plots.page.draft import Draft
from trainer.plots.page.markup import Html, cards, el, remark, rows_table
from trainer.plots.sweep import BELOW, MAX_CURVES, MAX_NAMES, PALEST, heights_of, is_seed, scale_of
from trainer.run import directory
from trainer.run.brief import REPORT
from trainer.sweep.job import as_words
from trainer.sweep.seeds import groups_of, lines_on_seeds
from trainer.utils.evidence import LEVEL, mean_of
from trainer.utils.objective import is_share, score
from trainer.utils.screen import shown
from trainer.utils.text import number_of

JobRows = Sequence[Mapping[str, Any]]
MOST_SETTINGS = 40  # with their means in a chart
MOST_LINES = 3  # on the seeds, at the top; of more settings the table has them
MOST_LETTERS = 100  # below an axis
FIGURES_OF_JOBS = ("best_epoch", "val_loss", "val_accuracy", "test_loss", "test_accuracy", "test_rmse", "seconds")


def write_sweep_report(folder: Path, rows: JobRows, keys: Sequence[str]) -> Path:
    """Write outputs/<sweep>/report.html; returns its path.

    Args:
        folder: outputs/<sweep>.
        rows: of sweep.csv.
        keys: columns of the options that were swept, as typed.
    """
    draft = Draft(folder.name)
    done = [row for row in rows if row["objective"] is not None]
    counts = Counter(row["metric"] for row in done)
    metric = counts.most_common(1)[0][0] if done else ""
    mixed = len(counts) > 1
    done = [row for row in done if row["metric"] == metric]  # figures of several metrics cannot be compared
    done.sort(key=lambda row: -score(metric, row["objective"]))
    failed = [row for row in rows if row["status"] == "failed"]
    differ = [key for key in keys if len({row[key] for row in rows}) > 1]
    if done:
        add_means(draft, done, [key for key in keys if key != "seed"], metric)
        add_options(draft, done, [key for key in differ if not is_seed(key)], metric)
        add_parallel(draft, done, failed, [key for key in differ if not is_seed(key)], metric)
        add_job_curves(draft, folder, done, metric)
    add_jobs(draft, folder, rows, keys)
    states = ", ".join(f"{n} {state}" for state, n in Counter(row["status"] for row in rows).items())
    head = [el("header", el("h1", folder.name), el("p", f"sweep of {number_of(len(rows), 'job')}: {states}"))]
    if mixed:
        head.append(
            el("p", f"The charts have the jobs with {metric}: others cannot be compared with them.", class_="verdict")
        )
    if len(lines := lines_on_seeds(folder, rows, keys)) <= MOST_LINES:
        head += [el("p", text, class_="verdict") for text in lines]
    head.append(cards(figures_of_sweep(done, rows, metric)))
    draft.write(folder / REPORT, *head)
    return folder / REPORT


def figures_of_sweep(done: JobRows, rows: JobRows, metric: str) -> list[tuple[str, object, str]]:
    """The large figures: (what it is, the figure, a remark)."""
    found: list[tuple[str, object, str]] = []
    if done:
        best = done[0]
        found.append(
            (
                f"best {metric}".replace("_", " "),
                told_of(metric, best["objective"]),
                f"job {best['job']}: {best['overrides']}",
            )
        )
    found.append(("jobs", len(rows), ""))
    seconds = sum(row["seconds"] or 0 for row in rows)
    return [*found, ("training time", f"{seconds:.3g} s", "of all jobs together")]


def told_of(metric: str, value: float) -> str:
    """A figure as a person reads it."""
    return f"{100 * value:.2f} %" if is_share(metric) else shown(value)


def add_means(draft: Draft, done: JobRows, keys: Sequence[str], metric: str) -> None:
    """Mean and interval over the seeds of each setting, where some have several."""
    groups = groups_of(done, keys)
    means = {setting: mean_of([row["objective"] for row in members], metric) for setting, members in groups.items()}
    if all(mean.n == 1 for mean in means.values()):
        return
    ranked = sorted(means.items(), key=lambda each: -score(metric, each[1].value))
    names = [as_words(dict(zip(keys, setting, strict=True))) or "all seeds" for setting, _ in ranked]
    rows = [
        [i + 1, names[i], mean.n, *(as_cell(metric, value) for value in (mean.value, mean.std, mean.low, mean.high))]
        for i, (_, mean) in enumerate(ranked)
    ]
    few = ranked[:MOST_SETTINGS]
    jobs = [(i + 0.12, row) for i, (setting, _) in enumerate(few) for row in groups[setting]]
    sure = [
        (i, mean.low, mean.high) for i, (_, mean) in enumerate(few) if mean.low is not None and mean.high is not None
    ]
    tips = [f"{name}: {mean}" for name, (_, mean) in zip(names, few, strict=False)]
    layers = [
        dots("jobs", [x for x, _ in jobs], [row["objective"] for _, row in jobs], [tip_of(row) for _, row in jobs]),
        whiskers("", [i for i, *_ in sure], [low for _, low, _ in sure], [high for *_, high in sure], 1),
        dots("mean", range(len(few)), [mean.value for _, mean in few], tips, 1),
    ]
    are_short = sum(map(len, names)) <= MOST_LETTERS
    ticks = {i: names[i] if are_short else str(i + 1) for i in range(len(few))}
    percent = "y" if is_share(metric) else ""
    figure = chart("", "setting, the best first", metric, layers, ticks=ticks, percent=percent, height=340)
    told = remark(f"Lines are {LEVEL:.0%} intervals of the mean over seeds (Student's t).")
    heads = ["no.", "setting", "seeds", f"mean {metric}", "std", "from", "to"]
    table = rows_table(heads, rows, filtered="filter: a setting" if len(rows) > 8 else "")
    draft.add("means", "Mean over seeds", told, draft.chart("means", figure), table, wide=True)


def as_cell(metric: str, value: float | None) -> tuple[float, str] | None:
    """A cell of the table of means."""
    return None if value is None else (value, told_of(metric, value))


def tip_of(row: Mapping[str, Any]) -> str:
    """What is said of a job where the pointer is on it."""
    return f"job {row['job']}: {row['overrides']}, {row['metric']} {shown(row['objective'])}"


def add_options(draft: Draft, done: JobRows, keys: Sequence[str], metric: str) -> None:
    """The metric over each option: a point for each job, and the mean of each value."""
    done = sorted(done, key=lambda row: row["job"])  # names are in the order in which they were typed
    values = [row["objective"] for row in done]
    log = "y" if scale_of(values, metric).kind == "log" else ""
    for number, key in enumerate(keys):
        scale = scale_of([row[key] for row in done], key)
        places = scale.places
        means = {x: fmean(v for p, v in zip(places, values, strict=True) if p == x) for x in sorted(set(places))}
        layers = [dots("jobs", places, values, [tip_of(row) for row in done])]
        if scale.kind == "names":  # a line between two names would mean nothing
            layers.append(dots("mean", [*means], [*means.values()], [f"mean {shown(v)}" for v in means.values()], 1))
        else:
            layers.append(curve("mean", [*means], [*means.values()], 1, dots=True))
        ticks = {"ticks": scale.labels} if scale.kind == "names" or len(scale.labels) <= MAX_NAMES // 2 else {}
        both = log + ("x" if scale.kind == "log" else "")
        figure = chart("", key, metric, layers, log=both, percent="y" if is_share(metric) else "", **ticks)
        draft.add(
            f"option{number}", f"{metric} over {key}", draft.chart(f"option{number}", figure), wide=len(keys) == 1
        )


def add_parallel(draft: Draft, done: JobRows, failed: JobRows, keys: Sequence[str], metric: str) -> None:
    """Parallel coordinates (Inselberg 1985) for two options or more; failed jobs end below the last axis."""
    if len(keys) < 2:
        return
    ranks = {row["job"]: i for i, row in enumerate(done)}
    done = sorted(done, key=lambda row: row["job"])  # as in add_options
    scales = [scale_of([row[key] for row in (*done, *failed)], key) for key in keys]
    scales.append(scale_of([row["objective"] for row in done], metric))
    columns = [heights_of(scale) for scale in scales]
    columns[-1] = columns[-1] + [BELOW] * len(failed)
    shades = [PALEST + (1 - PALEST) * (1 - ranks[row["job"]] / len(done)) ** 3 for row in done] + [0.25] * len(failed)
    tips = [*map(tip_of, done), *(f"job {row['job']}: {row['overrides']}, failed" for row in failed)]
    x: list[float] = []
    y: list[float] = []
    texts: list[str] = []
    for i, (scale, heights) in enumerate(zip(scales, columns, strict=True)):
        told = {height: scale.labels[place] for height, place in zip(heights, scale.places, strict=False)}
        if i == len(keys) or len(told) > MAX_NAMES:
            told = {height: told[height] for height in (min(told), max(told))}
        if failed and i == len(keys):
            told[BELOW] = "failed"
        x, y, texts = x + [i] * len(told), y + list(told), texts + list(told.values())
    layers = [parallel(columns, shades, tips), labels(x, y, texts)]
    ticks = dict(enumerate([*keys, metric]))
    where = draft.chart("parallel", chart("", "", "", layers, ticks=ticks, bare=True, height=380))
    draft.add(
        "parallel", "Parallel coordinates", remark("Each line is a job: the better, the darker."), where, wide=True
    )


def add_job_curves(draft: Draft, folder: Path, done: JobRows, metric: str) -> None:
    """The curves of the best jobs over each other."""
    curves = {row["job"]: directory.read_metrics(folder / str(row["job"])) for row in done[:MAX_CURVES]}
    for name in dict.fromkeys(["train_loss", metric]):
        layers = []
        for i, row in enumerate(done[:MAX_CURVES]):
            epochs = [each for each in curves[row["job"]] if each.get(name) is not None]
            if epochs:
                x, y = [each["epoch"] for each in epochs], [each[name] for each in epochs]
                layers.append(curve(f"job {row['job']}", x, y, i, dash=i >= 6, dots=len(x) == 1))
        if layers:
            log = (
                "y"
                if not is_share(name) and scale_of([v for each in layers for v in each["y"]], name).kind == "log"
                else ""
            )
            percent = "y" if is_share(name) else ""
            figure = chart("", "epoch", name, layers, log=log, percent=percent, whole=True, height=340)
            some = f" of the best {len(layers)}" if len(layers) < len(done) else ""
            draft.add(f"curve-{name}", f"{name.replace('_', ' ')}{some}", draft.chart(f"curve-{name}", figure))


def add_jobs(draft: Draft, folder: Path, rows: JobRows, keys: Sequence[str]) -> None:
    """All jobs in a table."""
    figures = [key for key in FIGURES_OF_JOBS if any(row[key] is not None for row in rows)]
    told = [key for key in ("stopped", "error") if any(row[key] for row in rows)]
    table = rows_table(
        ["job", *keys, "status", *figures, *told],
        [
            [
                link_to(folder, row["job"]),
                *(as_number(row[key]) for key in keys),
                row["status"],
                *(row[key] for key in figures),
                *(row[key] or None for key in told),
            ]
            for row in rows
        ],
        filtered="filter: a value, a state",
        caption="jobs",
    )
    draft.add("jobs", "Jobs", table, wide=True)


def as_number(text: Any) -> object:
    """A typed value as what it is sorted by."""
    try:
        return float(text), text
    except (TypeError, ValueError):
        return text


def link_to(folder: Path, job: int) -> tuple[int, Html | int]:
    """The number of a job, which leads to its own page where it has one."""
    is_there = (folder / str(job) / REPORT).is_file()
    return job, el("a", job, href=f"{job}/{REPORT}") if is_there else job
