"""Reading a checkpoint file that may be damaged or hostile: only weights_only=True ever loads one, after checks.

SCHEMA lists the content; checkpoint.pack puts it together.
"""

import errno
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from trainer.run.checkpoint_files import FORMAT
from trainer.run.directory import JOB
from trainer.utils.errors import ConfigError, DamagedError

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
MAX_MEMBERS = 100_000
MAX_INPUTS = 10**8  # numbers of one example
DTYPES = (torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool)  # of weights and buffers
MAX_ENTRIES, MAX_DEPTH = 1_000_000, 20  # of the dicts and lists in a file; a shared one counts each time


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file, on the CPU, after checking that it is whole and of our making.

    Raises:
        ConfigError: names the file and what is wrong with it.
    """
    content = load_file(path)
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
    if not JOB.fullmatch(content["config"]["name"]):
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


def load_file(path: Path, *, legacy: bool = False) -> Any:
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
    content = load_file(path, legacy=True)  # many published weights are that old
    if not is_weights(content):
        return weights_to_use(read_checkpoint(path))
    check_tensors(content, path)
    check_weights(content, path)
    return content
