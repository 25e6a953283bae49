"""A network, a data set or a loss in a Python file of the user's own, which plugins= names.

The file is run here, because somebody typed its name and for no other reason: what a checkpoint or a saved config says
of such a file is text for a message. plugin_options.py makes choices of what its tables hold, and run/plugged.py puts
these in the place of the program's own for as long as a command runs.
"""

import contextlib
import hashlib
import inspect
import re
import shlex
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trainer.config.options import PLUGGED, choices_of
from trainer.config.ranges import as_yaml
from trainer.config.schema import GROUPS
from trainer.config.tasks import CLASSIFICATION, REGRESSION
from trainer.utils.errors import ConfigError, MissingPluginError, PluginError, TrainerError, listed, nearest
from trainer.utils.program import main_py

TABLES = {"MODELS": "model", "DATA": "data", "LOSSES": "loss"}
EXAMPLE = 'MODELS = {"my_net": MyNet}, DATA = {"my_set": my_set} or LOSSES = {"my_loss": my_loss}'
CHOICE_NAME = re.compile(r"(?!(?:null|none|true|false|yes|no|on|off|nan|inf)$)[a-z]\w{0,39}", re.ASCII | re.IGNORECASE)
PLAIN = re.compile(r"[\w./~-]+")  # a path that needs no quotes
MARK = "__trainer_plugin__"  # in the globals of a file of plugins=: its path, as typed
LOADED: dict[str, str] = {}  # SHA-256 of each file of plugins=, by its path as typed, while a command runs


@dataclass(frozen=True)
class Entry:
    """What a table of a file holds under a name."""

    group: str  # model, data or loss
    name: str
    call: Callable[..., Any]
    path: str  # of the file, as typed
    task: str  # of a data set: regression or classification

    def __str__(self) -> str:
        init: Any = getattr(self.call, "__init__", None)
        code = getattr(inspect.unwrap(self.call), "__code__", None) or getattr(init, "__code__", None)
        line = f":{code.co_firstlineno}" if code is not None and code.co_filename == self.path else ""
        return f"{self.path}{line}: {self.group}={self.name}"


def paths_of(value: str) -> list[str]:
    """`[a.py,b.py]` or `a.py` as typed -> the paths."""
    inside = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    return [path for each in inside.split(",") if (path := each.strip().strip("'\""))]


def typed_in(words: Sequence[str]) -> list[str]:
    """The paths that plugins= names on a command line."""
    pairs = (word.lstrip("+").partition("=") for word in words)
    return list(dict.fromkeys(path for key, _, value in pairs if key == "plugins" for path in paths_of(value)))


def as_word(paths: Sequence[str]) -> str:
    """The paths as they are typed."""
    quoted = [path if PLAIN.fullmatch(path) else repr(path) for path in paths]
    return f"plugins=[{','.join(quoted)}]"


def recorded() -> list[str]:
    """What a run keeps of the files that it was trained with: each one's path and digest."""
    return [f"{path} sha256:{digest}" for path, digest in LOADED.items()]


def pairs_recorded(saved: Any) -> list[tuple[str, str]]:
    """(path, digest) of each file in what recorded() returned; it may come from an untrusted file."""
    texts = [text for text in saved if isinstance(text, str)] if isinstance(saved, list) else []
    return [(path, digest) for path, _, digest in (text.partition(" sha256:") for text in texts)]


def paths_recorded(saved: Any) -> list[str]:
    """The paths in what recorded() returned."""
    return [path for path, _ in pairs_recorded(saved)]


def changes_since(saved: Any) -> list[str]:
    """A warning for each recorded file that is not there as it was."""
    gone = [path for path, digest in pairs_recorded(saved) if digest not in LOADED.values()]
    return [f"warning: {path} is not what it was when this run was trained with it." for path in gone if LOADED]


def blamed(error: BaseException) -> str | None:
    """`my_net.py:12, in forward: ValueError: why` for an error that came out of a file of plugins=, else None."""
    frames = [
        (frame.f_globals[MARK], line, frame.f_code.co_name)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if MARK in frame.f_globals
    ]
    if not frames or isinstance(error, (TrainerError, KeyboardInterrupt)):
        return None
    path, line, name = frames[-1]
    where = "" if name == "<module>" else f", in {name}"
    said = " ".join(str(error).split())[:500]
    if isinstance(error, SystemExit):
        return f"{path}:{line}{where}: it ends the program (sys.exit). Let it raise an error instead."
    return f"{path}:{line}{where}: {type(error).__name__}{f': {said}' if said else ''}"


def load_plugin(path: str) -> list[Entry]:
    """Run a file of plugins= and return what its tables hold; its digest is noted in LOADED.

    Raises:
        PluginError: it is not there, does not run, or its tables are not as they have to be.
    """
    source = source_of(path)
    module = types.ModuleType(f"plugin{len(LOADED)}_{Path(path).stem}")
    module.__dict__.update({"__file__": str(Path(path).absolute()), MARK: path})
    sys.modules[module.__name__] = module  # where dataclasses look up what their annotations name
    LOADED[path] = hashlib.sha256(source).hexdigest()
    try:
        with neighbours_found(Path(path).expanduser().absolute().parent):
            # not imported: a stale .pyc would run in place of a file that was changed within the same second
            exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)
    except SyntaxError as error:
        if error.filename not in (path, None):  # of another file, which this one imports
            raise PluginError(f"{blamed(error)}") from error
        code = f": {error.text.strip()}" if error.text else ""
        raise PluginError(f"{path}:{error.lineno or 1}: {type(error).__name__}: {error.msg}{code}") from error
    except (Exception, SystemExit) as error:
        raise PluginError(blamed(error) or f"{path}:1: {error}") from error  # Python 3.11 says so of a null byte
    return list(entries_of(module, path))


