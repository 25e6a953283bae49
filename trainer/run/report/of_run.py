"""report.html: all that is known of a run on one page that needs no server and loads nothing."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trainer.config.origins import DEFAULT, origins
from trainer.config.schema import Config
from trainer.engine import Evaluation
from trainer.plots.page.charts import chart, curve, logarithm_of, upright
from trainer.plots.page.draft import Draft
from trainer.plots.page.markup import Html, cards, code, el, facts, remark, rows_table
from trainer.run import directory
from trainer.run.brief import REPORT, Brief, brief_of, setting_text
from trainer.run.directory import Run, moved_folders
from trainer.run.looks import looks_of
from trainer.run.parts import Parts
from trainer.run.progress import Progress
from trainer.run.report.classes import add_classes
from trainer.run.report.inside import add_inside
from trainer.run.report.numbers import add_numbers
from trainer.run.tables import FIGURES_OF_NUMBERS
from trainer.utils.objective import is_share, said
from trainer.utils.program import main_py
from trainer.utils.screen import shown
from trainer.utils.text import number_of

MOST_RATES = 500  # points of the curve of the learning rate
MOST_NORMS = 12  # curves of gradients


class Made(NamedTuple):
    """What a run was measured with at its end; the model holds the best weights."""

    config: Config
    parts: Parts
    progress: Progress
    test: Evaluation


def write_report(run: Run, made: Made | None, missing: str = "") -> Path:
    """Write outputs/<run>/report.html; returns its path.

    Args:
        run: with its records.
        made: what it came to; None: the page shows what the records say.
        missing: why there is none.
    """
    told, rows = brief_of(run.name, run.outputs), directory.read_metrics(run.outputs)
    result = directory.read_result(run.outputs) if made is not None or told.result is not None else None
    draft = Draft(run.name)
    if rows:
        add_curves(draft, rows, (result or {}).get("best", {}).get("epoch"))
    if made is not None and made.parts.splits.task == "classification":
        add_classes(draft, made.config, made.parts, made.test)
    elif made is not None:
        add_numbers(draft, made.config, made.parts, made.test)
    if made is not None:
        add_inside(draft, made.config, made.parts, made.test)
    add_rates(draft, rows, made)
    add_origin(draft, told)
    add_settings(draft, told)
    path = run.outputs / REPORT
    draft.write(path, header(told, "done" if made is not None else told.state), *head(told, result, rows, missing))
    return path


def header(told: Brief, state: str) -> Html:
    """The name of the run, and what it is in a line."""
    settings = told.settings
    what = ", ".join(f"{key}={settings[key]}" for key in ("data", "model", "loss", "optimizer") if key in settings)
    return el("header", el("h1", told.name), el("p", f"{what}; {state}, started {told.started[:16].replace('T', ' ')}"))


def head(
    told: Brief, result: Mapping[str, Any] | None, rows: Sequence[Mapping[str, Any]], missing: str
) -> list[Html | None]:
    """The verdict and the figures."""
    reference = (result or {}).get("reference")
    verdict = el("p", said(reference), class_=f"verdict {reference['verdict']}") if reference else None
    reason = directory.read_status(told.folder).get("reason") if result is None else ""
    lines = [text for text in (reason, f"Without what the test examples tell: {missing}" if missing else "") if text]
    trouble = [el("p", text, class_="verdict failed") for text in lines]
    trial = el("p", "fast_dev_run: the figures are of one batch, and no result.", class_="verdict failed")
    is_trial = bool((result or {}).get("fast_dev_run"))
    return [verdict, *trouble, trial if is_trial else None, cards(figures_of_run(told, result, rows))]


def figures_of_run(
    told: Brief, result: Mapping[str, Any] | None, rows: Sequence[Mapping[str, Any]]
) -> list[tuple[str, object, str]]:
    """The large figures: (what it is, the figure, a remark)."""
    found: list[tuple[str, object, str]] = []
    if result is not None:
        test = result["test"]
        looks = number_of(max(1, looks_of(told.folder)["looks"]), "look")
        n = f"{number_of(test['n'], 'test example')}, {looks} at them"
        if "accuracy" in test:
            found.append(("test accuracy", percentage(test["accuracy"]), n))
        found += [(f"test {name}", f"{test[key]:.4g}", n) for key, name in FIGURES_OF_NUMBERS.items() if key in test]
        found.append(("test loss", shown(test["loss"]), "" if len(found) else n))
        objective = result["objective"]
        value = percentage(objective["value"]) if is_share(objective["metric"]) else shown(objective["value"])
        found.append((f"best {objective['metric']}".replace("_", " "), value, f"in epoch {result['best']['epoch']}"))
        found.append(("epochs", result["epochs"], result.get("stopped", "")))
        found.append(("parameters", f"{result['num_parameters']:,}" if "num_parameters" in result else None, ""))
    elif rows:
        found.append(("epochs", len(rows), f"of {told.settings.get('epochs', '?')}"))
        found += [(key.replace("_", " "), shown(rows[-1][key]), "last epoch") for key in rows[-1] if "loss" in key]
    seconds = sum(row["seconds"] for row in rows)
    rate = rows[-1]["samples_per_second"] if rows else 0
    if rows:
        found.append(("training time", f"{seconds:.3g} s", f"{rate:,.0f} examples/s in the last epoch"))
    return [each for each in found if each[1] is not None]


def percentage(value: float) -> str:
    """A share with as many digits as an accuracy is told with."""
    return f"{100 * value:.2f} %"


def add_curves(draft: Draft, rows: Sequence[Mapping[str, Any]], best: int | None) -> None:
    """Loss, accuracy and what else was measured in each epoch, with the best epoch marked."""
    keys = [
        key for key in ("loss", "accuracy", "macro_f1", "balanced_accuracy") if any(key in name for name in rows[0])
    ]
    epochs, places = [row["epoch"] for row in rows], []
    for key in keys:
        there = [split for split in ("train", "val") if any(row.get(f"{split}_{key}") is not None for row in rows)]
        curves = {split: [row.get(f"{split}_{key}") for row in rows] for split in there}
        if not curves:
            continue
        layers = [
            curve(split, epochs, values, pen, dots=len(rows) <= 15)
            for pen, (split, values) in enumerate(curves.items())
        ]
        layers += [upright(f"best epoch ({best})", best)] if best is not None else []
        is_loss = key == "loss"
        log = "y" if is_loss and logarithm_of([v for values in curves.values() for v in values]) else ""
        options = {"log": log, "percent": "" if is_loss else "y", "whole": True}
        title = "Loss" if is_loss else key.replace("_", " ").capitalize()
        y = "mean loss per example" if is_loss else "share of examples right" if key == "accuracy" else ""
        places.append((key, title, draft.chart(key, chart("", "epoch", y, layers, **options))))
    for key, title, where in places:
        draft.add(key, title, where, wide=len(places) == 1)
    if norms := [row for row in rows if row.get("gradient_norms")]:
        names = list(norms[0]["gradient_norms"])[:MOST_NORMS]
        lengths = {name: [row["gradient_norms"].get(name) for row in norms] for name in names}
        layers = [curve(name, [row["epoch"] for row in norms], lengths[name], i) for i, name in enumerate(names)]
        log = "y" if logarithm_of([v for values in lengths.values() for v in values]) else ""
        where = draft.chart("gradients", chart("", "epoch", "length of the gradient", layers, log=log, whole=True))
        draft.add("gradients", "Gradients after each epoch's last step", where, wide=True)


def add_rates(draft: Draft, rows: Sequence[Mapping[str, Any]], made: Made | None) -> None:
    """The learning rate over the steps; of a run without its parts that of each epoch."""
    if made is not None:
        last = max(made.progress.step, 1)
        steps = [*range(0, last, -(-last // MOST_RATES))]
        rates = [made.parts.lr_at(step) for step in steps]
    else:
        steps, rates = [row["step"] for row in rows], [row["lr"] for row in rows]
    if steps:
        layers = [curve("learning rate", steps, rates, 0, dots=len(steps) == 1)]
        figure = chart(
            "", "step (parameter updates)", "learning rate", layers, whole=True, range=[0, 1.1 * max(*rates, 1e-12)]
        )
        draft.add("rate", "Learning rate", draft.chart("rate", figure))


def add_settings(draft: Draft, told: Brief) -> None:
    """Every setting, where it came from, and first those that have not their default."""
    if not told.settings:
        return
    found = origins(told.settings, told.record.get("command", []))
    keys = sorted(found, key=lambda key: (found[key] == DEFAULT, key))
    table = rows_table(
        ["setting", "value", "from"],
        [[key, setting_text(told.settings[key]), found[key]] for key in keys],
        filtered="filter: a name, a value, typed",
        caption="settings",
    )
    own = sum(of != DEFAULT for of in found.values())
    draft.add(
        "settings",
        "Settings",
        remark(f"{own} of {len(found)} have not their default; they stand first."),
        table,
        wide=True,
    )


def add_origin(draft: Draft, told: Brief) -> None:
    """The commands that repeat the run, versions, commit and hardware."""
    record, settings = told.record, told.settings
    folders = [str(settings.get(f"paths.{key}", key)) for key in ("outputs", "checkpoints")]
    again = [code(" ".join([main_py(), "rerun", shlex.quote(told.name), *moved_folders(*folders)]))]
    words = record.get("command")
    typed = [remark("What was typed:"), code(shlex.join(words))] if words else []
    git = record.get("git") or {}
    commit = f"{git.get('commit', '')}{' with changes' if git.get('dirty') else ''}"
    pairs: list[tuple[str, object]] = [
        ("commit", commit),
        ("processor", record.get("cpu")),
        ("GPU", record.get("gpu")),
        ("device", record.get("device")),
        ("threads", record.get("threads")),
        ("system", record.get("platform")),
        *((record.get("versions") or {}).items()),
        ("folder", told.folder),
    ]
    told_again = remark("To train it once more, and compare the weights bit for bit:")
    draft.add("origin", "How it was made", *typed, told_again, *again, facts(pairs))
