"""A training program driven by config: one plain loop, data -> model -> loss -> step. Start reading at main.py."""

import importlib.util
import os
import shlex
import sys
from typing import Any

NEEDED = ("torch", "torchvision", "hydra", "omegaconf", "tensorboard", "rich", "matplotlib", "PIL", "numpy", "scipy")


def what_to_type(script: str) -> str:
    """The command that starts the program with its packages, or else the one that installs them."""
    folder = os.path.dirname(script)
    for python in (os.path.join(folder, ".venv", *end) for end in (("bin", "python"), ("Scripts", "python.exe"))):
        if os.path.exists(python) and not sys.executable.startswith(os.path.abspath(os.path.dirname(python))):
            return shlex.join([python, *sys.argv])
    return shlex.join([sys.orig_argv[0], "-m", "pip", "install", "-r", os.path.join(folder, "requirements.txt")])


if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
    lacks = f"{sys.executable} lacks {', '.join(missing)}"
    if os.path.basename(sys.argv[0]) != "main.py":  # imported by another program
        raise ModuleNotFoundError(lacks)
    print(f"error: {lacks}. Type: {what_to_type(sys.argv[0])}", file=sys.stderr)
    sys.exit(2)


def __getattr__(name: str) -> Any:
    """`from trainer import load, train`, for notebooks. Looked up when asked for: the command line does not need it."""
    if name not in ("load", "train"):
        raise AttributeError(f"module trainer has no attribute {name}")
    from trainer import api

    return getattr(api, name)
