"""Checkpoint files: one torch zip file of plain types each, written so that a crash never leaves half of one, and read
through a gate, because the bytes may be damaged or come from a stranger.

SCHEMA lists the content; state.pack puts it together. Only weights_only=True ever loads one.
"""

import errno
import inspect
import math
import os
import re
import shutil
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from trainer.utils import runs
from trainer.utils.errors import ConfigError, DamagedError, ResourceError, listed

FORMAT = 1
KEPT = 2  # step files that stay besides the best
SCHEMA: dict[str, type] = {  # what a checkpoint holds; keys with a dot are looked for one level down
    "format": int,
    "kind": str,
    "arch": dict,
    "arch.name": str,
    "arch.num_outputs": int,
    "arch.in_shape": list,
    "classes": list,
    "preprocess": dict,
    "preprocess.mean": list,
    "preprocess.std": list,
    "model": dict,
    "optimizer": dict,
    "optimizer.name": str,
    "optimizer.state": dict,
    "progress": dict,
    "best": dict,
    "early_stop": dict,
    "rng": list,
    "fingerprint": str,
    "config": dict,
    "config.name": str,
    "env": dict,
    "data": dict,
    "data.sha256": str,
}
STEP_FILE = re.compile(r"step_\d{8,}\.pt", re.ASCII)
MAX_MEMBERS = 100_000
MAX_INPUTS = 10**8  # numbers of one example
DTYPES = (torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool)  # of weights and buffers
MAX_ENTRIES, MAX_DEPTH = 1_000_000, 20  # of the dicts and lists in a file; one that is referred to twice counts twice


def path_of_step(folder: Path, step: int) -> Path:
    """checkpoints/<run>/step_00001234.pt."""
    return folder / f"step_{step:08d}.pt"


def steps_in(folder: Path) -> list[Path]:
    """The step files of a run, oldest first."""
    names = os.listdir(folder) if folder.is_dir() else ()
    paths = (folder / name for name in names if STEP_FILE.fullmatch(name))
    return sorted((path for path in paths if path.is_file()), key=step_of)


def step_of(path: Path) -> int:
    """The step that a file is named after; names of more than eight digits do not sort as text."""
    return int(path.stem.removeprefix("step_"))


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint so that `path` is either the old file or the complete new one, even after a power cut.

    Raises:
        ResourceError: the disk is full, or cannot be written; the old file is untouched.
    """
    with replacing(path, size_of(content), durable=True) as temporary, open(temporary, "wb") as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())


def size_of(content: Any) -> int:
    """The bytes of all tensors in nested dicts and lists."""
    if isinstance(content, Tensor):
        return content.untyped_storage().nbytes()
    values = content.values() if isinstance(content, Mapping) else content if isinstance(content, list) else ()
    return sum(map(size_of, values))


@contextmanager
def replacing(path: Path, size: int, *, durable: bool) -> Iterator[Path]:
    """A temporary name beside `path`, whose file takes its place at the end.

    Args:
        size: bytes that are needed, at least.  durable: the new name survives a power cut from then on.
    Raises:
        ResourceError: see write().
    """
    temporary = path.parent / f".tmp-{uuid.uuid4().hex}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < size:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, {free:,} bytes are free")
        yield temporary
        os.replace(temporary, path)
        if durable:
            sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save hides a full disk in a RuntimeError
        reason = cause_of(error)
        raise ResourceError(
            f"{path} could not be written ({reason}); it needs {size:,} bytes. The files before it are untouched."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def cause_of(error: BaseException) -> BaseException:
    """The OSError that an error came from; the error itself if there is none."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, OSError):
        link = link.__cause__ or link.__context__
    return link or error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def give_name(file: Path, path: Path) -> None:
    """Make `path` a second name of a checkpoint file, in one step; a copy where the file system has no such names.

    Raises:
        ResourceError: see write().
    """
    with replacing(path, 0, durable=False) as temporary:
        try:
            os.link(file, temporary)
        except OSError:  # a file system without hard links, or another one
            shutil.copyfile(file, temporary)


def keep_as_best(step_file: Path, folder: Path) -> None:
    """Make best.pt in `folder` a second name of a step file; resume.rewind mends it after a power cut."""
    give_name(step_file, folder / "best.pt")


