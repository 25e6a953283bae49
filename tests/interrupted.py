"""The harness of the tests that interrupt runs: launches cheap enough to kill by the hundred, and what must be equal.

A server process imports the program once, computes nothing, and forks a child for each launch; the child goes to its
folder, breaks itself as it is told (BREAKS) and runs main.main(). The server is a process of its own because a fork is
sound only where there are no threads, and pytest's process has some. Run as a program, this file is the server.
"""

import atexit
import gc
import hashlib
import itertools
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve()
ROOT = HERE.parent.parent
LIMIT = 120.0  # seconds after which a process that was to end counts as hanging
PLAIN = ("plots=false", "device.num_threads=1", "name=run", "resume=auto")
CHECKPOINTS, OUTPUTS = Path("checkpoints", "run"), Path("outputs", "run")


# ---- the child: what is broken in it before it starts, so that the program needs no hooks

tell_fd = -1  # where the child reports to
go_file = ""  # appears when a paused child is to go on


def tell(text: str) -> None:
    """A line to the parent; lines this short are never mixed up."""
    os.write(tell_fd, f"{text}\n".encode())


def pause(place: str) -> None:
    """Say where we are, and stay there until told to go on, killed, or raised out of it by a signal."""
    tell(f"at {place}")
    until = time.monotonic() + LIMIT
    while not os.path.exists(go_file) and time.monotonic() < until:
        time.sleep(0.002)


def pause_at(place: str, nth: int) -> None:
    """Pause when `place` is reached for the nth time in this process."""
    count = 0

    def reached() -> None:
        nonlocal count
        count += 1
        if count == nth:
            pause(place)

    PLACES[place](reached)


def put(owner: Any, name: str, value: Any) -> None:
    """Replace a function where it is defined and in every module that imported it by its name."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    for key, module in list(sys.modules.items()):
        if key.startswith("trainer.") and getattr(module, name, None) is original:
            setattr(module, name, value)


def around(owner: Any, name: str, *, before: Callable[..., None] | None = None, after: Any = None) -> None:
    """Replace a function by one that also calls `before` and `after` with its arguments."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **options: Any) -> Any:
        if before is not None:
            before(*args)
        result = original(*args, **options)
        if after is not None:
            after(*args)
        return result

    put(owner, name, wrapped)


def watch_steps() -> None:
    """Tell the number of every finished step."""
    from trainer import engine

    original = engine.train_epoch

    def train_epoch(*args: Any, **options: Any) -> Iterator[int]:
        for step in original(*args, **options):
            tell(f"step {step}")
            yield step

    engine.train_epoch = train_epoch


def in_optimizer(reached: Callable[[], None]) -> None:
    """Half-way through a training step: there are gradients, the weights are still the old ones."""
    from trainer import engine

    original = engine.train_epoch

    def train_epoch(model: Any, loss_fn: Any, optimizer: Any, *args: Any, **options: Any) -> Iterator[int]:
        if not hasattr(optimizer, "is_watched"):
            around(optimizer, "step", before=lambda *_: reached())
            optimizer.is_watched = True
        yield from original(model, loss_fn, optimizer, *args, **options)

    engine.train_epoch = train_epoch


def in_evaluation(reached: Callable[[], None]) -> None:
    """Between the batches of a validation, or of the test at the end."""
    from trainer import engine

    original = engine.evaluate

    def evaluate(model: Any, loss_fn: Any, batches: Iterable[Any], *args: Any) -> Any:
        def watched() -> Iterator[Any]:
            for i, batch in enumerate(batches):
                if i == 0:
                    reached()
                yield batch

        return original(model, loss_fn, watched(), *args)

    engine.evaluate = evaluate


def in_worker(reached: Callable[[], None]) -> None:
    """A loader worker decodes a picture, so that the main process waits for data."""
    from trainer.data.folder import ImageFiles

    around(ImageFiles, "__getitem__", before=lambda *_: reached())


def is_temporary(path: Any) -> bool:
    return os.path.basename(path).startswith(".tmp-")


