"""Checkpoint files under damage, malice, a full disk and kill -9; weights and optimizer state put back bit by bit."""

import copy
import errno
import os
import pickle
import random
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer import build
from trainer.config.schema import Choice
from trainer.run.checkpoint import Weights, load_backbone, load_model, load_optimizer, optimizer_state
from trainer.run.checkpoint_files import FORMAT, keep_as_best, path_of_step, steps_in, tidy, write_checkpoint
from trainer.run.folders import newest_file
from trainer.run.gate import SCHEMA
from trainer.run.safe_load import read_checkpoint, read_weights
from trainer.run.seeds import rng_state
from trainer.utils.errors import ConfigError, ResourceError

ROOT = Path(__file__).resolve().parent.parent


def content_of(numbers: int = 12, **changes: Any) -> dict[str, Any]:
    """A checkpoint of the agreed form with `numbers` weights."""
    draw = torch.Generator().manual_seed(0)
    fresh = {
        "format": FORMAT,
        "kind": "train",
        "arch": {"name": "mlp", "num_outputs": 2, "in_shape": [3], "args": {"num_hiddens": [4], "init_std": None}},
        "classes": ["cat", "dog"],
        "preprocess": {"size": [], "mean": [], "std": []},
        "model": {"w": torch.randn(numbers, generator=draw), "n": torch.tensor(7)},
        "optimizer": {"name": "sgd", "state": {"w": {"momentum_buffer": torch.randn(numbers, generator=draw)}}},
        "progress": {"epoch": 2, "step": 10},
        "early_stop": {"bad_epochs": 0, "stopped": ""},
        "best": {"metric": "val_loss", "value": 0.5, "epoch": 1, "step": 5},
        "rng": [rng_state(torch.device("cpu"))],
        "config": {"name": "first", "seed": 0, "optimizer": {"lr": 0.1}},
        "fingerprint": "0" * 64,
        "env": {"torch": "2.0", "threads": 1},
        "data": {"name": "mnist", "sha256": "0" * 64},
    }
    return fresh | changes


def same(a: Any, b: Any) -> bool:
    """Equal in type, structure and every bit of every tensor."""
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)


def saved(folder: Path, content: dict[str, Any] | None = None, name: str = "a.pt") -> Path:
    write_checkpoint(folder / name, content or content_of())
    return folder / name


def temporaries(folder: Path) -> list[Path]:
    return list(folder.glob(".tmp-*"))


def refused_or_equal(path: Path, original: dict[str, Any]) -> bool:
    """Whether reading refuses the file; fails where it returns anything but the original."""
    try:
        content = read_checkpoint(path)
    except ConfigError as error:
        message = str(error)
    else:
        assert same(content, original), "a damaged file was read as if it were whole"
        return False
    assert str(path) in message
    return True


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    content = content_of()
    path = saved(tmp_path / "made" / "for it", content)
    assert same(read_checkpoint(path), content)
    assert not temporaries(path.parent)


def test_the_comparison_of_these_tests_sees_a_single_bit() -> None:
    one, other = content_of(), content_of()
    assert same(one, other)
    other["optimizer"]["state"]["w"]["momentum_buffer"].view(torch.int32)[3] ^= 1
    assert not same(one, other)


def test_writing_replaces_the_file_of_before(tmp_path: Path) -> None:
    path = saved(tmp_path)
    second = content_of(classes=["other", "another"])
    write_checkpoint(path, second)
    assert same(read_checkpoint(path), second)
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_row_10_every_truncation_is_refused(tmp_path: Path) -> None:
    content = content_of()
    path = saved(tmp_path, content)
    whole = path.read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 150)):
        path.write_bytes(whole[:length])
        assert refused_or_equal(path, content), length


def test_row_11_a_flipped_bit_is_refused_or_harmless(tmp_path: Path) -> None:
    content = content_of()
    path = saved(tmp_path, content)
    whole = path.read_bytes()
    rng = random.Random(0)
    num_refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        num_refused += refused_or_equal(path, content)
    assert num_refused > 100


