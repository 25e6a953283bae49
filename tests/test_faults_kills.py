"""Rows 1 to 6 of the fault matrix: kills and signals at any moment, any number of them, change no number.

Every test compares with the run that was never interrupted, bit for bit. The quick versions run by default; `pytest -m
slow -s` runs the long ones, which print their counts.
"""

import functools
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import start, write_class_folders
from interrupted import (
    CHECKPOINTS,
    LIMIT,
    PLAIN,
    TEMPORARY_LEFT,
    Counts,
    Launch,
    Server,
    big_content,
    final_digest,
    kill_until_done,
    newest_step,
    temporaries,
    unreadable_files,
)

from trainer.run.checkpoint_files import path_of_step, step_of, steps_in, write_checkpoint
from trainer.run.safe_load import read_checkpoint
from trainer.utils.errors import ConfigError

pytestmark = pytest.mark.timeout(1800)  # every wait has its own, shorter limit

GREY = ("data=folder", "data.root=pictures", "data.size=12", "data.channels=1", "batch_size=10", "data.augment=none")
MLP = (*GREY, "model=mlp", "model.dropout=0.5", "model.num_hiddens=[32]", "optimizer=sgd", "schedule=constant")
LENET = (*GREY, "model=lenet", "data.augment=shift", "optimizer=sgd", "optimizer.lr=0.05", "schedule=constant")
ADAMW = ("optimizer=adamw", "optimizer.lr=0.001", "schedule=cosine", "ema_decay=0.9", "early_stopping.patience=40")
STOPPING = ("early_stopping.patience=6", "early_stopping.min_delta=0.01")
STREAMED = ("data.resident=false", "data.workers=2")
STEPS_PER_EPOCH = 11  # 120 pictures of which 12 validate, in batches of 10; the last one is short


@dataclass(frozen=True)
class Setting:
    """A run to be interrupted, and how many steps a kill may cost it."""

    words: tuple[str, ...]
    interval: int = STEPS_PER_EPOCH


SETTINGS = {
    "mlp": Setting((*MLP, "epochs=80")),
    "mlp_adamw": Setting((*MLP, *ADAMW, "epochs=120", "save.every_steps=3"), 3),
    "lenet": Setting((*LENET, "epochs=60", "save.every_steps=3"), 3),
    "lenet_adamw": Setting((*LENET, *ADAMW, "epochs=120", "accumulate_steps=2", "clip_norm=0.5")),
    "streamed": Setting((*LENET, *STREAMED, "epochs=6", "save.every_steps=3"), 3),
    "streamed_short": Setting((*LENET, *STREAMED, "epochs=3", "save.every_steps=3"), 3),
    "resnet": Setting((*GREY, "data.channels=3", "model=resnet18", "data.augment=crop_flip", "epochs=6")),
    "drop_last": Setting((*MLP, "model.batch_norm=true", "data.drop_last=true", "accumulate_steps=3", "epochs=80")),
    "stopping": Setting((*LENET, "epochs=400", "optimizer.lr=0.02", "save.every_steps=5", *STOPPING), 5),
    "bf16": Setting((*LENET, "device.precision=bf16", "optimizer=adamw", "epochs=40", "save.every_steps=6"), 6),
}
GROUP = (*LENET, *STREAMED, "epochs=3")
FALLING = ("data=synthetic", "data.num_examples=120", "model=linreg", "optimizer=sgd", "optimizer.lr=0.01")
FALLING += ("optimizer.momentum=0.5", "ema_decay=0.5", "epochs=3", "save.every_steps=4")  # every epoch is the best one
SHORT = (*MLP, "epochs=3", "save.every_steps=4")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("set") / "pictures", {"train": 120, "test": 30}, size=12)


@pytest.fixture
def fresh(tmp_path: Path, pictures: Path) -> Callable[[], Path]:
    """fresh(): a new empty folder with the pictures in it."""
    numbers = itertools.count()

    def make() -> Path:
        folder = tmp_path / f"run{next(numbers)}"
        folder.mkdir()
        (folder / "pictures").symlink_to(pictures)
        return folder

    return make


@dataclass(frozen=True)
class Straight:
    """The run that was never interrupted."""

    digest: dict[str, str]
    seconds: float
    num_steps: int


@pytest.fixture(scope="module")
def straight(
    server: Server, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[tuple[str, ...]], Straight]:
    """straight(words): that run, done once for each words."""
    known: dict[tuple[str, ...], Straight] = {}

    def run(words: tuple[str, ...]) -> Straight:
        if words not in known:
            folder = tmp_path_factory.mktemp("straight")
            (folder / "pictures").symlink_to(pictures)
            began = time.monotonic()
            launch = server.run((*words, *PLAIN), folder, ["watch_steps"])
            seconds = time.monotonic() - began
            assert launch.code == 0, launch.output
            known[words] = Straight(final_digest(folder), seconds, len(launch.steps))
            assert launch.steps == list(range(1, len(launch.steps) + 1))
            shutil.rmtree(folder)
        return known[words]

    return run


