"""What a regression came to: predicted over true numbers, errors, coefficients."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trainer.config.schema import Config
from trainer.data.columns import Encoding
from trainer.engine import Evaluation
from trainer.plots.page.charts import bars, chart, curve, dots
from trainer.plots.page.draft import Draft
from trainer.plots.page.markup import clean, facts, remark
from trainer.run.parts import Parts
from trainer.run.tables import coefficients_of, formula_of, in_own_unit, terms_of

MOST_EXAMPLES = 1500
MOST_EFFECTS = 40
MOST_WEIGHTS = 12


def add_numbers(draft: Draft, config: Config, parts: Parts, test: Evaluation) -> None:
    """The parts of the page that are about numbers; of several outputs the first one is shown.

    Args:
        draft: the page.
        config: of the run.
        parts: with the best weights.
        test: what was measured.
    """
    table = parts.splits.table
    if table is not None:
        predicted, true = (in_own_unit(table, values) for values in (test.outputs, test.labels))
    else:
        predicted, true = (values.detach().cpu().double()[:, 0] for values in (test.outputs, test.labels))
    target = clean(table.target if table is not None else "y")
    add_scatter(draft, predicted, true, target)
    weights = parts.measured.state_dict()
    if config.model.name != "linreg":
        return
    if table is not None:
        add_coefficients(draft, table, coefficients_of(table, parts.measured))
    elif weights["linear.weight"].numel() <= MOST_WEIGHTS:
        pairs = [(f"w{i + 1}", f"{w:.6g}") for i, w in enumerate(weights["linear.weight"].flatten().tolist())]
        biases = weights["linear.bias"].tolist()
        draft.add("weights", "Weights", facts([*pairs, ("b", ", ".join(f"{b:.6g}" for b in biases))]))


def add_scatter(draft: Draft, predicted: Tensor, true: Tensor, target: str) -> None:
    """Predicted over true numbers, and how often each error comes."""
    stride = -(-len(true) // MOST_EXAMPLES)
    x, y = true[::stride].tolist(), predicted[::stride].tolist()
    tips = [f"example {i * stride}: true {a:.5g}, predicted {b:.5g}" for i, (a, b) in enumerate(zip(x, y, strict=True))]
    ends = [min(*x, *y), max(*x, *y)]
    layers = [
        dots("", x, y, tips),
        curve("perfect model", ends, ends, 1, dash=True, quiet=True),
    ]
    axes = f"true {target}", f"predicted {target}"
    where = draft.chart("predicted", chart("", *axes, layers, height=340))
    told = remark(f"{len(x):,} of {len(true):,} test examples.") if stride > 1 else None
    draft.add("numbers", "Predicted over true", told, where)
    errors = (true - predicted)[torch.isfinite(true - predicted)]
    if len(errors) < 2 or not (spread := (errors.max() - errors.min()).item()):
        return
    num = min(40, max(5, round(len(errors) ** 0.5)))
    low, width = errors.min().item(), spread / num
    places = ((errors - low) / width).long().clamp(0, num - 1)
    counts = places.bincount(minlength=num).tolist()
    middles = [low + (i + 0.5) * width for i in range(num)]
    tips = [f"{m - width / 2:.4g} to {m + width / 2:.4g}: {c:,}" for m, c in zip(middles, counts, strict=True)]
    layers = [bars("", middles, counts, 0.94 * width, tips)]
    axes = f"true - predicted {target}", "test examples"
    draft.add("errors", "Errors", draft.chart("errors", chart("", *axes, layers, height=340)))


def add_coefficients(draft: Draft, table: Encoding, found: Mapping[str, Any]) -> None:
    """The formula, and what each column does to the prediction."""
    # a coefficient alone says little: one of a column in other units is a thousand times as large
    spread = {column.name: column.std for column in table.columns if not column.categories}
    effects = [(name, w, w * spread.get(name, 1.0)) for name, w in terms_of(found)]
    effects = sorted(effects, key=lambda each: abs(each[2]))[-MOST_EFFECTS:]
    tips = [f"{clean(name)}: coefficient {w:.5g}, effect {effect:.5g}" for name, w, effect in effects]
    places = range(len(effects))
    layers = [bars("", list(places), [effect for *_, effect in effects], 0.7, tips, lies=True)]
    names = {i: effects[i][0][:30] for i in places}
    axes = f"change of {table.target} for a standard deviation of the column, or for this category", ""
    height = 90 + 22 * len(effects)
    where = draft.chart("coefficients", chart("", *axes, layers, names=names, height=height))
    draft.add("coefficients", "Coefficients", remark(formula_of(table.target, found)), where, wide=True)
