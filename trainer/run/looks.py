"""How often a run's test split was looked at, and which of its examples the run has right: test.json. Torch-free."""

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


def note_look(outputs: Path, sha256: str, right: list[bool] | None = None) -> int:
    """Count a look at the test split of a run; returns how many there were.

    Args:
        outputs: outputs/<run>.
        sha256: digest of the data. Looks at other data are not counted together.
        right: whether each example is classified right, in the order of the split; None leaves what is known.
    """
    before = looks_of(outputs)
    kept = before if before["sha256"] == sha256 else {"looks": 0}
    told = {"right": "".join("01"[is_right] for is_right in right)} if right is not None else {}
    write_json(outputs / "test.json", kept | {"sha256": sha256, "looks": kept["looks"] + 1} | told)
    return int(kept["looks"]) + 1