class Process:
    """`python main.py` as a user starts it, with what kill_until_done() needs of a launch."""

    def __init__(self, words: tuple[str, ...], folder: Path) -> None:
        self.process = start(*words, cwd=folder)
        self.steps: list[int] = []
        self.output = ""
        self.code: int | None = None

    def wait(self, seconds: float) -> int | None:
        try:
            self.output = "".join(self.process.communicate(timeout=seconds))
        except subprocess.TimeoutExpired:
            return None
        self.code = self.process.returncode
        return self.code

    def end(self) -> int:
        if self.code is None:
            self.process.kill()
            self.wait(LIMIT)
        assert self.code is not None
        return self.code


def run_process(words: tuple[str, ...], folder: Path) -> Process:
    """Start and wait for the end."""
    process = Process((*words, *PLAIN), folder)
    try:
        process.wait(LIMIT)
    finally:
        process.end()
    return process


# row 1


@pytest.mark.slow
def test_a_forked_launch_is_the_same_run_as_a_process(
    server: Server, fresh: Callable[[], Path], straight: Callable[..., Straight]
) -> None:
    """What all the others rest on; by default, the test of killed processes below says it too."""
    folder = fresh()
    process = run_process(SHORT, folder)
    assert process.code == 0, process.output
    assert final_digest(folder) == straight(SHORT).digest


def test_the_digest_sees_a_single_bit(server: Server, fresh: Callable[[], Path]) -> None:
    folder = fresh()
    assert server.run((*SHORT, *PLAIN), folder).code == 0
    before = final_digest(folder)
    path = steps_in(folder / CHECKPOINTS)[-1]
    content = read_checkpoint(path)
    next(iter(content["model"].values())).view(torch.int32).view(-1)[3] ^= 1
    write_checkpoint(path, content)
    after = final_digest(folder)
    assert {key for key in before if before[key] != after[key]} == {"step.model"}


def kill_runs(
    setting: Setting,
    num_hits: int,
    fresh: Callable[[], Path],
    truth: Straight,
    start: Callable[[tuple[str, ...], Path], Any],
    rng: random.Random,
) -> Counts:
    """Kill one run after the other at random moments, until so many kills have hit a running process."""
    counts, words, span = Counts(), (*setting.words, *PLAIN), truth.seconds
    while counts.hits < num_hits and counts.runs < num_hits + 10 and not counts.lost:
        folder = fresh()
        span = kill_until_done(functools.partial(start, words, folder), folder, span, rng, counts)
        if counts.lost:
            break
        found = final_digest(folder)
        if wrong := [part for part in truth.digest if truth.digest[part] != found[part]]:
            counts.lost += 1
            counts.notes.append(f"other {wrong} in {folder}")
            break
        assert not temporaries(folder)
        shutil.rmtree(folder)
    assert (counts.lost, counts.unreadable) == (0, 0), "\n".join([str(counts), *counts.notes])
    assert counts.hits >= num_hits, counts
    assert counts.redone <= setting.interval, counts
    return counts


@pytest.mark.parametrize(
    ("name", "num_hits"), [("mlp_adamw", 4), pytest.param("streamed_short", 3, marks=pytest.mark.slow)]
)
def test_row_01_kill_9_at_random_moments_changes_nothing(
    name: str, num_hits: int, server: Server, fresh: Callable[[], Path], straight: Callable[..., Straight]
) -> None:
    setting = SETTINGS[name]
    counts = kill_runs(setting, num_hits, fresh, straight(setting.words), server.watched, random.Random(name))
    assert counts.in_training > 0, counts


def test_row_01_kill_9_of_the_process_that_a_user_starts(
    server: Server, fresh: Callable[[], Path], straight: Callable[..., Straight]
) -> None:
    setting = SETTINGS["mlp_adamw"]
    folder = fresh()
    process = Process((*setting.words, *PLAIN), folder)
    try:
        until = time.monotonic() + LIMIT
        while newest_name(folder) < 100 and process.wait(0.01) is None:
            assert time.monotonic() < until
    finally:
        assert process.end() == -signal.SIGKILL, process.output
    assert unreadable_files(folder) == 0
    process = run_process(setting.words, folder)
    assert process.code == 0, process.output
    assert final_digest(folder) == straight(setting.words).digest


def newest_name(folder: Path) -> int:
    """The number in the newest file's name, without reading it."""
    return max(map(step_of, steps_in(folder / CHECKPOINTS)), default=0)


