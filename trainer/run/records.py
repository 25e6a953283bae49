"""What stands in the files of a run and of a sweep: a schema for each, checked where it is read. Torch-free.

A file may have been damaged by a disk, edited, or written by another version: a field that is missing or of another
kind is found here, by name, and not where it is used. Fields that no schema knows are left alone.
"""

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from trainer.config.freeze import from_dict
from trainer.config.ranges import REFERENCE_METRICS, OneOf, Range, Rule, Such
from trainer.utils.errors import ConfigError, DamagedError, MissingPluginError
from trainer.utils.files import open_regular
from trainer.utils.objective import DECIDING, OF_CLASSES
from trainer.utils.text import one_line, short_repr

MAX_RECORD = 2**26  # of a record: 100,000 epochs take 30 MB
MAX_TEXT = 100_000  # characters: a list of the reasons why jobs failed is long
MAX_FIELDS = 1000
MAX_DEPTH = 20  # of fields within fields
MAX_NORMS = 10_000  # as many tensors as a checkpoint may hold
MAX_WEIGHTS = 8  # of a linear regression whose numbers are kept after each epoch
STATES = ("running", "done", "interrupted", "failed", "diverged")

WHOLE = Range(0, 2**53, whole=True)
NUMBER = Range(-1.7e308, 1.7e308)
# a test loss may be too large for a float, and then is infinite; a whole number of 400 digits is damage
FIGURE = Such("a number", lambda value: type(value) is float or (type(value) is int and abs(value) < 2**1000))
ANY_TEXT = Such("text", lambda value: isinstance(value, str) and len(value) <= MAX_TEXT)


def time_with_zone(value: Any) -> bool:
    """Whether this is a time in ISO 8601 that can be compared with now."""
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def all_of(key: Rule, value: Rule, most: int = MAX_FIELDS) -> Callable[[Any], bool]:
    """Whether something is a dict of such keys and values, and not too many."""
    return lambda found: (
        isinstance(found, dict)
        and len(found) <= most
        and all(accepts(key, k) and accepts(value, v) for k, v in found.items())
    )


def are_settings(value: Any) -> bool:
    """Whether these are the settings of a run, which also go together.

    Raises:
        ConfigError: names the one that is not, or those that do not.
    """
    return isinstance(value, dict) and bool(from_dict(value))


def is_reference(value: Any) -> bool:
    """Whether this is what result.json holds of a published figure."""
    return fault_of(value, OF_REFERENCE) == ""


TIME = Such("a time with its zone", time_with_zone)
WORDS = Such("settings and their values as text", all_of(ANY_TEXT, ANY_TEXT))
OF_REFERENCE: "Fields" = {
    "metric": OneOf(REFERENCE_METRICS),
    "value": NUMBER,
    "tolerance": NUMBER,
    "source": Such("text or null", lambda value: value is None or accepts(ANY_TEXT, value)),
    "yours": NUMBER,
    "n": WHOLE,
    "verdict": ANY_TEXT,
    "std?": Such("a number or null", lambda value: value is None or accepts(NUMBER, value)),
}
NORMS = Such(
    "figures by the names of parameters", all_of(ANY_TEXT, FIGURE, MAX_NORMS)
)  # infinite where a step in fp16 overflowed
Fields = Mapping[str, Rule]  # by dotted name; one that ends in ? may be missing
OF_STATUS: Fields = {
    "state": OneOf(STATES),
    "started": TIME,
    "reason?": ANY_TEXT,
    "run?": ANY_TEXT,
    "checkpoint?": ANY_TEXT,
}
OF_ROW: Fields = {
    "epoch": Range(1, 10**9, whole=True),
    "step": WHOLE,
    "lr": NUMBER,
    "train_loss": NUMBER,
    "train_accuracy?": NUMBER,
    "val_loss?": NUMBER,
    "val_accuracy?": NUMBER,
    **{f"{name}?": NUMBER for name in OF_CLASSES},
    "monitor?": OneOf(DECIDING),
    "seconds": NUMBER,
    "samples_per_second": NUMBER,
    "gradient_norms?": NORMS,
    **{f"{name}?": NUMBER for name in (*(f"w{i + 1}" for i in range(MAX_WEIGHTS)), "b")},
}
OF_RESULT: Fields = {
    "epochs": WHOLE,
    "seconds": NUMBER,
    "num_parameters?": WHOLE,
    "stopped?": ANY_TEXT,
    "objective": Such("a metric and its value", all_of(ANY_TEXT, Such("", lambda value: True))),
    "objective.metric": OneOf(DECIDING),
    "objective.value": NUMBER,
    "best": Such("figures", all_of(ANY_TEXT, FIGURE)),
    "best.epoch": WHOLE,
    "test": Such("figures", all_of(ANY_TEXT, FIGURE)),
    "test.loss": FIGURE,
    "test.n": WHOLE,
    "reference?": Such("a figure beside a published one", is_reference),
}
OF_TEST: Fields = {  # of test.json
    "looks": WHOLE,
    "sha256": ANY_TEXT,
    "true?": Such("class numbers", lambda value: isinstance(value, list) and all(type(item) is int for item in value)),
    "predicted?": Such("class numbers", lambda value: isinstance(value, list) and all(type(v) is int for v in value)),
}
OF_FIGURES: Fields = {"checkpoint": ANY_TEXT}  # of eval-*.json
OF_CONFIG: Fields = {"config": Such("settings", are_settings)}
OF_SWEEP: Fields = {"sweeper": ANY_TEXT, "made_of": WORDS, "best?": WHOLE}
OF_JOB: Fields = {"job?": WHOLE, "overrides?": WORDS, "error?": ANY_TEXT}  # a missing one has its default


