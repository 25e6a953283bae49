"""data=table: against scikit-learn and least squares, what each cell is taken as, refusals, predict, exact resume."""

import csv
import io
import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from conftest import Cli, assert_refused, predictions
from interrupted import PLAIN, Counts, Server, final_digest, kill_until_done
from pyarrow import parquet
from sklearn import datasets
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from trainer import build, load, train
from trainer.config.schema import Choice
from trainer.data import columns
from trainer.data.table import table_rows
from trainer.data.table_file import read_table
from trainer.run.gate import check_content
from trainer.run.safe_load import read_checkpoint
from trainer.run.tables import figures_of_numbers, formula_of
from trainer.utils.errors import ConfigError, DamagedError
from trainer.utils.files import read_csv
from trainer.utils.quotes import quote_items, typed_list

QUICK = ("plots=false", "epochs=2")
HOUSES = ("data=table", "data.path=houses.csv", "data.target=price")


def write(path: Path, rows: Sequence[Sequence[Any]]) -> Path:
    """A CSV file."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def write_houses(path: Path, n: int = 60) -> Path:
    """price = 3 area - 2 age + (100 in Paris) + noise; some ages are missing."""
    rng = random.Random(0)
    rows: list[list[Any]] = [["area", "age", "city", "price"]]
    for i in range(n):
        area, age, city = rng.randint(40, 200), rng.randint(0, 90), rng.choice(["Paris", "Rome", "Oslo"])
        price = 3 * area - 2 * age + 100 * (city == "Paris") + rng.gauss(0, 5)
        rows.append([area, "NA" if i % 9 == 0 else age, city, f"{price:.2f}"])
    return write(path, rows)


@pytest.fixture
def houses(tmp_path: Path) -> Path:
    return write_houses(tmp_path / "houses.csv")


def write_bundled(path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """One of scikit-learn's sets as a CSV file with the column `target`, and its inputs and targets as arrays."""
    loaded = getattr(datasets, f"load_{name}")(**{"scaled": False} if name == "diabetes" else {})
    y = loaded.target if name == "diabetes" else loaded.target_names[loaded.target]
    rows = [[*x, each] for x, each in zip(loaded.data.tolist(), y.tolist(), strict=True)]
    write(path, [[*loaded.feature_names, "target"], *rows])
    return loaded.data, y


def parts_of(path: str, **options: Any) -> tuple[list[int], list[int]]:
    """Which rows of a file, from 0, are training and test."""
    source = table_rows(Path(), Path(), path=path, target="target", **options)
    train, test = ([int(number) - 1 for number in split.names] for split in (source.train, source.test))
    assert sorted(train + test) == list(range(len(train) + len(test)))
    return train, test


def result_of_run(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(f"outputs/{name}/result.json").read_text(encoding="utf-8"))
    return content


# against independent truths


def test_linreg_is_least_squares_in_the_units_of_the_file(cli: Cli, tmp_path: Path) -> None:
    x, y = write_bundled(tmp_path / "diabetes.csv", "diabetes")
    outcome = cli("data=table", "data.path=diabetes.csv", "data.target=target", "model=linreg", "name=a", "plots=false")
    assert outcome.code == 0, outcome.err
    train, test = parts_of("diabetes.csv")
    truth = LinearRegression().fit(x[train], y[train])
    result = result_of_run("a")
    assert list(result["coefficients"].values()) == pytest.approx(truth.coef_.tolist(), rel=0.01)
    assert result["intercept"] == pytest.approx(truth.intercept_, rel=0.01)
    predicted = truth.predict(x[test])
    assert result["test"]["rmse"] == pytest.approx(root_mean_squared_error(y[test], predicted), rel=0.001)
    assert result["test"]["mae"] == pytest.approx(mean_absolute_error(y[test], predicted), rel=0.001)
    assert result["test"]["r2"] == pytest.approx(r2_score(y[test], predicted), rel=0.001)
    assert f"target = {truth.coef_[0]:.2g}"[:13] in outcome.out
    assert f"RMSE {result['test']['rmse']:.4g}, MAE {result['test']['mae']:.4g}, R^2 " in outcome.out
    shown = [line for line in outcome.out.splitlines() if "/600 " in line]
    assert 40 < len(shown) < 60
    assert (tmp_path / "outputs/a/train.log").read_text().count("/600 ") == 600
    assert cli("predict", "a", "diabetes.csv").code == 0
    said = [float(row["prediction"]) for row in read_csv(predictions())]
    assert said == pytest.approx(truth.predict(x).tolist(), rel=0.01, abs=0.2)


@pytest.mark.parametrize(
    "name", ["iris", *(pytest.param(name, marks=pytest.mark.slow) for name in ("wine", "breast_cancer"))]
)
def test_classifiers_are_as_good_as_those_of_scikit_learn(cli: Cli, tmp_path: Path, name: str) -> None:
    x, y = write_bundled(tmp_path / "set.csv", name)
    words = ("data=table", "data.path=set.csv", "data.target=target", "data.test_fraction=0.4", "plots=false")
    train, test = parts_of("set.csv", test_fraction=0.4)
    scaler = StandardScaler().fit(x[train])
    theirs = {"softmax": LogisticRegression(max_iter=1000), "mlp": MLPClassifier(max_iter=2000, random_state=0)}
    for model, other in theirs.items():
        assert cli(*words, f"model={model}", f"name={model}").code == 0
        truth = other.fit(scaler.transform(x[train]), y[train]).score(scaler.transform(x[test]), y[test])
        assert result_of_run(model)["test"]["accuracy"] >= truth - 0.02