MANY = {"mlp": 40, "mlp_adamw": 40, "lenet": 40, "lenet_adamw": 40, "streamed": 30, "resnet": 20}
MANY |= {"drop_last": 20, "stopping": 20, "bf16": 20}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "num_hits"), MANY.items())
def test_row_01_kill_9_two_hundred_times_changes_nothing(
    name: str, num_hits: int, server: Server, fresh: Callable[[], Path], straight: Callable[..., Straight]
) -> None:
    assert sum(MANY.values()) >= 200
    began, setting = time.monotonic(), SETTINGS[name]
    truth = straight(setting.words)
    counts = kill_runs(setting, num_hits, fresh, truth, server.watched, random.Random(f"slow {name}"))
    assert counts.in_training >= num_hits / 4
    print(f"\nrow 1 {name}: {counts}, seconds {time.monotonic() - began:.0f} (a run takes {truth.seconds:.1f})")


@pytest.mark.slow
def test_row_01_kill_9_of_real_processes_at_random_moments_changes_nothing(
    fresh: Callable[[], Path], straight: Callable[..., Straight]
) -> None:
    began, setting = time.monotonic(), SETTINGS["lenet_adamw"]
    folder = fresh()
    process = run_process(setting.words, folder)
    seconds = time.monotonic() - began
    assert process.code == 0, process.output
    truth = straight(setting.words)
    assert final_digest(folder) == truth.digest
    slower = Straight(truth.digest, seconds, truth.num_steps)
    counts = kill_runs(setting, 12, fresh, slower, Process, random.Random("processes"))
    print(f"\nrow 1 real processes: {counts}, seconds {time.monotonic() - began:.0f}")


@pytest.mark.slow
def test_row_01_no_loader_worker_survives_a_kill_9_of_its_run(server: Server, fresh: Callable[[], Path]) -> None:
    launch = server.start((*GROUP, *PLAIN), fresh(), ["watch_steps"], ["pause_at", "step", 15])
    try:
        launch.wait(LIMIT, until="at step")
        workers = children_of(launch.pid)
    finally:
        launch.end()
    began = time.monotonic()
    assert len(workers) == 2
    assert_all_end(workers, 30)
    print(f"\nrow 1: the loader workers of a killed run end after {time.monotonic() - began:.1f} s")


# row 2


def kill_savers(server: Server, folder: Path, num_kills: int, rng: random.Random, *, atomic: bool) -> tuple[int, int]:
    """Kill processes that save all the time; counts the kills that lost what was acknowledged, or left a temporary."""
    folder.mkdir()
    lost = left = 0
    number = 0
    for _ in range(num_kills):
        launch = server.start([], folder.parent, ["save_for_ever", str(folder), number + 1, atomic])
        try:
            launch.wait(LIMIT, until=f"saved {number + 2}")
            launch.wait(rng.uniform(0, 0.1))
        finally:
            code = launch.end()
        assert code == -signal.SIGKILL, launch.output
        number = int([line for line in launch.said if line.startswith("saved ")][-1].split()[1])
        left += bool(list(folder.glob(".tmp-*")))
        files = sorted(folder.glob("*.pt"))
        numbers = [number_in(path) for path in files]
        by_name = {path.name: found for path, found in zip(files, numbers, strict=True)}
        if atomic:
            newest = by_name.get(path_of_step(folder, number).name)
            best = by_name.get("best.pt")
            lost += newest != number or None in numbers or best is None or best < number - 1
        else:
            lost += by_name.get("plain.pt") not in (number, number + 1)
        number += 1  # of this one there may be a file already
    return lost, left


def number_in(path: Path) -> int | None:
    """Which save a file holds; None where it cannot be read, or does not hold one save's numbers."""
    try:
        content = read_checkpoint(path)
    except ConfigError:
        return None
    number = content["progress"]["step"]
    return number if torch.equal(content["model"]["w"], big_content(number)["model"]["w"]) else None


def test_row_02_a_kill_inside_a_save_loses_no_acknowledged_file(server: Server, tmp_path: Path) -> None:
    lost, left = kill_savers(server, tmp_path / "atomic", 15, random.Random(2), atomic=True)
    assert left > 0, "no kill fell into a save"
    assert lost == 0


@pytest.mark.slow
def test_row_02_three_hundred_kills_inside_a_save_lose_no_acknowledged_file(server: Server, tmp_path: Path) -> None:
    began = time.monotonic()
    lost, left = kill_savers(server, tmp_path / "atomic", 300, random.Random(22), atomic=True)
    plain_lost, _ = kill_savers(server, tmp_path / "plain", 60, random.Random(23), atomic=False)
    seconds = time.monotonic() - began
    print(f"\nrow 2: kills 300, lost {lost}, in a write {left}; plain torch.save: kills 60, lost {plain_lost}", end="")
    print(f", seconds {seconds:.0f}")
    assert lost == 0
    assert left >= 30
    assert plain_lost >= 6, "the control: these kills do destroy what is not written atomically"