def test_row_11_a_zeroed_block_is_refused(tmp_path: Path) -> None:
    content = content_of(15_000)
    path = saved(tmp_path, content)
    whole = path.read_bytes()
    rng = random.Random(0)
    for _ in range(50):
        start = rng.randrange(len(whole) - 4096)
        path.write_bytes(whole[:start] + bytes(4096) + whole[start + 4096 :])
        assert refused_or_equal(path, content), start


class Payload:
    """Unpickling it leaves a marker behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


def write_malicious(form: str, path: Path, marker: Path) -> None:
    content = content_of(evil=Payload(marker))
    if form in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    elif form == "raw":
        path.write_bytes(pickle.dumps(content["evil"]))
    else:  # the tar form of torch 0.1
        parts = {name: path.with_name(name) for name in ("storages", "tensors", "pickle")}
        for part in parts.values():
            part.write_bytes(pickle.dumps(content["evil"]))
        with tarfile.open(path, "w") as archive:
            for name, part in parts.items():
                archive.add(part, name)


@pytest.mark.parametrize("form", ["zip", "legacy", "raw", "tar"])
@pytest.mark.parametrize("read", [read_checkpoint, read_weights])
def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(
    form: str, read: Callable[[Path], Any], tmp_path: Path
) -> None:
    path, marker = tmp_path / "evil.pt", tmp_path / "marker"
    write_malicious(form, path, marker)
    with pytest.raises(ConfigError, match=r"evil\.pt") as refusal:
        read(path)
    assert not marker.exists()
    assert "weights_only" not in str(refusal.value)


def test_the_payload_of_these_tests_is_live(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


def deflate(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_deflated_members_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, content_of(model={"w": torch.zeros(1_000_000)}))
    deflate(path)
    assert path.stat().st_size < 100_000
    with pytest.raises(ConfigError, match="members"):
        read_checkpoint(path)


def test_deflated_members_are_refused_also_in_a_file_padded_to_their_size(tmp_path: Path) -> None:
    path = saved(tmp_path)
    deflate(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = bytes(60_000)
        assert sum(member.file_size for member in archive.infolist()) < 60_000
    with pytest.raises(ConfigError, match="members"):
        read_checkpoint(path)


def test_a_bare_state_dict_is_for_init_from_only(tmp_path: Path) -> None:
    weights = nn.Linear(3, 2).state_dict()
    for new in (True, False):
        torch.save(weights, tmp_path / "bare.pth", _use_new_zipfile_serialization=new)
        with pytest.raises(ConfigError, match=r"bare\.pth"):
            read_checkpoint(tmp_path / "bare.pth")
        assert same(dict(read_weights(tmp_path / "bare.pth")[0]), dict(weights))
    torch.save(weights, tmp_path / "bare.pth")
    with pytest.raises(ConfigError, match="init_from="):
        read_checkpoint(tmp_path / "bare.pth")


def test_init_from_takes_the_weights_of_our_checkpoints(tmp_path: Path) -> None:
    content = content_of()
    assert same(read_weights(saved(tmp_path, content))[0], content["model"])


@pytest.mark.parametrize("other", [{"a": 1}, {}, [torch.zeros(2)], torch.zeros(2), "text"])
def test_what_is_neither_is_refused_by_both(other: Any, tmp_path: Path) -> None:
    torch.save(other, tmp_path / "other.pt")
    for read in (read_checkpoint, read_weights):
        with pytest.raises(ConfigError, match=r"other\.pt"):
            read(tmp_path / "other.pt")


@pytest.mark.parametrize("read", [read_checkpoint, read_weights])
def test_a_missing_file_is_named(read: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.pt"):
        read(tmp_path / "absent.pt")


@pytest.mark.parametrize("data", [b"", b"\0" * 1000, b"not a checkpoint", b"PK\x03\x04", b"PK\x05\x06" + bytes(18)])
@pytest.mark.parametrize("read", [read_checkpoint, read_weights])
def test_other_files_are_refused(read: Callable[[Path], Any], data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(ConfigError, match=r"a\.pt"):
        read(tmp_path / "a.pt")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        read_checkpoint(tmp_path)


def test_a_newer_format_is_refused_by_its_number(tmp_path: Path) -> None:
    path = saved(tmp_path, content_of(format=FORMAT + 998))
    with pytest.raises(ConfigError, match=r"format 999.*reads 1"):
        read_checkpoint(path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(bad: float, tmp_path: Path) -> None:
    path = saved(tmp_path, content_of(model={"w": torch.tensor([0.0, bad]), "n": torch.tensor(1)}))
    with pytest.raises(ConfigError, match="not finite"):
        read_checkpoint(path)


def test_a_newer_format_is_told_by_its_number_even_if_it_holds_other_things(tmp_path: Path) -> None:
    path = saved(tmp_path, {"format": FORMAT + 998, "weights": {}})
    with pytest.raises(ConfigError, match="format 999"):
        read_checkpoint(path)


@pytest.mark.parametrize("wrong", ["absent", "of another type"])
@pytest.mark.parametrize("key", [key for key in SCHEMA if not key.endswith("?")])
def test_what_is_absent_or_of_another_type_is_refused_by_its_name(key: str, wrong: str, tmp_path: Path) -> None:
    content = copy.deepcopy(content_of())
    node, _, leaf = key.rpartition(".")
    parent = content[node] if node else content
    del parent[leaf]
    if wrong == "of another type":
        parent[leaf] = 1.5
    absent = f"no checkpoint of this program: it has no {key}"
    other = f"no checkpoint of this program: it has no format|has format 1.5|refused: its {key} is 1.5, not "
    with pytest.raises(ConfigError, match=absent if wrong == "absent" else other):
        read_checkpoint(saved(tmp_path, content))


@pytest.mark.parametrize("model", ["text", [torch.zeros(1)], {"w": 5}, {"w": "text"}, {"w": [torch.zeros(1)]}])
def test_weights_that_are_no_tensors_by_name_are_refused(model: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        read_checkpoint(saved(tmp_path, content_of(model=model)))


def test_a_tensor_of_petabytes_in_a_small_file_is_refused(tmp_path: Path) -> None:
    """A stride of 0 lets one stored number stand for 10^15: looking at each of them would need a petabyte."""
    path = saved(tmp_path, content_of(model={"w": torch.zeros(1).expand(10**15)}))
    assert path.stat().st_size < 20_000
    with pytest.raises(ConfigError):
        read_checkpoint(path)


def test_damaged_weights_are_refused_by_init_from_too(tmp_path: Path) -> None:
    """torch.load checks no CRC: without the gate a flipped bit of a weight comes in silently."""
    weights = {"w": torch.randn(2000)}
    path = tmp_path / "bare.pth"
    torch.save(weights, path)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.find(weights["w"].numpy().tobytes()) + 1001] ^= 64
    path.write_bytes(damaged)
    with pytest.raises(ConfigError):
        read_weights(path)


def test_compressed_weights_are_refused_by_init_from_too(tmp_path: Path) -> None:
    path = tmp_path / "bare.pth"
    torch.save({"w": torch.zeros(1_000_000)}, path)
    deflate(path)
    with pytest.raises(ConfigError):
        read_weights(path)


def test_weights_that_are_not_finite_are_refused_by_init_from_too(tmp_path: Path) -> None:
    path = tmp_path / "bare.pth"
    torch.save({"w": torch.tensor([1.0, float("nan")])}, path)
    with pytest.raises(ConfigError):
        read_weights(path)


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos 704 vs 598")]
)
def test_a_failing_write_leaves_the_old_file_and_no_temporary(
    failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = content_of()
    path = saved(tmp_path, content)

    def half(_content: Any, file: Any) -> None:
        file.write(path.read_bytes()[:1000])
        raise failure

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(ResourceError, match=r"a\.pt could not be written"):
        write_checkpoint(path, content_of(classes=["other"]))
    monkeypatch.undo()
    assert same(read_checkpoint(path), content)
    assert not temporaries(tmp_path)


def test_an_interrupt_in_the_middle_of_a_write_leaves_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()

    def interrupted(_content: Any, file: Any) -> None:
        file.write(b"0" * 1000)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(path, content_of())
    assert path.read_bytes() == before
    assert not temporaries(tmp_path)


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from trainer.run.checkpoint_files import write_checkpoint
from trainer.utils.errors import ResourceError

path = Path(sys.argv[1])
write_checkpoint(path, {"w": torch.zeros(1000)})
before = path.read_bytes()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    write_checkpoint(path, {"w": torch.zeros(100_000)})
except ResourceError as error:
    print("refused", path.read_bytes() == before, [p.name for p in path.parent.iterdir()])
"""