def at_fsync(reached: Callable[[], None], *, before: bool) -> None:
    """Round the fsync of a checkpoint's temporary file."""

    def look(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if is_temporary(path) and str(CHECKPOINTS) in path:
            reached()

    around(os, "fsync", **{"before" if before else "after": look})


def at_half(reached: Callable[[], None]) -> None:
    """Half of the temporary file is there."""
    import torch

    original = torch.save

    def save(content: Any, file: Any) -> None:
        original(content, file)
        if str(CHECKPOINTS) not in file.name:  # decoded images
            return
        file.flush()
        whole = Path(file.name).read_bytes()
        os.truncate(file.name, len(whole) // 2)
        reached()
        Path(file.name).write_bytes(whole)

    torch.save = save


def at_replace(reached: Callable[[], None], name: str, *, before: bool) -> None:
    """Round the os.replace that gives a temporary file the name step_*.pt or best.pt."""

    def look(source: Any, target: Any) -> None:
        if is_temporary(source) and os.path.basename(target).startswith(name):
            reached()

    around(os, "replace", **{"before" if before else "after": look})


def at_call(reached: Callable[[], None], module: str, path: str, *, before: bool) -> None:
    """Before or after a function or method of the program."""
    import importlib

    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    around(owner, name, **{"before" if before else "after": lambda *_: reached()})


def at_unlink(reached: Callable[[], None]) -> None:
    """One of the old step files is removed."""

    def look(path: Path, *_: Any) -> None:
        if path.name.startswith("step_"):
            reached()

    around(Path, "unlink", after=look)


CHECKPOINT = "trainer.run.checkpoint_files"
PLACES: dict[str, Callable[[Callable[[], None]], None]] = {
    "composing": lambda reached: at_call(reached, "omegaconf.listconfig", "ListConfig._set_item_impl", before=True),
    "loading": lambda reached: at_call(reached, "trainer.data", "load", before=True),
    "reading": lambda reached: at_call(reached, "torch", "load", before=True),
    "loaded": lambda reached: at_call(reached, "trainer.data", "load", before=False),
    "step": in_optimizer,
    "evaluation": in_evaluation,
    "worker": in_worker,
    "worker_started": lambda reached: at_call(reached, "multiprocessing.process", "BaseProcess.start", before=False),
    # a save, in the order in which it happens
    "half_written": at_half,
    "written": lambda reached: at_fsync(reached, before=True),
    "synced": lambda reached: at_fsync(reached, before=False),
    "replaced": lambda reached: at_replace(reached, "step_", before=False),
    "before_best": lambda reached: at_call(reached, CHECKPOINT, "keep_as_best", before=True),
    "best_linked": lambda reached: at_replace(reached, "best.pt", before=True),
    "best_replaced": lambda reached: at_replace(reached, "best.pt", before=False),
    "before_prune": lambda reached: at_call(reached, CHECKPOINT, "tidy", before=True),
    "pruned_one": at_unlink,
    "pruned": lambda reached: at_call(reached, CHECKPOINT, "tidy", before=False),
    # the other files
    "recorded": lambda reached: at_call(reached, "trainer.run.recorder", "Recorder.epoch", before=False),
    "started": lambda reached: at_call(reached, "trainer.run.directory", "write_status", before=False),
    "result": lambda reached: at_call(reached, "trainer.run.result", "say_result", before=True),
}
TEMPORARY_LEFT = ("half_written", "written", "synced", "best_linked")  # places at which a temporary file is there


def keep_every_file(folder: str) -> None:
    """Copy the run's files to <folder>/<number> after every save, as they are then; nothing is pruned."""
    import shutil

    from trainer.run import checkpoint_files
    from trainer.run.checkpoint_files import steps_in

    def keep(_: Path) -> None:
        number = len(os.listdir(folder)) if os.path.isdir(folder) else 0
        for part in (CHECKPOINTS, OUTPUTS):
            shutil.copytree(part, Path(folder, f"{number:03d}", part), ignore=shutil.ignore_patterns("tb", "step_*"))
        newest = steps_in(CHECKPOINTS)[-1]
        shutil.copyfile(newest, Path(folder, f"{number:03d}", CHECKPOINTS, newest.name))

    put(checkpoint_files, "tidy", keep)


def save_for_ever(folder: str, first: int, atomic: bool) -> None:
    """Save about 8 MB again and again, as state.save does or plainly, and tell the number of each complete save."""
    import torch

    from trainer.run.checkpoint_files import keep_as_best, path_of_step, tidy, write_checkpoint

    place = Path(folder)
    for number in itertools.count(first):
        content = big_content(number)
        if atomic:
            path = path_of_step(place, number)
            write_checkpoint(path, content)
            tell(f"saved {number}")
            keep_as_best(path, place)
            tidy(place)
        else:
            torch.save(content, place / "plain.pt")
            tell(f"saved {number}")


def big_content(number: int) -> dict[str, Any]:
    """A checkpoint of the agreed form with 2 million weights that follow from `number`."""
    import torch

    from trainer.run.seeds import rng_state

    return {
        "format": 1,
        "kind": "train",
        "arch": {"name": "mlp", "num_outputs": 2, "in_shape": [3], "args": {}},
        "classes": ["cat", "dog"],
        "preprocess": {"size": [], "mean": [], "std": []},
        "model": {"w": torch.arange(2_000_000, dtype=torch.int32) ^ number},
        "optimizer": {"name": "sgd", "state": {}},
        "progress": {"epoch": 1, "step": number},
        "early_stop": {"bad_epochs": 0, "stopped": ""},
        "best": {},
        "rng": [rng_state(torch.device("cpu"))],
        "config": {"name": "run"},
        "fingerprint": "",
        "env": {},
        "data": {"sha256": ""},
    }


BREAKS: dict[str, Callable[..., None]] = {
    "watch_steps": watch_steps,
    "pause_at": pause_at,
    "keep_every_file": keep_every_file,
    "save_for_ever": save_for_ever,
}


def run_child(words: list[str], folder: str, log: str, breaks: list[list[Any]]) -> NoReturn:
    """What a fork does: main.py's work in a folder, its output in a file, in a session of its own."""
    global go_file
    os.setsid()
    os.chdir(folder)
    go_file = f"{log}.go"
    for descriptor, path, flags in ((0, os.devnull, os.O_RDONLY), (1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)):
        opened = os.open(path, flags)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.dup2(1, 2)
    for name, *arguments in breaks:
        BREAKS[name](*arguments)
    sys.argv = ["main.py", *words]
    code = 1
    try:
        code = sys.modules["main"].main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:  # all of the interpreter's end that can be seen, without the second that tearing torch down takes
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)


def serve() -> None:
    """Answer each request on stdin with a line: the process id of a launch, or how a process ended."""
    global tell_fd
    tell_fd = int(sys.argv[1])
    sys.path.insert(0, str(ROOT))
    import hydra  # noqa: F401
    import torch._dynamo  # the first optimizer would import it, in 2 s
    import torch.utils.tensorboard  # noqa: F401

    import main  # noqa: F401
    from trainer.commands import predict, train  # noqa: F401

    gc.freeze()  # children leave the shared memory alone: a third of their time
    print(len(os.listdir("/proc/self/task")), flush=True)
    alive: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:  # only asked for processes that have ended
            code = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
            alive.discard(request["wait"])
            print(code, flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            run_child(**request)
        alive.add(pid)
        print(pid, flush=True)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# ---- the parent


def last_wins(words: Iterable[str]) -> list[str]:
    """Words that a test adds to common ones: of two for one setting the later one, since the program refuses both."""
    return list({word.partition("=")[0].lstrip("+"): word for word in words}.values())


class Server:
    """The process that forks launches; close it, which ends what it started."""

    def __init__(self) -> None:
        self.told, tell_fd = os.pipe()
        os.set_blocking(self.told, False)
        # one thread each: a library's threads of its own would not survive the fork
        threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(HERE), str(tell_fd)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[tell_fd],
            env=os.environ | threads,
            start_new_session=True,
        )
        os.close(tell_fd)
        assert self.answer() == 1, "the server has threads: to fork it is not sound"
        self.num_launches = 0

    def ask(self, **request: Any) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> int:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], LIMIT)[0], "the server hangs"
        return int(self.process.stdout.readline())

    def start(self, words: Iterable[str], folder: Path, *breaks: list[Any]) -> "Launch":
        """Start `python main.py <words>` in a folder."""
        self.num_launches += 1
        while select.select([self.told], [], [], 0)[0] and os.read(self.told, 1 << 20):
            pass  # what workers of a killed process may have said after it
        log = folder / f"log-{self.num_launches}.txt"
        pid = self.ask(words=last_wins(words), folder=str(folder), log=str(log), breaks=list(breaks))
        return Launch(self, pid, log)

    def watched(self, words: Iterable[str], folder: Path) -> "Launch":
        """Start it so that it tells its steps."""
        return self.start(words, folder, ["watch_steps"])

    def run(self, words: Iterable[str], folder: Path, *breaks: list[Any]) -> "Launch":
        """Start and wait for the end."""
        launch = self.start(words, folder, *breaks)
        try:
            launch.wait(LIMIT)
        finally:
            launch.end()
        return launch

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.close()
            self.process.wait(timeout=10)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            os.close(self.told)