# row 3

POINTS = ("half_written", "written", "synced", "replaced", "before_best", "best_linked", "best_replaced")
POINTS += ("before_prune", "pruned_one", "pruned", "recorded", "result")


def kill_at(server: Server, folder: Path, place: str, nth: int, words: tuple[str, ...]) -> Launch | None:
    """SIGKILL a launch when it is at a place for the nth time; None if it never is there so often."""
    launch = server.start((*words, *PLAIN), folder, ["watch_steps"], ["pause_at", place, nth])
    try:
        launch.wait(LIMIT, until=f"at {place}")
        if launch.code is not None:
            assert launch.code == 0, launch.output
            return None
        assert f"at {place}" in launch.said
    finally:
        launch.end()
    return launch


def check_kill_at(
    server: Server, folder: Path, place: str, nth: int, words: tuple[str, ...], truth: Straight, interval: int
) -> bool:
    """One run, killed at that point; whether it got there."""
    killed = kill_at(server, folder, place, nth, words)
    if killed is None:
        return False
    assert killed.code == -signal.SIGKILL
    assert unreadable_files(folder) == 0
    assert bool(temporaries(folder)) == (place in TEMPORARY_LEFT)
    again = server.run((*words, *PLAIN), folder, ["watch_steps"])
    assert again.code == 0, again.output
    if again.steps:
        assert killed.steps[-1] - again.steps[0] + 1 <= interval
        assert not temporaries(folder), "what was half written is still there although the next start has saved"
    assert final_digest(folder) == truth.digest
    return True


@pytest.mark.parametrize("place", POINTS)
def test_row_03_a_kill_at_this_point_of_a_save_changes_nothing(
    place: str, server: Server, fresh: Callable[[], Path], straight: Callable[..., Straight]
) -> None:
    nth = 1 if "best" in place or place == "result" else 2
    assert check_kill_at(server, fresh(), place, nth, SHORT, straight(SHORT), 4)


@pytest.mark.slow
def test_row_03_a_kill_at_every_point_of_every_save_changes_nothing(
    server: Server, fresh: Callable[[], Path], straight: Callable[..., Straight]
) -> None:
    began = time.monotonic()
    counts = {}
    for place, words in itertools.product(POINTS, (SHORT, FALLING)):
        for nth in itertools.count(1):
            if not check_kill_at(server, fresh(), place, nth, words, straight(words), 4):
                break
            counts[place] = counts.get(place, 0) + 1
    print(f"\nrow 3: kills {sum(counts.values())}, lost 0, seconds {time.monotonic() - began:.0f}, {counts}")
    assert counts.keys() == set(POINTS)
    assert sum(counts.values()) >= 140


# rows 4, 5 and 6


def stop_at(
    server: Server,
    folder: Path,
    place: str,
    nth: int,
    words: tuple[str, ...],
    send: Callable[[Launch], None] = lambda launch: launch.send(signal.SIGTERM),
) -> Launch:
    """A launch that got a signal when it was at a place for the nth time, and then could go on."""
    launch = server.start((*words, *PLAIN), folder, ["watch_steps"], ["pause_at", place, nth])
    try:
        launch.wait(LIMIT, until=f"at {place}")
        assert f"at {place}" in launch.said, launch.output
        send(launch)
        launch.release()
        launch.wait(15)
    finally:
        launch.end()
    return launch


def assert_nothing_lost(server: Server, folder: Path, done: list[int], words: tuple[str, ...], truth: Straight) -> None:
    """Started again with the same words, the run does exactly the steps that are left, and the numbers are the same."""
    assert unreadable_files(folder) == 0
    assert not temporaries(folder)
    again = server.run((*words, *PLAIN), folder, ["watch_steps"])
    assert again.code == 0, again.output
    assert [*done, *again.steps] == list(range(1, truth.num_steps + 1))
    assert final_digest(folder) == truth.digest


def state_of(folder: Path) -> str:
    return str(json.loads((folder / "outputs" / "run" / "status.json").read_text())["state"])


STOPS = [("composing", 9), ("loading", 1), ("step", 1), ("step", 15), ("evaluation", 2), ("written", 3)]
MORE_STOPS = [("loaded", 1), ("step", 11), ("step", 12), ("step", 33), ("evaluation", 1), ("evaluation", 4)]
MORE_STOPS += [(place, nth) for place in POINTS if place != "result" for nth in (1, 2)] + [("result", 1)]


