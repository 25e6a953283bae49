"""SIGINT and SIGTERM: at once outside of held work, at its end inside."""

import json
import multiprocessing
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer.utils.errors import Interrupted, TrainerError
from trainer.utils.signals import StopSignal

ROOT = Path(__file__).resolve().parent.parent
BOTH = pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


def raise_and_go_on(signum: int, after: list[str]) -> None:
    signal.raise_signal(signum)
    after.append("went on")


@BOTH
def test_a_signal_raises_at_once(signum: signal.Signals, code: int) -> None:
    after: list[str] = []
    with StopSignal() as stop, pytest.raises(Interrupted) as interruption:
        raise_and_go_on(signum, after)
    assert (after, stop.signum, interruption.value.exit_code) == ([], signum, code)


@BOTH
def test_held_work_comes_to_its_end_first(signum: signal.Signals, code: int) -> None:
    after: list[str] = []
    with StopSignal() as stop, pytest.raises(Interrupted) as interruption, stop.held():
        raise_and_go_on(signum, after)
    assert (after, stop.signum, interruption.value.exit_code) == (["went on"], signum, code)


def fail(signum: int) -> None:
    signal.raise_signal(signum)
    raise ValueError("mine")


def test_work_that_fails_fails_with_its_own_error() -> None:
    with StopSignal() as stop, pytest.raises(ValueError, match="mine"), stop.held():
        fail(signal.SIGTERM)


def test_held_work_without_a_signal_raises_nothing() -> None:
    with StopSignal() as stop:
        with stop.held():
            pass
        assert stop.signum == 0


def test_nothing_takes_an_interruption_for_a_failure() -> None:
    assert not issubclass(Interrupted, Exception)
    assert not issubclass(Interrupted, TrainerError)


def test_the_handlers_come_back() -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with StopSignal():
        assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] != before
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_sigterm_on_the_way_out_changes_nothing() -> None:
    """Some senders signal the process and then its group: its exit code is that of the first."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(Interrupted), StopSignal():
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # would end this process, and the tests with it
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_second_sigterm_soon_after_the_held_work_ended_raises_no_second_time() -> None:
    with StopSignal() as stop:
        with pytest.raises(Interrupted), stop.held():
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # while the first one is being dealt with


LATE = """
import multiprocessing, os, sys, time
from trainer.utils.signals import end_with_parent

def child():
    time.sleep(0.5)  # it imports, and its parent is killed meanwhile
    end_with_parent()
    print("goes on")

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=child).start()
    print("started", flush=True)
    os.kill(os.getpid(), 9)
"""


def test_a_process_whose_parent_ended_before_it_asked_ends_too(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(LATE)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "late.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "started\n"  # the pipe is open until the child has ended, too


def test_a_forwarded_signal_reaches_the_processes_that_were_started_and_is_noted() -> None:
    context = multiprocessing.get_context("spawn")  # a forked one would have our handlers
    with StopSignal() as stop, stop.forwarded():
        process = context.Process(target=time.sleep, args=(60,))
        process.start()
        signal.raise_signal(signal.SIGINT)
        process.join(timeout=30)
        assert stop.signum == signal.SIGINT
    assert process.exitcode is not None


TWICE = """
import signal, sys
from trainer.utils.signals import StopSignal
with StopSignal() as stop, stop.held():
    for number in map(int, sys.argv[1:]):
        print("alive", flush=True)
        signal.raise_signal(number)
    print("end", flush=True)
"""


@pytest.mark.parametrize(
    ("first", "second", "survives"),
    [
        (signal.SIGINT, signal.SIGINT, False),
        (signal.SIGTERM, signal.SIGINT, False),
        (signal.SIGTERM, signal.SIGTERM, True),  # to a process and its group, as some senders do
        (signal.SIGINT, signal.SIGTERM, True),
    ],
)
def test_only_a_second_sigint_ends_the_process_on_the_spot(first: int, second: int, survives: bool) -> None:
    words = [sys.executable, "-c", TWICE, str(int(first)), str(int(second))]
    done = subprocess.run(words, cwd=ROOT, text=True, capture_output=True, timeout=60)
    assert done.stdout == "alive\nalive\n" + "end\n" * survives
    assert (done.returncode == -signal.SIGINT) is not survives, done.stderr


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("kernel", [True, False])
def test_processes_end_with_their_parent_however_they_were_started(method: str, kernel: bool, tmp_path: Path) -> None:
    """Three of them, since a forked one holds pipes of those before it; without prctl, which only Linux has.

    They ignore SIGTERM, as those that decode images do.
    """
    blocked = "ctypes.CDLL = lambda name: object(); del signal.SIGKILL" if not kernel else ""
    (tmp_path / "killed.py").write_text(KILLED.replace("METHOD", method).replace("BLOCKED", blocked))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    done = subprocess.run([sys.executable, "killed.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.count("waits\n") == 3  # the pipe is open until the last child has ended
    assert time.monotonic() - began < 20


KILLED = """
import ctypes, multiprocessing, os, signal, time
BLOCKED
from trainer.utils.signals import end_with_parent

def child(ready):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent()
    os.write(1, b"waits\\n")  # in one piece, also where PYTHONUNBUFFERED is set
    ready.release()
    time.sleep(60)

if __name__ == "__main__":
    context = multiprocessing.get_context("METHOD")
    ready = context.Semaphore(0)
    for _ in range(3):
        context.Process(target=child, args=(ready,)).start()
    for _ in range(3):
        ready.acquire()
    os.kill(os.getpid(), 9)
"""


HANGUP = """
import os, signal, sys
# whatever the tests themselves were started with
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[1] == "nohup" else signal.SIG_DFL)
from trainer.utils.errors import Interrupted
from trainer.utils.signals import StopSignal
try:
    with StopSignal():
        os.kill(os.getpid(), signal.SIGHUP)
        print("goes on")
except Interrupted as error:
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(("how", "code", "said"), [("plain", 129, ""), ("nohup", 0, "goes on\n")])
def test_a_closed_terminal_interrupts_unless_nohup_was_asked_for(how: str, code: int, said: str) -> None:
    words = [sys.executable, "-c", HANGUP, how]
    done = subprocess.run(words, cwd=ROOT, text=True, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (code, said), done.stderr


def test_a_run_whose_terminal_is_closed_saves_and_can_be_resumed(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "main.py"), "name=a", "epochs=100000", "plots=false"]
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may have been started with nohup
        os.execv(sys.executable, words)
    seen = b""
    while b"2/100000" not in seen:  # a line of the second epoch
        seen += os.read(terminal, 2**16)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 129
    assert json.loads((tmp_path / "outputs" / "a" / "status.json").read_text())["state"] == "interrupted"
    assert list((tmp_path / "checkpoints" / "a").glob("step_*.pt"))