def test_rows_become_the_numbers_that_the_page_says(tmp_path: Path) -> None:
    rows = [["area", "city", "y"], [1, "b", 0.5], [3, "a", 1.5], ["", "b", 2.5], [8, "", 3.5]]
    test = [["area", "city", "y"], ["?", "c", 7], [-1, " a ", "1e1"]]
    write(tmp_path / "a.csv", rows)
    write(tmp_path / "b.csv", test)
    source = table_rows(Path(), Path(), path=str(tmp_path / "a.csv"), target="y", test_path=str(tmp_path / "b.csv"))
    assert source.table is not None
    area = np.array([1, 3, 3, 8.0])  # the median where it is missing
    z = (area - area.mean()) / area.std()
    # area, area missing, a, b, city missing
    wanted = [[z[0], 0, 0, 1, 0], [z[1], 0, 1, 0, 0], [z[2], 1, 0, 1, 0], [z[3], 0, 0, 0, 1]]
    assert torch.as_tensor(source.train.x).tolist() == [pytest.approx(row) for row in wanted]
    odd = [(area[1] - area.mean()) / area.std(), 1, 0, 0, 0], [(-1 - area.mean()) / area.std(), 0, 1, 0, 0]
    assert torch.as_tensor(source.test.x).tolist() == [pytest.approx(row) for row in odd]
    y = np.array([0.5, 1.5, 2.5, 3.5])
    assert source.train.y.flatten().tolist() == pytest.approx(((y - y.mean()) / y.std()).tolist())
    assert source.test.y.flatten().tolist() == pytest.approx([(7 - 2) / y.std(), (10 - 2) / y.std()])


def test_figures_are_of_the_training_part_alone(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [["x", "y"], *([i, i / 2] for i in range(50))])
    source = table_rows(Path(), Path(), path=str(tmp_path / "a.csv"), target="y")
    train = np.array([int(number) - 1 for number in source.train.names], dtype=float)
    assert source.table is not None
    assert (source.table.columns[0].mean, source.table.columns[0].std) == pytest.approx((train.mean(), train.std()))
    assert (source.table.mean, source.table.std) == pytest.approx((train.mean() / 2, train.std() / 2))
    assert len(source.test) == 10


@pytest.mark.parametrize("impl", ["autograd", "scratch", "numpy"])
def test_every_library_trains_on_tables(cli: Cli, houses: Path, impl: str) -> None:
    """Each model and task that it has, as concise does."""
    write(houses.with_name("kinds.csv"), [["a", "b", "kind"], *([i, i % 7, "xyz"[i % 3]] for i in range(40))])
    kinds = ("data=table", "data.path=kinds.csv", "data.target=kind")
    for words in ((*HOUSES, "model=linreg"), (*HOUSES, "model=mlp"), (*kinds, "model=mlp"), (*kinds, "model=softmax")):
        losses = []
        for library in ("concise", impl):
            assert cli(*words, f"impl={library}", "name=a", "overwrite=true", *QUICK).code == 0
            losses.append(result_of_run("a")["test"]["loss"])
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_loss_of_a_table_is_the_one_of_its_target() -> None:
    z, y, labels = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    for impl in ("concise", "autograd", "scratch", "numpy"):
        auto = build.build_loss(Choice("auto", {}), impl)
        mse = build.build_loss(Choice("mse", {"form": "half"}), impl)
        cross_entropy = build.build_loss(Choice("cross_entropy", {"label_smoothing": 0.0}), impl)
        assert auto(z, y).item() == mse(z, y).item()
        assert auto(z, labels).item() == cross_entropy(z, labels).item()


# what is taken as what


@pytest.mark.parametrize("text", ["12", "-3.5", "+1", "1e-4", ".5", "5.", "0", "0.0", "-0", " 7 ", "1E5", "inf"])
def test_these_cells_are_numbers(text: str) -> None:
    values, odd = columns.numbers_of(columns.cells_of([text]))
    assert odd == columns.NO_CELL
    assert values[0] == float(text)


@pytest.mark.parametrize("text", ["007", "1,5", "1 000", "12a", "0x1f", "1_000", "true", "-", "\u0661", "1e", "00"])
def test_these_cells_are_text(text: str) -> None:
    assert columns.numbers_of(columns.cells_of([text]))[1] == 0


@pytest.mark.parametrize("text", ["", " ", "NA", "n/a", "#N/A", "nan", "NaN", "NULL", "?", " na "])
def test_these_cells_are_missing(text: str) -> None:
    assert columns.cells_of([text]) == [None]