def check_stop(
    server: Server, folder: Path, place: str, nth: int, words: tuple[str, ...], truth: Straight, signum: int
) -> None:
    launch = stop_at(server, folder, place, nth, words, lambda launch: launch.send(signum))
    assert launch.code == 128 + signum, launch.output
    assert "Traceback" not in launch.output
    if (folder / "outputs" / "run").exists():
        assert state_of(folder) == "interrupted"
    assert_nothing_lost(server, folder, launch.steps, words, truth)


@pytest.mark.parametrize(("place", "nth"), STOPS)
def test_row_04_sigterm_here_loses_no_step(
    place: str, nth: int, server: Server, fresh: Callable[[], Path], straight: Callable[..., Straight]
) -> None:
    check_stop(server, fresh(), place, nth, SHORT, straight(SHORT), signal.SIGTERM)


@pytest.mark.parametrize("nth", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_row_04_sigterm_while_loader_workers_are_started_does_not_hang(
    nth: int, server: Server, fresh: Callable[[], Path], straight: Callable[..., Straight]
) -> None:
    """The first of two workers is there, of training and of validation."""
    check_stop(server, fresh(), "worker_started", nth, GROUP, straight(GROUP), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("place", "nth"), MORE_STOPS)
def test_row_04_and_05_a_signal_here_loses_no_step(
    place: str, nth: int, signum: int, server: Server, fresh: Callable[[], Path], straight: Callable[..., Straight]
) -> None:
    check_stop(server, fresh(), place, nth, FALLING, straight(FALLING), signum)


def check_stop_while_resuming(
    server: Server, folder: Path, place: str, nth: int, words: tuple[str, ...], truth: Straight
) -> None:
    """SIGTERM to a launch that picks a killed run up again."""
    killed = kill_at(server, folder, "step", 15, words)
    assert killed is not None
    before = newest_step(folder)
    launch = stop_at(server, folder, place, nth, words)
    assert launch.code == 143, launch.output
    assert "Traceback" not in launch.output
    assert newest_step(folder) == before + len(launch.steps)
    assert {path.suffix for path in (folder / CHECKPOINTS).iterdir()} == {".pt"}, "a good file was set aside"
    assert_nothing_lost(server, folder, [*range(1, before + 1), *launch.steps], words, truth)


@pytest.mark.parametrize(("place", "nth"), [("reading", 1)])
def test_row_04_sigterm_while_a_run_is_picked_up_loses_no_step(
    place: str, nth: int, server: Server, fresh: Callable[[], Path], straight: Callable[..., Straight]
) -> None:
    check_stop_while_resuming(server, fresh(), place, nth, SHORT, straight(SHORT))


@pytest.mark.slow
@pytest.mark.parametrize(("place", "nth"), [("reading", 2), ("loading", 1), ("loaded", 1), ("started", 1), ("step", 1)])
def test_row_04_sigterm_while_a_run_is_picked_up_loses_no_step_elsewhere(
    place: str, nth: int, server: Server, fresh: Callable[[], Path], straight: Callable[..., Straight]
) -> None:
    check_stop_while_resuming(server, fresh(), place, nth, SHORT, straight(SHORT))


@dataclass
class Stops:
    """SIGTERMs at random moments: how each launch ended, and how long that took."""

    seconds: list[float]
    hits: int = 0
    in_training: int = 0
    by_default: int = 0  # before the program had begun to listen
    lost: int = 0

    def percentile(self, share: float) -> float:
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(share * len(self.seconds)))]


def stop_randomly(
    server: Server,
    num_hits: int,
    fresh: Callable[[], Path],
    words: tuple[str, ...],
    truth: Straight,
    rng: random.Random,
    stops: Stops,
) -> None:
    """Runs that get a SIGTERM at random moments of each launch, until so many of these hit a running process."""
    span = truth.seconds
    for _ in range(num_hits + 10):
        folder, steps = fresh(), list[int]()
        for i in range(12):
            launch = server.watched((*words, *PLAIN), folder)
            began = time.monotonic()
            try:
                if launch.wait(rng.uniform(0, span)) == 0 and i == 0:
                    span = min(span, time.monotonic() - began)
                began = time.monotonic()
                launch.send(signal.SIGTERM)
                launch.wait(15)
                seconds = time.monotonic() - began
            finally:
                code = launch.end()
            steps += launch.steps
            assert unreadable_files(folder) == 0
            assert not temporaries(folder)
            if code == 0:
                break
            assert code in (143, -signal.SIGTERM), launch.output
            stops.by_default += code == -signal.SIGTERM
            stops.hits += 1
            stops.in_training += bool(launch.steps)
            stops.seconds.append(seconds)
            if code == -signal.SIGTERM:  # right only before the program's first line and after its last
                assert not launch.output or state_of(folder) == "done", launch.output
        else:
            again = server.run((*words, *PLAIN), folder, ["watch_steps"])
            assert again.code == 0, again.output
            steps += again.steps
        stops.lost += steps != list(range(1, truth.num_steps + 1)) or final_digest(folder) != truth.digest
        assert stops.lost == 0, (steps, folder)
        shutil.rmtree(folder)
        if stops.hits >= num_hits:
            return


