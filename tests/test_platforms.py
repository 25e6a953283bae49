"""The program without what only POSIX or Linux has: a stand-in for Windows and macOS, where it was not run yet."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Cli, predictions, write_class_folders

from trainer.utils.files import read_csv

# Python runs a module of this name at the start of every process that finds it, so also of spawned workers.
WITHOUT = '''
import builtins, ctypes, errno, fcntl, multiprocessing, os, signal, subprocess, sys, types

# Nobody can import these. (subprocess is imported before msvcrt is there, from which it would conclude on Windows.)
def locking(descriptor, mode, count):
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_UN if mode else fcntl.LOCK_EX | fcntl.LOCK_NB, count, 0, os.SEEK_CUR)
    except OSError:
        raise PermissionError(errno.EACCES, "Permission denied") from None

sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=0, LK_UNLCK=1)
sys.modules |= dict.fromkeys(("fcntl", "resource", "pwd", "grp", "termios"))
multiprocessing.set_start_method("spawn")

# Nobody has these.
for name in ("link", "fork", "forkpty", "killpg", "getuid"):
    delattr(os, name)

# Our own files lack these: elsewhere torch and the standard library do without them, but they ask sys.platform first.
LACKING = {
    os: {"getppid", "O_NONBLOCK", "O_DIRECTORY", "sched_getaffinity", "getpgid", "setsid"},
    signal: {"SIGKILL", "SIGHUP", "SIGALRM", "SIGCHLD", "SIGUSR1", "SIGPIPE", "pthread_sigmask", "alarm", "setitimer"},
}

def is_ours(frame):
    name = frame.f_globals.get("__name__", "") if frame else ""
    return name.split(".")[0] in ("__main__", "__mp_main__", "main", "trainer", "hydra_plugins")

class Lacking(types.ModuleType):
    def __getattribute__(self, name):
        if name in LACKING[self] and is_ours(sys._getframe().f_back):
            raise AttributeError(f"blocked: {name}")
        return super().__getattribute__(name)

os.__class__ = signal.__class__ = Lacking

class CDLL(ctypes.CDLL):
    def __init__(self, name, *args, **options):
        if name is None and is_ours(sys._getframe().f_back):
            raise TypeError("blocked: prctl")
        super().__init__(name, *args, **options)

ctypes.CDLL = CDLL

def as_on_windows(event, args):
    """No /proc, no open folders, and no file that is open may be removed, moved or replaced."""
    if event == "open" and isinstance(args[0], str):
        if args[0].startswith("/proc") and "site-packages" not in sys._getframe().f_back.f_code.co_filename:
            raise FileNotFoundError(errno.ENOENT, "blocked", args[0])
        if is_ours(sys._getframe().f_back) and os.path.isdir(args[0]):
            raise PermissionError(errno.EACCES, "blocked", args[0])
    elif event in ("os.remove", "os.rename") and args[-1] == -1:
        paths = {os.path.realpath(os.fsdecode(path)) for path in args[: 2 if event == "os.rename" else 1]}
        for descriptor in os.listdir("/proc/self/fd"):
            try:
                if os.readlink(f"/proc/self/fd/{descriptor}") in paths:
                    raise PermissionError(errno.EACCES, "blocked: it is open", str(paths))
            except FileNotFoundError:
                pass

sys.addaudithook(as_on_windows)
'''

# Several commands in one process, which has imported torch once; spawned processes import main.py as they always do.
COMMANDS = """
import json, os, signal, sys
import main
from trainer.run.recorder import Recorder

scalars = Recorder.scalars

def stop_at_seven(self, values, step):
    scalars(self, values, step)
    if step == 7:
        Recorder.scalars = scalars
        signal.raise_signal(signal.SIGINT)

if __name__ == "__main__":
    for name in ("fcntl", "resource", "pwd", "grp", "termios"):
        try:
            __import__(name)
        except ImportError:
            continue
        sys.exit(f"{name} is there")
    assert not any(map(hasattr, [os, os, os, signal, signal], ["link", "fork", "getppid", "SIGKILL", "SIGHUP"]))
    __file__ = main.__file__
    Recorder.scalars = stop_at_seven
    codes = []
    for words in json.loads(sys.argv[1]):
        sys.argv = ["main.py", *words]
        codes.append(main.main())
    print("codes", json.dumps(codes))
"""

CLOCK = {"seconds", "samples_per_second", "train_seconds", "waiting"}
COMMON = ("plots=false", "device.num_threads=1", "device=cpu")
LINE = ("name=line", "record.every_steps=1", "save.every_steps=3", "data.num_examples=100", "resume=auto")
SWEEP = ("-m", "name=sweep", "optimizer.lr=0.01,0.03", "sweep.stack=false", "data.num_examples=100", "epochs=1")
PHOTOS = (
    "name=photos",
    "data=folder",
    "data.root=p",
    "data.size=8",
    "data.resident=false",
    "model=mlp",
    "batch_size=8",
)


def rows(run: str) -> list[dict[str, Any]]:
    """metrics.jsonl and result.json of a run, without the clock."""
    folder = Path("outputs", run)
    lines = [*(folder / "metrics.jsonl").read_text().splitlines(), (folder / "result.json").read_text()]
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCK} for line in lines]


@pytest.mark.skipif(sys.platform != "linux", reason="it takes away from Linux what other systems lack")
def test_without_posix_and_by_spawn_all_commands_give_the_same_numbers(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_class_folders(tmp_path / "p", {"train": 24, "test": 6}, size=8)
    line, sweep = ([*words, *COMMON] for words in (LINE, SWEEP))
    photos = [*PHOTOS, *COMMON, "data.workers=2", "epochs=1", "data.val_fraction=0"]
    after = [
        ["eval", "checkpoint=photos", "data.workers=0"],
        ["predict", "checkpoint=photos", "input=p/test", "data.workers=0"],
    ]

    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(WITHOUT)
    (tmp_path / "commands.py").write_text(COMMANDS)
    path = os.pathsep.join([str(tmp_path / "blocked"), str(ROOT)])
    commands = [line, line, sweep, photos, *after]
    done = subprocess.run(
        [sys.executable, "commands.py", json.dumps(commands)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.stdout.splitlines()[-1:] == ["codes [130, 0, 0, 0, 0, 0]"], done.stdout + done.stderr
    assert done.stderr.startswith("interrupted; ")
    assert done.stderr.count("\n") == 1  # no trouble of a process or thread
    names = ("line", "sweep/0", "sweep/1", "photos")
    assert Path("checkpoints/line/best.pt").stat().st_nlink == 1  # a copy
    found = {name: rows(name) for name in names}
    labelled = read_csv(predictions(Path("outputs/photos")))
    tested = json.loads(Path("outputs/photos/test.json").read_text())

    Path("ordinary").mkdir()
    Path("p").rename("ordinary/p")
    monkeypatch.chdir("ordinary")
    for words in (line, sweep, photos, *after):
        outcome = cli(*words)
        assert outcome.code == 0, outcome.err
    assert found == {name: rows(name) for name in names}
    assert labelled == read_csv(predictions(Path("outputs/photos")))
    assert tested == json.loads(Path("outputs/photos/test.json").read_text())
