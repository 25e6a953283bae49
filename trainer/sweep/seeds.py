"""What runs that differ in the seed alone come to together: mean, spread, and the verdict beside a published figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.run import directory
from trainer.run.looks import looks_of, vote_of
from trainer.sweep.job import as_words
from trainer.utils.errors import DamagedError
from trainer.utils.evidence import mean_of
from trainer.utils.objective import rating, said
from trainer.utils.text import one_line

SHOWN = 8  # settings


def groups_of(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    """The jobs that are done, by their values of these keys: those of a group differ in the seed only."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["objective"] is not None:
            groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def lines_on_seeds(folder: Path, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[str]:
    """A line or two for each setting of which several seeds are done, the first ones only.

    Args:
        folder: outputs/<sweep>.
        rows: of sweep.csv.
        keys: what was swept over.
    """
    others = [key for key in keys if key != "seed"]
    lines = []
    for values_of_setting, members in list(groups_of(rows, others).items())[:SHOWN]:
        setting = as_words(dict(zip(others, values_of_setting, strict=True)))
        metric = next((key for key in ("test_accuracy", "test_rmse") if members[0][key] is not None), "test_loss")
        values = [row[metric] for row in members]
        if len(values) < 2 or None in values:
            continue
        of = f" with {one_line(setting)}" if setting else ""
        lines.append(f"{metric.replace('_', ' ')}{of}: {mean_of(values, metric)}")
        if reference := reference_of(folder, members):
            lines.append(said(reference))
        if (vote := vote_of([looks_of(folder / str(row["job"])) for row in members])) is not None:
            lines.append(line_of_vote(folder / str(members[0]["job"]), vote, len(members)))
    return lines


def line_of_vote(run: Path, vote: float, n: int) -> str:
    """What the majority of several runs comes to, beside its published figure where the runs have one."""
    try:
        reference = directory.read_config(run)["reference"]
    except DamagedError:
        reference = {}
    if reference.get("metric") != "vote_accuracy":
        return f"majority of the {n}: test accuracy {vote:.4f}"
    word = rating("vote_accuracy", vote, reference["value"], reference["tolerance"])
    return said(reference | {"yours": vote, "n": n, "verdict": word})


def reference_of(folder: Path, members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several runs come to beside their published figure; {} where they have none in common."""
    found = [(directory.read_result(folder / str(row["job"])) or {}).get("reference") for row in members]
    known = [each for each in found if isinstance(each, dict)]
    if not known or len(known) < len(found) or len({(each["metric"], each["value"]) for each in known}) > 1:
        return {}
    mean, first = mean_of([each["yours"] for each in known]), known[0]
    word = rating(first["metric"], mean.value, first["value"], first["tolerance"])
    return first | {"yours": mean.value, "std": mean.std, "n": mean.n, "verdict": word}