def seconds_of_a_save(server: Server, folder: Path, words: tuple[str, ...]) -> float:
    """The slowest of ten writes of this run's checkpoint."""
    assert server.run((*words, *PLAIN), folder).code == 0
    content = read_checkpoint(steps_in(folder / CHECKPOINTS)[-1])
    slowest = 0.0
    for _ in range(10):
        began = time.monotonic()
        write_checkpoint(folder / "again.pt", content)
        slowest = max(slowest, time.monotonic() - began)
    return slowest


def test_row_04_sigterm_at_random_moments_loses_no_step(
    server: Server, fresh: Callable[[], Path], straight: Callable[..., Straight]
) -> None:
    words = SETTINGS["mlp_adamw"].words
    stops = Stops([])
    stop_randomly(server, 4, fresh, words, straight(words), random.Random(4), stops)
    assert stops.hits >= 4
    assert max(stops.seconds) < 5


@pytest.mark.slow
def test_row_04_a_hundred_sigterms_at_random_moments_lose_no_step(
    server: Server, fresh: Callable[[], Path], straight: Callable[..., Straight]
) -> None:
    total, began = 0, time.monotonic()
    for name, num_hits in (("mlp", 30), ("mlp_adamw", 30), ("lenet_adamw", 30), ("streamed", 30)):
        words = SETTINGS[name].words
        truth, stops = straight(words), Stops([])
        stop_randomly(server, num_hits, fresh, words, truth, random.Random(f"stop {name}"), stops)
        save, step = seconds_of_a_save(server, fresh(), words), truth.seconds / truth.num_steps
        p50, p99 = stops.percentile(0.5), stops.percentile(0.99)
        print(
            f"\nrow 4 {name}: hits {stops.hits}, in training {stops.in_training}, by default {stops.by_default}", end=""
        )
        print(f", lost {stops.lost}, signal to exit p50 {p50:.3f} s, p99 {p99:.3f} s", end="")
        print(f" (a save {save:.3f} s, a step {step:.3f} s)")
        assert stops.hits >= num_hits
        assert stops.in_training >= num_hits / 4
        assert p99 < 1 + save + step
        total += stops.hits
    print(f"row 4: hits {total}, lost 0, seconds {time.monotonic() - began:.0f}")
    assert total >= 100


@pytest.mark.slow
def test_row_04_sigterm_to_real_processes_loses_no_step(
    fresh: Callable[[], Path], straight: Callable[..., Straight]
) -> None:
    """With the end of the interpreter, which takes long where torch is loaded."""
    began, words, rng = time.monotonic(), SETTINGS["lenet_adamw"].words, random.Random(44)
    seconds, folder = [], fresh()
    while len(seconds) < 12:
        process = Process((*words, *PLAIN), folder)
        try:
            at_least = newest_name(folder) + rng.randrange(11, 150)
            until = time.monotonic() + LIMIT
            while newest_name(folder) < at_least and process.wait(0.005) is None:
                assert time.monotonic() < until
            signalled = time.monotonic()
            process.process.send_signal(signal.SIGTERM)
            process.wait(30)
        finally:
            code = process.end()
        assert code in (0, 143), process.output
        if code == 143:
            seconds.append(time.monotonic() - signalled)
            assert state_of(folder) == "interrupted"
            assert unreadable_files(folder) == 0
        else:
            assert final_digest(folder) == straight(words).digest
            folder = fresh()
    seconds.sort()
    print(
        f"\nrow 4 real processes: hits {len(seconds)}, lost 0, signal to exit p50 {seconds[len(seconds) // 2]:.3f} s",
        end="",
    )
    print(f", max {seconds[-1]:.3f} s, seconds {time.monotonic() - began:.0f}")
    assert seconds[-1] < 3


@pytest.mark.parametrize(("place", "nth"), [("loading", 1), ("step", 15)])
def test_row_05_sigint_here_loses_no_step(
    place: str, nth: int, server: Server, fresh: Callable[[], Path], straight: Callable[..., Straight]
) -> None:
    check_stop(server, fresh(), place, nth, SHORT, straight(SHORT), signal.SIGINT)


