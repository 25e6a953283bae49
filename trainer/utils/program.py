"""How this program was started, so that what it prints can be typed as it stands."""

import shlex
import sys
from pathlib import Path


def main_py() -> str:
    """`python main.py`, with the Python and the path that the user typed."""
    if Path(sys.argv[0]).name != "main.py":  # a program that uses this one
        return "python main.py"
    return shlex.join([sys.orig_argv[0], sys.argv[0]])


def tensorboard(folder: Path) -> str:
    """The command that shows the curves below a folder."""
    return shlex.join([script("tensorboard"), "--logdir", str(folder)])


def script(name: str) -> str:
    """How to type a command of an installed package."""
    python = Path(sys.orig_argv[0])
    # an activated environment has it on the path; one whose Python was typed with its folder may not be activated
    beside = [path for path in (python.parent / name, python.parent / f"{name}.exe") if path.is_file()]
    return str(beside[0]) if beside and len(python.parts) > 1 else name


def pip_install(requirements: str) -> str:
    """The command that installs what a requirements file of this program lists."""
    folder = Path(__file__).resolve().parents[2]
    path = requirements if Path.cwd() == folder else str(folder / requirements)
    return shlex.join([sys.orig_argv[0] if sys.orig_argv else "python", "-m", "pip", "install", "-r", path])