def tidy(folder: Path) -> None:
    """Remove all but the newest step files, and what a killed process left half written."""
    sweep(folder)
    for path in steps_in(folder)[:-KEPT]:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what a killed process left half written."""
    for name in os.listdir(folder) if folder.is_dir() else ():
        if name.startswith(".tmp-"):
            Path(folder, name).unlink(missing_ok=True)


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file, on the CPU, after checking that it is whole and of our making.

    Raises:
        ConfigError: names the file and what is wrong with it.
    """
    content = load(path)
    if is_weights(content):
        raise ConfigError(f"{path} holds bare weights, no checkpoint of this program. init_from= takes them.")
    if isinstance(content, dict) and isinstance(content.get("format"), int) and content["format"] != FORMAT:
        env = content.get("env")
        made_by = f" (written with torch {env['torch']})" if isinstance(env, dict) and "torch" in env else ""
        raise ConfigError(f"{path} has format {content['format']}{made_by}; this version reads {FORMAT}: update it.")
    for key, kind in SCHEMA.items():
        node, _, leaf = key.rpartition(".")
        parent = content if not node else content[node]
        if not isinstance(parent, dict) or not isinstance(parent.get(leaf), kind):
            raise DamagedError(f"{path} is no checkpoint of this program: it has no {key}.")
    if not runs.JOB.fullmatch(content["config"]["name"]):
        raise DamagedError(f"{path} is refused: {content['config']['name']!r} is no name of a run.")
    check_tensors(content, path)
    check_description(content, path)
    for weights in (content["model"], *([content["ema"]] if content.get("ema") is not None else [])):
        check_weights(weights, path)
        if odd := [name for name, w in weights.items() if w.dtype not in DTYPES]:
            raise DamagedError(f"{path} is refused: {odd[0]} is of type {weights[odd[0]].dtype}.")
    return content


def check_description(content: Mapping[str, Any], path: Path) -> None:
    """Refuse what a model's inputs and classes cannot be."""
    arch, moments, classes = content["arch"], content["preprocess"], content["classes"]
    in_shape = arch["in_shape"]
    if not all(type(n) is int and n > 0 for n in in_shape) or math.prod(in_shape) > MAX_INPUTS:
        raise DamagedError(f"{path} is refused: {in_shape} is no shape of an input.")
    if not all(isinstance(name, str) and name.isprintable() for name in classes):
        raise DamagedError(f"{path} is refused: its classes are not names.")
    if classes and len(classes) != arch["num_outputs"]:
        raise DamagedError(f"{path} is refused: it has {len(classes)} classes and {arch['num_outputs']} outputs.")
    numbers = [*moments["mean"], *moments["std"]]
    real = all(type(n) is float and math.isfinite(n) for n in numbers) and all(n > 0 for n in moments["std"])
    fitting = len(moments["mean"]) == len(moments["std"]) and (not numbers or len(moments["std"]) == in_shape[0])
    if not real or not fitting:
        raise DamagedError(f"{path} is refused: {moments['mean']}, {moments['std']} are no mean and std of its inputs.")