def check_second_sigint(server: Server, folder: Path, place: str, nth: int, truth: Straight) -> float:
    """Two SIGINTs where the first cannot be obeyed soon; returns the seconds from the second one to the end."""
    launch = server.start((*SHORT, *PLAIN), folder, ["watch_steps"], ["pause_at", place, nth])
    try:
        launch.wait(LIMIT, until=f"at {place}")
        launch.send(signal.SIGINT)
        assert launch.wait(0.3) is None, "the first one waits for the end of the step"
        began = time.monotonic()
        launch.send(signal.SIGINT)
        launch.wait(15)
        seconds = time.monotonic() - began
    finally:
        launch.end()
    assert launch.code == -signal.SIGINT, launch.output
    assert unreadable_files(folder) == 0
    again = server.run((*SHORT, *PLAIN), folder, ["watch_steps"])
    assert again.code == 0, again.output
    assert 0 <= launch.steps[-1] - again.steps[0] + 1 <= 4
    assert final_digest(folder) == truth.digest
    return seconds


def test_row_05_a_second_sigint_ends_at_once_and_the_last_file_is_good(
    server: Server, fresh: Callable[[], Path], straight: Callable[..., Straight]
) -> None:
    assert check_second_sigint(server, fresh(), "step", 15, straight(SHORT)) < 2


