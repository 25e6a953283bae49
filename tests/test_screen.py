"""What is printed: plain lines without a terminal, a bar on one, tables, and the copy in train.log."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from trainer.run.watch import to_go
from trainer.utils import bar
from trainer.utils.screen import Screen, shown, table

ROOT = Path(__file__).resolve().parent.parent
BOTH: dict[str, Any] = {"train_loss": 0.5, "train_accuracy": 0.75, "val_loss": 0.25, "val_accuracy": 0.5}
ERASE = "\x1b[2K"  # empties the line, here the one with the bar
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


def row(epoch: int, **metrics: Any) -> dict[str, Any]:
    return {"epoch": epoch, "step": epoch, "lr": 0.1} | (metrics or BOTH) | {"samples_per_second": 12345.6}


def test_without_a_terminal_lines_are_plain_and_no_bar_is_due(capfd: pytest.CaptureFixture[str]) -> None:
    with Screen() as screen:
        assert not screen.due()
        for epoch in (1, 2):
            screen.row(row(epoch), 10)
        screen.say("done [bold] 100%")
    out = capfd.readouterr().out
    assert out == (
        "    epoch  train_loss   train_acc    val_loss     val_acc   examples/s\n"
        "   1/10        0.5000      0.7500      0.2500      0.5000       12,346\n"
        "   2/10        0.5000      0.7500      0.2500      0.5000       12,346\n"
        "done [bold] 100%\n"
    )


def test_regression_without_validation_has_one_column(capfd: pytest.CaptureFixture[str]) -> None:
    Screen().row(row(3, train_loss=1e-5, val_loss=None), 100)
    heading, line = capfd.readouterr().out.splitlines()
    assert heading.split() == ["epoch", "train_loss", "examples/s"]
    assert line.split() == ["3/100", "1.0e-05", "12,346"]


@pytest.mark.parametrize("epochs", [1, 10, 9999])
def test_headings_and_numbers_end_in_the_same_columns(epochs: int, capfd: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    for epoch in (1, epochs):
        screen.row(row(epoch), epochs)
    lines = [line.partition("   (each")[0] for line in capfd.readouterr().out.splitlines()]
    ends = [[m.end() for m in re.finditer(r"\S+", line)][1:] for line in lines]
    assert ends[0] == ends[1] == ends[2]


def test_of_many_epochs_some_are_shown_and_all_are_in_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for epochs, shown_ones in ((200, list(range(1, 201))), (625, [1, *range(12, 625, 12), 625])):
        screen = Screen()
        screen.log_to(tmp_path / f"{epochs}.log")
        for epoch in range(1, epochs + 1):
            screen.row(row(epoch), epochs)
        head, *lines = capfd.readouterr().out.splitlines()
        assert [int(line.partition("/")[0]) for line in lines] == shown_ones
        assert ("(each 12th epoch; all are in train.log)" in head) == (epochs > 200)
        assert len((tmp_path / f"{epochs}.log").read_text().splitlines()) == epochs + 1


def test_the_log_gets_every_line_also_the_earlier_ones(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "train.log"
    path.write_text("before\n")
    screen = Screen()
    screen.say("early")
    screen.note("early, for the log alone")
    screen.log_to(path)
    screen.say("late")
    screen.note("late, for the log alone")
    assert path.read_text() == "before\nearly\nearly, for the log alone\nlate\nlate, for the log alone\n"
    assert capfd.readouterr().out == "early\nlate\n"


LEFT_ALONE = """
import sys
from pathlib import Path
from trainer.utils.screen import Screen

sys.stdin.readline()  # until the reader has gone
screen = Screen()
screen.log_to(Path(sys.argv[1]))
for i in range(3):
    screen.say(f"line {i}")
"""


def test_a_reader_that_leaves_does_not_end_the_run(tmp_path: Path) -> None:
    words = [sys.executable, "-c", LEFT_ALONE, str(tmp_path / "train.log")]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, cwd=ROOT, text=True, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None  # noqa: PT018
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
    assert (tmp_path / "train.log").read_text() == "line 0\nline 1\nline 2\n"


ON_A_TERMINAL = """
import sys, time
from pathlib import Path
from trainer.utils.screen import Screen

