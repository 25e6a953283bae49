"""Files that are damaged, foreign or made to harm, as a user meets them: by a command line, with its exit code.

Rows 13-20 and 25-27 of the fault matrix. Every refusal is exit code 2, one message that names the file or key, and
nothing run, hung or left behind.
"""

import functools
import gzip
import hashlib
import importlib
import io
import json
import multiprocessing.process
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Cli, assert_refused, idx_bytes, write_class_folders
from torch import Tensor

import main
from trainer import data
from trainer.data import vision
from trainer.run.machine import TORCH_THREADS

FOLDER = ("data=folder", "data.root=pictures", "data.size=8", "data.channels=1", "data.augment=none")
SHORT = ("model=mlp", "model.num_hiddens=[8]", "schedule=constant", "batch_size=10", "plots=false", "device=cpu")
SGD = ("optimizer=sgd", "optimizer.momentum=0.9")
OFFLINE = "data.mirror=http://127.0.0.1:9/"

Change = Callable[[dict[str, Any]], object]

pytestmark = pytest.mark.timeout(60)  # a file that makes the program hang fails its test


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three classes and two finished runs: `a` with SGD, `b` with AdamW and a mean of weights."""
    folder = tmp_path_factory.mktemp("trained")
    write_class_folders(folder / "pictures", {"train": 60, "test": 9}, size=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in ((*SGD, "name=a"), ("optimizer=adamw", "ema_decay=0.5", "name=b")):
            patch.setattr(sys, "argv", ["main.py", *FOLDER, *SHORT, *words, "epochs=2"])
            assert main.main() == 0
    torch.set_num_threads(TORCH_THREADS)
    return folder


@pytest.fixture
def home(trained: Path, tmp_path: Path, cli: Cli) -> Path:
    """A copy of `trained`, which `cli` stands in."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


def newest(folder: Path, run: str = "a") -> Path:
    return sorted((folder / "checkpoints" / run).glob("step_*.pt"))[-1]


def content_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def changed(folder: Path, change: Change, run: str = "a") -> Path:
    """The newest checkpoint of a run with a change, in a file of its own with checksums that hold."""
    content = content_of(newest(folder, run))
    change(content)
    torch.save(content, folder / "changed.pt")
    return folder / "changed.pt"


def files_below(*folders: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()}


def read_each_way(path: Path) -> list[tuple[str, ...]]:
    """The command lines that read a checkpoint file."""
    return [
        ("eval", f"checkpoint={path}", "plots=false"),
        ("predict", f"checkpoint={path}", "plots=false"),
        (f"resume={path}", "epochs=4"),
        (*FOLDER, *SHORT, *SGD, "epochs=1", f"init_from={path}", "name=new"),
    ]


EVAL, PREDICT, RESUME, INIT_FROM = range(4)


@pytest.mark.parametrize("run", ["a", "b"])
def test_an_unchanged_file_is_taken_by_all_that_read_one(run: str, home: Path, cli: Cli) -> None:
    """What the refusals of this file rest on: without the change, each of these command lines works."""
    path = changed(home, lambda content: None, run)
    for words in read_each_way(path):
        outcome = cli(*words)
        assert outcome.code == 0, outcome.err


# row 13


class Payload:
    """Unpickling it calls a function that leaves a marker behind."""

    def __init__(self, call: tuple[Callable[..., Any], tuple[Any, ...]]) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def nested_in_torch_file(marker: Path) -> Payload:
    inner = marker.with_name("inner.pt")
    torch.save(PAYLOADS["os.system"](marker), inner)
    return Payload((functools.partial(torch.load, weights_only=False), (str(inner),)))


def nested_in_numpy_file(marker: Path) -> Payload:
    inner = marker.with_name("inner.npy")
    np.save(inner, np.array([PAYLOADS["os.system"](marker)], dtype=object), allow_pickle=True)
    return Payload((functools.partial(np.load, allow_pickle=True), (str(inner),)))


PAYLOADS: dict[str, Callable[[Path], Payload]] = {
    "os.system": lambda marker: Payload((os.system, (f"touch '{marker}'",))),
    "subprocess": lambda marker: Payload((subprocess.call, (["touch", str(marker)],))),
    "eval": lambda marker: Payload((eval, (f"__import__('os').mkdir({str(marker)!r})",))),
    "exec": lambda marker: Payload((exec, (f"import os; os.mkdir({str(marker)!r})",))),
    "os.mkdir": lambda marker: Payload((os.mkdir, (str(marker),))),
    "shutil.copy": lambda marker: Payload((shutil.copy, (__file__, str(marker)))),
    "Path.touch": lambda marker: Payload((Path.touch, (marker,))),
    "torch.load": nested_in_torch_file,
    "numpy.load": nested_in_numpy_file,
}
FORMS = ("zip", "legacy", "raw", "tar")


