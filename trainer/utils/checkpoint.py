"""Checkpoint files: one torch zip file of plain types each, written so that a crash never leaves half of one, and read
through a gate, because the bytes may be damaged or come from a stranger.

SCHEMA lists the content; state.pack puts it together. Only weights_only=True ever loads one.
"""

import os
import shutil
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.utils import runs
from trainer.utils.errors import ConfigError, ResourceError

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
MAX_MEMBERS = 100_000


def path_of_step(folder: Path, step: int) -> Path:
    """checkpoints/<run>/step_00001234.pt."""
    return folder / f"step_{step:08d}.pt"


def steps_in(folder: Path) -> list[Path]:
    """The step files of a run, oldest first."""
    return sorted(folder.glob("step_*.pt"), key=step_of)


def step_of(path: Path) -> int:
    """The step that a file is named after; names of more than eight digits do not sort as text."""
    digits = path.stem.removeprefix("step_")
    return int(digits) if digits.isdecimal() else -1


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint so that `path` is either the old file or the complete new one, even after a power cut.

    Raises:
        ResourceError: the disk is full; the old file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{uuid.uuid4().hex}"
    try:
        with open(temporary, "wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save hides a full disk in a RuntimeError
        raise ResourceError(f"{path} could not be written: {error}. The file before it is untouched.") from error
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def keep_as_best(step_file: Path, folder: Path) -> None:
    """Make best.pt in `folder` a second name of a step file, in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".tmp-{uuid.uuid4().hex}"
    try:
        os.link(step_file, temporary)
    except OSError:  # a file system without hard links, or another one
        shutil.copyfile(step_file, temporary)
    os.replace(temporary, folder / "best.pt")
    temporary.unlink(missing_ok=True)  # replace leaves it when both are already the same file
    sync_folder(folder)


def tidy(folder: Path) -> None:
    """Remove all but the newest step files, and what a killed process left half written."""
    for path in [*steps_in(folder)[:-KEPT], *folder.glob(".tmp-*")]:
        path.unlink(missing_ok=True)


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file, on the CPU, after checking that it is whole and of our making.

    Raises:
        ConfigError: names the file and what is wrong with it.
    """
    content = load(path)
    if is_weights(content):
        raise ConfigError(f"{path} holds bare weights, no checkpoint of this program. init_from= takes them.")
    if isinstance(content, dict) and isinstance(content.get("format"), int) and content["format"] != FORMAT:
        raise ConfigError(f"{path} has format {content['format']}; this version reads {FORMAT}. Update the program.")
    for key, kind in SCHEMA.items():
        node, _, leaf = key.rpartition(".")
        parent = content if not node else content[node]
        if not isinstance(parent, dict) or not isinstance(parent.get(leaf), kind):
            raise ConfigError(f"{path} is no checkpoint of this program: it has no {key}.")
    if not runs.JOB.fullmatch(content["config"]["name"]):
        raise ConfigError(f"{path} is refused: {content['config']['name']!r} is no name of a run.")
    check_weights(content["model"], path)
    if content.get("ema") is not None:
        check_weights(content["ema"], path)
    return content


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
        if not legacy or zipfile.is_zipfile(path):
            check_zip(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything
        reason = str(error).splitlines()[0] if isinstance(error, (ConfigError, OSError)) else type(error).__name__
        raise ConfigError(f"{path} is damaged, or no checkpoint of this program: {reason}") from None


def check_weights(weights: Any, path: Path) -> None:
    """Refuse what is no dict of tensors, not finite, or claims to be larger than the bytes it has (stride 0)."""
    if not is_weights(weights):
        raise ConfigError(f"{path} is no checkpoint of this program: its model is not made of tensors.")
    for name, tensor in weights.items():
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ConfigError(f"{path} is refused: {name} claims more numbers than the file holds.")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ConfigError(f"{path} is refused: {name} is not finite.")


def check_zip(path: Path) -> None:
    """Refuse what torch.load would take although it is damaged or made to harm.

    Members must be stored, not compressed (a bomb is), together no larger than the file, and their CRCs must hold.
    """
    if not zipfile.is_zipfile(path):
        raise ConfigError("not a zip file as torch.save writes it.")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not stored or len(members) > MAX_MEMBERS or sum(m.file_size for m in members) > path.stat().st_size:
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
    check_weights(content, path)
    return content


def load_model(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Put the weights of a checkpoint into a model of the same architecture.

    Raises:
        ConfigError: names or shapes disagree; the message names the first one.
    """
    own = model.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        here = tuple(own[name].shape) if name in own else "absent"
        there = tuple(weights[name].shape) if name in weights else "absent"
        if here != there:
            raise ConfigError(f"{path} does not fit the model: {name} is {there} in the file and {here} in the model.")
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
    """The optimizer's buffers by parameter name: {"fc.weight": {"momentum_buffer": ...}}."""
    named = {name: optimizer.state.get(p, {}) for name, p in model.named_parameters()}
    return {name: {k: v for k, v in state.items() if isinstance(v, Tensor)} for name, state in named.items() if state}


def load_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, state: Mapping[str, Mapping[str, Tensor]], path: Path
) -> None:
    """Give the optimizer its buffers back.

    Raises:
        ConfigError: a buffer belongs to no parameter, or has another shape.
    """
    names = {p: name for name, p in model.named_parameters()}
    in_order = [p for group in optimizer.param_groups for p in group["params"]]  # how torch numbers them
    numbers = {names[p]: i for i, p in enumerate(in_order)}
    shapes = {name: p.shape for name, p in model.named_parameters()}
    for name, buffers in state.items():
        if name not in shapes or any(b.shape != shapes[name] for key, b in buffers.items() if key != "step"):
            raise ConfigError(f"{path} does not fit the optimizer: its buffers for {name} do not fit the model.")
    whole = optimizer.state_dict()
    whole["state"] = {numbers[name]: dict(buffers) for name, buffers in state.items()}
    optimizer.load_state_dict(whole)
