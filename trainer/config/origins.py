"""Where each setting of a run came from: typed, a file of configs/, or the default."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.config.command_line import split_word
from trainer.config.options import (
    CONFIGS,
    choices_of,
    defaults_of,
    experiment_settings,
    flatten,
    group_choices,
    load_yaml,
    run_settings,
)
from trainer.config.schema import GROUPS

DEFAULT, TYPED_NOW, CHOSEN = "default", "typed", "auto"


def origins(settings: Mapping[str, Any], words: Sequence[str]) -> dict[str, str]:
    """{setting: "typed", "default", "auto" (chosen for the machine), or the file of configs/ with its value}.

    Args:
        settings: of a run, by dotted name; a group's choice by the name of the group.
        words: of the command that started it.
    """
    typed = {key: value for key, value in map(split_word, words) if value}
    choices = {group: str(settings.get(group)) for group in GROUPS}
    is_known = all(choices[group] in choices_of(group) for group in GROUPS)  # else a plugin brought one
    defaults = defaults_of(choices) if is_known else run_settings()
    asked = {"data": choices["data"], "experiment": typed.get("experiment", "null")}
    brought = group_choices(asked) if is_known else choices
    files = files_of_choices(typed.get("experiment"), choices)
    found = {}
    for key, value in settings.items():
        if key in typed:
            found[key] = TYPED_NOW
        elif key in GROUPS:
            is_default = value == group_choices({})[key]
            found[key] = DEFAULT if is_default else "data or experiment" if brought[key] == value else TYPED_NOW
        elif defaults.get(key, value) == value:
            found[key] = DEFAULT
        elif key.startswith("device.") and defaults[key] == "auto":
            found[key] = CHOSEN
        else:  # set by another command of the run, or by the jobs of a sweep, it is typed as well
            found[key] = next((name for name, own in files if own.get(key) == value), TYPED_NOW)
    return found


def files_of_choices(experiment: str | None, choices: Mapping[str, str]) -> list[tuple[str, dict[str, Any]]]:
    """The files of configs/ that may set something for these choices, the strongest first, and what each one sets."""
    data, model, optimizer, schedule = (choices[group] for group in ("data", "model", "optimizer", "schedule"))
    paths = [
        f"recipe/schedule/{data}_{model}_{schedule}.yaml",
        f"recipe/optimizer/{data}_{model}_{optimizer}.yaml",
        f"recipe/{data}_{model}.yaml",
        f"data/{data}.yaml",
    ]
    there = [(f"configs/{path}", flatten(load_yaml(CONFIGS / path))) for path in paths if (CONFIGS / path).is_file()]
    if experiment is not None and (CONFIGS / f"experiment/{experiment}.yaml").is_file():
        return [(f"configs/experiment/{experiment}.yaml", experiment_settings(experiment)), *there]
    return there