def write_pickle(form: str, path: Path, content: Any) -> None:
    """Pickle `content` in one of the forms that torch.load knows."""
    if form in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    elif form == "raw":
        path.write_bytes(pickle.dumps(content))
    else:  # of torch 0.1
        with tarfile.open(path, "w") as archive:
            for name in ("storages", "tensors", "pickle"):
                add_member(archive, name, pickle.dumps(content))


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("payload", PAYLOADS)
def test_the_payloads_of_these_tests_are_live(payload: str, tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(PAYLOADS[payload](tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_the_payload_is_live_for_torch_when_it_is_asked_to_trust(form: str, tmp_path: Path) -> None:
    write_pickle(form, tmp_path / "evil.pt", {"evil": PAYLOADS["os.system"](tmp_path / "marker")})
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("form", FORMS)
def test_row_13_a_malicious_pickle_is_refused_and_runs_nothing(form: str, home: Path, cli: Cli) -> None:
    path, marker = home / "evil.pt", home / "marker"
    content = content_of(newest(home)) | {"created": PAYLOADS["os.system"](marker)}
    write_pickle(form, path, content if form in ("zip", "legacy") else content["created"])
    for words in read_each_way(path):
        outcome = cli(*words)
        assert_refused(outcome, "evil.pt")
        assert "weights_only" not in outcome.err
        assert not marker.exists()


def test_row_13_a_malicious_file_in_the_place_of_a_runs_own_runs_nothing(home: Path, cli: Cli) -> None:
    content = content_of(newest(home)) | {"created": PAYLOADS["os.system"](home / "marker")}
    for path in (home / "checkpoints" / "a").iterdir():
        path.unlink()
        torch.save(content, path)
    for words in (("eval", "checkpoint=a"), ("predict", "checkpoint=a:last"), ("resume=a", "epochs=4")):
        assert_refused(cli(*words), "checkpoints/a/")
    assert not (home / "marker").exists()


# row 14


def deflated(path: Path) -> None:
    """Write a zip file anew with compressed members."""
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in members.items():
            archive.writestr(name, member)


def test_row_14_a_deflated_bomb_is_refused_before_it_is_loaded(
    home: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = changed(home, lambda content: content["model"].update(bomb=torch.zeros(25_000_000)))
    deflated(path)
    assert path.stat().st_size < 1_000_000
    reached: list[object] = []
    monkeypatch.setattr(torch, "load", lambda *args, **options: reached.append(args))
    for words in read_each_way(path):
        assert_refused(cli(*words), "changed.pt")
    assert reached == []


def giant(dtype: torch.dtype = torch.float32) -> Tensor:
    """10^12 numbers, all of them the same stored one."""
    return torch.zeros(1, dtype=dtype).expand(10**12)


def first(tensors: dict[str, Any]) -> str:
    return next(iter(tensors))


def in_buffer(key: str, tensor: Tensor) -> Change:
    def change(content: dict[str, Any]) -> None:
        state = content["optimizer"]["state"]
        state[first(state)][key] = tensor

    return change


GIANTS: dict[str, tuple[str, Change]] = {
    "model": ("a", lambda c: c["model"].update({first(c["model"]): giant()})),
    "ema": ("b", lambda c: c["ema"].update({first(c["ema"]): giant()})),
    "momentum_buffer": ("a", in_buffer("momentum_buffer", giant())),
    "exp_avg": ("b", in_buffer("exp_avg", giant())),
    "step": ("b", in_buffer("step", giant())),
    "rng cpu": ("a", lambda c: c["rng"][0].update(cpu=giant(torch.uint8))),
    "rng numpy": ("a", lambda c: c["rng"][0].update(numpy=["MT19937", giant(torch.int64), 0, 0, 0.0])),
    "rng python": ("a", lambda c: c["rng"][0].update(python=(3, giant(torch.int64), None))),
    "progress": ("a", lambda c: c["progress"].update(samples=giant())),
    "best": ("a", lambda c: c["best"].update(value=giant())),
}


@pytest.mark.parametrize("place", GIANTS)
def test_row_14_a_giant_of_stride_0_is_refused(place: str, home: Path, cli: Cli) -> None:
    run, change = GIANTS[place]
    path = changed(home, change, run)
    assert path.stat().st_size < 100_000
    before = files_below(home / "outputs", home / "checkpoints")
    readers = read_each_way(path) if place in ("model", "ema") else [read_each_way(path)[RESUME]]
    for words in readers:
        assert_refused(cli(*words), "changed.pt")
    assert files_below(home / "outputs", home / "checkpoints") == before


# rows 15 and 16


def other_pictures(folder: Path, num_classes: int = 3) -> str:
    write_class_folders(folder / "other", {"train": 60, "test": 12}, size=8, num_classes=num_classes)
    return "data.root=other"


def test_row_15_a_checkpoint_of_another_architecture_is_refused_by_both_shapes(home: Path, cli: Cli) -> None:
    path = changed(home, lambda content: content["config"]["model"].update(num_hiddens=[9]))
    for reader in (EVAL, PREDICT):
        assert_refused(cli(*read_each_way(path)[reader]), "changed.pt", "(8,)", "(9,)")
    assert_refused(cli(*read_each_way(path)[RESUME]), "changed.pt", "model.num_hiddens [9], not [8]")
    # without the run's own record the file does not say where the pictures are
    elsewhere = ("paths.outputs=new/o", "paths.checkpoints=new/c")
    assert_refused(cli(*read_each_way(path)[RESUME], *elsewhere), "data.root=")
    elsewhere += ("data.root=pictures",)
    assert_refused(cli(*read_each_way(path)[RESUME], *elsewhere), "changed.pt", "(8,)", "(9,)")


def test_row_15_a_checkpoint_of_another_model_is_refused_by_both_names(home: Path, cli: Cli) -> None:
    assert_refused(cli("resume=a", "epochs=4", "model=softmax"), "mlp", "softmax")
    allowed = cli("resume=a", "epochs=4", "model=softmax", "resume_allow=[model]")
    assert_refused(allowed, "mlp", "softmax", "init_from=a")
    assert_refused(cli("eval", "checkpoint=a", "model=softmax"), "model")


def test_row_15_a_checkpoint_of_other_channels_is_refused_by_both_shapes(home: Path, cli: Cli) -> None:
    shapes = ("(1, 8, 8)", "(3, 8, 8)")
    assert_refused(cli("eval", "checkpoint=a", "data.channels=3"), *shapes)
    assert_refused(cli("resume=a", "epochs=4", "data.channels=3"), "data.channels", "1", "3")
    assert_refused(cli("resume=a", "epochs=4", "data.channels=3", "resume_allow=[data.channels]"), *shapes)


def test_row_15_a_checkpoint_of_another_class_count_is_refused_by_both_lists(home: Path, cli: Cli) -> None:
    other = other_pictures(home, num_classes=4)
    lists = ("class0, class1, class2;", "class0, class1, class2, class3")
    assert_refused(cli("eval", "checkpoint=a", other), *lists)
    assert_refused(cli("resume=a", "epochs=4", other), "data.root")
    assert_refused(cli("resume=a", "epochs=4", other, "resume_allow=[data.root]"), *lists)


def test_row_15_init_from_takes_the_backbone_and_names_the_head(home: Path, cli: Cli) -> None:
    words = (*FOLDER, *SHORT, "optimizer=sgd", "optimizer.lr=1e-30", "epochs=1", "init_from=a", "name=new")
    outcome = cli(*words, other_pictures(home, num_classes=4))
    assert outcome.code == 0, outcome.err
    old, new = (content_of(newest(home, run))["model"] for run in ("a", "new"))
    head = {name for name in old if old[name].shape != new[name].shape}
    assert len(head) == 2
    best = content_of(home / "checkpoints/a/best.pt")["model"]
    for name in old.keys() - head:  # steps of 1e-30 change no float but 0
        torch.testing.assert_close(new[name], best[name], rtol=0, atol=1e-20)
    assert all(name in outcome.out for name in head)


def turned(content: dict[str, Any]) -> None:
    content["classes"] = content["classes"][::-1]


def test_row_16_the_same_classes_in_another_order_are_refused(home: Path, cli: Cli) -> None:
    path = changed(home, turned)
    for reader in (EVAL, RESUME):
        assert_refused(cli(*read_each_way(path)[reader]), "class0, class1, class2", "class2, class1, class0")


def test_row_16_predict_takes_the_names_from_the_checkpoint(home: Path, cli: Cli) -> None:
    path = changed(home, turned)
    picture = home / "pictures/test/class0/0000.png"
    lines = []
    for target in (newest(home), path):
        assert cli("predict", f"checkpoint={target}", f"input={picture}", "plots=false").code == 0
        (table,) = (home / "outputs").rglob("predictions*.csv")
        lines.append(table.read_text().splitlines()[1].split(","))
        table.unlink()
    assert lines[0][1] == lines[1][1]  # the label's number
    names = ["class0", "class1", "class2"]
    assert lines[0][2] == names[int(lines[0][1])]
    assert lines[1][2] == names[::-1][int(lines[1][1])]


# rows 17, 18 and 19


def test_row_17_a_newer_format_says_so(home: Path, cli: Cli) -> None:
    path = changed(home, lambda content: content.update(format=999))
    for words in read_each_way(path):
        assert_refused(cli(*words), "changed.pt", "format 999", "reads 1")


def test_row_17_a_newer_format_of_another_make_says_so(home: Path, cli: Cli) -> None:
    torch.save({"format": 999, "parts": [1, 2]}, home / "changed.pt")
    assert_refused(cli("eval", "checkpoint=changed.pt"), "changed.pt", "format 999")


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_row_17_a_bare_state_dict_is_for_init_from_only(form: str, home: Path, cli: Cli) -> None:
    weights = content_of(newest(home))["model"]
    write_pickle(form, home / "bare.pth", weights)
    readers = read_each_way(home / "bare.pth")
    for reader in (EVAL, PREDICT, RESUME):
        assert_refused(cli(*readers[reader]), "bare.pth", *(["init_from="] if form == "zip" else []))
    outcome = cli(*readers[INIT_FROM], "optimizer.lr=1e-30")
    assert outcome.code == 0, outcome.err
    new = content_of(newest(home, "new"))["model"]
    for name in weights:  # steps of 1e-30 change no float but 0
        torch.testing.assert_close(new[name], weights[name], rtol=0, atol=1e-20)


def test_row_18_another_optimizer_than_the_files_is_refused_by_both_names(home: Path, cli: Cli) -> None:
    assert_refused(cli("resume=a", "epochs=4", "optimizer=adamw"), "optimizer")
    allow = "resume_allow=[optimizer,optimizer.lr,optimizer.weight_decay,optimizer.decay_all]"
    assert_refused(cli("resume=a", "epochs=4", "optimizer=adamw", allow), "sgd", "adamw", "init_from=a")


def renamed(state: dict[str, Any], old: str, new: str) -> None:
    for buffers in state.values():
        buffers[new] = buffers.pop(old)


STATES: dict[str, tuple[str, Callable[[dict[str, dict[str, Any]]], object]]] = {
    "momentum under another name": ("a", lambda s: renamed(s, "momentum_buffer", "exp_avg")),
    "SGD's buffers under the name of AdamW": ("b", lambda s: [(b.clear(), b.update(momentum_buffer=w)) for b, w in
                                                             [(b, b["exp_avg"]) for b in s.values()]]),
    "without step": ("b", lambda s: s[first(s)].pop("step")),
    "without exp_avg": ("b", lambda s: s[first(s)].pop("exp_avg")),
    "a parameter without buffers": ("b", lambda s: s.pop(first(s))),
    "a buffer too many": ("a", lambda s: s[first(s)].update(max_exp_avg_sq=s[first(s)]["momentum_buffer"])),
    "a parameter that is not there": ("a", lambda s: s.update(nothing=s[first(s)])),
    "another shape": ("a", lambda s: s[first(s)].update(momentum_buffer=torch.zeros(3, 5))),
    "transposed": ("a", lambda s: s[first(s)].update(momentum_buffer=s[first(s)]["momentum_buffer"].T.contiguous())),
    "one number": ("a", lambda s: s[first(s)].update(momentum_buffer=torch.zeros(()))),
    "step of another shape": ("b", lambda s: s[first(s)].update(step=torch.zeros(4))),
    "whole numbers": ("a", lambda s: s[first(s)].update(momentum_buffer=s[first(s)]["momentum_buffer"].long())),
    "complex numbers": ("a", lambda s: s[first(s)].update(momentum_buffer=s[first(s)]["momentum_buffer"] + 0j)),
    "sparse": ("a", lambda s: s[first(s)].update(momentum_buffer=s[first(s)]["momentum_buffer"].to_sparse())),
    "no tensor": ("a", lambda s: s[first(s)].update(momentum_buffer="text")),
    "a list for the buffers": ("a", lambda s: s.update({first(s): [1, 2]})),
}  # fmt: skip


@pytest.mark.parametrize("case", STATES)
def test_row_18_an_optimizer_state_that_does_not_fit_is_refused_at_load(case: str, home: Path, cli: Cli) -> None:
    run, change = STATES[case]
    path = changed(home, lambda content: change(content["optimizer"]["state"]), run)
    before = files_below(home / "outputs", home / "checkpoints")
    assert_refused(cli(*read_each_way(path)[RESUME]), "changed.pt")
    assert files_below(home / "outputs", home / "checkpoints") == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("run", "part"), [("a", "model"), ("b", "model"), ("b", "ema")])
def test_row_19_weights_that_are_not_finite_are_refused(run: str, part: str, bad: float, home: Path, cli: Cli) -> None:
    def poke(content: dict[str, Any]) -> None:
        content[part][first(content[part])].view(-1)[3] = bad

    path = changed(home, poke, run)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    for words in read_each_way(path) if bad != bad else read_each_way(path)[:1]:
        assert_refused(cli(*words), "changed.pt", first(content_of(path)[part]))


# row 20

GROUPS = ("data", "model", "loss", "optimizer", "schedule", "device")
NODES = (*GROUPS, "save", "early_stopping", "stop_at", "record", "paths", "reference")


@pytest.fixture
def evil_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], bool]]:
    """A module `evil_module` that leaves a marker when it is imported; returns whether it was."""
    (tmp_path / "evil_module.py").write_text("open(__file__ + '.imported', 'w').close()\ndef run(*a, **k): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda: "evil_module" in sys.modules or (tmp_path / "evil_module.py.imported").exists()
    sys.modules.pop("evil_module", None)


def test_the_evil_module_is_live(evil_module: Callable[[], bool]) -> None:
    assert not evil_module()
    importlib.import_module("evil_module")
    assert evil_module()


@pytest.mark.parametrize("node", [*(f"{node}." for node in NODES), "", "experiment.", "recipe.", "save.every_steps."])
def test_row_20_a_target_on_the_command_line_is_an_unknown_key(
    node: str, evil_module: Callable[[], bool], cli: Cli, tmp_path: Path
) -> None:
    before = files_below(tmp_path)
    for prefix in ("", "+", "++"):
        assert_refused(cli(f"{prefix}{node}_target_=evil_module.run"), f"{node}_target_")
        assert_refused(cli("-m", "seed=0,1", f"{prefix}{node}_target_=evil_module.run"), f"{node}_target_")
    assert not evil_module()
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    "word",
    [
        *(f"{group}={{_target_:evil_module.run}}" for group in GROUPS),
        *(f"+{group}@evil=evil_module" for group in GROUPS),
        "optimizer.lr={_target_:evil_module.run}",
        "data.w=[{_target_:evil_module.run}]",
        "stop_at={_target_:evil_module.run}",
        "+evil={_target_:evil_module.run,_partial_:false}",
        "device.precision={_target_:evil_module.run}",
    ],
)
def test_row_20_a_target_as_a_value_is_refused(word: str, evil_module: Callable[[], bool], cli: Cli) -> None:
    assert_refused(cli(word), word.lstrip("+").partition("=")[0].partition(".")[0])
    assert not evil_module()