def script(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], cwd=ROOT, text=True, capture_output=True, timeout=120
    )


def test_a_disk_that_is_full_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    """The real thing: RLIMIT_FSIZE ends the write in the middle, which torch reports as a RuntimeError of its own."""
    done = script(FULL_DISK, tmp_path / "a.pt")
    assert done.stdout == "refused True ['a.pt']\n", done.stderr


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from trainer.run.checkpoint_files import tidy, write_checkpoint
from trainer.run.safe_load import read_checkpoint

torch.set_num_threads(1)
path, content = Path(sys.argv[1]), read_checkpoint(Path(sys.argv[2]))
rng, acknowledged, left = random.Random(0), -1, 0
for _ in range(10):
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        step = acknowledged
        while True:
            step += 1
            weights = torch.full((300_000,), float(step))
            write_checkpoint(path, content | {"model": {"w": weights}, "step": step})
            os.write(write_end, b"%d\\n" % step)
    os.close(write_end)
    os.read(read_end, 1)  # it writes; the byte belongs to a number that is not needed whole
    time.sleep(rng.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    lines = os.read(read_end, 1 << 20).decode().split()
    os.close(read_end)
    content = read_checkpoint(path)
    assert (content["model"]["w"] == content["step"]).all()
    assert content["step"] >= (int(lines[-1]) if len(lines) > 1 else acknowledged + 1), "an acknowledged save is gone"
    acknowledged = content["step"]
    left += len(list(path.parent.glob(".tmp-*")))
    tidy(path.parent)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
print("readable after every kill;", acknowledged >= 9, left > 0)
"""


def test_a_file_is_readable_after_every_kill(tmp_path: Path) -> None:
    """SIGKILL ten times at random in back-to-back writes: a whole file each time, no older than the last that ended."""
    done = script(KILLED, tmp_path / "killed" / "a.pt", saved(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "readable after every kill; True True\n"


def test_tidy_keeps_the_two_newest_and_the_best_and_sweeps_what_is_half_written(tmp_path: Path) -> None:
    for step in (5, 100, 20, 3):
        saved(tmp_path, content_of(step=step), path_of_step(tmp_path, step).name)
    keep_as_best(path_of_step(tmp_path, 3), tmp_path)
    (tmp_path / ".tmp-0123").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("of the user")
    tidy(tmp_path)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["best.pt", "notes.txt", "step_00000020.pt", "step_00000100.pt"]
    assert read_checkpoint(tmp_path / "best.pt")["step"] == 3
    tidy(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_the_newest_step_is_the_one_with_the_highest_number(tmp_path: Path) -> None:
    """Also past the eight digits of the name, where text no longer sorts as the number does."""
    steps = [7, 99_999_999, 100_000_000, 2_000_000_000]
    for step in steps:
        path_of_step(tmp_path, step).touch()
    assert steps_in(tmp_path) == [path_of_step(tmp_path, step) for step in steps]


def test_a_file_of_the_users_own_is_no_step_file(tmp_path: Path) -> None:
    for name in ("step_00000100.pt", "step_00000050_mine.pt", "step_x.pt"):
        (tmp_path / name).touch()
    assert newest_file(tmp_path) == steps_in(tmp_path)[-1] == path_of_step(tmp_path, 100)


def test_best_moves_from_file_to_file_and_stays_when_named_twice(tmp_path: Path) -> None:
    for step in (1, 2):
        path = saved(tmp_path, content_of(step=step), path_of_step(tmp_path, step).name)
        for _ in range(2):
            keep_as_best(path, path.parent)
            assert read_checkpoint(tmp_path / "best.pt")["step"] == step
            assert not temporaries(tmp_path)


def test_best_is_a_copy_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = saved(tmp_path, content_of(step=1), path_of_step(tmp_path, 1).name)
    keep_as_best(path, path.parent)
    path.unlink()
    assert read_checkpoint(tmp_path / "best.pt")["step"] == 1
    assert not temporaries(tmp_path)


def test_a_step_file_that_is_written_again_leaves_the_best_alone(tmp_path: Path) -> None:
    path = saved(tmp_path, content_of(value=1), path_of_step(tmp_path, 1).name)
    keep_as_best(path, path.parent)
    write_checkpoint(path, content_of(value=2))
    assert read_checkpoint(tmp_path / "best.pt")["value"] == 1


def net(hidden: int = 6, outputs: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, outputs))


def test_a_model_gets_its_weights_and_buffers_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, second = net(), net()
    first(torch.randn(5, 4))  # moves the running statistics
    load_model(second, first.state_dict(), tmp_path)
    assert same(dict(first.state_dict()), dict(second.state_dict()))


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (net(outputs=3), r"2\.bias is \(3,\) in the file and \(2,\) in the model"),
        (nn.Sequential(nn.Linear(4, 6)), r"1\.bias is absent in the file and \(6,\) in the model"),
        (nn.Sequential(*net(), nn.Linear(2, 2)), r"3\.bias is \(2,\) in the file and absent in the model"),
    ],
)
def test_another_models_weights_are_refused_and_change_nothing(other: nn.Module, name: str, tmp_path: Path) -> None:
    model = net()
    before = copy.deepcopy(dict(model.state_dict()))
    with pytest.raises(ConfigError, match=name):
        load_model(model, other.state_dict(), tmp_path / "a.pt")
    assert same(dict(model.state_dict()), before)


def test_a_backbone_comes_in_and_the_head_starts_afresh(tmp_path: Path) -> None:
    trained, model = net(outputs=3), net(outputs=2)
    head = {name: w.clone() for name, w in model[2].state_dict().items()}
    said = load_backbone(model, Weights(tmp_path, trained.state_dict() | {"extra": torch.zeros(1)}), "ab")
    assert said == f"weights from {tmp_path}; start afresh: 2.bias, 2.weight"
    assert same(dict(model[0].state_dict()), dict(trained[0].state_dict()))
    assert same(dict(model[2].state_dict()), head)


def test_a_backbone_of_which_nothing_fits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none of its 2 tensors.*init_from="):
        load_backbone(net(), Weights(tmp_path, {"a": torch.zeros(1), "0.weight": torch.zeros(1, 1)}))


def test_weights_come_in_from_the_files_of_other_programs(tmp_path: Path) -> None:
    trained = net(outputs=2)
    parallel = {f"module.{name}": tensor for name, tensor in trained.state_dict().items()}
    torch.save({"state_dict": parallel, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "other.pth")
    model = net(outputs=2)
    path = tmp_path / "other.pth"
    said = load_backbone(model, Weights(path, *read_weights(path)), ("cat", "dog"))
    assert same(dict(model.state_dict()), dict(trained.state_dict()))
    assert said.endswith(
        "start afresh: none. The last layer comes with the rest; it was trained for classes that the file does not name"
    )
    named = Weights(path, trained.state_dict(), ["cat", "dog"])
    assert "last layer" not in load_backbone(model, named, ("cat", "dog"))
    assert load_backbone(model, named, ("dog", "cat")).endswith("it was trained for cat, dog")


OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("sgd", {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ("sgd", {"lr": 0.05, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}),
    ("adam", {"lr": 0.01, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}),
    ("adamw", {"lr": 0.01, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}),
    ("rmsprop", {"lr": 0.01, "alpha": 0.9, "eps": 1e-8, "momentum": 0.9, "weight_decay": 0.01}),
]


def optimizer_of(model: nn.Module, name: str, options: dict[str, Any]) -> torch.optim.Optimizer:
    return build.build_optimizer(Choice(name, options), "concise", model)


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    dtype = next(model.parameters()).dtype
    for step in steps:
        x, y = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(step)).to(dtype)
        optimizer.zero_grad()
        ((model(x) - y[:, :2]) ** 2).mean().backward()
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_an_optimizer_goes_on_bit_by_bit(
    name: str, options: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    model = net().to(dtype)
    optimizer = optimizer_of(model, name, options)
    advance(model, optimizer, range(5))
    state = optimizer_state(optimizer, model)
    path = saved(tmp_path, content_of(model=dict(model.state_dict()), optimizer={"name": name, "state": state}))
    content = read_checkpoint(path)
    assert same(content["optimizer"]["state"], state)

    resumed = net().to(dtype)
    again = optimizer_of(resumed, name, options)
    load_model(resumed, content["model"], path)
    load_optimizer(again, resumed, content["optimizer"]["state"], path)
    assert same(optimizer_state(again, resumed), state)
    advance(model, optimizer, range(5, 10))
    advance(resumed, again, range(5, 10))
    assert same(dict(resumed.state_dict()), dict(model.state_dict()))
    assert same(optimizer_state(again, resumed), optimizer_state(optimizer, model))


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_without_its_state_an_optimizer_goes_elsewhere(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Shows that the test above can fail; plain SGD alone has nothing to remember."""
    model = net()
    optimizer = optimizer_of(model, name, options)
    advance(model, optimizer, range(5))
    forgetful = copy.deepcopy(model)
    fresh = optimizer_of(forgetful, name, options)
    advance(model, optimizer, range(5, 7))
    advance(forgetful, fresh, range(5, 7))
    remembers = name != "sgd" or options["momentum"] > 0
    assert same(dict(forgetful.state_dict()), dict(model.state_dict())) is not remembers


def test_optimizer_state_is_by_name_and_whole() -> None:
    model = net()
    optimizer = optimizer_of(model, *OPTIMIZERS[2])
    assert optimizer_state(optimizer, model) == {name: {} for name, _ in model.named_parameters()}
    advance(model, optimizer, range(3))
    state = optimizer_state(optimizer, model)
    assert set(state) == {name for name, _ in model.named_parameters()}
    assert {frozenset(buffers) for buffers in state.values()} == {frozenset({"step", "exp_avg", "exp_avg_sq"})}
    assert all(int(buffers["step"]) == 3 for buffers in state.values())


def test_loading_keeps_the_options_that_the_run_asks_for(tmp_path: Path) -> None:
    """resume_allow=[optimizer.lr] changes an option: the file brings buffers, never options."""
    model = net()
    optimizer = optimizer_of(model, *OPTIMIZERS[0])
    advance(model, optimizer, range(2))
    other = optimizer_of(model, "sgd", OPTIMIZERS[0][1] | {"lr": 0.5, "weight_decay": 0.3})
    load_optimizer(other, model, optimizer_state(optimizer, model), tmp_path)
    assert (other.param_groups[0]["lr"], other.param_groups[0]["weight_decay"]) == (0.5, 0.3)


@pytest.mark.parametrize(
    ("state", "name"),
    [
        ({"9.weight": {"momentum_buffer": torch.zeros(2)}}, r"9\.weight"),
        ({"0.weight": {"momentum_buffer": torch.zeros(4, 6)}}, r"0\.weight"),
        ({"0.weight": {"momentum_buffer": torch.zeros(1)}}, r"0\.weight"),
        ({"0.weight": {"momentum_buffer": torch.zeros(())}}, r"0\.weight"),
    ],
)
def test_buffers_that_do_not_fit_are_refused(state: Any, name: str, tmp_path: Path) -> None:
    model = net()
    state = {name: {"momentum_buffer": p.clone()} for name, p in model.named_parameters()} | state
    with pytest.raises(ConfigError, match=name):
        load_optimizer(optimizer_of(model, *OPTIMIZERS[0]), model, state, tmp_path / "a.pt")


def test_bare_weights_of_the_old_format_with_too_many_tensors_are_refused_before_they_are_read(tmp_path: Path) -> None:
    weights = {f"layer{i}.weight": torch.zeros(1) for i in range(20_000)}
    torch.save(weights, tmp_path / "many.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ConfigError, match="it asks for objects that no checkpoint has"):
        read_weights(tmp_path / "many.pth")