screen = Screen()
screen.log_to(Path(sys.argv[1]))
row = {"train_loss": 0.5, "train_accuracy": 0.75, "val_loss": 0.25, "val_accuracy": 0.5, "samples_per_second": 1e4}
with screen:
    for epoch in (1, 2):
        assert screen.due()
        for done in (0, 50, 100):
            screen.progress(epoch, 2, done, 100, f"loss 0.{done:04}  9 examples/s")
        assert not screen.due()
        screen.row(row | {"epoch": epoch}, 2)
        time.sleep(0.25)
    screen.progress(2, 2, 100, 100, "")
    screen.say("a line [bold]of the user[/bold] :smile: 100%", "wide" * 60)
print("after the bar")
"""


def on_a_terminal(code: str, *args: object, columns: int = 100) -> str:
    """What a terminal receives from a script."""
    ours, theirs = os.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": str(columns), "LINES": "30"}
    words = [sys.executable, "-c", code, *map(str, args)]
    process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    received = b""
    try:
        while chunk := os.read(ours, 4096):
            received += chunk
    except OSError:
        pass  # how Linux says that the other side is closed
    os.close(ours)
    assert process.wait() == 0, received.decode()
    return received.decode()


def test_on_a_terminal_a_bar_moves_and_lines_stay_intact(tmp_path: Path) -> None:
    received = on_a_terminal(ON_A_TERMINAL, tmp_path / "train.log")
    for text in ("epoch 1/2", "epoch 2/2", "loss 0.0050", "loss 0.0100", "9 examples/s", "\u2501"):
        assert text in received
    log = (tmp_path / "train.log").read_text().splitlines()
    assert [line.split()[0] for line in log] == ["epoch", "1/2", "2/2", "a", "wide" * 60]  # wider than the terminal
    assert "\x1b" not in "".join(log)
    lines = [CONTROL.sub("", line.rpartition(ERASE)[2]).rstrip() for line in received.split("\n")]
    for line in [*log, "after the bar"]:
        assert lines.count(line) == 1, line


def test_the_bar_is_gone_once_training_ends(tmp_path: Path) -> None:
    """After the last line nothing of the bar is drawn, and the cursor is shown again."""
    received = on_a_terminal(ON_A_TERMINAL, tmp_path / "train.log")
    assert "epoch 2/2" not in received.partition("a line")[2]
    assert received.rfind("\x1b[?25h") > received.rfind("\x1b[?25l")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0.0000"),
        (0.5, "0.5000"),
        (0.001, "0.0010"),
        (0.00099, "9.9e-04"),
        (-0.00001, "-1.0e-05"),
        (12.5, "12.5000"),
    ],
)
def test_small_figures_are_not_rounded_to_nothing(value: float, expected: str) -> None:
    assert shown(value) == expected


def test_a_tables_columns_are_aligned() -> None:
    rows = [
        {"class": "cat", "precision": 0.5, "n": 3, "note": None},
        {"class": "hippopotamus", "precision": 0.00001, "n": 12345, "note": "rare"},
    ]
    assert table(rows) == [
        "class         precision  n      note",
        "cat           0.5000     3",
        "hippopotamus  1.0e-05    12345  rare",
    ]


def test_work_beside_the_epochs_has_a_bar_from_a_second_on_where_there_is_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batches = [([0] * 3, [1] * 3), ([0] * 2, [1] * 2)]
    console = Console(file=sys.stdout, force_terminal=True, width=100)
    monkeypatch.setattr("rich.progress.get_console", lambda: console)
    for terminal, quick, drawn in ((True, 0.0, True), (False, 0.0, False), (True, 60.0, False)):
        monkeypatch.setattr(bar, "is_terminal", lambda terminal=terminal: terminal)
        monkeypatch.setattr(bar, "QUICK", quick)
        monkeypatch.setattr(bar, "DRAWN_EVERY", 0.0)
        with bar.Bar("measuring", 5, "examples") as drawn_bar:
            assert list(drawn_bar.over(batches)) == batches
        out = capsys.readouterr().out
        assert ("measuring" in out) is drawn
        assert ("5/5 examples" in CONTROL.sub("", out)) is drawn


@pytest.mark.parametrize(
    ("after", "left", "said"),
    [(900, 100, "  to go: run 16 min, epoch"), (100, 50, "  to go: run 2 min, epoch"), (0, 100, "")],
)
def test_the_bar_says_how_long_the_run_will_take(after: int, left: int, said: str) -> None:
    assert to_go(after, left, rate=1.0) == said