@pytest.mark.parametrize(
    "words",
    [
        ("+hydra.callbacks.x._target_=evil_module.run",),
        ("++hydra.callbacks.x={_target_:evil_module.run}",),
        ("hydra.launcher._target_=evil_module.run",),
        ("-m", "seed=0,1", "hydra.launcher._target_=evil_module.run"),
        ("-m", "seed=0,1", "hydra.sweeper._target_=evil_module.run"),
        ("+hydra.job_logging.handlers.x.class=evil_module.run", "hydra/job_logging=default"),
        ("hydra.searchpath=[pkg://evil_module]",),
    ],
)
def test_row_20_hydras_own_targets_are_refused(
    words: tuple[str, ...], evil_module: Callable[[], bool], cli: Cli
) -> None:
    assert_refused(cli(*words, "epochs=1", "plots=false"), "hydra")
    assert not evil_module()


@pytest.mark.parametrize("node", ["", *NODES])
def test_row_20_a_target_in_a_saved_config_is_an_unknown_key(
    node: str, evil_module: Callable[[], bool], home: Path, cli: Cli
) -> None:
    def change(content: dict[str, Any]) -> None:
        config = content["config"]
        (config[node] if node else config)["_target_"] = "evil_module.run"

    path = changed(home, change)
    readers = (EVAL, PREDICT, RESUME) if node == "optimizer" else (EVAL,)
    for reader in readers if node != "paths" else ():  # the paths of another machine are not taken
        assert_refused(cli(*read_each_way(path)[reader]), "_target_")
    saved = home / "outputs/a/config.json"
    plain = json.loads(saved.read_text())
    change(plain)
    saved.write_text(json.dumps(plain))
    for words in (("eval", "checkpoint=a"), ("resume=a", "epochs=4")):
        outcome = cli(*words)  # the settings of the checkpoint are taken, which do not name the folder of images
        assert_refused(outcome, "data.root=")
        assert "_target_ is not a setting" in outcome.out
    assert not evil_module()


