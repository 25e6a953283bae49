"""What a classifier has right and wrong: the confusion matrix with its images, mistakes, classes, calibration."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePath

import torch
from torch import Tensor

from trainer import build
from trainer.config.schema import Config
from trainer.data.splits import Split
from trainer.engine import Evaluation
from trainer.plots.page.charts import bars, chart, curve
from trainer.plots.page.draft import Draft
from trainer.plots.page.markup import Html, clean, el, figure, fraction, remark, rows_table, together
from trainer.plots.page.png import shrunk
from trainer.run.parts import Parts
from trainer.utils.metrics import NUM_BINS, Report, classification_report
from trainer.utils.text import number_of

MOST_IMAGES, MOST_STREAMED = 300, 60  # on the page; those on disk have to be decoded, one after another
PER_CELL = 12
WORST = 24  # mistakes that are shown
MOST_PIXELS = 64  # pixels of an image on the page, at most
MOST_IN_MATRIX = 30  # classes; of more the pairs that are confused are listed
MOST_PAIRS = 60


def add_classes(draft: Draft, config: Config, parts: Parts, test: Evaluation) -> None:
    """The parts of the page that are about classes.

    Args:
        draft: the page.
        config: of the run.
        parts: with the test split.
        test: what was measured on it.
    """
    splits, labels = parts.splits, test.labels.cpu()
    chances = build.probabilities(config.loss, test.outputs.cpu())
    report = classification_report(test.outputs, labels, sigmoids=build.has_sigmoids(config.loss))
    predicted = test.outputs.cpu().argmax(1)  # as the report takes it; probabilities of 1.0 may be several
    sure = chances.gather(1, predicted[:, None])[:, 0]
    said = Said(splits.classes, labels.tolist(), predicted.tolist(), sure.tolist())
    images = add_images(draft, splits.test, said) if len(splits.in_shape) == 3 else {}
    add_confusion(draft, report, said, images)
    add_mistakes(draft, splits.test, said, images)
    add_per_class(draft, report, splits.classes)
    add_calibration(draft, report, said)


class Said:
    """What a model says of each test example."""

    def __init__(
        self, classes: Sequence[str], true: Sequence[int], predicted: Sequence[int], sure: Sequence[float]
    ) -> None:
        self.classes = [clean(name) for name in classes]
        self.true, self.predicted, self.sure = true, predicted, sure
        order = sorted(range(len(true)), key=lambda i: -sure[i])
        self.wrong = [i for i in order if true[i] != predicted[i]]  # the most confident first
        self.right = [i for i in reversed(order) if true[i] == predicted[i]]  # the least confident first
        cells = Counter((true[i], predicted[i]) for i in self.wrong)
        self.pairs = cells.most_common(MOST_PAIRS)  # that are confused most often
        self.is_matrix = len(classes) <= MOST_IN_MATRIX

    def caption(self, i: int) -> str:
        """The true class, the predicted one and its probability."""
        return f"{self.classes[self.true[i]]} / {self.classes[self.predicted[i]]} {self.sure[i]:.1%}"

    def of_interest(self, most: int) -> list[int]:
        """The examples whose images are worth their place: the worst mistakes, then from each cell that is shown."""
        ranks: Counter[tuple[int, int]] = Counter()
        found, listed = [], {cell for cell, _ in self.pairs}
        for i in (*self.wrong, *self.right):
            cell = self.true[i], self.predicted[i]
            if self.is_matrix or cell in listed:
                ranks[cell] += 1
                if ranks[cell] <= PER_CELL:
                    found.append((ranks[cell], i))
        found.sort(key=lambda each: each[0])  # stable: within a rank mistakes come first
        return list(dict.fromkeys([*self.wrong[:WORST], *(i for _, i in found)]))[:most]


def add_images(draft: Draft, split: Split, said: Said) -> dict[int, int]:
    """Put images of some test examples on the page; returns {example: its image}."""
    in_memory = isinstance(split.x, Tensor)
    wanted = said.of_interest(MOST_IMAGES if in_memory else MOST_STREAMED)
    numbers: dict[int, int] = {}
    for i in wanted:
        name = f", {PurePath(split.names[i]).name}" if split.names else ""
        number = draft.image(shrunk(split.x[i].cpu(), MOST_PIXELS), said.caption(i) + name)
        if number is None:
            break
        numbers[i] = number
        draft.cells.setdefault(f"{said.true[i]}-{said.predicted[i]}", []).append(number)
    return numbers


def add_confusion(draft: Draft, report: Report, said: Said, images: dict[int, int]) -> None:
    """The confusion matrix, or of many classes the pairs that are confused; a cell shows its images."""
    n = len(said.true)
    told = f"{number_of(n - len(said.wrong), 'example')} of {n:,} right. "
    behind: tuple[Html, ...] = ()
    if images:
        what = "cell" if said.is_matrix else "pair"
        told += f"A number shows images of its {what}: {len(images):,} of {n:,} are in this file."
        behind = (el("div", id="behind", aria_live="polite"),)
    counts = report.confusion
    body = matrix(counts, said.classes, bool(images)) if said.is_matrix else pairs(counts, said, bool(images))
    draft.add("confusion", "Confusion", remark(told), el("div", body, class_="scroll"), *behind, wide=True)


def matrix(counts: Tensor, classes: Sequence[str], opens: bool) -> Html:
    """Rows are true classes, columns predicted ones; the colour is the share of the row."""
    shares = (counts.double() / counts.sum(1, keepdim=True).clamp(min=1)).tolist()
    heads = (el("th", el("div", name), scope="col") for name in classes)
    lines = (
        el(
            "tr",
            el("th", classes[i], scope="row"),
            *(el("td", count_of(i, j, count, shares[i][j], classes, opens)) for j, count in enumerate(row)),
        )
        for i, row in enumerate(counts.tolist())
    )
    corner = el("th", "true / predicted")
    return el("table", el("thead", el("tr", corner, *heads)), el("tbody", *lines), class_="confusion")


def count_of(i: int, j: int, count: int, share: float, classes: Sequence[str], opens: bool) -> Html:
    """A cell of the matrix: a button where there is something behind it."""
    style = f"--share:{share:.3f}"
    title = f"{number_of(count, 'example')}: true {classes[i]}, predicted {classes[j]} ({share:.1%} of the class)"
    if not (count and opens):
        return el("span", count or "", style=style, title=title if count else None)
    class_ = "cell full" if share > 0.55 else "cell"
    return el("button", count, type="button", class_=class_, style=style, title=title, data_cell=f"{i}-{j}")


def pairs(counts: Tensor, said: Said, opens: bool) -> Html:
    """The pairs of classes that are confused most often."""
    size, rows = counts.sum(1).tolist(), []
    for (i, j), count in said.pairs:
        button = count_of(i, j, count, count / size[i], said.classes, opens)
        rows.append([said.classes[i], said.classes[j], (count, button), (count / size[i], fraction(count / size[i]))])
    return rows_table(["true", "predicted", "examples", "share of the class"], rows, filtered="filter: a class")


def add_mistakes(draft: Draft, split: Split, said: Said, images: dict[int, int]) -> None:
    """The wrong predictions with the highest probability: images, or the numbers of rows."""
    worst = said.wrong[:WORST]
    if not worst:
        draft.add("mistakes", "Mistakes", remark("There are none."), wide=True)
        return
    told = remark(f"The {len(worst)} most confident of {number_of(len(said.wrong), 'mistake')}.")
    if images:
        shown = [figure(images[i], *captioned(said, i, split.names), wrong=True) for i in worst if i in images]
        body = el("div", *shown, class_="gallery")
    else:
        rows = [
            [i, said.classes[said.true[i]], said.classes[said.predicted[i]], (said.sure[i], f"{said.sure[i]:.1%}")]
            for i in worst
        ]
        body = rows_table(["test row, from 0", "true", "predicted", "probability"], rows)
    draft.add("mistakes", "The worst mistakes", told, body, wide=True)


def captioned(said: Said, i: int, names: Sequence[str]) -> Iterable[Html | str]:
    """What stands below an image: true class, predicted class and probability, file."""
    true, predicted = el("b", said.classes[said.true[i]]), el("b", said.classes[said.predicted[i]])
    file = [el("br"), PurePath(names[i]).name] if names else []
    return ["true ", true, el("br"), "not ", predicted, f" {said.sure[i]:.1%}", *file]


def add_per_class(draft: Draft, report: Report, classes: Sequence[str]) -> None:
    """Precision, recall and F1 of each class."""
    sizes, guesses = report.confusion.sum(1).tolist(), report.confusion.sum(0).tolist()
    rows = [
        [name, size, guessed, *((value, fraction(value)) for value in values)]
        for name, size, guessed, *values in zip(
            classes, sizes, guesses, report.precision, report.recall, report.f1, strict=True
        )
    ]
    top5 = f", among the first five {fraction(report.top5_accuracy)}" if report.top5_accuracy is not None else ""
    told = f"Macro F1 {fraction(report.macro_f1)}, balanced accuracy {fraction(report.balanced_accuracy)}{top5}."
    heads = ["class", "examples", "predicted", "precision", "recall", "F1"]
    search = "filter: a class" if len(classes) > 10 else ""
    draft.add("classes", "Classes", remark(told), rows_table(heads, rows, filtered=search, caption="classes"))


def add_calibration(draft: Draft, report: Report, said: Said) -> None:
    """How often predictions of a probability are right (Guo et al. 2017, fig. 1)."""
    sure = torch.tensor(said.sure, dtype=torch.float64)
    right = torch.tensor([t == p for t, p in zip(said.true, said.predicted, strict=True)], dtype=torch.float64)
    edges = torch.linspace(0, 1, NUM_BINS + 1, dtype=torch.float64)[1:-1]
    bins = torch.bucketize(sure, edges)
    counts, hits, sums = (
        torch.zeros(NUM_BINS, dtype=torch.float64).index_add(0, bins, values)
        for values in (torch.ones_like(sure), right, sure)
    )
    there = [b for b in range(NUM_BINS) if counts[b]]
    accuracy = [float(hits[b] / counts[b]) for b in there]
    tips = [
        f"probability {float(sums[b] / counts[b]):.1%}, right {a:.1%}, {number_of(int(counts[b]), 'example')}"
        for b, a in zip(there, accuracy, strict=True)
    ]
    middles, width = [(b + 0.5) / NUM_BINS for b in there], 0.92 / NUM_BINS
    layers = [
        bars("right", middles, accuracy, width, tips),
        curve("perfectly calibrated", [0, 1], [0, 1], 1, dash=True, quiet=True),
    ]
    where = draft.chart("calibration", chart("", "predicted probability", "share right", layers, percent="xy"))
    error = f"Expected calibration error {fraction(report.calibration_error)}, in {NUM_BINS} bins."
    draft.add("calibration", "Calibration", remark(error), together([where]))
