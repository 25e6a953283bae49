"""Reading a checkpoint file that may be damaged or hostile: only weights_only=True ever loads one, after checks.

gate.py says what the content may be; checkpoint.pack puts it together.
"""

import errno
import io
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from trainer.run.checkpoint_files import FORMAT
from trainer.run.gate import MAX_PLAIN, MAX_TENSORS, check_content, check_tensors, check_weights, is_weights
from trainer.utils.errors import ConfigError, DamagedError, ResourceError
from trainer.utils.files import open_regular
from trainer.utils.text import short_repr

MAX_OPS = 300_000  # of the pickle of a file, and 60 for each tensor; they take a third of a second
OLD_PICKLES = 5  # that a file of before zip files begins with: what it is, its content, the names of its storages
MAX_MEMBERS = MAX_TENSORS + 100  # of the zip file: one for each tensor and a few of torch's own
# What torch would also build for a file, and none of ours needs: a few bytes can ask for 10^12 of them, or for hours.
NOT_OURS = re.compile(
    r"collections Counter|(?:_codecs|builtins|__builtin__|numpy[\w.]*) "
    r"|\S+ _rebuild_(?!tensor_v[23]|parameter|from_type_v2)"
)


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
        made_by = (
            f" (written with torch {short_repr(env['torch'])})" if isinstance(env, dict) and "torch" in env else ""
        )
        raise ConfigError(
            f"{path} has format {short_repr(content['format'])}{made_by}; this version reads {FORMAT}: update it."
        )
    try:
        check_content(content)
    except DamagedError as error:
        what = "is no checkpoint of this program" if str(error).startswith("it has no ") else "is refused"
        raise DamagedError(f"{path} {what}: {error}.") from None
    assert isinstance(content, dict)
    return content


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
        raise ConfigError(f"{path} is no file." if path.exists() else f"{path}: there is no such file.")
    try:
        with open_regular(path, "rb") as file:
            if not legacy or zipfile.is_zipfile(file):
                check_zip(file, path.stat().st_size)
            else:
                file.seek(0)
                for _ in range(OLD_PICKLES):
                    check_calls(file, MAX_OPS)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise ResourceError(f"{path}: there is not enough memory to read it.") from None
    except Exception as error:  # a damaged file can raise nearly anything
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # the disk's fault: try again later
            raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
        reason = str(error).splitlines()[0] if isinstance(error, (ConfigError, OSError)) else type(error).__name__
        raise DamagedError(f"{path} is damaged, or no checkpoint of this program: {reason}") from None


def check_zip(file: IO[bytes], size: int) -> None:
    """Refuse what torch.load would take although it is damaged or made to harm.

    Members must be stored, not compressed (a bomb is), together no larger than the file, and their CRCs must hold.
    """
    if not zipfile.is_zipfile(file):
        raise ConfigError("not a zip file as torch.save writes it.")
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not stored or sum(m.file_size for m in members) > size:
            raise ConfigError("its members are not what torch.save writes.")
        plain = [m for m in members if m.filename.endswith("data.pkl")]
        if len(members) > MAX_MEMBERS or sum(m.file_size for m in plain) > MAX_PLAIN + 500 * len(members):
            raise ConfigError(
                f"it has too many parts. Allowed: {MAX_TENSORS:,} tensors, and {MAX_PLAIN:,} bytes beside."
            )
        if (bad := archive.testzip()) is not None:
            raise ConfigError(f"the checksum of {bad} is wrong.")
        for member in plain:
            check_calls(io.BytesIO(archive.read(member)), MAX_OPS + 60 * len(members))


def check_calls(file: IO[bytes], most: int) -> None:
    """Refuse a pickle that makes torch's reader work for long: what it calls, and with what, is counted before.

    Each tensor of a real one is two calls: one without arguments, for its hooks, and one with three or more.

    Args:
        file: where the pickle begins; it is left where it ends.
        most: operations.
    """
    many = ConfigError("it asks for objects that no checkpoint has.")
    depth, size, marks, builds = 0, 0, list[int](), 0  # size: of the tuple that was made last; 0: something else was
    for number, (op, called, _) in enumerate(pickletools.genops(file)):
        builds += op.name == "BUILD"
        # in the operation, not anywhere in the bytes: a search through a long text would take minutes
        if op.name == "GLOBAL" and NOT_OURS.match(str(called)):
            raise many
        if number > most or builds > 10 or (op.name == "REDUCE" and size < 3):
            raise many
        if op.name == "MARK":
            marks.append(depth)
        elif op.name in ("TUPLE", "APPENDS", "SETITEMS"):
            size = depth - marks[-1] if op.name == "TUPLE" else 0
            depth = marks.pop() + (op.name == "TUPLE")
        elif "PUT" not in op.name:
            depth += len(op.stack_after) - len(op.stack_before)
            size = {"TUPLE3": 3, "EMPTY_TUPLE": 3}.get(op.name, 0)


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a .safetensors file; those of half precision become float32.

    Raises:
        DamagedError: it is none.
    """
    import safetensors.torch

    try:
        found = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise DamagedError(f"{path} cannot be read: {error}.") from None
    if not found:
        raise DamagedError(f"{path} holds no weights.")
    half = (torch.float16, torch.bfloat16)
    return {name: tensor.float() if tensor.dtype in half else tensor for name, tensor in found.items()}


def read_weights(path: Path) -> tuple[dict[str, Tensor], list[str] | None]:
    """The weights in a checkpoint of ours or in a state_dict file, for init_from=, and its classes where it names any.

    A state_dict may also lie in a dict under that name, as many programs save it.

    Raises:
        ConfigError: the file is damaged, or holds neither.
    """
    # many published weights are in the old format
    content: Any = load_safetensors(path) if path.suffix == ".safetensors" else load_file(path, legacy=True)
    if isinstance(content, dict) and is_weights(content.get("state_dict")):
        content = content["state_dict"]
    if not is_weights(content):
        content = read_checkpoint(path)
        return weights_to_use(content), content["classes"]
    try:
        check_tensors(content)
        check_weights(content, ours=False)
    except DamagedError as error:
        raise DamagedError(f"{path} is refused: {error}.") from None
    assert isinstance(content, dict)
    return content, None