class Launch:
    """A forked run. `code` is how it ended: as in a shell, but negative where a signal ended it; None: it runs."""

    def __init__(self, server: Server, pid: int, log: Path) -> None:
        self.server, self.pid, self.log = server, pid, log
        self.code: int | None = None
        self.said: list[str] = []
        self.rest = ""
        self.pidfd = os.pidfd_open(pid)

    def wait(self, seconds: float, until: str | None = None) -> int | None:
        """Wait for the end, or for the line `until`; returns the code."""
        deadline = time.monotonic() + seconds
        while self.code is None:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.pidfd, self.server.told], [], [], max(0.0, left))
            self.hear()
            if self.pidfd in ready:
                self.code = self.server.ask(wait=self.pid)
                os.close(self.pidfd)
                self.hear()
            elif left <= 0 or (until is not None and until in self.said):
                break
        return self.code

    def hear(self) -> None:
        while select.select([self.server.told], [], [], 0)[0]:
            *lines, self.rest = (self.rest + os.read(self.server.told, 1 << 16).decode()).split("\n")
            self.said += lines

    def send(self, signum: int) -> None:
        """A signal to the process, if it has not been waited for."""
        if self.code is None:
            signal.pidfd_send_signal(self.pidfd, signum)

    def release(self) -> None:
        """Let a process that pauses go on."""
        Path(f"{self.log}.go").touch()

    def end(self) -> int:
        """End it if it still runs; returns the code."""
        if self.wait(0) is None:
            self.send(signal.SIGKILL)
            assert self.wait(LIMIT) is not None, "not even SIGKILL ended it"
        assert self.code is not None
        return self.code

    @property
    def output(self) -> str:
        return self.log.read_text() if self.log.is_file() else ""

    @property
    def steps(self) -> list[int]:
        """The steps that were finished, where they were watched."""
        return [int(line.split()[1]) for line in self.said if line.startswith("step ")]