def weights_to_use(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights that a checkpoint's figures were measured with: the running mean where there is one."""
    return content["model"] if content.get("ema") is None else content["ema"]


def load(path: Path, *, legacy: bool = False) -> Any:
    """What torch.save put into a file, as plain types and tensors on the CPU.

    Args:
        legacy: also take torch's format from before zip files, which has no checksums.
    Raises:
        ConfigError: the file is missing, damaged, or holds anything else.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file.")
    try:
        with open(path, "rb") as file:
            if not legacy or zipfile.is_zipfile(file):
                check_zip(file, path.stat().st_size)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # the disk's fault: try again later
            raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
        reason = str(error).splitlines()[0] if isinstance(error, (ConfigError, OSError)) else type(error).__name__
        raise DamagedError(f"{path} is damaged, or no checkpoint of this program: {reason}") from None


def tensors_in(content: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dicts and lists, with its dotted name.

    Raises:
        ValueError: there is no end to it; a small file can hold dicts that hold each other.
    """
    entries, todo = 0, [("", 0, content)]
    while todo:
        name, depth, node = todo.pop()
        if isinstance(node, Tensor):
            yield name, node
        pairs: list[tuple[Any, Any]] = []
        if isinstance(node, Mapping):
            pairs = list(node.items())
        elif isinstance(node, (list, tuple)):
            pairs = list(enumerate(node))
        entries += len(pairs)
        if entries > MAX_ENTRIES or depth > MAX_DEPTH:
            raise ValueError("its content is nested without end")
        todo += [(f"{name}.{key}" if name else str(key), depth + 1, value) for key, value in pairs]


def check_tensors(content: Any, path: Path) -> None:
    """Refuse a tensor that is not plain numbers, or claims more of them than it has bytes for, wherever it is."""
    try:
        for name, tensor in tensors_in(content):
            plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
            if not plain or tensor.nbytes > tensor.untyped_storage().nbytes():
                raise ValueError(f"{name} claims more numbers than the file holds")
    except ValueError as error:
        raise DamagedError(f"{path} is refused: {error}.") from None


def check_weights(weights: Any, path: Path) -> None:
    """Refuse what is no dict of tensors, or not finite."""
    if not is_weights(weights):
        raise DamagedError(f"{path} is no checkpoint of this program: its model is not made of tensors.")
    for name, tensor in weights.items():
        if tensor.is_floating_point() and tensor.element_size() < 2:
            raise DamagedError(f"{path} is refused: {name} is of type {tensor.dtype}.")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DamagedError(f"{path} is refused: {name} is not finite.")


def check_zip(file: IO[bytes], size: int) -> None:
    """Refuse what torch.load would take although it is damaged or made to harm.

    Members must be stored, not compressed (a bomb is), together no larger than the file, and their CRCs must hold.
    """
    if not zipfile.is_zipfile(file):
        raise ConfigError("not a zip file as torch.save writes it.")
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not stored or len(members) > MAX_MEMBERS or sum(m.file_size for m in members) > size:
            raise ConfigError("its members are not what torch.save writes.")
        if (bad := archive.testzip()) is not None:
            raise ConfigError(f"the checksum of {bad} is wrong.")


def is_weights(content: Any) -> bool:
    """Whether this is a bare state_dict: names with tensors."""
    return isinstance(content, dict) and bool(content) and all(isinstance(v, Tensor) for v in content.values())


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint of ours or in a bare state_dict file, for init_from=.

    Raises:
        ConfigError: the file is damaged, or holds neither.
    """
    content = load(path, legacy=True)  # many published weights are that old
    if not is_weights(content):
        return weights_to_use(read(path))
    check_tensors(content, path)
    check_weights(content, path)
    return content


def check_shapes(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights whose names or shapes are not the model's.

    Raises:
        ConfigError: names the first one.
    """
    own = model.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        here = tuple(own[name].shape) if name in own else "absent"
        there = tuple(weights[name].shape) if name in weights else "absent"
        if here != there:
            raise ConfigError(f"{path} does not fit the model: {name} is {there} in the file and {here} in the model.")


def load_model(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Put the weights of a checkpoint into a model of the same architecture; ConfigError as check_shapes."""
    check_shapes(model, weights, path)
    model.load_state_dict(dict(weights))


def load_backbone(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> list[str]:
    """Put in the weights whose name and shape fit; the rest of the model keeps its initial values.

    Returns:
        The names that were left out because they are absent in the file or have another shape there.
    Raises:
        ConfigError: nothing fits.
    """
    own = model.state_dict()
    fitting = {name: w for name, w in weights.items() if name in own and own[name].shape == w.shape}
    if not fitting:
        raise ConfigError(f"init_from={path}: none of its {len(weights)} tensors has a name and shape of this model.")
    model.load_state_dict(fitting, strict=False)
    return sorted(own.keys() - fitting.keys())


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The optimizer's buffers by parameter name: {"fc.weight": {"momentum_buffer": ...}}; {} before its first step."""
    named = {name: optimizer.state.get(p, {}) for name, p in model.named_parameters()}
    return {name: {k: v for k, v in state.items() if isinstance(v, Tensor)} for name, state in named.items()}


def buffers_of(optimizer: torch.optim.Optimizer) -> set[str]:
    """The names of what an optimizer keeps for each parameter, seen on another one of its kind after a step."""
    kind, parameter = type(optimizer), nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    known = inspect.signature(kind).parameters
    other = kind([parameter], **{key: value for key, value in optimizer.defaults.items() if key in known})
    other.step()
    return {key for key, value in other.state[parameter].items() if isinstance(value, Tensor)}


def load_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, state: Mapping[str, Mapping[str, Tensor]], path: Path
) -> None:
    """Give the optimizer its buffers back.

    Raises:
        ConfigError: a buffer belongs to no parameter, or has another name or shape than this optimizer gives it.
    """
    names = {p: name for name, p in model.named_parameters()}
    in_order = [p for group in optimizer.param_groups for p in group["params"]]  # how torch numbers them
    numbers = {names[p]: i for i, p in enumerate(in_order)}
    shapes = {name: p.shape for name, p in model.named_parameters()}
    expected = buffers_of(optimizer)
    if state.keys() != shapes.keys():
        odd = listed(sorted(state.keys() ^ shapes.keys()))
        raise ConfigError(f"{path} does not fit the optimizer: it lacks, or has too much, the buffers of {odd}.")
    for name, buffers in state.items():
        real = isinstance(buffers, Mapping) and all(
            isinstance(b, Tensor) and b.is_floating_point() for b in buffers.values()
        )
        if not real or (buffers and set(buffers) != expected):
            found, wanted = listed(sorted(map(str, buffers))), listed(sorted(expected)) or "none"
            raise ConfigError(f"{path} does not fit the optimizer: {name} has the buffers {found}, not {wanted}.")
        if any(b.shape != (torch.Size() if key == "step" else shapes[name]) for key, b in buffers.items()):
            raise ConfigError(f"{path} does not fit the optimizer: its buffers for {name} do not fit the model.")
    whole = optimizer.state_dict()
    whole["state"] = {numbers[name]: dict(buffers) for name, buffers in state.items() if buffers}
    optimizer.load_state_dict(whole)
