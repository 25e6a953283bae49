"""Our own files with one field changed: each is refused by name, made up for, or harmless, and nothing else happens.

Every field and node of config.json, status.json, metrics.jsonl, result.json, sweep.json and jobs/*.json, and every
field of a checkpoint, gets each of VALUES. The readers of the file then run in this process, where a traceback, a
connection, a file outside the run, five seconds, or a character that is not printable fails the test. The slow tests
make all of the changes; the default ones every so many-th of them, and some through whole commands.
"""

import copy
import io
import json
import math
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli

import main
from trainer import data
from trainer.config.freeze import from_dict
from trainer.run import directory
from trainer.run.checkpoint import check_architecture, unpack
from trainer.run.checkpoint_files import steps_in
from trainer.run.gate import check_content
from trainer.run.machine import TORCH_THREADS, resolve_auto
from trainer.run.parts import assemble
from trainer.run.recorder import Recorder
from trainer.run.resume import already_done, warn_of_rounding
from trainer.run.safe_load import read_checkpoint
from trainer.run.target import find, settings_of_file, settings_of_run
from trainer.sweep.board import Board
from trainer.sweep.job import Job, objective_of
from trainer.sweep.launch import check_same_sweep
from trainer.sweep.table import best_first, by_setting, rows_of
from trainer.utils.errors import TrainerError
from trainer.utils.screen import Screen, table