def test_one_line_says_what_was_taken_as_what(cli: Cli, tmp_path: Path) -> None:
    rows = [["n", "code", "flat", "void", "s", "y"]]
    rows += [[i, f"00{i % 3}", 1, "", "a" if i % 2 else "", i / 4] for i in range(30)]
    write(tmp_path / "t.csv", [*rows, [5, "001", 1, "", "a", "NA"]])
    outcome = cli("data=table", "data.path=t.csv", "data.target=y", "model=linreg", "name=a", *QUICK)
    assert outcome.code == 0, outcome.err
    assert "table: 1 row of t.csv without y, left out" in outcome.out
    assert "table: left out: flat (constant), void (empty)" in outcome.out
    assert "table: 30 rows of t.csv; 1 number; 2 categories (code 3, s 1); missing: s 15" in outcome.out
    assert "target: y, regression; the loss is of (y - " in outcome.out
    found = result_of_run("a")
    assert list(found["coefficients"]) == ["n", "code", "s"]
    assert list(found["coefficients"]["code"]) == ["000", "001", "002"]
    assert list(found["missing"]) == ["s"]


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        (["a", "b"], "auto", ("a", "b")),
        ([1, 2, 10], "auto", ("1", "2", "10")),
        (["1.0", "0", "1"], "auto", ("0", "1")),
        (list(range(21)), "auto", ()),
        ([0.5, 1, 2], "auto", ()),
        ([0.5, 1, 2], "classification", ("0.5", "1", "2")),
        ([1, 2], "regression", ()),
    ],
)
def test_the_target_decides_what_is_predicted(tmp_path: Path, values: list[Any], task: str, classes: Any) -> None:
    write(tmp_path / "t.csv", [["x", "y"], *([i, value] for i in range(4) for value in values)])
    source = table_rows(Path(), Path(), path=str(tmp_path / "t.csv"), target="y", task=task)
    assert source.classes == classes
    assert source.task == ("classification" if classes else "regression")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("csv", ";"), ("csv", "\t"), ("tsv", "\t")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_separators_line_ends_and_byte_order_marks(
    tmp_path: Path, encoding: str, suffix: str, separator: str, end: str
) -> None:
    path = tmp_path / f"t.{suffix}"
    lines = ["n\u00e4me;y", '"a;\nb";1.5', "c;2.5", "", "a;0.5"]
    text = end.join(lines).replace(";", separator)
    path.write_bytes(text.encode(encoding))
    source = table_rows(Path(), Path(), path=str(path), target="y", test_path=str(path))
    assert source.table is not None
    assert source.table.columns[0].name == "n\u00e4me"
    assert source.table.columns[0].categories == ("a", f"a{separator}\nb", "c")


def test_spaces_before_quotes_and_lines_of_spaces_are_none(tmp_path: Path) -> None:
    for separator in (",", ";", "\t"):
        text = '\n  \nx, name, y\n1, "a, b", 2\n  \n 3,"c""d", 4\n'.replace(",", separator)
        (tmp_path / "t.csv").write_text(text)
        columns = read_table(tmp_path / "t.csv", "data.path").columns
        assert {name: [cell.strip() for cell in cells] for name, cells in columns.items()} == {
            "x": ["1", "3"],
            "name": [f"a{separator} b", 'c"d'],
            "y": ["2", "4"],
        }


def test_a_parquet_file_is_the_same_table(cli: Cli, houses: Path) -> None:
    with open(houses, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    ages = [None if row["age"] == "NA" else float(row["age"]) for row in rows]
    table = pyarrow.table(
        {
            "area": [int(row["area"]) for row in rows],
            "age": ages,
            "city": pyarrow.array([row["city"] for row in rows]).dictionary_encode(),
            "price": [float(row["price"]) for row in rows],
        }
    )
    parquet.write_table(table, houses.with_suffix(".parquet"))
    losses = []
    for name in ("csv", "parquet"):
        assert cli(*HOUSES, f"data.path=houses.{name}", "name=a", "overwrite=true", *QUICK).code == 0
        losses.append(result_of_run("a")["test"])
    assert losses[0] == losses[1]
    parquet.write_table(table.append_column("l", [[[1]] * len(rows)]), houses.with_suffix(".pq"))
    assert_refused(cli(*HOUSES, "data.path=houses.pq"), "column l: its cells are of type list")


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    """Every outcome but a table or a refusal fails: an error of the reader's, or the end of the process."""
    path, rng, refused = tmp_path / "t.parquet", random.Random(0), 0
    parquet.write_table(pyarrow.table({"x": [1, 2, 3] * 9, "s": list("abc") * 9, "y": [0.5, 1, 2] * 9}), path)
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ConfigError, match=r"is no Parquet file that can be read"):
            table_rows(Path(), Path(), path=str(path), target="y")
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            table_rows(Path(), Path(), path=str(path), target="y")
        except ConfigError:
            refused += 1
    assert 100 < refused < 300


