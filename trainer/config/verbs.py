"""The commands, and what those take that are about the runs of before: names, words of their own, flags. Torch-free."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trainer.utils.errors import ConfigError, close_to, did_you_mean, listed
from trainer.utils.program import main_py

FOLDERS = ("paths.outputs", "paths.checkpoints")  # where the runs are: for each of these commands
PLACES_OF_DATA = ("data.root", "data.test_root", "data.path", "data.test_path")
ELSEWHERE = ("plugins", "paths.data", *PLACES_OF_DATA)  # where the data of a run may be now
EXPORT_TO = ("onnx", "safetensors", "torch_export")
ENOUGH = 10**9


@dataclass(frozen=True)
class Takes:
    """What a command about runs takes besides paths.outputs= and paths.checkpoints=.

    Attributes:
        usage: how it is typed.
        least: names of runs, at least.
        most: names of runs, at most.
        keys: {its own key: what it takes}.
        flags: those that it has.
        settings: of a training, that it passes on.
    """

    usage: str
    least: int = 0
    most: int = 0
    keys: Mapping[str, str] = field(default_factory=dict)
    flags: Sequence[str] = ()
    settings: Sequence[str] = ()


OF_RUNS = {
    "compare": Takes("compare RUN RUN", most=ENOUGH),  # it says itself which runs it needs
    "experiments": Takes("experiments"),
    "runs": Takes(
        "runs where=model=mlp sort=test",
        keys={"where": "conditions such as model=mlp,test>0.9", "sort": "a column or setting", "limit": "1 or more"},
        flags=("--json",),
    ),
    "show": Takes("show RUN", least=1, most=1, flags=("--json",)),
    "report": Takes("report RUN", least=1, most=1, settings=(*ELSEWHERE, "paths.cache")),
    "diff": Takes("diff RUN RUN", least=2, most=ENOUGH),
    "rerun": Takes("rerun RUN name=NEW", least=1, most=1, keys={"name": "of the new run"}, settings=ELSEWHERE),
    "export": Takes(
        "export RUN format=onnx",
        least=1,
        most=1,
        keys={"format": "one of EXPORT_TO", "output": "the file to write"},
        settings=ELSEWHERE,
    ),
    "bench": Takes(
        "bench RUN device=cpu",
        least=1,
        most=1,
        settings=("device", "device.num_threads", "device.precision", *ELSEWHERE),
    ),
    "rm": Takes("rm RUN", least=1, most=ENOUGH, flags=("--yes",)),
    "board": Takes("board RUN port=6006", most=1, keys={"port": "1 to 65535"}),
}
VERBS = (
    "train",
    "eval",
    "predict",
    "check-resume",
    "compare-impl",
    "summary",
    "doctor",
    "data",
    "completion",
    *OF_RUNS,
)
WITH_DATA = ("show", "where", "verify", "fetch", "pack")  # what the data command does with a set


def check_words_of_runs(verb: str, names: Sequence[str], settings: Sequence[str], flags: Sequence[str]) -> None:
    """Refuse what a command about runs does not take.

    Args:
        verb: one of OF_RUNS.
        names: its plain words.
        settings: words with an equals sign.
        flags: words that begin with a dash.
    Raises:
        ConfigError: names the first word that is one too many, or what is missing.
    """
    takes = OF_RUNS[verb]
    own = [*(f"{key}=" for key in (*takes.keys, *takes.settings)), *takes.flags]
    usage = f"{main_py()} {takes.usage}"
    known = [*takes.keys, *takes.settings, *FOLDERS]
    for typed in (*settings, *flags):
        word, _, value = typed.partition("=")
        if word == "format" and verb == "export" and value not in EXPORT_TO:
            meant = next(iter(close_to(value, EXPORT_TO)), "")
            hint = did_you_mean([f"format={meant}"] if meant else [])
            error = ConfigError(f"{typed} is not allowed.{hint} Allowed: {listed(EXPORT_TO)}.")
            raise error.instead(word, value, meant)
        if word in known or typed in takes.flags:
            continue
        what = listed([*(["runs"] if takes.most else []), *own, "paths.outputs=", "paths.checkpoints="])
        close = close_to(word.lstrip("-"), [*known, *takes.flags])
        where = f"where={typed}" if "where" in takes.keys and not word.startswith("-") and not close else ""
        meant = where or "".join(close)
        error = ConfigError(f"{typed}: {verb} takes {what}.{did_you_mean([meant] if meant else [])}")
        raise error.instead(word, "", f"where={word}=" if where else f"{meant}=" if meant in known else "")
    if len(names) > takes.most:
        few = f"{takes.most} run" if takes.most else "no names"
        train = f" To train one: {main_py()} experiment={names[0]}" if verb == "experiments" else ""
        raise ConfigError(f"{names[takes.most]}: {verb} takes {few}.{train or f' Type: {usage}'}")
    if len(names) < takes.least:
        raise ConfigError(f"{verb} needs {'two runs' if takes.least > 1 else 'a run'}: {usage}")