def digest(value: Any) -> str:
    """SHA-256 of plain types and tensors: type, structure and every bit."""
    import torch

    total = hashlib.sha256()

    def add(x: Any) -> None:
        total.update(type(x).__name__.encode())
        if isinstance(x, dict):
            for key in sorted(x):
                add(key)
                add(x[key])
        elif isinstance(x, list):
            for item in x:
                add(item)
        elif isinstance(x, torch.Tensor):
            total.update(f"{x.dtype} {tuple(x.shape)}".encode())
            total.update(x.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            total.update(repr(x).encode())
        total.update(b";")

    add(value)
    return total.hexdigest()[:16]


PARTS = ("model", "optimizer", "scaler", "ema", "rng", "progress", "best", "early_stop")


def final_digest(folder: Path) -> dict[str, str]:
    """What must be equal at the end of a run, by name, so that a difference says where it is."""
    from trainer.run.checkpoint_files import steps_in
    from trainer.run.safe_load import read_checkpoint

    files = [steps_in(folder / CHECKPOINTS)[-1], folder / CHECKPOINTS / "best.pt"]
    found = {"newest": files[0].name}
    for path in files:
        content = read_checkpoint(path)
        content["progress"].pop("seconds")
        stem = path.stem.partition("_")[0]
        found |= {f"{stem}.{part}": digest(content[part]) for part in PARTS}
    rows = [json.loads(line) for line in (folder / OUTPUTS / "metrics.jsonl").read_text().splitlines()]
    times = ("seconds", "samples_per_second")
    found["metrics"] = digest([{key: value for key, value in row.items() if key not in times} for row in rows])
    result = json.loads((folder / OUTPUTS / "result.json").read_text())
    del result["seconds"]
    found["result"] = digest(result)
    found["state"] = json.loads((folder / OUTPUTS / "status.json").read_text())["state"]
    return found


def unreadable_files(folder: Path) -> int:
    """Reads every checkpoint of the run; counts those that are refused."""
    from trainer.run.safe_load import read_checkpoint
    from trainer.utils.errors import ConfigError

    count = 0
    for path in (folder / CHECKPOINTS).glob("*.pt"):
        try:
            read_checkpoint(path)
        except ConfigError:
            count += 1
    return count


def newest_step(folder: Path) -> int:
    """The step that the run would go on from; 0 where there is no file."""
    from trainer.run.checkpoint_files import steps_in
    from trainer.run.safe_load import read_checkpoint

    files = steps_in(folder / CHECKPOINTS)
    return read_checkpoint(files[-1])["progress"]["step"] if files else 0


def temporaries(folder: Path) -> list[Path]:
    """What is half written among the checkpoints."""
    return list((folder / CHECKPOINTS).glob(".tmp-*"))


@dataclass
class Counts:
    """What was done to runs and what came of it."""

    runs: int = 0
    kills: int = 0  # signals sent
    hits: int = 0  # of them to a process that had not ended by itself
    in_training: int = 0  # of them after the process had done a step
    unreadable: int = 0
    lost: int = 0  # runs that could not be gone on with, or that ended with other numbers
    redone: int = 0  # the most steps that a kill cost
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        numbers = {key: value for key, value in vars(self).items() if key != "notes"}
        return ", ".join(f"{key} {value}" for key, value in numbers.items())


def kill_until_done(
    start: Callable[[], Any], folder: Path, span: float, rng: random.Random, counts: Counts, most: int = 12
) -> float:
    """One run, killed at uniformly random moments of `span` seconds and started again until it ends by itself.

    Args:
        start: starts it; returns a Launch or what can do as much.  most: kills, then it is left alone.
    Returns:
        The span for the next run: the machine may have become faster than it was when `span` was measured.
    """
    counts.runs += 1
    done, began = 0, time.monotonic()
    for i in range(most + 1):
        launch = start()
        try:
            launch.wait(rng.uniform(0, span) if i < most else LIMIT)
            counts.kills += launch.code is None
        finally:
            code = launch.end()
        if launch.steps:
            counts.redone = max(counts.redone, done - launch.steps[0] + 1)
            done = launch.steps[-1]
        if code != -signal.SIGKILL:
            break
        counts.hits += 1
        counts.in_training += bool(launch.steps)
        counts.unreadable += unreadable_files(folder)
    if code != 0:
        counts.lost += 1
        counts.notes.append(f"ended with {code}:\n{launch.output}")
    return span if i else min(span, time.monotonic() - began)


if __name__ == "__main__":
    serve()
