"""What is said of a model of a table: figures and coefficients in the target's own unit, and their plots."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.data.columns import Column, Encoding
from trainer.engine import Evaluation
from trainer.utils.text import one_line

FIGURES_OF_NUMBERS = {"rmse": "RMSE", "mae": "MAE", "r2": "R^2"}


def in_own_unit(table: Encoding, values: Tensor) -> Tensor:
    """Outputs or targets of a regression (N, 1) as the target is in the file: (N,) float64, on the CPU."""
    return values.detach().cpu().double()[:, 0] * table.std + table.mean


def figures_of(table: Encoding | None, evaluation: Evaluation) -> dict[str, float]:
    """RMSE, MAE and R^2 of a regression of a table; {} of anything else. No R^2 where all targets are the same."""
    if table is None or table.classes:
        return {}
    return figures_of_numbers(in_own_unit(table, evaluation.outputs), in_own_unit(table, evaluation.labels))


def figures_of_numbers(predicted: Tensor, true: Tensor) -> dict[str, float]:
    """RMSE, MAE and R^2 of predictions (N,) of true numbers (N,), both float64; no R^2 where these are all the same."""
    unit = torch.stack([predicted, true]).abs().max().item() or 1.0  # the squares of 1e200 and of 1e-200 are no floats
    predicted, true = predicted / unit, true / unit
    errors, spread = predicted - true, (true - true.mean()).square().sum()
    figures = {"rmse": errors.square().mean().sqrt().item() * unit, "mae": errors.abs().mean().item() * unit}
    return figures | ({"r2": (1 - errors.square().sum() / spread).item()} if true.min() < true.max() else {})


def said_of_numbers(figures: Mapping[str, Any]) -> str:
    """The figures as they stand in front of a loss; "" where there are none."""
    there = [f"{name} {figures[key]:.4g}" for key, name in FIGURES_OF_NUMBERS.items() if key in figures]
    return "".join(f"{each}, " for each in there)


def parts_of_inputs(table: Encoding) -> Iterator[tuple[Column, str | None]]:
    """What each input stands for: a column and its category; "" for its numbers, None for where it is missing."""
    for column in table.columns:
        yield from ((column, category) for category in column.categories or ("",))
        if column.flag:
            yield column, None


def coefficients_of(table: Encoding, model: nn.Module) -> dict[str, Any]:
    """A linear regression in the units of the file.

    Returns:
        `coefficients`: {column: number}, for one of categories {column: {category: number}}; `missing`: what is added
        where a column is missing; `intercept`.
    """
    weights = model.state_dict()
    weight = (weights["linear.weight"].detach().cpu().double()[0] * table.std).tolist()
    intercept = table.mean + table.std * weights["linear.bias"].double().item()
    coefficients: dict[str, Any] = {}
    missing: dict[str, float] = {}
    for (column, category), w in zip(parts_of_inputs(table), weight, strict=True):
        if category is None:
            missing[column.name] = w
        elif column.categories:
            coefficients.setdefault(column.name, {})[category] = w
        else:
            coefficients[column.name] = w / column.std
            intercept -= w * column.mean / column.std
    return {"coefficients": coefficients, "missing": missing, "intercept": intercept}


def terms_of(found: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What coefficients_of() returned as (name, coefficient), in the order of the columns."""
    terms: list[tuple[str, float]] = []
    for name, value in found["coefficients"].items():
        inside = value.items() if isinstance(value, dict) else ()
        terms += [(f"[{name}={category}]", w) for category, w in inside] or [(name, value)]
        if name in found["missing"]:
            terms.append((f"[{name} missing]", found["missing"][name]))
    return terms


def formula_of(target: str, found: Mapping[str, Any]) -> str:
    """price = 120.3 area - 3.1 age + 40.2."""
    terms = [(f" {one_line(name, 60)}", w) for name, w in terms_of(found)]
    first, *others = [*terms, ("", found["intercept"])]
    said = "".join(f" {'-' if w < 0 else '+'} {abs(w):.4g}{name}" for name, w in others)
    return f"{one_line(target, 60)} = {first[1]:.4g}{first[0]}{said}"


def draw_table(table: Encoding, test: Evaluation, found: Mapping[str, Any] | None, folder: Path) -> Sequence[str]:
    """The plots of a regression of a table, as PNG files; returns their names.

    Args:
        table: how the model sees it.
        test: what was measured.
        found: the coefficients, of a linear regression.
        folder: where they go.
    """
    from trainer.plots import table as plots  # matplotlib takes 0.4 s

    predicted, true = (in_own_unit(table, values) for values in (test.outputs, test.labels))
    plots.predicted_over_true(predicted, true, table.target, folder / "predicted.png")
    plots.residuals(predicted, true, table.target, folder / "residuals.png")
    if found is None:
        return ("predicted", "residuals")
    # a coefficient alone says little: one of a column in other units is a thousand times as large
    spread = {column.name: column.std for column in table.columns if not column.categories}
    effects = [(name, w * spread.get(name, 1.0)) for name, w in terms_of(found)]
    plots.coefficients(effects, table.target, folder / "coefficients.png")
    return ("predicted", "residuals", "coefficients")


def own_outputs(table: Encoding | None, outputs: Tensor) -> Tensor:
    """The outputs (N, K) of a model as people want them: of a table's regression in the target's own unit."""
    if table is None or table.classes or not len(outputs):
        return outputs
    return torch.stack([in_own_unit(table, outputs)], 1)
