"""What the tests share: a command line run in this process, and small data sets in the official formats."""

import functools
import gc
import hashlib
import io
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from interrupted import last_wins
from omegaconf import OmegaConf
from PIL import Image

import main
from trainer import data
from trainer.config.options import PLUGGED
from trainer.data import vision
from trainer.run.machine import set_up
from trainer.run.recorder import Recorder

ROOT = Path(main.__file__).parent


@dataclass(frozen=True)
class Outcome:
    """Exit code and what was printed."""

    code: int
    out: str
    err: str


Cli = Callable[..., Outcome]


def assert_refused(outcome: Outcome, *said: str) -> None:
    """Exit code 2 and one message, which holds each of `said`."""
    assert outcome.code == 2, outcome.err or outcome.out
    assert outcome.err.startswith("error: ")
    assert "Traceback" not in outcome.err
    for part in said:
        assert part in outcome.err


def predictions(folder: Path = Path("outputs/a")) -> Path:
    """The CSV file that predict wrote last."""
    return max(folder.glob("predictions*.csv"), key=lambda path: path.stat().st_mtime_ns)


def pytest_collection_finish() -> None:
    """Let the garbage collector walk over all that is imported less often: it took a tenth of the time."""
    gc.set_threshold(20_000, 50, 50)


@pytest.fixture(scope="session", autouse=True)
def composed_once() -> Iterator[None]:
    """Hydra composes a command line that several tests type once: that takes a tenth of a second.

    Kept as pickles: copy.deepcopy() takes five times as long as reading one.
    """
    compose, load = hydra.compose, OmegaConf.load
    kept, parsed = dict[str, bytes](), dict[str, bytes]()

    def first(*args: Any, **kwargs: Any) -> Any:
        searched = GlobalHydra.instance().config_loader().get_search_path().get_path()
        key = repr((args, kwargs, searched, PLUGGED))
        if key not in kept:
            kept[key] = pickle.dumps(compose(*args, **kwargs))
        return pickle.loads(kept[key])

    def parsed_once(file: Any) -> Any:
        text = file.read()
        if text not in parsed:
            parsed[text] = pickle.dumps(load(io.StringIO(text)))
        return pickle.loads(parsed[text])

    hydra.compose, OmegaConf.load = first, parsed_once
    yield
    hydra.compose, OmegaConf.load = compose, load


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Runs `python main.py <words>` in this process, in an empty folder; returns exit code and output.

    The words are those of last_wins, or with as_typed=True all of them.
    """
    monkeypatch.chdir(tmp_path)

    def run(*words: str, as_typed: bool = False) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["main.py", *(words if as_typed else last_wins(words))])
        try:
            code = main.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # after a signal, the program ignores a second one
        set_up("cpu")  # threads and matrix products as before
        np.seterr(all="warn")
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def start(*words: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """The same as a process of its own, for signals and for what is imported."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *last_wins(words)],
        cwd=cwd,
        env=os.environ | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def torchrun_command(ranks: int = 2) -> list[str]:
    """torchrun with a port of its own: tests run side by side."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", f"--master_port={port}"]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until a condition holds, while the process lives."""
    until = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)


def idx_bytes(array: np.ndarray) -> bytes:
    """A uint8 array in the IDX format: magic 0, 0, 8, ndim; big-endian lengths; the bytes."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()


def striped_pictures(n: int, num_classes: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, size, size) uint8 pictures whose class can be learnt: a bright band at a height that names it."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n, dtype=np.uint8) % num_classes
    pictures = rng.integers(0, 60, (n, size, size), dtype=np.uint8)
    for picture, label in zip(pictures, labels, strict=True):
        top = int(label) * (size - 4) // num_classes + 2
        picture[top : top + 2] = 255
    return pictures, labels


@pytest.fixture
def tiny_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`paths.data` with 600 + 100 learnable pictures in place of MNIST's, accepted as such."""
    raw = tmp_path / "tiny" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    digests = {}
    for part, n, seed in (("train", 600, 0), ("t10k", 100, 1)):
        pictures, labels = striped_pictures(n, 10, 28, seed)
        for name, array in ((f"{part}-images-idx3-ubyte", pictures), (f"{part}-labels-idx1-ubyte", labels)):
            (raw / name).write_bytes(idx_bytes(array))
            digests[name] = hashlib.sha256((raw / name).read_bytes()).hexdigest()
    monkeypatch.setitem(data.DATASETS, "mnist", functools.partial(vision.mnist, digests=digests))
    return tmp_path / "tiny"


def write_class_folders(root: Path, parts: dict[str, int], *, size: int = 16, num_classes: int = 3) -> Path:
    """`<root>/<part>/<class>/*.png` with learnable pictures; an empty part name puts the classes right below root."""
    for seed, (part, n) in enumerate(parts.items()):
        pictures, labels = striped_pictures(n, num_classes, size, seed)
        for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
            folder = root / part / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / f"{i:04d}.png")
    return root


@pytest.fixture
def change_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """change_at(step, change): calls change() once, while that step is recorded (record.every_steps=1)."""

    def arrange(step: int, change: Callable[[], object]) -> None:
        original = Recorder.scalars
        pending = [step]

        def scalars(self: Recorder, values: Any, at: int) -> None:
            original(self, values, at)
            if pending and at == pending[0]:
                pending.clear()
                change()

        monkeypatch.setattr(Recorder, "scalars", scalars)

    return arrange


@pytest.fixture
def signal_at(change_at: Callable[..., None]) -> Callable[..., None]:
    """signal_at(step, signum): sends this process the signal while it records that step (record.every_steps=1)."""

    def arrange(step: int, signum: int = signal.SIGTERM) -> None:
        change_at(step, lambda: os.kill(os.getpid(), signum))

    return arrange


class Server(ThreadingHTTPServer):
    """Sends `contents` by path. A path of `stalled` never gets an answer, one of `broken` half of its bytes."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents: dict[str, bytes] = {}
        self.stalled: set[str] = set()
        self.broken: set[str] = set()
        self.slow: set[str] = set()
        self.closing = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        if name in self.server.stalled:
            self.server.closing.wait(30)
            return
        if name not in self.server.contents:
            self.send_error(404)
            return
        data = self.server.contents[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        data = data[: len(data) // 2] if name in self.server.broken else data
        pieces = 4 if name in self.server.slow else 1
        for start in range(0, len(data), -(-len(data) // pieces)):
            self.wfile.write(data[start : start + -(-len(data) // pieces)])
            self.wfile.flush()
            time.sleep(0.3 * (pieces - 1) / 3)

    def do_HEAD(self) -> None:
        name = self.path.lstrip("/")
        self.send_response(200 if name in self.server.contents else 404)
        data = self.server.contents.get(name, b"")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", hashlib.sha256(data).hexdigest())
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
    thread.join()