@pytest.mark.parametrize(
    ("group", "choice"),
    [
        *((group, "evil_module.run") for group in GROUPS if group != "device"),
        ("model", "../../evil"),
        ("data", "/etc/passwd"),
        ("loss", ""),
    ],
)
def test_row_20_a_saved_choice_that_is_no_name_of_ours_is_refused(
    group: str, choice: str, evil_module: Callable[[], bool], home: Path, cli: Cli
) -> None:
    path = changed(home, lambda content: content["config"]["choices"].update({group: choice}))
    assert_refused(cli("eval", f"checkpoint={path}"), f"{group}={choice}")
    assert not evil_module()


# a checkpoint chooses no address, folder, device or process


@dataclass
class Watched:
    """What a command did besides computing."""

    hosts: list[str]
    processes: list[str]
    threads: list[int]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Notes each host that is looked up, each process that is started and each number of threads that is set."""
    seen = Watched([], [], [])

    def lookup(host: Any, *_: Any, **__: Any) -> Any:
        seen.hosts.append(str(host))
        raise OSError("no network in this test")

    def begin(name: str) -> Callable[..., Any]:
        def started(*args: Any, **_: Any) -> Any:
            seen.processes.append(f"{name} {args[:1]}")
            raise OSError("no process in this test")

        return started

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: lookup(address[0]))
    for name in ("fork", "posix_spawn", "system", "execv", "execve"):
        monkeypatch.setattr(os, name, begin(name))
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", begin("Process"))
    original = torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda n: (seen.threads.append(n), original(n))[1])
    monkeypatch.setattr(torch.nn.Module, "compile", begin("compile"))
    return seen


CHOOSING: dict[str, Any] = {  # what a file would like this machine to do, by setting
    "choices.device": "cuda",
    "device.index": 7,
    "device.num_threads": 1024,
    "device.compile": True,
    "device.deterministic": True,
    "data.mirror": "http://attacker.example/x/",
    "data.root": "/net/attacker.example/share",
    "data.workers": 64,
    "data.resident": False,
    "paths.data": "/tmp/chosen/data",
    "paths.outputs": "/tmp/chosen/outputs",
    "paths.checkpoints": "/tmp/chosen/checkpoints",
    "paths.cache": "/tmp/chosen/cache",
    "input": "/etc/passwd",
    "output": "/tmp/chosen/x.csv",
    "checkpoint": "/etc/passwd",
    "resume": "/etc/passwd",
    "init_from": "/etc/passwd",
    "resume_allow": ["seed"],
    "plots": True,
    "split": "train",
    "tta": "flip",
    "top_k": 3,
    "probabilities": True,
    "paths.weights": "/tmp/chosen/weights",
    "overwrite": True,
}


def choose(config: dict[str, Any], keys: Sequence[str]) -> None:
    """Write what the attacker wants into a saved config."""
    for key in keys:
        node, _, leaf = key.rpartition(".")
        (config[node] if node else config)[leaf] = CHOOSING[key]


@pytest.mark.parametrize(
    "keys",
    [list(CHOOSING), *(pytest.param([key], marks=pytest.mark.slow) for key in CHOOSING)],
    ids=["all", *CHOOSING],
)
def test_a_checkpoint_chooses_no_address_folder_device_or_process(
    keys: list[str], home: Path, cli: Cli, watched: Watched
) -> None:
    allowed = [key for key in keys if key not in ("data.mirror", "device.index")]  # no options of data=folder and cpu
    path = changed(home, lambda content: choose(content["config"], allowed))
    shutil.rmtree(home / "outputs")  # a stranger's file: there is no run of this name here
    before = files_below(home)
    threads = torch.get_num_threads()
    for words in (
        ("eval", f"checkpoint={path}", "data.root=pictures", "plots=false"),
        ("predict", f"checkpoint={path}", "input=pictures/test", "plots=false"),
        (f"resume={path}", "epochs=3", "data.root=pictures", "plots=false"),
    ):
        outcome = cli(*words)
        assert outcome.code == 0, (words, outcome.err)
        assert "on cuda" not in outcome.out
    assert (watched.hosts, watched.processes) == ([], [])
    assert set(watched.threads) <= {threads, TORCH_THREADS}
    assert not Path("/tmp/chosen").exists()
    new = files_below(home).keys() - before.keys()
    assert {path.relative_to(home).parts[0] for path in new} <= {"outputs", "checkpoints", "datasets"}
    assert not list((home / "outputs").rglob("plots"))


def test_a_mirror_that_was_saved_is_asked_for_nothing(tiny_mnist: Path, cli: Cli, watched: Watched) -> None:
    assert cli(*MNIST[:-1], f"paths.data={tiny_mnist}").code == 0
    content = content_of(newest(Path(), "new"))
    content["config"]["data"]["mirror"] = CHOOSING["data.mirror"]
    content["config"]["device"]["index"] = 7
    del content["config"]["device"]["index"]
    torch.save(content, "sent.pt")
    record = Path("outputs/new/config.json")
    plain = json.loads(record.read_text())
    plain["config"]["data"]["mirror"] = CHOOSING["data.mirror"]
    record.write_text(json.dumps(plain))
    shutil.rmtree(tiny_mnist)  # so that it has to be downloaded
    for target in ("sent.pt", "new"):
        for words in (
            ("eval", f"checkpoint={target}"),
            ("predict", f"checkpoint={target}"),
            (f"resume={target}", "epochs=2"),
        ):
            outcome = cli(*words)
            assert outcome.code == 2, outcome
            assert "attacker" not in outcome.err + outcome.out
    assert watched.hosts
    assert not [host for host in watched.hosts if "attacker" in host]


def test_its_own_record_gives_a_run_its_folders_again(tiny_mnist: Path, cli: Cli) -> None:
    """What was typed on this machine when the run was started; a file of that run gets it too."""
    assert cli(*MNIST[:-1], f"paths.data={tiny_mnist}", "device.num_threads=1").code == 0
    assert cli("eval", "checkpoint=new", "plots=false").code == 0
    assert cli("eval", "checkpoint=checkpoints/new/best.pt", "plots=false").code == 0
    shutil.copy("checkpoints/new/best.pt", "copy.pt")
    assert cli("resume=copy.pt", "epochs=2").code == 0
    assert json.loads(Path("outputs/new/config.json").read_text())["config"]["paths"]["data"] == str(tiny_mnist)


# rows 25 and 26

MNIST_FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
MNIST = ("data=mnist", "model=softmax", "batch_size=50", "plots=false", "epochs=1", "name=new", OFFLINE)


def partner(name: str) -> str:
    """The file that a careless hand would put in its place."""
    return name.replace("train", "t10k") if "train" in name else name.replace("t10k", "train")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "swapped": lambda path: shutil.copy(path.with_name(partner(path.name)), path),
    "packed twice": lambda path: path.write_bytes(gzip.compress(path.read_bytes())),
}


def assert_nothing_trained(folder: Path) -> None:
    assert not (folder / "outputs").exists()
    assert not (folder / "checkpoints").exists()


def test_row_25_the_tiny_files_are_taken_as_they_are(tiny_mnist: Path, cli: Cli) -> None:
    assert cli(*MNIST, f"paths.data={tiny_mnist}").code == 0


@pytest.mark.parametrize("damage", DAMAGES)
def test_row_25_a_damaged_mnist_file_is_refused_by_name(damage: str, tiny_mnist: Path, cli: Cli) -> None:
    for name in MNIST_FILES:
        path = tiny_mnist / "MNIST/raw" / name
        whole = path.read_bytes()
        DAMAGES[damage](path)
        assert path.read_bytes() != whole
        assert_refused(cli(*MNIST, f"paths.data={tiny_mnist}"), str(path), hashlib.sha256(whole).hexdigest())
        path.write_bytes(whole)
    assert_nothing_trained(tiny_mnist.parent)


def accept(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Take the MNIST files in a folder for the official ones."""
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in MNIST_FILES}
    patch.setitem(data.DATASETS, "mnist", functools.partial(vision.mnist, digests=digests))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train-labels-idx1-ubyte", idx_bytes(np.full(600, 200, np.uint8))),
        ("train-labels-idx1-ubyte", idx_bytes(np.zeros(300, np.uint8))),
        ("t10k-images-idx3-ubyte", idx_bytes(np.zeros((99, 28, 28), np.uint8))),
        ("train-images-idx3-ubyte", idx_bytes(np.zeros(600, np.uint8))),
        ("train-images-idx3-ubyte", struct.pack(">4I", 0x803, 2**31, 2**31, 2**31)),
    ],
)
def test_row_25_contents_are_checked_also_where_the_digest_holds(
    name: str, content: bytes, tiny_mnist: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tiny_mnist / "MNIST/raw"
    (raw / name).write_bytes(content)
    accept(monkeypatch, raw)
    assert_refused(cli(*MNIST, f"paths.data={tiny_mnist}"), str(raw))
    assert_nothing_trained(tiny_mnist.parent)


CIFAR = ("data=cifar10", "model=softmax", "batch_size=10", "plots=false", "epochs=1", "name=new", OFFLINE)
CIFAR_FILES = (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")


def cifar_batch(k: int) -> bytes:
    pixels = np.random.default_rng(k).integers(0, 256, (10, 3072), dtype=np.uint8)
    return pickle.dumps({"data": pixels, "labels": list(range(10))}, protocol=4)


def cifar_files(**changes: bytes) -> dict[str, bytes]:
    return {name: cifar_batch(k) for k, name in enumerate(CIFAR_FILES)} | changes


def publish(patch: pytest.MonkeyPatch, batches: dict[str, bytes], archive: bytes = b"") -> None:
    """Take these batches and this archive for the official ones."""
    digests = {name: hashlib.md5(content).hexdigest() for name, content in batches.items()}
    reader = functools.partial(vision.cifar10, digests=digests, archive_sha256=hashlib.sha256(archive).hexdigest())
    patch.setitem(data.DATASETS, "cifar10", reader)


def write_batches(root: Path, batches: dict[str, bytes]) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, content in batches.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_row_25_a_damaged_cifar_file_is_refused_by_name(
    damage: str, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, cifar_files())
    folder = write_batches(tmp_path / "sets", cifar_files())
    assert cli(*CIFAR, "paths.data=sets").code == 0
    shutil.rmtree(tmp_path / "outputs")
    shutil.rmtree(tmp_path / "checkpoints")
    for name in ("data_batch_3", "test_batch"):
        path = folder / name
        whole = path.read_bytes()
        if damage == "swapped":
            shutil.copy(folder / "data_batch_1", path)
        else:
            DAMAGES[damage](path)
        assert_refused(cli(*CIFAR, "paths.data=sets"), f"cifar-10-batches-py/{name}", hashlib.md5(whole).hexdigest())
        path.write_bytes(whole)
    assert_nothing_trained(tmp_path)


def archive_of(batches: dict[str, bytes], extra: Sequence[tarfile.TarInfo] = ()) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive:
        for member in extra:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
        for name, content in batches.items():
            add_member(archive, f"cifar-10-batches-py/{name}", content)
    return stream.getvalue()


def climbing(root: Path) -> list[tarfile.TarInfo]:
    """Members that would be written outside `root`, or lead there."""
    names = ("../marker", str(root.parent / "marker"), "cifar-10-batches-py/../../marker", "cifar-10-batches-py/..")
    members = [tarfile.TarInfo(name) for name in names]
    for member in members:
        member.size = 3
    for kind, target in (
        (tarfile.SYMTYPE, "../.."),
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.LNKTYPE, "/etc/passwd"),
    ):
        link = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        link.type, link.linkname = kind, target
        members.append(link)
    return members


def test_row_26_an_archive_writes_nothing_but_its_batches(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "deep" / "sets"
    root.mkdir(parents=True)
    archive = archive_of(cifar_files(), climbing(root))
    (root / "cifar-10-python.tar.gz").write_bytes(archive)
    publish(monkeypatch, cifar_files(), archive)
    outcome = cli(*CIFAR, f"paths.data={root}", "paths.cache=cache")
    assert outcome.code == 0, outcome.err
    below = {str(path.relative_to(tmp_path)) for path in (tmp_path / "deep").rglob("*") if not path.is_dir()}
    batches = {f"deep/sets/cifar-10-batches-py/{name}" for name in CIFAR_FILES}
    assert below == batches | {"deep/sets/cifar-10-python.tar.gz"}
    assert {path.name for path in tmp_path.iterdir()} == {"deep", "outputs", "checkpoints"}
    assert not any(path.is_symlink() for path in (tmp_path / "deep").rglob("*"))


@pytest.mark.parametrize("official", [True, False])
def test_row_26_an_evil_cifar_pickle_runs_nothing(
    official: bool, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = pickle.dumps({"data": PAYLOADS["os.system"](tmp_path / "marker"), "labels": []}, protocol=2)
    publish(monkeypatch, cifar_files(data_batch_2=evil) if official else cifar_files())
    write_batches(tmp_path / "sets", cifar_files(data_batch_2=evil))
    assert_refused(cli(*CIFAR, "paths.data=sets"), "data_batch_2")
    assert not (tmp_path / "marker").exists()
    assert_nothing_trained(tmp_path)


# row 27


@pytest.mark.parametrize("resident", ["true", "false"])
def test_row_27_a_corrupt_picture_is_named(resident: str, cli: Cli, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "pictures", {"train": 30, "test": 6}, size=8)
    bad = tmp_path / "pictures/train/class1/0004.png"
    bad.write_bytes(bad.read_bytes()[:60])
    outcome = cli(*FOLDER, *SHORT, "epochs=1", "name=new", f"data.resident={resident}", "data.workers=0")
    assert_refused(outcome, "class1/0004.png", "data.on_error")
    assert_nothing_trained(tmp_path)


@pytest.mark.parametrize("resident", ["true", "false"])
def test_row_27_skip_counts_it_and_skips_the_same_on_each_run(resident: str, cli: Cli, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "pictures", {"train": 30, "test": 6}, size=8)
    for name in ("train/class1/0004.png", "train/class2/0005.png"):
        (tmp_path / "pictures" / name).write_bytes(b"no picture")
    words = (*FOLDER, *SHORT, "epochs=1", "data.on_error=skip", f"data.resident={resident}", "data.workers=0")
    found = []
    for name in ("one", "two", "three"):
        outcome = cli(*words, f"name={name}")
        assert outcome.code == 0, outcome.err
        assert "2 images" in outcome.out
        assert "class1/0004.png" in outcome.out
        assert "class2/0005.png" in outcome.out
        found.append(content_of(newest(tmp_path, name)))
        if name == "two":
            shutil.rmtree(tmp_path / "datasets")  # the cache of decoded pictures: the third run decodes again
    assert {content["data"]["n"] for content in found} == {28 - round(28 * 0.1)}
    assert len({content["data"]["sha256"] for content in found}) == 1
    for other in found[1:]:
        assert all(torch.equal(other["model"][name], weights) for name, weights in found[0]["model"].items())


# a collection of malicious files: whatever the form, no code runs, nothing hangs, exit code 2


@dataclass(frozen=True)
class Scene:
    """Where a malicious file is put: a folder with a finished run `a`, and the file that must never appear."""

    folder: Path
    marker: Path
    patch: pytest.MonkeyPatch


Case = Callable[[Scene], Sequence[str]]  # writes the file, returns the command line that meets it


def as_checkpoint(form: str, payload: str, reader: int) -> Case:
    def case(scene: Scene) -> Sequence[str]:
        path = scene.folder / "evil.pt"
        write_pickle(form, path, PAYLOADS[payload](scene.marker))
        return read_each_way(path)[reader]

    return case


def as_zip(write: Callable[[zipfile.ZipFile, Scene], object]) -> Case:
    """A checkpoint with more in its zip than belongs there, and its pickle exchanged for a malicious one."""

    def case(scene: Scene) -> Sequence[str]:
        path = scene.folder / "evil.pt"
        torch.save({"evil": PAYLOADS["os.system"](scene.marker)}, path)
        with zipfile.ZipFile(path, "a") as archive:
            write(archive, scene)
        return read_each_way(path)[EVAL]

    return case


def link_member(archive: zipfile.ZipFile, scene: Scene) -> None:
    member = zipfile.ZipInfo("evil/data/0")
    member.external_attr = 0o120777 << 16
    archive.writestr(member, "/etc/passwd")


class TwoTimes(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def as_torchscript(scene: Scene) -> Sequence[str]:
    """A file that torch.load would hand to its interpreter of stored programs."""
    path = scene.folder / "evil.pt"
    shutil.copy(newest(scene.folder), path)
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/constants.pkl", pickle.dumps(()))
        archive.writestr(f"{root}/code/__torch__.py", "import os\nos.mkdir('marker')\n")
    return read_each_way(path)[EVAL]


def in_content(change: Change, reader: int = EVAL, run: str = "a") -> Case:
    return lambda scene: read_each_way(changed(scene.folder, change, run))[reader]


def laughs(depth: int = 60) -> dict[str, Any]:
    """A few hundred bytes in a file that are 2^60 entries for whoever walks through them."""
    node: dict[str, Any] = {"x": 1}
    for _ in range(depth):
        node = {"a": node, "b": node}
    return node


def laughing_list(depth: int = 60) -> list[Any]:
    node: list[Any] = [1]
    for _ in range(depth):
        node = [node, node]
    return node


def wide(n: int = 3000) -> dict[str, Any]:
    """Two levels of keys: 10^7 in a file of 100 KB."""
    below = {f"k{i}": 0 for i in range(n)}
    return {f"n{i}": below for i in range(n)}


def loop() -> dict[str, Any]:
    node: dict[str, Any] = {}
    node["again"] = node
    return node


def as_cifar(payload: str, protocol: int) -> Case:
    def case(scene: Scene) -> Sequence[str]:
        evil = pickle.dumps({"data": PAYLOADS[payload](scene.marker), "labels": [0]}, protocol=protocol)
        batches = cifar_files(data_batch_1=evil)
        publish(scene.patch, batches)
        write_batches(scene.folder / "sets", batches)
        return (*CIFAR, "paths.data=sets")

    return case


def as_gzip_bomb(scene: Scene) -> Sequence[str]:
    raw = scene.folder / "sets/MNIST/raw"
    raw.mkdir(parents=True)
    for name in MNIST_FILES:
        (raw / f"{name}.gz").write_bytes(gzip.compress(bytes(10**8), compresslevel=1))
    return (*MNIST, "paths.data=sets")


def as_picture(name: str, write: Callable[[Path, Scene], object]) -> Case:
    def case(scene: Scene) -> Sequence[str]:
        write(scene.folder / name, scene)
        return ("predict", "checkpoint=a", f"input={name}", "plots=false")

    return case


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A grey PNG whose header says what it likes, with chunks before its few pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes((width + 1) * height if width * height < 10**6 else 1000)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(*c) for c in chunks) + rows + chunk(b"IEND", b"")


def ghost(marker: Path) -> str:
    """PostScript that starts a program through Ghostscript's pipe device."""
    return (
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"
        f"mark /OutputFile (%pipe%touch {marker}) currentdevice putdeviceprops\n(%pipe%touch {marker}) (w) file\n"
    )


def svg(marker: Path) -> str:
    return (
        '<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
        f'<svg xmlns="http://www.w3.org/2000/svg"><script>run("touch {marker}")</script><text>&x;</text></svg>'
    )


def edited_config(change: Change) -> Case:
    """The config.json of a run that a stranger handed over."""

    def case(scene: Scene) -> Sequence[str]:
        path = scene.folder / "outputs/a/config.json"
        plain = json.loads(path.read_text())
        change(plain)
        path.write_text(json.dumps(plain))
        return ("eval", "checkpoint=a", "plots=false")

    return case


def special_checkpoint(make: Callable[[Path], object]) -> Case:
    def case(scene: Scene) -> Sequence[str]:
        best = scene.folder / "checkpoints/a/best.pt"
        best.unlink()
        make(best)
        return ("eval", "checkpoint=a", "plots=false")

    return case


def typed(*words: str) -> Case:
    return lambda scene: [word.replace("MARKER", str(scene.marker)) for word in words]


MALICIOUS: dict[str, Case] = {
    **{
        f"{payload} in a {form} file": as_checkpoint(form, payload, k % 4)
        for k, (payload, form) in enumerate((payload, form) for payload in PAYLOADS for form in FORMS)
    },
    "a zip with a member that climbs out": as_zip(lambda z, scene: z.writestr("../marker", b"x")),
    "a zip with an absolute member": as_zip(lambda z, scene: z.writestr(str(scene.marker), b"x")),
    "a zip with a link for a member": as_zip(link_member),
    "a zip with a bomb beside its tensors": as_zip(
        lambda z, scene: z.writestr("evil/data/9", bytes(10**8), zipfile.ZIP_DEFLATED, 1)
    ),
    "a zip with a program": as_torchscript,
    "a saved name that climbs out": in_content(lambda c: c["config"].update(name="../../marker"), RESUME),
    "a saved name that is absolute": in_content(lambda c: c["config"].update(name="/tmp/marker"), RESUME),
    "a saved target": in_content(lambda c: c["config"]["model"].update(_target_="os.system"), RESUME),
    "a saved choice that is a path": in_content(lambda c: c["config"]["choices"].update(model="../../../etc/passwd")),
    "a saved interpolation": in_content(lambda c: c["config"]["data"].update(root="${oc.env:HOME}")),
    "a saved setting of laughs": in_content(lambda c: c["config"].update(seed=laughs())),
    "a saved setting that holds itself": in_content(lambda c: c["config"].update(seed=loop())),
    "a saved setting of wide laughs": in_content(lambda c: c["config"].update(seed=wide())),
    "a saved list of laughs": in_content(lambda c: c["config"]["model"].update(num_hiddens=laughing_list())),
    "saved choices of laughs": in_content(lambda c: c["config"]["choices"].update(model=laughs())),
    "classes of laughs": in_content(lambda c: c.update(classes=laughing_list())),
    "classes that are no names": in_content(lambda c: c.update(classes=[1, 2, 3])),
    "a shape of laughs": in_content(lambda c: c["arch"].update(in_shape=laughing_list())),
    "a shape of petabytes": in_content(lambda c: c["arch"].update(in_shape=[10**6, 10**6, 10**6])),
    "a shape below zero": in_content(lambda c: c["arch"].update(in_shape=[1, -8, -8])),
    "a number of outputs of petabytes": in_content(lambda c: c["arch"].update(num_outputs=10**15)),
    "a hidden layer of gigabytes": in_content(lambda c: c["config"]["model"].update(num_hiddens=[10**6] * 9)),
    "progress of laughs": in_content(lambda c: c["progress"].update(step=laughs()), RESUME),
    "progress of text": in_content(lambda c: c["progress"].update(step="1; import os"), RESUME),
    "a best value of laughs": in_content(lambda c: c["best"].update(value=laughing_list()), RESUME),
    "an environment of laughs": in_content(lambda c: c["env"].update(torch=laughing_list()), RESUME),
    "a random state of laughs": in_content(lambda c: c["rng"][0].update(python=laughing_list()), RESUME),
    "moments of laughs": in_content(lambda c: c["preprocess"].update(mean=laughing_list())),
    "os.system in a CIFAR batch": as_cifar("os.system", 2),
    "eval in a CIFAR batch": as_cifar("eval", 0),
    "Path.touch in a CIFAR batch": as_cifar("Path.touch", 4),
    "numpy.load in a CIFAR batch": as_cifar("numpy.load", 5),
    "gzip bombs for MNIST": as_gzip_bomb,
    "a target in a run's config.json": edited_config(lambda c: c["config"]["loss"].update(_target_="os.system")),
    "a climbing choice in a run's config.json": edited_config(lambda c: c["config"]["choices"].update(data="../x")),
    "a pipe for a checkpoint": special_checkpoint(os.mkfifo),
    "an endless device for a checkpoint": special_checkpoint(lambda path: path.symlink_to("/dev/zero")),
    "a link to /etc/passwd for a checkpoint": special_checkpoint(lambda path: path.symlink_to("/etc/passwd")),
    "a link to itself for a checkpoint": special_checkpoint(lambda path: path.symlink_to(path.name)),
    "a YAML tag that calls": typed("seed=!!python/object/apply:os.system [touch MARKER]"),
    "a quoted YAML tag that calls": typed("+evil='!!python/object/apply:os.system [touch MARKER]'"),
    "a YAML tag in a list": typed("data.w=[!!python/name:os.system ,1]"),
    "a target on the command line": typed("+optimizer._target_=os.system", "+optimizer.command='touch MARKER'"),
    "a target in a dict": typed("optimizer={_target_:os.system,command:'touch MARKER'}"),
    "a resolver that evaluates": typed("seed=${eval:\"__import__('os').system('touch MARKER')\"}"),
    "a resolver that reads a file": typed("reference.source=${oc.decode:${oc.env:HOME}}"),
    "a choice that climbs out": typed("model=../../../../etc/passwd"),
    "a choice by package": typed("model@optimizer=lenet"),
    "a name that climbs out": typed("name=../MARKER"),
    "a name with a command": typed("name=$(touch MARKER)"),
    "a file address as mirror": typed("data=mnist", "data.mirror=file:///etc/passwd", "paths.data=nothing"),
    "a local program as mirror": typed("data=mnist", "data.mirror=|touch MARKER", "paths.data=nothing"),
    "a PNG of 2^62 pixels": as_picture("p.png", lambda p, s: p.write_bytes(png(2**31 - 1, 2**31 - 1))),
    "a PNG of 169 million pixels": as_picture("p.png", lambda p, s: p.write_bytes(png(13_000, 13_000))),
    "a PNG with a bomb of text": as_picture(
        "p.png", lambda p, s: p.write_bytes(png(8, 8, (b"zTXt", b"k\0\0" + zlib.compress(bytes(10**8), 1))))
    ),
    "a PNG with a bomb of a profile": as_picture(
        "p.png", lambda p, s: p.write_bytes(png(8, 8, (b"iCCP", b"k\0\0" + zlib.compress(bytes(10**8), 1))))
    ),
    "a GIF of 65535 by 65535": as_picture(
        "p.gif", lambda p, s: p.write_bytes(b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";")
    ),
    "a PPM of 10^18 pixels": as_picture(
        "p.ppm", lambda p, s: p.write_bytes(b"P6 1000000000 1000000000 255\n" + bytes(9))
    ),
    "a BMP of 2^31 rows": as_picture(
        "p.bmp",
        lambda p, s: p.write_bytes(
            b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0)
        ),
    ),
    "EPS with a program": as_picture("p.eps", lambda p, s: p.write_text(ghost(s.marker))),
    "EPS with a program, named PNG": as_picture("p.png", lambda p, s: p.write_text(ghost(s.marker))),
    "PostScript with a program, named JPEG": as_picture(
        "p.jpg", lambda p, s: p.write_text(ghost(s.marker).replace(" EPSF-3.0", ""))
    ),
    "SVG with a script and an entity": as_picture("p.svg", lambda p, s: p.write_text(svg(s.marker))),
    "SVG named PNG": as_picture("p.png", lambda p, s: p.write_text(svg(s.marker))),
    "a pickle named PNG": as_picture(
        "p.png", lambda p, s: p.write_bytes(pickle.dumps(PAYLOADS["os.system"](s.marker)))
    ),
    "a numpy pickle named TIFF": as_picture(
        "p.tiff", lambda p, s: p.write_bytes(npy_bytes(PAYLOADS["os.system"](s.marker)))
    ),
    "a torch file named JPEG": as_picture("p.jpg", lambda p, s: torch.save(PAYLOADS["eval"](s.marker), p)),
    "a Python program named PNG": as_picture(
        "p.png", lambda p, s: p.write_text(f"#!/usr/bin/env python\nimport os; os.mkdir({str(s.marker)!r})\n")
    ),
    "a link to /etc/passwd": as_picture("p.png", lambda p, s: p.symlink_to("/etc/passwd")),
    "a link to an endless device": as_picture("p.png", lambda p, s: p.symlink_to("/dev/zero")),
    "a pipe": as_picture("p.png", lambda p, s: os.mkfifo(p)),
    "a link to a pipe": as_picture("p.png", lambda p, s: (os.mkfifo(s.folder / "pipe"), p.symlink_to("pipe"))),
    "a link to itself": as_picture("p.png", lambda p, s: p.symlink_to(p.name)),
    "a PDF named PNG": as_picture(
        "p.png", lambda p, s: p.write_bytes(b"%PDF-1.7\n1 0 obj<</OpenAction<</S/Launch/F(touch)>>>>endobj\n")
    ),
    "a whole program named GIF": as_picture("p.gif", lambda p, s: shutil.copy(sys.executable, p)),
}  # fmt: skip


def npy_bytes(value: object) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([value], dtype=object), allow_pickle=True)
    return stream.getvalue()


@pytest.mark.timeout(10)
@pytest.mark.parametrize("case", MALICIOUS)
def test_a_malicious_file_is_refused_at_once_and_runs_nothing(
    case: str, home: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(home, home / "marker", monkeypatch)
    outcome = cli(*MALICIOUS[case](scene))
    assert not scene.marker.exists()
    assert not list(home.parent.glob("marker*"))
    assert_refused(outcome)
    assert len(outcome.err) < 5000


def test_a_config_nested_without_end_is_not_read(home: Path, cli: Cli) -> None:
    (home / "outputs/a/config.json").write_text('{"config":' * 100_000 + "1" + "}" * 100_000)
    outcome = cli("eval", "checkpoint=a", "plots=false", "data.root=pictures")
    assert outcome.code == 0, outcome.err
    assert "config.json cannot be read: it is nested without end" in outcome.out  # the checkpoint has the settings


def test_there_are_at_least_40_malicious_files_of_each_kind_some() -> None:
    assert len(MALICIOUS) >= 40
    assert len(PAYLOADS) * len(FORMS) == sum(" in a " in case and case.endswith("file") for case in MALICIOUS)