@pytest.mark.slow
def test_row_05_a_second_sigint_anywhere_ends_at_once_and_the_last_file_is_good(
    server: Server, fresh: Callable[[], Path], straight: Callable[..., Straight]
) -> None:
    began = time.monotonic()
    points = [("step", nth) for nth in (6, 12, 22, 23)]
    points += [(place, 2) for place in ("half_written", "written", "synced", "replaced", "before_prune")]
    seconds = [check_second_sigint(server, fresh(), place, nth, straight(SHORT)) for place, nth in points]
    print(f"\nrow 5: second SIGINTs {len(seconds)}, lost 0, signal to exit max {max(seconds):.3f} s", end="")
    print(f", seconds {time.monotonic() - began:.0f}")
    assert max(seconds) < 2


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    """A zombie that nobody has asked for is not alive."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def assert_all_end(pids: list[int], seconds: float) -> None:
    """They end by themselves in that time; what does not is ended here."""
    until = time.monotonic() + seconds
    try:
        while any(map(is_alive, pids)):
            assert time.monotonic() < until, "workers are left"
            time.sleep(0.01)
    finally:
        for pid in filter(is_alive, pids):
            os.kill(pid, signal.SIGKILL)


def check_group(
    server: Server, folder: Path, place: str, nth: int, truth: Straight, *, signum: int = signal.SIGTERM, times: int = 1
) -> None:
    """A signal to the process and its loader workers alike; some senders signal both the process and its group."""
    workers: list[int] = []

    def send(launch: Launch) -> None:
        launch.wait(0.2)  # a worker that is waited for: the batches made before are used up
        workers.extend(children_of(launch.pid))
        for _ in range(times):
            os.killpg(launch.pid, signum)
            launch.wait(0.02)  # signals that are still pending would count as one

    launch = stop_at(server, folder, place, nth, GROUP, send)
    assert len(workers) == 2
    assert_all_end(workers, 5)
    assert launch.code == 128 + signum, launch.output
    assert "Traceback" not in launch.output
    assert_nothing_lost(server, folder, launch.steps, GROUP, truth)


@pytest.mark.parametrize(("place", "nth"), [("step", 15), ("worker", 40)])
def test_row_06_sigterm_to_the_whole_group_loses_no_step(
    place: str, nth: int, server: Server, fresh: Callable[[], Path], straight: Callable[..., Straight]
) -> None:
    check_group(server, fresh(), place, nth, straight(GROUP))


@pytest.mark.slow
def test_row_06_signals_to_the_whole_group_lose_no_step(
    server: Server, fresh: Callable[[], Path], straight: Callable[..., Straight]
) -> None:
    began = time.monotonic()
    points = [("step", nth) for nth in (1, 5, 11, 12, 20, 33)] + [("worker", nth) for nth in (1, 10, 20, 40, 50)]
    points += [("evaluation", nth) for nth in (1, 2, 4)]
    for (signum, times), (place, nth) in itertools.product(
        ((signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGINT, 1)), points
    ):
        check_group(server, fresh(), place, nth, straight(GROUP), signum=signum, times=times)
    print(f"\nrow 6: signals to the group {3 * len(points)}, lost 0, workers left 0", end="")
    print(f", seconds {time.monotonic() - began:.0f}")


# every step of a run is a point to go on from

OPTIMIZERS = (
    ("optimizer=sgd", "optimizer.momentum=0.9", "optimizer.lr=0.02"),
    ("optimizer=adam",),
    ("optimizer=adamw",),
    ("optimizer=rmsprop", "optimizer.momentum=0.5"),
)
SCHEDULES = (
    ("schedule=constant",),
    ("schedule=step", "schedule.step_size=1"),
    ("schedule=cosine", "schedule.warmup_epochs=0.5"),
    ("schedule=onecycle",),
)
PRECISIONS = ("fp32", "fp64", "bf16", "fp16")
MODELS = {
    "linreg": ("data=synthetic", "data.num_examples=29", "batch_size=10", "model=linreg"),
    "softmax": (*GREY, "model=softmax"),
    "mlp": (*GREY, "model=mlp", "model.dropout=0.5", "model.num_hiddens=[32]"),
    "lenet": (*GREY, "model=lenet"),
    "resnet": (*GREY, "data.channels=3", "data.size=8", "model=resnet18", "data.augment=crop_flip"),
}
EPOCHS = 3
POINTS_OF_A_RUN = EPOCHS * (3 + 1)  # 26 examples in batches of 10; after the last step, before and after validation
BY_TWO, BY_THREE = (0, 2, 3, 1), (0, 3, 1, 2)  # products in the field of four elements


def exact_runs(model: str) -> list[tuple[str, ...]]:
    """Words of runs; every pair of model, optimizer, schedule and precision occurs (orthogonal Latin squares)."""
    if model == "resnet":
        chosen = [(0, 3, 0), (2, 2, 2), (1, 1, 0)]
    else:
        i = list(MODELS).index(model)
        chosen = [(j, i ^ j, i ^ BY_TWO[j]) for j in range(4)] + [(j, i ^ j ^ 1, i ^ BY_THREE[j]) for j in range(4)]
    found = []
    for number, (optimizer, schedule, precision) in enumerate(chosen):
        words = (*MODELS[model], *OPTIMIZERS[optimizer], *SCHEDULES[schedule], f"epochs={EPOCHS}", "recipe=none")
        words += (f"device.precision={PRECISIONS[precision]}",)
        words += ("ema_decay=0.9",) if number % 2 else ()
        words += ("accumulate_steps=2",) if number % 3 == 1 else ()
        words += ("clip_norm=0.1",) if number % 3 == 2 else ()
        if model != "linreg":
            words += ("data.limit=26",)
        if model in ("mlp", "lenet") and number >= 4:
            words += ("data.augment=shift",)
        found.append(words)
    return found


def check_every_point(
    server: Server, folder: Path, pictures: Path, words: tuple[str, ...], truth: Straight, stride: int = 1
) -> int:
    """Keep the run's files as they are after every step, and go on from each of these moments; returns how many."""
    copies = folder / "copies"
    launch = server.run((*words, *PLAIN, "save.every_steps=1"), folder, ["keep_every_file", str(copies)])
    assert launch.code == 0, launch.output
    assert final_digest(folder) == truth.digest
    points = sorted(copies.iterdir())
    assert len(points) == POINTS_OF_A_RUN
    points = points[::stride]
    for number, point in enumerate(points):
        (point / "pictures").symlink_to(pictures)
        file = steps_in(point / CHECKPOINTS)[-1].relative_to(point)
        how = "resume=auto" if number % 2 else f"resume={file}"
        again = server.run((*words, *PLAIN, "save.every_steps=0", how), point, ["watch_steps"])
        assert again.code == 0, again.output
        first = step_of(file) + 1
        assert again.steps == list(range(first, truth.num_steps + 1))
        assert final_digest(point) == truth.digest, (file, words)
        shutil.rmtree(point)
    shutil.rmtree(folder)
    return len(points)


@pytest.mark.parametrize(
    ("model", "number", "stride"), [("mlp", 5, 2), pytest.param("lenet", 7, 2, marks=pytest.mark.slow)]
)
def test_every_step_is_a_point_to_go_on_from_exactly(
    model: str,
    number: int,
    stride: int,
    server: Server,
    fresh: Callable[[], Path],
    pictures: Path,
    straight: Callable[..., Straight],
) -> None:
    words = exact_runs(model)[number]
    count = check_every_point(server, fresh(), pictures, words, straight(words), stride)
    assert count == POINTS_OF_A_RUN // stride


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_three_hundred_points_to_go_on_from_exactly(
    model: str, server: Server, fresh: Callable[[], Path], pictures: Path, straight: Callable[..., Straight]
) -> None:
    assert sum(len(exact_runs(model)) for model in MODELS) * POINTS_OF_A_RUN >= 300
    began = time.monotonic()
    runs = exact_runs(model)
    count = sum(check_every_point(server, fresh(), pictures, words, straight(words)) for words in runs)
    print(f"\nexact points {model}: runs {len(runs)}, points {count}, exact {count}", end="")
    print(f", seconds {time.monotonic() - began:.0f}")
    assert count == len(runs) * POINTS_OF_A_RUN