pytestmark = [pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")]

ABSENT = object()
VALUES: list[Any] = [
    *(ABSENT, None, True, False, 0, -1, 7, 1.5, -0.0, math.nan, math.inf, 1e308, 2**63, 10**300, 10**5000),
    *("", "text", "3", "../../x", "\x1b[2J\r\nfake: all fine", "\ud800", "x" * 10**5, "\u202e\u200d\u00a0"),
    *([], [1], [[]], ["\x1b[31m"], [1] * 10**5, {}, {"a": 1}, {"\x1b": {"b": []}}),
]
TENSORS: list[Callable[[], Any]] = [
    lambda: torch.zeros(()),
    lambda: torch.full((2,), math.nan),
    lambda: torch.zeros(1).expand(10**12),
    lambda: torch.eye(2).to_sparse(),
    lambda: torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)]),
    lambda: torch.zeros(3, dtype=torch.complex64),
    lambda: torch.zeros(0, dtype=torch.float16),
    lambda: torch.zeros(2, device="meta"),
    lambda: b"bytes",
    lambda: {1, 2},
    lambda: (1, 2),
    lambda: {5: torch.zeros(1)},
    lambda: 1 + 2j,
]
SHORT = ("data.num_examples=40", "data.val_fraction=10", "batch_size=10", "epochs=2", "plots=false", "device=cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run `a` with Adam and a mean of weights, and a finished sweep `s` of two jobs."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in ((*SHORT, "optimizer=adam", "ema_decay=0.5", "name=a"), ("-m", "seed=0,1", *SHORT, "name=s")):
            patch.setattr(sys, "argv", ["main.py", *words])
            assert main.main() == 0
    torch.set_num_threads(TORCH_THREADS)
    return folder


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `made` to stand in, with a network that fails the test."""
    shutil.copytree(made, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")

    def reached(*_: Any, **__: Any) -> Any:
        raise AssertionError("a changed file opened a connection")

    monkeypatch.setattr(socket.socket, "connect", reached)
    monkeypatch.setattr(socket, "getaddrinfo", reached)
    return tmp_path / "home"


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every field and node."""
    if path:
        yield path
    pairs = node.items() if isinstance(node, dict) else enumerate(node[:3]) if isinstance(node, list) else ()
    for key, value in pairs:
        yield from places(value, (*path, key))


def with_change(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of the content with another value at a place."""
    changed = copy.copy(content)
    if len(path) > 1:
        changed[path[0]] = with_change(content[path[0]], path[1:], value)
    elif value is ABSENT:
        del changed[path[0]]
    else:
        changed[path[0]] = value
    return changed


@dataclass
class Watch:
    """Runs what reads a changed file, and counts."""

    count: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)

    def __call__(self, what: str, read: Callable[[], object]) -> None:
        said = io.StringIO()
        began = time.perf_counter()
        try:
            with redirect_stdout(said), redirect_stderr(said):
                read()
        except TrainerError as error:
            self.refused += 1
            said.write(str(error))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.wrong.append(f"{what}: {type(error).__name__} {str(error)[:200]} {where.filename}:{where.lineno}")
        if (seconds := time.perf_counter() - began) > 5:
            self.wrong.append(f"{what}: {seconds:.1f} s")
        if len(said.getvalue()) > 20_000 or not all(line.isprintable() for line in said.getvalue().split("\n")):
            self.wrong.append(f"{what}: {said.getvalue()[:300]!r}")
        self.count += 1


def shown(path: tuple[Any, ...], value: Any) -> str:
    said = "absent" if value is ABSENT else "10**5000" if type(value) is int and value > 10**400 else ascii(value)[:60]
    return f"{'.'.join(map(str, path))} = {said}"


def json_of(value: Any) -> str:
    """JSON as Python writes it, with a number of 5,000 digits too."""
    return json.dumps(value, default=str).replace('"10**5000"', "1" * 5000)


def with_long_number(value: Any) -> Any:
    return "10**5000" if type(value) is int and value > 10**4000 else value


def read_run(home: Path) -> None:
    """What every command does with the files of a run."""
    folders = {"outputs": "outputs", "checkpoints": "checkpoints"}
    target = find("a", **folders)
    find("last", **folders)
    own, screen = target.run.outputs, Screen()
    config = from_dict(settings_of_run(target.run))
    directory.read_status(own)
    directory.read_result(own)
    Board(Path("outputs"), {}).lines()
    already_done(config, target, [], screen)
    Recorder(own, epochs_done=2, steps_done=6, warn=screen.say).close()
    directory.write_status(target.run, "running", "2024-01-01T00:00:00+00:00")
    directory.set_aside_damaged(target.run, screen)


def read_sweep(home: Path) -> None:
    """What a command does with the files of a sweep that it finds."""
    folder = Path("outputs/s")
    made_of = {"data.num_examples": "40", "data.val_fraction": "10", "batch_size": "10", "seed": "0,1"}
    config = from_dict(settings_of_run(directory.locate("s/0", outputs="outputs", checkpoints="checkpoints")))
    check_same_sweep(folder, "basic", made_of)
    objective_of(Job(0, {"seed": "0"}, config), folder / "0")
    rows = rows_of(folder)
    by_setting(rows)
    screen = Screen()
    screen.say(*table(best_first(rows)))
    from rich.console import Console

    Console(file=sys.stdout, width=200).print(Board(folder, {}).table())


FILES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "outputs/a/config.json": ("json", read_run),
    "outputs/a/status.json": ("json", read_run),
    "outputs/a/result.json": ("json", read_run),
    "outputs/a/metrics.jsonl": ("lines", read_run),
    "outputs/s/sweep.json": ("json", read_sweep),
    "outputs/s/jobs/0.json": ("json", read_sweep),
    "outputs/s/0/result.json": ("json", read_sweep),
    "outputs/s/0/status.json": ("json", read_sweep),
    "outputs/s/0/config.json": ("json", read_sweep),
}


def change_records(home: Path, every: int) -> dict[str, int]:
    """Make every so many-th change of each record, and read; returns how many there were of each."""
    counts, wrong = {}, list[str]()
    files = sorted(path for path in home.parent.rglob("*") if path.is_file() and "/tb/" not in str(path))
    whole = {path: path.read_bytes() for path in files}
    for name, (form, read) in FILES.items():
        path, watch = Path(name), Watch()
        original = path.read_text()
        content = json.loads(original) if form == "json" else [json.loads(line) for line in original.splitlines()]
        cases = [(place, value) for place in places(content) for value in VALUES]
        for place, value in cases[::every]:
            changed = with_change(content, place, with_long_number(value))
            text = json_of(changed) if form == "json" else "".join(json_of(row) + "\n" for row in changed)
            path.write_text(text, encoding="utf-8", errors="surrogatepass")
            watch(f"{name}: {shown(place, value)}", lambda: read(home))  # noqa: B023
            for file, before in whole.items():
                if "/home/outputs/" in str(file) and (not file.exists() or file.read_bytes() != before):
                    file.write_bytes(before)
            for extra in home.rglob("*.corrupt"):
                extra.unlink()
        counts[name] = watch.count
        wrong += watch.wrong
    left = {p for p in home.parent.rglob("*") if p.is_file() and "/tb/" not in str(p)} - set(files)
    assert not left, left
    assert not wrong, "\n".join(wrong)
    return counts


def test_some_changes_of_each_record_are_refused_or_harmless(home: Path) -> None:
    assert sum(change_records(home, 41).values()) > 100


@pytest.mark.slow
def test_three_thousand_changes_of_our_records_are_refused_or_harmless(home: Path) -> None:
    counts = change_records(home, 1)
    print(counts)
    assert sum(counts.values()) >= 3000, counts


def change_checkpoint(home: Path, every: int) -> Watch:
    """Make every so many-th change of a checkpoint's content, and put it through all that reads one for a resume."""
    path = steps_in(Path("checkpoints/a"))[-1]
    original = read_checkpoint(path)
    config, machine = resolve_auto(from_dict(original["config"]))
    parts = assemble(config, data.load(config.data, config.paths), machine)
    watch, before = Watch(), sorted(home.parent.rglob("*"))

    def read(content: Any) -> None:
        check_content(content)
        own = from_dict(settings_of_file(content["config"], {}))
        check_architecture(own, content, path)
        unpack(content, config, parts, path)
        warn_of_rounding(content["env"], parts, Screen())

    values = [*((lambda v=value: v) for value in VALUES), *TENSORS]
    cases = [(place, value) for place in places(original) for value in values]
    for place, make in cases[::every]:
        value = make()
        what = shown(place, type(value) if isinstance(value, torch.Tensor) else value)
        changed = with_change(original, place, value)
        watch(what, lambda: read(changed))  # noqa: B023
    assert sorted(home.parent.rglob("*")) == before
    assert not watch.wrong, "\n".join(watch.wrong)
    return watch


def test_some_changes_of_a_checkpoint_are_refused_or_harmless(home: Path) -> None:
    watch = change_checkpoint(home, 29)
    assert watch.count > 100
    assert watch.refused > watch.count / 3


@pytest.mark.slow
def test_three_thousand_changes_of_a_checkpoint_are_refused_or_harmless(home: Path) -> None:
    watch = change_checkpoint(home, 1)
    print(watch)
    assert watch.count >= 3000


COMMANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "outputs/a/": (("resume=a", "epochs=3"), ("eval", "checkpoint=last"), ("eval", "checkpoint=a")),
    "outputs/s/": (("-m", "seed=0,1", *SHORT, "name=s"),),
}


CHANGES: dict[str, list[tuple[tuple[Any, ...], Any]]] = {
    "outputs/a/config.json": [(("config",), 3), (("config", "epochs"), "x"), (("config", "paths"), [])],
    "outputs/a/status.json": [(("state",), 5), (("started",), []), (("checkpoint",), {})],
    "outputs/a/result.json": [(("epochs",), "2"), (("objective",), ABSENT), (("seconds",), None)],
    "outputs/a/metrics.jsonl": [((0, "epoch"), ABSENT), ((1, "seconds"), "x"), ((0, "val_loss"), [])],
    "outputs/s/sweep.json": [(("made_of",), 1), (("sweeper",), ABSENT)],
    "outputs/s/jobs/0.json": [(("overrides",), []), (("error",), 5)],
    "outputs/s/0/result.json": [(("best",), ABSENT), (("objective", "value"), "x")],
    "outputs/s/0/status.json": [(("state",), ABSENT), (("started",), 3)],
    "outputs/s/0/config.json": [(("config",), ABSENT), (("config", "choices"), ABSENT)],
}


@pytest.mark.parametrize("name", FILES)
def test_whole_commands_answer_a_changed_record_in_their_own_words(
    name: str, home: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, (path, value) in enumerate(CHANGES[name]):
        for words in COMMANDS[name[:10]]:
            own = home.parent / f"{number} {words[0]} {words[-1]}"
            shutil.copytree(home, own)
            monkeypatch.chdir(own)
            lines = Path(name).read_text().splitlines() if name.endswith("jsonl") else [Path(name).read_text()]
            content = [json.loads(line) for line in lines]
            place = path if name.endswith("jsonl") else (0, *path)
            Path(name).write_text("".join(json.dumps(row) + "\n" for row in with_change(content, place, value)))
            outcome = cli(*words)
            assert outcome.code in (0, 2), outcome
            assert "Traceback" not in outcome.err + outcome.out
            if name.startswith("outputs/s/"):
                assert outcome.code == 0, (path, outcome)
                assert directory.read_result(Path("outputs/s/0")) is not None


def test_settings_that_do_not_go_together_are_taken_from_elsewhere_or_refused_by_file(
    cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    record, said = Path("outputs/a/config.json"), "stop_at.*_accuracy does not fit data=synthetic"

    def spoil(content: dict[str, Any]) -> dict[str, Any]:
        content["config"]["stop_at"]["val_accuracy"] = 0.5
        return content

    record.write_text(json.dumps(spoil(json.loads(record.read_text()))))
    outcome = cli("eval", "a")
    assert outcome.code == 0, outcome.err
    assert f"{record} cannot be read: {said}" in outcome.out
    assert "Its settings are taken from checkpoints/a/step_" in outcome.out
    for path in Path("checkpoints/a").iterdir():
        torch.save(spoil(read_checkpoint(path)), path)
    for target in ("a", "checkpoints/a/best.pt"):
        outcome = cli("eval", target)
        assert outcome.code == 2
        assert outcome.err.startswith(f"error: {target if '/' in target else 'checkpoints/a'}: {said}")
