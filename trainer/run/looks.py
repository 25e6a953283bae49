"""How often a run's test split was looked at, and what the run says of each of its examples: test.json. Torch-free."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.run import records
from trainer.utils.errors import DamagedError
from trainer.utils.files import write_json


def looks_of(outputs: Path) -> dict[str, Any]:
    """The content of outputs/<run>/test.json; without a look where there is no such file, or a damaged one."""
    try:
        return records.read_record(outputs / "test.json", records.OF_TEST)
    except DamagedError:
        return {"looks": 0, "sha256": ""}


def note_look(outputs: Path, sha256: str, classes: Mapping[str, list[int]] | None = None) -> int:
    """Count a look at the test split of a run; returns how many there were.

    Args:
        outputs: outputs/<run>.
        sha256: digest of the data. Looks at other data are not counted together.
        classes: of each example in the order of the split, `true` and `predicted`; None leaves what is known.
    """
    before = looks_of(outputs)
    kept = before if before["sha256"] == sha256 else {"looks": 0}
    write_json(outputs / "test.json", kept | {"sha256": sha256, "looks": kept["looks"] + 1} | dict(classes or {}))
    return int(kept["looks"]) + 1


def right_of(test: Mapping[str, Any]) -> list[bool] | None:
    """Whether each test example is classified right; None for a regression."""
    true, predicted = test.get("true"), test.get("predicted")
    if not true or not predicted or len(true) != len(predicted):
        return None
    return [a == b for a, b in zip(true, predicted, strict=True)]


def vote_of(tests: Sequence[Mapping[str, Any]]) -> float | None:
    """The accuracy of the majority of several runs; of classes with equally many votes the earliest run's counts.

    None where the runs have not all said something of the same examples.
    """
    if any(right_of(test) is None or test["true"] != tests[0]["true"] for test in tests):
        return None
    num_right = 0
    for true, *votes in zip(tests[0]["true"], *(test["predicted"] for test in tests), strict=True):
        num_right += max(votes, key=votes.count) == true  # max() takes the first of equals
    return num_right / len(tests[0]["true"])