def accepts(rule: Rule, value: Any) -> bool:
    """Whether a value is as a rule says."""
    try:
        rule(value)
    except (ValueError, OverflowError, TypeError, RuntimeError):  # a tensor has no truth value
        return False
    return True


def fault_of(content: Any, fields: Fields) -> str:
    """What is wrong with the content of a record, by the name of the field; "" where it is as it should be."""
    if not isinstance(content, dict):
        return "it holds no fields by name"
    for name, rule in fields.items():
        key, optional = name.removesuffix("?"), name.endswith("?")
        node, _, leaf = key.rpartition(".")
        parent = content[node] if node else content  # a node stands before its leaves
        if leaf not in parent:
            if optional:
                continue
            return f"it has no {key}"
        if not accepts(rule, parent[leaf]):
            return f"its {key} is {one_line(short_repr(parent[leaf]), 80)}, not {rule}"
    return ""


def read_record(path: Path, fields: Fields) -> dict[str, Any]:
    """The content of a JSON file of ours.

    Raises:
        DamagedError: it is missing, cannot be read, or a field is not what it has to be; names the file and the field.
    """
    try:
        content = parse(text_of(path))
        check_depth(content)
        if fault := fault_of(content, fields):
            raise ConfigError(fault)
    except MissingPluginError:
        raise
    except ConfigError as error:
        raise DamagedError(f"{path} cannot be read: {str(error).removesuffix('.')}.") from None
    assert isinstance(content, dict)
    return content


def text_of(path: Path) -> str:
    """The text of a record; ConfigError with a reason where it cannot be read."""
    try:
        if not path.is_file():
            raise ConfigError("it is no file" if path.exists() else "there is no such file")
        if path.stat().st_size > MAX_RECORD:
            raise ConfigError(f"it is larger than {MAX_RECORD:,} bytes")
        with open_regular(path, "rb") as file:
            return bytes(file.read()).decode("utf-8", "replace")
    except OSError as error:
        raise ConfigError(str(error.strerror)) from None


def parse(text: str) -> Any:
    """What a JSON text says; ConfigError with a reason where it is none."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ConfigError("it is nested without end") from None
    except ValueError as error:
        raise ConfigError(f"it is no JSON: {error}") from None


def check_depth(content: Any) -> None:
    """Refuse what is nested deeper than a record is, which whoever walks through it would run out of stack for."""
    layer = [content]
    for _ in range(MAX_DEPTH):
        inside = (each.values() if isinstance(each, dict) else each for each in layer if isinstance(each, (dict, list)))
        if not (layer := [value for values in inside for value in values]):
            return
    raise ConfigError(f"it is nested deeper than {MAX_DEPTH} levels")


def whole_rows(text: str) -> tuple[list[dict[str, Any]], bool]:
    """The lines of a metrics.jsonl that are whole, and whether others are damaged and not merely the last one torn."""
    rows, damaged = [], False
    lines = [line for line in text.split("\n") if line.strip()]
    for number, line in enumerate(lines, 1):
        try:
            row = parse(line)
        except ConfigError:
            damaged |= number < len(lines)
            continue
        if fault_of(row, OF_ROW):
            damaged = True
        else:
            rows.append(row)
    return rows, damaged