def test_without_pyarrow_a_parquet_file_says_what_to_type(
    cli: Cli, houses: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    houses.with_suffix(".parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert_refused(cli(*HOUSES, "data.path=houses.parquet"), "Type: ", "-m pip install -r ", "requirements-table.txt")
    assert cli(*HOUSES, *QUICK).code == 0  # CSV files need no other package


# refusals


GOOD = "x,y\n" + "".join(f"{i},{i / 2}\n" for i in range(10))
REFUSED: dict[str, tuple[str | bytes, tuple[str, ...], tuple[str, ...]]] = {  # content, words, what is said
    "no target": (
        GOOD,
        ("data.target=yy",),
        ("data.target=yy", "no such column. Did you mean y?", "Its columns: x, y"),
    ),
    "empty": ("", (), ("t.csv is empty",)),
    "separators alone": (",,\n,\n", (), ("t.csv has no such column",)),
    "header alone": ("x,y\n", (), ("a header and no rows",)),
    "one row": ("x,y\n1,2.5\n", (), ("has 1 row", "data.test_fraction=0.2")),
    "one column": ("y\n1\n2\n", (), ("has no column but y",)),
    "long row of semicolons": ("x;y\n1;2;3\n", (), ("3 fields", "A field with semicolons in it needs quotes")),
    "short row": (GOOD + "1\n", (), ("line 12: 1 field, and the header has 2",)),
    "long row": (GOOD + "1,2,3\n", (), ("line 12: 3 fields, and the header has 2", "needs quotes")),
    "quotes": (GOOD + '"a"b,1\n', (), ("line 12",)),
    "a long cell": ("x,y\n" + f"{'a' * 132_000},1\nb,2.5\n" * 9, (), ("Leave it out: ",)),
    "an open quote": (GOOD + '"a,1\n2,3\n4,5\n', (), ("line 12: a quote is opened there and never closed",)),
    "no name": (",y\n1,2\n", (), ("column 1 of 2 has no name", "index=False")),
    "a name twice": ("x,x,y\n1,2,3\n", (), ("two columns 'x'",)),
    "latin 1": (
        "caf\u00e9,y\n1,2\n".encode("latin-1"),
        (),
        ("not in UTF-8 (line 1)", "iconv -f WINDOWS-1252 -t UTF-8 "),
    ),
    "utf 16": (GOOD.encode("utf-16"), (), ("iconv -f UTF-16LE",)),
    "infinite": (GOOD + "inf,3\n", (), ("column x: row 11 has inf, which is no finite number",)),
    "too large": (GOOD + "1e999,3\n", (), ("row 11 has 1e999",)),
    "infinite target": (GOOD + "1,-inf\n", (), ("data.target=y: row 11 has -inf",)),
    "commas": ("x;y\n" + "".join(f"{i},5;{i}.5\n" for i in range(9)), (), ("0,5 is no number: write 1.5 for 1,5",)),
    "commas in the target": (
        "x;y\n" + "".join(f"{i};{i % 7},5\n" for i in range(30)),
        (),
        ("data.target=y: 0,5 is no number: write 1.5 for 1,5", "data.task=classification"),
    ),
    "nearly a number": (
        "x,y\n" + "".join(f"{i},{i % 25 if i else 'none'}\n" for i in range(60)),
        (),
        ("data.target=y: most cells are numbers, but not 'none' in row 1", "data.task=classification"),
    ),
    "nearly a class a row": ("x,y\n" + "".join(f"{i},${i % 30}\n" for i in range(50)), (), ("30 classes in 50 rows",)),
    "no targets": ("x,y\n1,\n2,NA\n", (), ("no row with a value",)),
    "all the same": ("x,y\n" + "".join(f"{i},3\n" for i in range(9)), (), ("all rows have the value 3",)),
    "nothing left": ("x,y\n" + "".join(f"1,{i}.5\n" for i in range(9)), (), ("no column is left",)),
    "many categories": ("x,y\n" + "".join(f"a{i},{i}.5\n" for i in range(200)), (), ("160 different", "data.drop=[x]")),
    "nearly numbers": (
        "x,y\n" + "".join(f"{i if i else 'old'},{i}.5\n" for i in range(200)),
        (),
        ("most cells are numbers, but not 'old' in row 1", "data.drop=[x]"),
    ),
    "many classes": ("x,y\n" + "".join(f"{i},n{i}\n" for i in range(50)), (), ("50 classes in 50 rows",)),
    "features": (GOOD, ("data.features=[X]",), ("data.features=[X]", "Did you mean x?")),
    "drop": (GOOD, ("data.drop=[z]",), ("data.drop=[z]", "no such column", "Its columns: x")),
    "the target as a feature": (GOOD, ("data.features=[y]",), ("this is the column to predict",)),
    "all dropped": (GOOD, ("data.drop=[x]",), ("leave no column",)),
    "text as a number": ("x,y\n1,a\n2,b\n", ("data.task=regression",), ("row 1 has 'a', which is no number",)),
    "softmax": (
        GOOD,
        ("model=softmax",),
        ("model=softmax does not fit data.target=y", "regression", "model=linreg, mlp"),
    ),
    "linreg": (
        "x,y\n1,a\n2,b\n3,a\n4,b\n5,a\n",
        ("model=linreg",),
        ("does not fit", "classification", "Allowed: model=softmax, mlp."),
    ),
    "loss": (GOOD, ("loss=cross_entropy",), ("loss=cross_entropy does not fit data.target=y", "auto")),
    "balance": (GOOD, ("data.balance=true",), ("data.balance=true does not fit data.target=y",)),
    "tiny test part": (GOOD, ("data.test_fraction=0.01",), ("makes 0 the test part",)),
    "two tasks": (GOOD, ("model=linreg", "loss=cross_entropy"), ("loss=cross_entropy does not fit model=linreg",)),
    "no model for it": (GOOD, ("model=softmax", "data.task=regression"), ("model=softmax does not fit data=table",)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_table_that_cannot_be_learnt_from_gets_one_clear_line(cli: Cli, tmp_path: Path, case: str) -> None:
    content, words, said = REFUSED[case]
    (tmp_path / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    outcome = cli("data=table", "data.path=t.csv", "data.target=y", "name=a", *QUICK, *words)
    assert_refused(outcome, *said)
    assert not (tmp_path / "outputs/a").exists()


def test_all_columns_that_cannot_be_inputs_are_named_at_once(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "t.csv", [["x", "full name", "ticket", "y"], *([i, f"n{i}", f"t{i}", i / 2] for i in range(200))])
    words = ("data=table", "data.path=t.csv", "data.target=y", *QUICK)
    outcome = cli(*words)
    assert_refused(outcome, "column full name: 160 different texts", "column ticket: 160 different texts")
    assert "All of these 2 columns are left out by 'data.drop=[full name,ticket]'." in outcome.err
    assert cli(*words, "data.drop=[full name,ticket]").code == 0


def test_files_that_are_none(cli: Cli, houses: Path) -> None:
    assert_refused(cli("data=table"), "data=table needs data.path=", "data.target=")
    assert_refused(cli(*HOUSES, "data.path=nowhere.csv"), "data.path=nowhere.csv: there is no such file")
    (houses.parent / "folder.csv").mkdir()
    assert_refused(cli(*HOUSES, "data.path=folder.csv"), "that is no file")
    assert_refused(cli(*HOUSES, "data.path=houses.xlsx"), "Allowed: a file that ends in .csv, .tsv")
    assert_refused(cli(*HOUSES, "data.test_path=nowhere.csv"), "data.test_path=nowhere.csv: there is no such file")
    assert_refused(cli(*HOUSES, "data.task=both"), "data.task=both is not allowed")
    assert_refused(cli(*HOUSES, "data.val_fraction=0"), "data.val_fraction above 0, or monitor=auto")


def test_an_id_and_rows_in_both_parts_are_said(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "t.csv", [["id", "x", "y"], *([f"i{i}", i, i / 2] for i in range(20))])
    outcome = cli("data=table", "data.path=t.csv", "data.target=y", *QUICK)
    assert "warning: id is different in each row, as an ID is" in outcome.out
    assert "'data.drop=[id]' leaves it out" in outcome.out
    write(tmp_path / "t.csv", [["x", "y"], *([1.5 * (i % 2), i % 2 / 2] for i in range(20))])
    outcome = cli("data=table", "data.path=t.csv", "data.target=y", *QUICK)
    assert "note: 2 rows of the test part stand in the training part too" in outcome.out


# names

ODD = ["\u9762\u79ef", "=age", 'a "b", c', "it's", "[x]", "line\nend", " spaced", "null", "a=b", "10"]


def test_a_column_that_one_cell_makes_text_is_said(cli: Cli, tmp_path: Path) -> None:
    rows = [["age", "size", "y"], *([i % 30 if i else "-", "3+" if i % 4 == 3 else i % 4, i / 2] for i in range(90))]
    write(tmp_path / "t.csv", rows)
    out = cli("data=table", "data.path=t.csv", "data.target=y", *QUICK).out
    said = "warning: age: most cells are numbers, but not '-' in row 1: empty such cells"
    assert said in out
    assert "'data.drop=[age]' leaves it out" in out
    assert "warning: size" not in out  # 0, 1, 2, 3+ are codes


def test_columns_may_have_any_name(cli: Cli, tmp_path: Path) -> None:
    names = [name.strip() for name in ODD]
    write(
        tmp_path / "t.csv", [[*names, "the target"], *([*(i * k % 11 for k in range(1, 11)), i / 2] for i in range(30))]
    )
    listed = ",".join(f"'{name}'".replace("'it's'", '"it\'s"') for name in names[:5])
    words = ("data=table", "data.path=t.csv", "data.target=the target", "model=linreg", *QUICK)
    assert cli(*words, f"data.features=[{listed}]", "name=a").code == 0
    assert list(result_of_run("a")["coefficients"]) == names[:5]
    assert cli(*words, "data.drop=[\u9762\u79ef,=age,10, spaced ,a=b]", "name=b").code == 0
    kept = [name for name in names if name not in ("\u9762\u79ef", "=age", "10", "spaced", "a=b")]
    assert list(result_of_run("b")["coefficients"]) == kept
    outcome = cli("predict", "b", "t.csv")
    assert outcome.code == 0, outcome.err
    assert "\nend" not in outcome.out
    [header, *rows] = csv.reader(io.StringIO(predictions(Path("outputs/b")).read_text(encoding="utf-8")))
    assert header == [f"'{name}" if name.startswith("=") else name for name in [*names, "the target", "prediction"]]
    assert len(rows) == 30


@pytest.mark.parametrize(
    ("typed", "quoted"),
    [
        ("[a,b c]", "['a','b c']"),
        ("id", "['id']"),
        ("[]", "[]"),
        ("['a,b',c]", "['a,b','c']"),
        ("[it's]", "['it\\'s']"),
        ("[2019]", "['2019']"),
        ("null", "null"),
    ],
)
def test_names_in_a_list_are_quoted(typed: str, quoted: str) -> None:
    assert quote_items(typed) == quoted


def test_a_sweep_may_choose_the_columns(cli: Cli, houses: Path) -> None:
    outcome = cli("-m", *HOUSES, "model=linreg", "data.features=[area],[area,age]", "name=s", *QUICK)
    assert outcome.code == 0, outcome.err
    assert [list(result_of_run(f"s/{i}")["coefficients"]) for i in (0, 1)] == [["area"], ["area", "age"]]


def test_what_is_printed_for_a_name_can_be_typed() -> None:
    assert typed_list("data.drop", "id") == "'data.drop=[id]'"
    assert typed_list("data.drop", "a b") == "'data.drop=[a b]'"
    assert typed_list("data.drop", "a,b") == "'data.drop=['\"'\"'a,b'\"'\"']'"


# predict, eval, from Python


def test_predict_says_what_is_odd_about_new_rows(cli: Cli, houses: Path) -> None:
    assert cli(*HOUSES, "model=linreg", "name=a", *QUICK).code == 0
    new = [
        ["city", "area", "prediction", "note"],
        ["Paris", 50, "=1+1", "a"],
        ["Bonn", "big", "", "b"],
        ["", "", "", ""],
    ]
    write(houses.with_name("new.csv"), new)
    outcome = cli("predict", "a", "new.csv")
    assert outcome.code == 0, outcome.err
    assert "there is no column age: each row counts as one where it is missing" in outcome.out
    assert "city: 1 cell with a category that the training had not (row 2: Bonn)" in outcome.out
    assert "area: 1 cell with no finite number (row 2: big), counted as missing" in outcome.out
    assert "area: 1 cell missing, as none was in the training, counted as the median" in outcome.out
    assert "not used, since the model was not trained on it: prediction, note" in outcome.out
    assert predictions().name == "predictions-new.csv"
    rows = read_csv(predictions())
    assert list(rows[0]) == ["city", "area", "prediction", "note", "prediction_2"]
    assert [row["prediction"] for row in rows] == ["=1+1", "", ""]
    found = result_of_run("a")
    own = found["coefficients"]
    age = next(c.median for c in table_rows(Path(), Path(), path="houses.csv", target="price").table.columns[1:2])
    wanted = found["intercept"] + 50 * own["area"] + own["city"]["Paris"] + age * own["age"] + found["missing"]["age"]
    assert float(rows[0]["prediction_2"]) == pytest.approx(wanted, rel=1e-5)
    write(houses.with_name("none.csv"), [["a"], [1]])
    assert_refused(
        cli("predict", "a", "none.csv"), "none of the columns that the model was trained on: area, age, city"
    )
    assert_refused(cli("predict", "a", "new.csv", "none.csv"), "none.csv has other columns than new.csv")


def test_predict_of_classes_and_of_several_files(cli: Cli, tmp_path: Path) -> None:
    rows = [[i, "low" if i < 20 else "high"] for i in range(40)]
    write(tmp_path / "t.csv", [["x", "kind"], *rows])
    words = ("data=table", "data.path=t.csv", "data.target=kind", "model=softmax", "name=a", "plots=false")
    assert cli(*words, "epochs=30").code == 0
    write(tmp_path / "u.csv", [["x", "kind"], *rows])
    outcome = cli("predict", "a", "t.csv", "u.csv", "output=both.csv")
    assert outcome.code == 0, outcome.err
    assert "accuracy " in outcome.out
    [first, *_, last] = read_csv(Path("both.csv"))
    assert first["input"] == "t.csv"
    assert (first["x"], first["kind"], first["prediction"]) == ("0", "low", "low")
    assert (last["prediction"], float(last["probability"]) > 0.5) == ("high", True)
    outcome = cli("predict", "a")
    assert outcome.code == 0, outcome.err
    assert f"accuracy {result_of_run('a')['test']['accuracy']:.4f} on 8 rows" in outcome.out
    assert list(read_csv(predictions())[0]) == ["row", "prediction", "true"]
    assert cli("predict", "a", "t.csv", "top_k=2", "probabilities=true", "output=more.csv").code == 0
    [first, *_, last] = read_csv(Path("more.csv"))
    assert (first["class_2"], last["class_2"]) == ("high", "low")
    assert float(last["p(high)"]) + float(last["p(low)"]) == pytest.approx(1, abs=1e-5)
    assert last["probability"] == last["p(high)"]


def test_eval_measures_by_the_figures_of_the_training(cli: Cli, houses: Path) -> None:
    assert cli(*HOUSES, "model=linreg", "name=a", "epochs=30", "plots=false").code == 0
    outcome = cli("eval", "a", "plots=false")
    assert outcome.code == 0, outcome.err
    before, now = result_of_run("a")["test"], json.loads(Path("outputs/a/eval-table-test.json").read_text())
    assert {key: now[key] for key in before} == pytest.approx(before, rel=1e-5)
    with open(houses, encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    write(houses.with_name("other.csv"), [header, *(row for row in rows if row[2] == "Oslo")])  # other means, one city
    assert cli("eval", "a", "data.test_path=other.csv", "plots=false").code == 0
    now = json.loads(Path("outputs/a/eval-table-test.json").read_text())
    oslo = [row for row in rows if row[2] == "Oslo"]
    assert cli("predict", "a", "other.csv").code == 0
    errors = [float(row["prediction"]) - float(own[3]) for row, own in zip(read_csv(predictions()), oslo, strict=True)]
    assert now["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-4)
    assert_refused(
        cli("eval", "a", "data.test_fraction=0.3"), "on the same examples. Another cut would measure examples"
    )
    write(houses, [header, *rows, *rows[:3]])
    assert_refused(cli("eval", "a"), "houses.csv is not what it was in the training", "data.test_path=FILE")
    assert_refused(cli("resume=a", "epochs=40"), "was trained on other data")


def test_what_belongs_to_the_training_has_no_effect_on_eval(cli: Cli, houses: Path) -> None:
    assert cli(*HOUSES, "name=a", *QUICK).code == 0
    outcome = cli("eval", "a", "data.drop=[city]", "data.task=classification")
    assert outcome.code == 0, outcome.err
    for key in ("data.drop", "data.task"):
        assert f"warning: {key} has no effect on eval" in outcome.out
    assert_refused(cli("resume=a", "data.drop=[city]", "epochs=3"), "data.drop", "another run")
    content = read_checkpoint(Path("checkpoints/a/best.pt"))
    del content["table"]
    torch.save(content, "checkpoints/a/best.pt")
    assert_refused(cli("eval", "a"), "this model was not trained on a table")


class Frame:
    """As much of a data frame as is used."""

    def __init__(self, cells: dict[str, Any]) -> None:
        self.columns, self.cells = list(cells), cells

    def __getitem__(self, name: str) -> Any:
        return self.cells[name]


def test_a_loaded_model_takes_tables(cli: Cli, houses: Path) -> None:
    assert cli(*HOUSES, "name=a", *QUICK).code == 0
    model = load("a")
    whole = model.predict("houses.csv").outputs
    with open(houses, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    some = {name: [row[name] for row in rows[:5]] for name in ("area", "age", "city")}
    assert model.predict(some).outputs == pytest.approx(whole[:5], rel=1e-5)
    frame = Frame(some | {"area": np.array(some["area"], dtype=np.float32)})
    assert model.predict(frame).outputs == pytest.approx(whole[:5], rel=1e-5)
    assert 0 < whole.mean() < 1000
    with pytest.raises(ConfigError, match="list is no table"):
        model.predict([1, 2])
    tensors = some | {"area": torch.tensor([float(cell) for cell in some["area"]])}
    assert model.predict(tensors).outputs == pytest.approx(whole[:5], rel=1e-5)
    for cells in (50, "50", {0: 50}, np.array(50.0), torch.ones(5, 1), [[50]]):
        with pytest.raises(
            ConfigError, match=r"column area is no list of single values. Allowed: .*'area': \[50, 70\]"
        ):
            model.predict(some | {"area": cells})
    with pytest.raises(ConfigError, match="not equally long"):
        model.predict({"area": [1], "age": [1, 2]})


def test_columns_of_any_name_are_left_out_from_python(cli: Cli, tmp_path: Path) -> None:
    names = ["a,b", "[c]", "it's", "plain"]
    write(tmp_path / "t.csv", [[*names, "x", "y"], *([i, i, i, i, i % 4, i / 2] for i in range(20))])
    settings = {"data": "table", "data.path": "t.csv", "data.target": "y", "data.drop": names, "plots": False}
    assert train(settings, epochs=1, model="linreg").load().in_shape == (1,)


def test_plots(cli: Cli, houses: Path, tmp_path: Path) -> None:
    assert cli(*HOUSES, "model=linreg", "name=a", "epochs=2").code == 0
    there = {path.stem for path in (tmp_path / "outputs/a/plots").glob("*.png")}
    assert there == {"curves", "lr", "predicted", "residuals", "coefficients"}
    assert cli("eval", "a").code == 0
    assert (tmp_path / "outputs/a/plots/eval-table-test/predicted.png").is_file()
    for words in ((), ("houses.csv",)):
        assert cli("predict", "a", *words).code == 0
        assert predictions().with_suffix(".png").is_file()
    assert cli("predict", "a", "plots=false", "output=quiet.csv").code == 0
    assert not (tmp_path / "quiet.png").exists()
    assert cli(*HOUSES, "data.target=city", "name=b", "epochs=2").code == 0
    assert {path.stem for path in (tmp_path / "outputs/b/plots").glob("*.png")} == {"curves", "lr", "confusion"}
    assert "no plot: " in cli("predict", "b", "plots=true").out


def test_figures_of_numbers_of_any_size() -> None:
    true = torch.arange(5, dtype=torch.float64)
    for unit in (1.0, 1e300, 1e-300, -1e200):
        figures = figures_of_numbers((true + 1) * unit, true * unit)
        assert figures == pytest.approx({"rmse": abs(unit), "mae": abs(unit), "r2": 0.5}, rel=1e-9, abs=0)
    same = torch.full((3,), 0.1, dtype=torch.float64)  # whose mean is another number, by rounding
    assert "r2" not in figures_of_numbers(same + 1, same)


def test_a_formula_reads_as_one() -> None:
    found = {"coefficients": {"area": -1.5, "city": {"a": 2.0}}, "missing": {"area": -3.0}, "intercept": 1e6}
    assert formula_of("y", found) == "y = -1.5 area - 3 [area missing] + 2 [city=a] + 1e+06"


# files that others sent, and runs that were killed


def hostile_changes(table: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Ways to damage the columns in a checkpoint."""
    first, *rest = table["columns"]
    yield "no dict", []
    yield "another field", table | {"code": "x"}
    yield "no columns", table | {"columns": []}
    yield "one column less", table | {"columns": rest}
    yield "a column twice", table | {"columns": [first, first, *rest[1:]]}
    yield "the target as a column", table | {"columns": [first | {"name": table["target"]}, *rest]}
    for key, value in (("std", 0.0), ("std", float("nan")), ("mean", float("inf")), ("mean", "1"), ("mean", True)):
        yield f"{key} {value}", table | {key: value}
        yield f"column {key} {value}", table | {"columns": [first | {key: value}, *rest]}
    for key, value in (("name", ""), ("name", 3), ("name", "x" * 10**5), ("flag", 1), ("median", None)):
        yield f"column {key}", table | {"columns": [first | {key: value}, *rest]}
    for categories in (["a", "a"], [1], ["x"] * 10**5, {"a": 1}, [""], ["a", "b", "c", "d"]):
        yield f"categories {str(categories)[:20]}", table | {"columns": [first | {"categories": categories}, *rest]}


def test_a_checkpoint_with_other_columns_is_refused(cli: Cli, houses: Path) -> None:
    assert cli(*HOUSES, "name=a", *QUICK).code == 0
    content = read_checkpoint(Path("checkpoints/a/best.pt"))
    check_content(content)
    for what, table in hostile_changes(content["table"]):
        damaged = content | {"table": table}
        with pytest.raises(DamagedError, match=r"its table"):
            print(what, check_content(damaged))
    torch.save(content | {"table": content["table"] | {"std": -1.0}}, "checkpoints/a/best.pt")
    assert_refused(cli("eval", "a"), "best.pt is refused: its table is not how columns become inputs")


def test_a_file_does_not_choose_what_is_read(cli: Cli, houses: Path, tmp_path: Path) -> None:
    assert cli(*HOUSES, "name=a", *QUICK).code == 0
    (tmp_path / "checkpoints/a/best.pt").rename(tmp_path / "sent.pt")
    for folder in ("outputs", "checkpoints"):
        (tmp_path / folder / "a").rename(tmp_path / f"old-{folder}")
    assert_refused(cli("eval", "sent.pt"), "data=table needs data.path=")
    assert cli("eval", "sent.pt", "data.path=houses.csv").code == 0
    assert cli("predict", "sent.pt", "houses.csv").code == 0


CELLS = ["1", "2", "3.5", "", "NA", "a", "b", "1e308", "-1e308", "inf", "1e-320", "5e-324", "007", "1e39", " x ", "1,5"]


def test_inputs_are_finite_whatever_the_cells_hold() -> None:
    rng, fitted = random.Random(0), 0
    for _ in range(1000):
        n = rng.randint(3, 12)
        cells = columns.cells_of([rng.choice(rng.choice([CELLS, CELLS[:5], CELLS[5:7]])) for _ in range(n)])
        try:
            column = columns.fit_column("x", cells, np.arange(n), range(1, n + 1), "t.csv")
        except ConfigError:
            continue
        if isinstance(column, str):
            continue
        fitted += 1
        encoding = columns.Encoding("y", (column,))
        assert columns.from_plain(encoding.to_plain(), ()) == encoding
        new = columns.cells_of(rng.choices(CELLS, k=5))
        for known in ({"x": new}, {}):
            x, _ = columns.encode(encoding, known, range(1, 6))
            assert torch.isfinite(x).all(), (cells, new)
    assert fitted > 300


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(server: Server, tmp_path: Path) -> None:
    words = (*PLAIN, *HOUSES, "model=mlp", "model.dropout=0.2", "epochs=25", "save.every_steps=1", "batch_size=16")
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        folder.mkdir()
        write_houses(folder / "houses.csv")
    began = time.monotonic()
    whole = server.watched(words, folders[0])
    assert whole.wait(120) == 0, whole.output
    counts, span = Counts(), time.monotonic() - began
    start: Callable[[], Any] = lambda: server.watched(words, folders[1])  # noqa: E731
    rng = random.Random(0)
    while not counts.hits and counts.runs < 20:  # a run that is short may end before it is killed
        shutil.rmtree(folders[1] / "outputs", ignore_errors=True)
        shutil.rmtree(folders[1] / "checkpoints", ignore_errors=True)
        kill_until_done(start, folders[1], span, rng, counts, most=6)
    assert counts.hits > 0
    assert (counts.lost, counts.unreadable) == (0, 0), counts.notes
    assert final_digest(folders[1]) == final_digest(folders[0])


def test_models_that_are_chosen_by_other_figures_are_not_ranked(cli: Cli, houses: Path) -> None:
    words = ("-m", *HOUSES, "plots=false", "model=linreg,mlp", "epochs=2")
    outcome = cli(*words, "name=a")
    assert "no best one: train_loss, val_loss cannot be compared: data.val_fraction=0.1 monitor=val_loss" in outcome.out
    outcome = cli(*words, "data.val_fraction=0.1", "monitor=val_loss", "name=b")
    assert "best         b/" in outcome.out


def test_runs_of_a_sweep_may_train_as_one_model(cli: Cli, houses: Path) -> None:
    words = ("model=linreg", "optimizer.lr=0.01,0.02", "sweep.stack=true", "epochs=3")
    outcome = cli("-m", *HOUSES, *words, "name=s")
    assert outcome.code == 0, outcome.err
    assert "test_rmse" in outcome.out
    assert cli(*HOUSES, "model=linreg", "optimizer.lr=0.02", "name=a", "epochs=3").code == 0
    assert result_of_run("s/1")["test"] == pytest.approx(result_of_run("a")["test"], rel=1e-4)
    assert len(list(Path("outputs/s").glob("*/plots/coefficients.png"))) == 1  # of the best one


@pytest.mark.parametrize(("metric", "value", "verdict"), [("test_r2", -9, "better"), ("test_rmse", 0, "worse")])
def test_a_published_figure_may_be_one_of_a_table(
    cli: Cli, houses: Path, metric: str, value: float, verdict: str
) -> None:
    words = (f"reference.metric={metric}", f"reference.value={value}")
    outcome = cli(*HOUSES, "model=linreg", *words, "name=a", *QUICK)
    assert outcome.code == 0, outcome.err
    assert result_of_run("a")["reference"]["yours"] == result_of_run("a")["test"][metric.removeprefix("test_")]
    assert result_of_run("a")["reference"]["verdict"] == verdict
    outcome = cli(*words, "name=b", *QUICK)
    assert f"reference.metric has no effect on train: this run has no {metric}" in outcome.out


def test_several_seeds_are_compared_in_the_unit_of_the_target(cli: Cli, houses: Path) -> None:
    outcome = cli(*HOUSES, "seeds=2", "name=s", *QUICK)
    assert outcome.code == 0, outcome.err
    found = [result_of_run(f"s/{i}")["test"]["rmse"] for i in (0, 1)]
    assert f"test rmse: {np.mean(found):.4f} +- {np.std(found, ddof=1):.4f} (n = 2)" in outcome.out
