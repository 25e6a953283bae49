"""Plots: the PNG opens at a sane size, and the figure behind it says what the data says."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import same_color, to_hex, to_rgb
from PIL import Image

from trainer.plots import line, sweep
from trainer.plots import run as plots
from trainer.plots.run import Row
from trainer.plots.style import BLUE, RED

ROWS: list[Row] = [
    {"epoch": e, "train_loss": 1 / e, "val_loss": 1.1 / e, "train_accuracy": 1 - 0.5 / e, "val_accuracy": 1 - 0.6 / e}
    for e in range(1, 6)
]
REGRESSION: list[Row] = [{"epoch": e, "train_loss": 10.0**-e, "val_loss": None} for e in range(1, 4)]
NAMES = ["T-shirt/top", "a name much longer than its cell", "$5_bill^$"]
CJK = ["\u732b", "\u72d7", "\u9e1f"]
COUNTS = torch.tensor([[8, 2, 0], [1, 9, 0], [0, 0, 0]])
LIBRARIES = {"concise": [(1, 2.0), (2, 1e-3)], "scratch": [(1, 2.0), (2, 1e-3)], "numpy": [(1, 2.0), (2, 1.1e-3)]}
ONE_STEP = {"concise": [(1, 0.0)], "scratch": [(1, 1e-30)]}  # a loss of 0 has no relative distance of its own
GREY = torch.randint(0, 256, (40, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def linear_data(num_features: int, num_examples: int = 50) -> tuple[torch.Tensor, torch.Tensor, list[float], float]:
    """Data without noise, so that every example lies on the model."""
    weight = [2.0, -3.4, 1.5, 0.5][:num_features]
    x = torch.randn(num_examples, num_features, generator=torch.Generator().manual_seed(0))
    return x, x @ torch.tensor(weight)[:, None] + 4.2, weight, 4.2


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


PLOTS: dict[str, Callable[[Path], None]] = {
    "curves": lambda path: plots.curves(ROWS, path, best_epoch=4),
    "curves of one epoch": lambda path: plots.curves(ROWS[:1], path),
    "curves of a regression": lambda path: plots.curves(REGRESSION, path, best_epoch=3),
    "curves without a number": lambda path: plots.curves([{"epoch": 1, "train_loss": float("nan")}], path),
    "learning rate": lambda path: plots.learning_rate([(s, 0.1 / (1 + s)) for s in range(100)], path),
    "one step": lambda path: plots.learning_rate([(0, 0.1)], path),
    "confusion": lambda path: plots.confusion(COUNTS, NAMES, path),
    "confusion with foreign names": lambda path: plots.confusion(COUNTS, CJK, path),
    "confusion of 100": lambda path: plots.confusion(torch.eye(100), [f"class {k}" for k in range(100)], path),
    "grid": lambda path: plots.prediction_grid(GREY, ["Ankle boot / Sneaker"] * 40, [True, False] * 20, path),
    "grid with foreign names": lambda path: plots.prediction_grid(GREY[:3], CJK, None, path),
    "grid in colour": lambda path: plots.prediction_grid(GREY[:2].expand(2, 3, 28, 28), NAMES[1:], None, path),
    "comparison": lambda path: plots.comparison(LIBRARIES, dict.fromkeys(LIBRARIES, 1.0), path),
    "comparison of one step": lambda path: plots.comparison(ONE_STEP, dict.fromkeys(ONE_STEP, 1.0), path),
    "fit": lambda path: line.fit(*linear_data(1), path),
    "fit of two features": lambda path: line.fit(*linear_data(2), path),
    "fit of four features": lambda path: line.fit(*linear_data(4), path),
    "fit of one example": lambda path: line.fit(*linear_data(2, num_examples=1), path),
}


@pytest.mark.parametrize("name", PLOTS)
def test_plot_is_a_png_of_sane_size_and_draws_without_a_warning(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run" / "plots" / "plot.png"
    before = dict(matplotlib.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PLOTS[name](path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert 100 <= image.width <= 2200
        assert 100 <= image.height <= 2200
        assert len(set(image.convert("L").resize((64, 64)).tobytes())) > 2, "the plot is blank"
    assert dict(matplotlib.rcParams) == before, "the style leaks into the caller's own figures"


def test_a_plot_that_was_half_drawn_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plot.png"
    PLOTS["learning rate"](path)
    before = path.read_bytes()

    def half(_: object, file: Path, **__: object) -> None:
        Path(file).write_bytes(before[:100])
        assert path.read_bytes() == before  # what a kill at this moment would leave
        raise KeyboardInterrupt

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", half)
    with pytest.raises(KeyboardInterrupt):
        PLOTS["learning rate"](path)
    assert path.read_bytes() == before
    assert [path] == list(tmp_path.iterdir())


def test_pyplot_is_never_imported() -> None:
    code = "import sys, trainer.plots.run; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0


def test_curves_show_both_splits_and_the_best_epoch() -> None:
    loss, accuracy = plots._curves_figure(ROWS, best_epoch=4).axes
    train, val, best = loss.get_lines()
    assert list(train.get_ydata()) == [1 / e for e in range(1, 6)]
    assert list(val.get_ydata()) == [1.1 / e for e in range(1, 6)]
    assert list(best.get_xdata()) == [4, 4]
    assert list(accuracy.get_lines()[1].get_ydata()) == [row["val_accuracy"] for row in ROWS]
    assert train.get_marker() == "o"


def test_curves_of_a_regression_have_one_panel_and_no_val_line() -> None:
    figure = plots._curves_figure(REGRESSION, None)
    assert len(figure.axes) == 1
    assert [line.get_label() for line in figure.axes[0].get_lines()] == ["train"]


@pytest.mark.parametrize(("last", "scale"), [(0.04, "log"), (0.06, "linear"), (0.0, "linear"), (-1.0, "linear")])
def test_loss_is_logarithmic_only_where_it_is_positive_and_spans_a_factor_of_20(last: float, scale: str) -> None:
    figure = plots._curves_figure([{"epoch": 1, "train_loss": 1.0}, {"epoch": 2, "train_loss": last}], None)
    assert figure.axes[0].get_yscale() == scale


def test_many_epochs_are_drawn_without_markers() -> None:
    rows: list[Row] = [{"epoch": e, "train_loss": 1.0} for e in range(1, 31)]
    assert plots._curves_figure(rows, None).axes[0].get_lines()[0].get_marker() in ("", "None")


def test_learning_rate_is_drawn_as_given() -> None:
    line = plots._learning_rate_figure([(0, 0.1), (10, 0.05), (20, 0.0)]).axes[0].get_lines()[0]
    assert line.get_xydata().tolist() == [[0, 0.1], [10, 0.05], [20, 0.0]]


def test_confusion_colours_row_shares_and_prints_counts() -> None:
    axes = plots._confusion_figure(COUNTS, NAMES).axes[0]
    assert axes.images[0].get_array().tolist() == [[0.8, 0.2, 0], [0.1, 0.9, 0], [0, 0, 0]]
    assert texts(axes) == ["8", "2", "0", "1", "9", "0", "0", "0", "0"]
    assert axes.get_title() == "85.00% of 20 right"
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["T-shirt/top", "a name much lon...", "$5_bill^$"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "predicted class")


@pytest.mark.parametrize(("num_classes", "num_cells"), [(20, 400), (21, 0)])
def test_counts_are_printed_up_to_20_classes(num_classes: int, num_cells: int) -> None:
    figure = plots._confusion_figure(torch.eye(num_classes), ["x"] * num_classes)
    assert len(texts(figure.axes[0])) == num_cells


def test_only_wrong_predictions_are_red_and_framed() -> None:
    wrong = [False, True, False]
    (axes,) = plots._prediction_figure(GREY[:3], ["a / a", "a / b", "b / b"], wrong).axes
    assert texts(axes) == ["a /\na", "a /\nb", "b /\nb"]
    assert [same_color(text.get_color(), RED) for text in axes.texts] == wrong
    (frame,) = axes.patches
    left, right, bottom, top = axes.images[1].get_extent()
    assert frame.get_bbox().extents.tolist() == pytest.approx([left, top, right, bottom])
    assert to_hex(RED).upper() == RED


def test_grid_shows_the_first_32_images_with_the_values_they_have() -> None:
    (axes,) = plots._prediction_figure(GREY, [str(n) for n in range(40)], None).axes
    assert texts(axes) == [str(n) for n in range(32)]
    assert torch.equal(torch.as_tensor(axes.images[31].get_array().data), GREY[31, 0])
    assert axes.images[31].get_clim() == (0, 255)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (10, 100), (100, 10)])
def test_grid_keeps_the_shape_of_the_images_and_leaves_room_between_them(height: int, width: int) -> None:
    images = torch.zeros(10, 1, height, width, dtype=torch.uint8)
    (axes,) = plots._prediction_figure(images, ["x"] * 10, None).axes
    places = [image.get_extent() for image in axes.images]
    left, right, bottom, top = places[0]
    assert (bottom - top) / (right - left) == pytest.approx(height / width)
    assert places[1][0] > right
    assert places[8][3] > bottom + 0.3  # inches, for a title of two lines
    assert all(0 <= p[0] < p[1] <= axes.get_xlim()[1] and 0 < p[3] < p[2] <= axes.get_ylim()[0] for p in places)


def test_grid_keeps_the_order_of_the_colour_channels() -> None:
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).reshape(1, 3, 1, 1).expand(1, 3, 4, 6)
    image = plots._prediction_figure(red, ["red"], None).axes[0].images[0].get_array()
    assert image.shape == (4, 6, 3)
    assert image[0, 0].tolist() == [255, 0, 0]


def test_the_heading_says_what_the_titles_mean_and_leaves_the_images_their_room() -> None:
    titles = [plots.caption("cat", 0.987, true="dog", name="a long file name 0001.png")] * 9
    assert titles[0] == "...e name 0001.png\ndog / cat 99%"
    (axes,) = plots._prediction_figure(GREY[:9], titles, [True] * 9, "true class / predicted class").axes
    heading = axes.texts[-1]
    assert heading.get_text() == "true class / predicted class"
    assert texts(axes)[0] == "...e name 0001.png\ndog /\ncat 99%"
    images = [image.get_extent() for image in axes.images]
    assert heading.get_position()[1] < images[0][3] - 0.4  # inches: a title of three lines lies between
    assert images[8][3] - images[0][2] > 0.45
    assert max(extent[2] for extent in images) <= axes.get_ylim()[0]


@pytest.mark.parametrize(
    ("predicted", "said"), [("cat", "cat 50%"), ("flying squirrel of the north", "flying sq... 50%")]
)
def test_a_caption_always_has_the_probability(predicted: str, said: str) -> None:
    assert plots.caption(predicted, 0.5) == said
    assert plots.caption(predicted, 0.5, true="dog", name="x.png") == f"x.png\ndog / {said}"
    (axes,) = plots._prediction_figure(GREY[:1], [plots.caption(predicted, 0.5, true="dog")], None).axes
    assert texts(axes) == [f"dog /\n{said}"]


def test_long_titles_are_shortened_line_by_line() -> None:
    (axes,) = plots._prediction_figure(GREY[:1], ["flying squirrel of the north / cat"], None).axes
    assert texts(axes) == ["flying squirrel...\ncat"]


@pytest.mark.parametrize("num_features", [1, 2])
def test_fitted_line_has_the_models_slope_and_noiseless_examples_lie_on_it(num_features: int) -> None:
    x, y, weight, bias = linear_data(num_features)
    panels = line._fit_figure(x, y, weight, bias).axes
    assert len(panels) == num_features
    for j, axes in enumerate(panels):
        (x0, y0), (x1, y1) = axes.get_lines()[0].get_xydata()
        assert (x0, x1) == (x[:, j].min().item(), x[:, j].max().item())
        assert [y0, y1] == pytest.approx([weight[j] * x0 + bias, weight[j] * x1 + bias])
        points = torch.as_tensor(axes.collections[0].get_offsets().data)
        torch.testing.assert_close(points[:, 0], x[:, j].double())
        # y was computed in float32, whose rounding at |y| < 20 stays below 1e-5.
        torch.testing.assert_close(points[:, 1], weight[j] * points[:, 0] + bias, atol=1e-5, rtol=0)


def test_a_wrong_weight_shows_as_the_residual_of_each_example() -> None:
    x, y, weight, bias = linear_data(2)
    axes = line._fit_figure(x, y, [weight[0] + 1, weight[1]], bias).axes[0]
    points = torch.as_tensor(axes.collections[0].get_offsets().data)
    torch.testing.assert_close(points[:, 1], weight[0] * points[:, 0] + bias, atol=1e-5, rtol=0)


def test_more_than_two_features_show_predicted_against_true() -> None:
    x, y, weight, bias = linear_data(4)
    (axes,) = line._fit_figure(x, y, weight, bias - 1).axes
    points = torch.as_tensor(axes.collections[0].get_offsets().data)
    torch.testing.assert_close(points[:, 1], points[:, 0] - 1, atol=1e-5, rtol=0)
    ends = axes.get_lines()[0].get_xydata()
    assert ends[:, 0].tolist() == ends[:, 1].tolist()


@pytest.mark.parametrize(("num_examples", "num_shown"), [(5000, 5000), (5001, 2501), (20000, 5000)])
def test_a_scatter_is_thinned_to_5000_examples(num_examples: int, num_shown: int) -> None:
    figure = line._fit_figure(*linear_data(1, num_examples=num_examples))
    assert len(figure.axes[0].collections[0].get_offsets()) == num_shown


def test_a_comparison_says_what_is_equal_and_shows_what_is_not() -> None:
    figure = plots._comparison_figure(LIBRARIES, {"concise": 1.0, "scratch": 1.5, "numpy": 12.34})
    losses, distances, costs = figure.axes
    assert [line.get_label() for line in losses.lines] == ["concise", "scratch", "numpy"]
    assert [line.get_label() for line in distances.lines] == ["scratch: equal bit for bit", "numpy"]
    assert distances.lines[1].get_ydata()[1] == pytest.approx(0.1 / 1.1)  # type: ignore[index]
    assert [bar.get_height() for bar in costs.patches] == [1.0, 1.5, 12.34]  # type: ignore[attr-defined]
    assert texts(costs) == ["1", "1.5", "12.3"]
    widths = [line.get_linewidth() for line in losses.lines]
    assert widths == sorted(widths, reverse=True)


def job(objective: float | None, metric: str = "val_accuracy", **settings: str) -> dict[str, Any]:
    """A line of sweep.csv."""
    status = "failed" if objective is None else "done"
    return settings | {"objective": objective, "metric": metric, "status": status}


@pytest.mark.parametrize(
    ("values", "kind", "labels"),
    [
        (["0.001", "0.1", "0.01"], "log", ["0.001", "0.01", "0.1"]),
        (["0.1", "1000"], "log", ["0.1", "1000"]),
        (["32", "64", "256"], "linear", ["32", "64", "256"]),
        (["-1", "100"], "linear", ["-1", "100"]),
        (["0.01", "0", "0.0001"], "names", ["0", "0.0001", "0.01"]),  # a weight decay, and none
        (["0", "0.5", "0.9"], "linear", ["0", "0.5", "0.9"]),
        (["sgd", "adam"], "names", ["sgd", "adam"]),
        (["0.1", None], "names", ["0.1", "None"]),
        (["nan", "1"], "names", ["nan", "1"]),
    ],
)
def test_the_axis_of_an_option_follows_from_its_values(values: list[Any], kind: str, labels: list[str]) -> None:
    scale = sweep.scale_of(values)
    assert scale.kind == kind
    assert list(scale.labels.values()) == labels
    assert [scale.labels[place] for place in scale.places] == [str(value) for value in values]


@pytest.mark.parametrize(
    ("key", "values", "kind"),
    [
        ("optimizer.lr", ["0.01", "0.03", "0.1"], "log"),
        ("optimizer.weight_decay", ["0", "0.0001", "0.0005"], "names"),
        ("optimizer.weight_decay", ["0", "0.0001"], "linear"),
        ("optimizer.lr", ["0.1"], "linear"),
        ("optimizer.lr", [f"0.{i}" for i in range(1, 9)], "linear"),  # matplotlib would label none of them
        ("optimizer.momentum", ["0.1", "0.5", "0.9"], "linear"),
        ("val_accuracy", [0.01, 0.9], "linear"),
        ("val_macro_f1", [0.01, 0.9], "linear"),
    ],
)
def test_rates_are_compared_by_factors(key: str, values: list[Any], kind: str) -> None:
    assert sweep.scale_of(values, key).kind == kind


def test_a_job_without_the_metric_of_the_first_has_an_empty_curve() -> None:
    with_val = [{"epoch": 1, "train_loss": 1.0, "val_loss": 1.1}, {"epoch": 2, "train_loss": 0.9, "val_loss": 1.0}]
    without = [{"epoch": 1, "train_loss": 0.8}]
    _, axes = sweep.curves_figure({"a": with_val, "b": without}).axes
    assert [list(line.get_xdata()) for line in axes.get_lines()] == [[1, 2], []]


def test_figures_of_thousands_are_written_out() -> None:
    labels = sweep.scale_of(["999.7", "1000.4", "1135.2", "20000.5", "0.12345", "3e7"]).labels
    assert list(labels.values()) == ["0.123", "1000", "1000", "1135", "20000", "3e+07"]


def test_rates_are_on_a_logarithmic_axis_and_seeds_have_none(tmp_path: Path) -> None:
    rates, seeds = ("0.0001", "0.01", "1"), ("0", "1")
    rows = [job(0.3 + i / 10, lr=lr, seed=seed, model="mlp") for i, lr in enumerate(rates) for seed in seeds]
    panels = sweep.options_figure(rows, ["lr"]).axes
    assert [(axes.get_title(), axes.get_xscale(), axes.get_yscale()) for axes in panels] == [("lr", "log", "linear")]
    drawn: dict[str, list[str]] = {}
    for keys in (["lr", "seed"], ["seed"], ["lr", "batch_size", "data.split_seed"]):
        folder = tmp_path / "-".join(keys)
        several = [row | {"batch_size": str(8 * i), "data.split_seed": str(i)} for i, row in enumerate(rows)]
        sweep.draw_sweep(several, keys, folder)
        drawn["-".join(keys)] = sorted(path.stem for path in folder.iterdir())
    assert drawn == {
        "lr-seed": ["options"],
        "seed": ["options"],
        "lr-batch_size-data.split_seed": ["options", "parallel"],
    }
    (axes,) = sweep.options_figure(rows[:2], []).axes  # nothing but seeds: their spread
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2 seeds"]


def test_an_accuracy_is_never_on_a_logarithmic_axis() -> None:
    for metric, scale in (("val_accuracy", "linear"), ("val_loss", "log")):
        rows = [job(0.01, metric, lr="0.1", momentum="0"), job(0.9, metric, lr="0.2", momentum="0.9")]
        assert sweep.options_figure(rows, ["lr"]).axes[0].get_yscale() == scale
        rows.append(job(0.1, metric, lr="0.1", momentum="0.9"))
        lines = sweep.parallel_figure(rows, ["lr", "momentum"]).axes[0].get_lines()
        heights = sorted(one.get_ydata()[-1] for one in lines if len(one.get_xdata()) == 3)
        assert (0.4 < heights[1] < 0.6) == (scale == "log")


def test_failed_jobs_are_marked_and_the_worst_line_is_seen_on_white() -> None:
    rows = [job(i / 100, lr=str(0.001 * (i + 1)), momentum=str(i % 2)) for i in range(50)]
    failed = [job(None, lr="1000", momentum="0")]
    panels = sweep.options_figure(rows, ["lr", "momentum"], failed).axes
    assert [list(axes.get_lines()[-1].get_xdata()) for axes in panels] == [[1000.0], [0.0]]
    axes = sweep.parallel_figure(rows, ["lr", "momentum"], failed).axes[0]
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) == 3]
    assert [line.get_color() for line in lines] == [BLUE] * 50 + [RED]
    assert "failed" in texts(axes)
    for one in lines:  # its colour over white differs from white by a quarter of the range or more
        assert (1 - min(to_rgb(one.get_color()))) * one.get_alpha() > 0.25


@pytest.mark.parametrize(("layers", "named"), [(2, 2), (6, 6), (18, 3)])
def test_the_legend_of_the_gradients_stays_readable(layers: int, named: int) -> None:
    rows = [{"epoch": epoch, "gradient_norms": {f"{i}.bias": 0.1 for i in range(layers + 1)}} for epoch in (1, 2)]
    axes = plots._gradients_figure(rows).axes[0]
    assert len(axes.get_legend().get_texts()) == named
    assert len({str(line.get_color()) for line in axes.lines}) == layers  # the output layer is left out