@contextlib.contextmanager
def neighbours_found(folder: Path) -> Iterator[None]:
    """Let files of a folder be imported inside, after all that Python finds elsewhere; unplug() forgets them again."""
    before = {*sys.modules}
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in {*sys.modules} - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).parent == folder:
                vars(sys.modules[name])[MARK] = file


def source_of(path: str) -> bytes:
    """The bytes of a file of plugins=; PluginError where it is none."""
    file = Path(path).expanduser()
    try:
        if file.suffix == ".py":
            return file.read_bytes()
        what = "it is a folder" if file.is_dir() else "its name does not end in .py"
    except IsADirectoryError:
        what = "it is a folder"
    except FileNotFoundError:
        what = f"there is no such file.{nearest(file.name, [each.name for each in file.parent.glob('*.py')])}"
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or str(error)
    raise PluginError(f"plugins=[{path}]: {what}{'' if what[-1] in '.?' else '.'} Allowed: Python files.")


def entries_of(module: types.ModuleType, path: str) -> Iterator[Entry]:
    """What the tables of a file hold.

    Raises:
        PluginError: there is no table, or one is not {name: function or class}.
    """
    found = {table: vars(module)[table] for table in TABLES if table in vars(module)}
    if not found:
        close = [word for word in (nearest(name, TABLES) for name in filter(str.isupper, vars(module))) if word]
        raise PluginError(f"{path} has no table.{close[0] if close else ''} Write one at its end: {EXAMPLE}.")
    tasks = vars(module).get("TASKS", {})
    for table, entries in found.items():
        group = TABLES[table]
        if not isinstance(entries, dict) or not entries:
            raise PluginError(f"{path}: {table} is {as_yaml(entries)}. Write a dict: {EXAMPLE}.")
        for name, call in entries.items():
            where = f"{path}: {table}"
            if not isinstance(name, str) or not CHOICE_NAME.fullmatch(name):
                allowed = "a letter, then letters, digits and _, 40 at most, and not a word such as null"
                raise PluginError(f"{where} has the name {as_yaml(name)!r}. Allowed: {allowed}.")
            if name in choices_of(group):
                raise PluginError(f"{where}: {group}={name} is there already. Choose another name.")
            is_one = inspect.isroutine(call) or isinstance(call, partial)
            if not is_one and (group == "loss" or not inspect.isclass(call)):
                kind = call if inspect.isclass(call) else type(call)
                what = f"{'the class' if kind is call else 'an object of type'} {kind.__name__}"
                allowed = f"a class or a function, without ( ): {EXAMPLE}"
                if group == "loss":
                    allowed = f"a function, such as def {name}(y_hat, y): return {kind.__name__}()(y_hat, y)"
                raise PluginError(f'{where}["{name}"] is {what}. Allowed: {allowed}.')
            task = tasks.get(name, CLASSIFICATION) if isinstance(tasks, dict) else None
            if task not in (CLASSIFICATION, REGRESSION):
                raise PluginError(f'{path}: TASKS: write TASKS = {{"{name}": "{REGRESSION}"}}, or leave it out.')
            yield Entry(group, name, call, path, task)


def check_plugged(saved: Mapping[str, Any], *, is_own: bool = True) -> None:
    """Refuse a saved config whose choices came from a file of plugins=: such a file has to be named again.

    Args:
        saved: nested, perhaps from an untrusted file. What it says of files is printed and no more.
        is_own: it is this machine's own record of a run; else no folder that it names is proposed.
    Raises:
        MissingPluginError: says what to type.
    """
    paths, found = paths_recorded(saved.get("plugins")), saved.get("choices")
    choices = found if isinstance(found, Mapping) and paths else {}
    for group in GROUPS:
        name = choices.get(group)
        if isinstance(name, str) and name not in choices_of(group):
            if set(paths) <= {*LOADED}:
                raise MissingPluginError(f"{group}={name} was in {listed(paths)} and is not any more. Put it back.")
            word = as_word(paths if is_own else [Path(path).name for path in paths])
            why = f"{group}={name} is from a file of its own, which is run only where it is typed: {word}."
            args = [arg for arg in sys.argv[1:] if not arg.startswith("plugins=")]
            raise MissingPluginError(why, f"type: {main_py()} {shlex.join([*args, word])}")


def check_unchanged(saved: Mapping[str, Any], error: ConfigError) -> None:
    """Say of an error in saved settings, an option that is not known or a value of another type, where it comes from.

    Raises:
        MissingPluginError: a file of plugins= is not what it was when they were saved.
    """
    if any(digest for _, digest in pairs_recorded(saved.get("plugins"))) and (
        changes := changes_since(saved["plugins"])
    ):
        advice = "Put the options of the training back, or start anew under another name=."
        raise MissingPluginError(str(error), *(text.removeprefix("warning: ") for text in changes), advice) from None


def unplug() -> None:
    """Forget all files of plugins=."""
    for name in [name for name, module in sys.modules.items() if MARK in getattr(module, "__dict__", {})]:
        del sys.modules[name]
    LOADED.clear()
    PLUGGED.clear()
    choices_of.cache_clear()
