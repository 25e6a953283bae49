"""What each setting is for: one table, from which everything that depends on it is derived.

It decides what resume may change, what identifies a sweep and a study, and what each command does with a setting that
was typed. A new setting that no line covers fails a test.
"""

import hashlib
import json
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any, NamedTuple

from trainer.config.fit import has_open_end
from trainer.config.options import chosen_engines, flatten
from trainer.config.ranges import OF_NUMBERS
from trainer.config.schema import GROUPS, Config
from trainer.config.tasks import REGRESSION, tasks_of
from trainer.config.verbs import PLACES_OF_DATA
from trainer.utils.errors import ConfigError


class Role(Enum):
    """What a setting is for."""

    NUMBERS = auto()  # the results depend on it: with another value it is another run
    ROUNDING = auto()  # the last bits depend on it: fixed for a run, but the runs of a sweep may differ in it
    FAR = auto()  # how far training goes: may change on resume
    MACHINE = auto()  # where and how fast the run is computed; resume warns if the machine rounds differently
    RECORDS = auto()  # what is written besides the result
    COMMAND = auto()  # belongs to one command: never taken from what an earlier command saved
    NAME = auto()  # of the run; with -m of the sweep
    SWEEP = auto()  # which runs a sweep has and how it trains them
    LAUNCH = auto()  # where the runs of a sweep are computed, and how many trials a search has


USED, NO_EFFECT, REFUSED = "+", "-", "x"  # no effect: a warning says so, and the setting is left out
# A name that ends in "." or "/" stands for all settings that begin with it; the longest name that fits counts.
# train: a new run. resume: train with a run to continue. sweep: train with -m. _depends() has what other typed settings
# change.
TABLE = """
role      settings                                      train resume sweep eval predict check-resume compare-impl summary doctor
NUMBERS   experiment recipe recipe/                       +     -      +     -     -         +            +          +       +
NUMBERS   data data.                                      +     +      +     +     +         +            +          +       +
NUMBERS   data.val_fraction data.split_seed data.limit    +     +      +     -     -         +            +          +       +
NUMBERS   data.normalize data.augment data.expand         +     +      +     -     -         +            +          +       +
NUMBERS   data.first_sizes                                +     +      +     -     -         +            +          +       +
NUMBERS   data.fit data.interpolation                     +     +      +     -     -         +            +          +       +
NUMBERS   data.mixup data.cutmix                          +     +      +     -     -         +            +          +       +
NUMBERS   data.order_seed data.drop_last data.balance     +     +      +     -     -         +            +          +       +
NUMBERS   data.target data.task data.features data.drop   +     +      +     -     -         +            +          +       +
COMMAND   data.mirror                                     +     +      +     +     +         +            +          +       +
MACHINE   data.resident data.workers data.cache_gb        +     +      +     +     +         +            +          +       +
NUMBERS   model loss optimizer schedule                   +     +      +     x     x         +            +          +       +
NUMBERS   model.weights                                   +     +      +     x     x         +            x          +       +
NUMBERS   model. loss. optimizer. schedule.               +     +      +     -     -         +            +          +       +
NUMBERS   impl model.impl                                 +     +      +     +     +         +            x          +       +
NUMBERS   loss.impl                                       +     +      +     +     -         +            x          +       +
NUMBERS   optimizer.impl                                  +     +      +     -     -         +            x          +       +
MACHINE   device                                          +     +      +     +     +         +            +          +       +
MACHINE   device.index device.num_threads                 +     +      +     +     +         +            +          +       +
MACHINE   device.deterministic                            +     +      +     +     +         +            +          +       +
ROUNDING  device.                                         +     +      +     +     +         +            +          +       +
NUMBERS   seed batch_size accumulate_steps clip_norm      +     +      +     -     -         +            +          +       +
NUMBERS   ema_decay overfit_batches whiten                +     +      +     -     -         +            +          +       +
NUMBERS   monitor                                         +     +      +     -     -         +            -          -       -
NUMBERS   fast_dev_run                                    +     +      +     -     -         x            +          -       -
NUMBERS   sync_batch_norm                                 +     +      +     -     -         -            -          -       -
NUMBERS   init_from                                       +     +      +     x     x         +            x          +       +
NUMBERS   finetune.                                       +     +      +     -     -         +            +          +       +
FAR       epochs                                          +     +      +     -     -         +            +          -       +
FAR       max_steps                                       +     +      +     -     -         +            +          -       -
NUMBERS   budget                                          +     +      +     -     -         -            -          -       -
FAR       early_stopping. stop_at.                        +     +      +     -     -         +            -          -       -
RECORDS   save. reference.                                +     +      +     -     -         -            -          -       -
RECORDS   record.                                         +     +      +     -     -         +            -          -       -
RECORDS   logger                                          +     +      +     -     -         -            -          -       -
COMMAND   plugins                                         +     +      +     +     +         +            +          +       +
COMMAND   plots                                           +     +      +     +     +         -            +          -       +
COMMAND   report                                          +     +      +     -     -         -            -          -       -
COMMAND   paths.outputs                                   +     +      +     +     +         +            +          -       +
COMMAND   paths.checkpoints                               +     +      +     +     +         +            -          +       +
COMMAND   paths.cache                                     +     +      +     +     +         +            +          +       +
MACHINE   paths.data                                      +     +      +     +     +         +            +          +       +
MACHINE   paths.weights                                   +     -      +     -     -         +            +          +       +
NAME      name                                            +     +      +     -     -         x            x          x       x
COMMAND   resume                                          +     +      x     x     x         x            x          x       x
COMMAND   resume_allow                                    +     +      +     x     x         x            x          x       x
COMMAND   overwrite                                       +     x      x     x     x         x            x          x       x
COMMAND   checkpoint ensemble                             x     x      x     +     +         x            x          x       x
COMMAND   split                                           x     x      x     +     x         x            x          x       x
COMMAND   tta                                             x     x      x     +     +         x            x          x       x
COMMAND   input output top_k probabilities                x     x      x     x     +         x            x          x       x
SWEEP     seeds                                           +     x      +     x     x         x            x          x       x
SWEEP     sweep.                                          -     -      +     -     -         -            -          -       -
SWEEP     hydra/sweeper hydra.sweeper.                    x     x      +     x     x         x            x          x       x
LAUNCH    hydra.sweeper.n_jobs hydra.sweeper.n_trials     x     x      +     x     x         x            x          x       x
LAUNCH    hydra/launcher hydra.launcher.                  x     x      +     x     x         x            x          x       x
"""  # noqa: E501


class Line(NamedTuple):
    """A line of TABLE: the role of some settings, and {use: + - x}."""

    role: Role
    verdicts: Mapping[str, str]


_HEADER, *_LINES = (line.split() for line in TABLE.strip().splitlines())
USES = _HEADER[2:]
ROWS = {
    name: Line(Role[role], dict(zip(USES, cells[-len(USES) :], strict=True)))
    for role, *cells in _LINES
    for name in cells[: -len(USES)]
}


def row_for(key: str) -> Line | None:
    """The line of the table that a dotted key falls under; a group choice is `model` or `choices.model`."""
    key = key.removeprefix("choices.")
    prefixes = [key[: i + 1] for i, sign in enumerate(key) if sign in "./"]
    return next((ROWS[name] for name in (key, *reversed(prefixes)) if name in ROWS), None)


def _names(*roles: Role) -> tuple[str, ...]:
    """The settings of these roles as they begin in Config.to_dict(), for startswith()."""
    return tuple(f"choices.{name}" if name in GROUPS else name for name, row in ROWS.items() if row.role in roles)


OF_THE_COMMAND = _names(Role.COMMAND)
# What a file that somebody sent does not choose either: a device, a folder, processes. This machine's defaults, its own
# record of the run and the command line do.
OF_THIS_MACHINE = (*_names(Role.MACHINE), "device.compile", "logger", *PLACES_OF_DATA)
# With other values of these the run is still the same run, apart from how far it gets.
FREE_ON_RESUME = _names(*(set(Role) - {Role.NUMBERS, Role.ROUNDING}))
HOW_FAR = _names(Role.FAR)
OF_THE_RUN = (*_names(Role.NAME), "resume")  # may differ among the runs of a stack, which share everything else
IDENTITY = {  # what makes a sweep or a study the same one; each of its runs checks its other settings when it resumes
    "sweep": {Role.NUMBERS},
    "study": {Role.NUMBERS, Role.FAR},  # trials of other lengths cannot be compared
    "name": set(Role) - {Role.NAME, Role.LAUNCH},  # of a sweep without name=
}


def identifies(what: str, key: str) -> bool:
    """Whether a typed setting is part of what a sweep, a study or the name of a sweep is made of."""
    row = row_for(key)
    return row is not None and row.role in IDENTITY[what]


def decisive(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of Config.to_dict() that the results depend on, by dotted name."""
    return {key: value for key, value in flatten(plain).items() if not key.startswith(FREE_ON_RESUME)}


def fingerprint(config: Config) -> str:
    """SHA-256 of the decisive settings: equal for two runs that should have the same results."""
    return hashlib.sha256(json.dumps(decisive(config.to_dict()), sort_keys=True).encode()).hexdigest()


FOR_OTHERS = "To continue a run: resume=. To start from its weights: init_from=."
WHY_REFUSED = {
    "resume overwrite": "starts a run anew, and resume= continues one. Leave one of them out.",
    "sweep overwrite": "is for one run. The same command continues a sweep, another name= starts one anew.",
    "sweep resume": "continues one run. A sweep is continued by giving the same command again.",
    "eval": "is not for eval. Allowed: checkpoint=, split=, tta=, data=, device=, plots=, paths.*, impl=.",
    "predict": "is not for predict. Allowed: checkpoint=, input=, output=, top_k=, probabilities=, tta=, data=, "
    "device=, plots=, paths.*, impl=.",
    "check-resume": "is not for check-resume: it trains short runs of its own, elsewhere. Leave it out.",
    "compare-impl": "is not for compare-impl: it trains runs of its own, one in each library. Leave it out.",
    "summary": "is not for summary: it makes no run. Leave it out.",
    "doctor": "is not for doctor: it makes no run. Leave it out.",
    "data": "is not for data: it makes no run. Leave it out.",
}


def _depends(use: str, key: str, typed: Mapping[str, str]) -> tuple[str, str] | None:
    """The verdict on a setting where another typed one decides it, and why; None: the table decides."""
    if use == "train" and key == "resume_allow" and "resume" not in typed:
        return NO_EFFECT, "resume= is not given"
    if use == "train" and key == "overwrite" and "resume" in typed:  # resume=auto, where there is no such run yet
        return REFUSED, WHY_REFUSED["resume overwrite"]
    if use == "sweep" and key == "sweep.stack" and set(chosen_engines(typed).values()) != {"basic"}:
        return NO_EFFECT, "hydra/sweeper and hydra/launcher train each run by itself"
    split = typed.get("split", "test")
    if use == "eval" and key in ("data.val_fraction", "data.split_seed", "data.limit") and split != "test":
        return REFUSED, f"is not for split={split}: which examples are in it comes from the checkpoint. Leave it out."
    if use == "eval" and key == "data.eval_limit" and split == "train":
        return NO_EFFECT, "it is for validation and test"
    of_the_set = key.startswith(("data", "paths.data", "paths.cache"))
    of_the_set = of_the_set and key not in ("data.depth", "data.max_megapixels")
    if use == "predict" and of_the_set and "input" in typed:
        return NO_EFFECT, "input= says what is labelled"
    starts = {"init_from", "model.weights"} & typed.keys()  # from a run that is looked for there
    if use == "check-resume" and key in ("paths.outputs", "paths.checkpoints") and not starts:
        return NO_EFFECT, "its runs are written to a temporary folder"
    return None


def verdict_on(use: str, key: str, typed: Mapping[str, str]) -> tuple[str, str]:
    """What a command does with one typed setting: USED, NO_EFFECT or REFUSED, and why.

    Args:
        use: a column of TABLE: the command, or how train is used.
        key: the setting by its dotted name; a group by its name.
        typed: {key: value} of the whole command line, the values without quotes.
    """
    if found := _depends(use, key, {name: value for name, value in typed.items() if value != "null"}):
        return found
    row = row_for(key)
    assert row is not None, f"{key} has no line in TABLE"
    column = "summary" if use.startswith("data ") else use
    if use == "data show" and key in ("plots", "paths.outputs"):  # it draws, as doctor does
        column = "doctor"
    verdict = row.verdicts[column]
    if verdict == REFUSED and key in GROUPS:
        return verdict, f"is not for {use}: the {key} comes from the checkpoint. What may change: data=, device=."
    if verdict == REFUSED:
        of_predict = dict.fromkeys(("input", "output", "top_k", "probabilities"), "predict")
        whose = ({"split": "eval"} | of_predict).get(key, "eval and predict")
        return verdict, WHY_REFUSED.get(f"{use} {key}") or WHY_REFUSED.get(
            use.split()[0], f"is for {whose}. {FOR_OTHERS}"
        )
    if key.startswith(("experiment", "recipe")):
        return verdict, "the settings are those of the run"
    return verdict, "it is for sweeps (-m)" if key == "sweep.stack" else ""


def check_typed(use: str, typed: Mapping[str, str]) -> dict[str, str]:
    """Refuse what is not for a command, and find what does nothing there.

    Args:
        use: as for verdict_on.
        typed: as for verdict_on.
    Returns:
        {key: warning} for each setting that has no effect. The caller leaves these out, which makes it true.
    Raises:
        ConfigError: names the setting, the reason and what to type instead.
    """
    warnings: dict[str, str] = {}
    for key, value in typed.items():
        verdict, why = verdict_on(use, key, typed)
        if verdict == REFUSED and value == "null":  # which is what these settings are when nobody types them
            continue
        if verdict == REFUSED:
            raise ConfigError(f"{key}= {why}")
        if verdict == NO_EFFECT:  # recipe=none expands to three keys; the user is warned once
            warnings[key] = f"warning: {key.partition('/')[0]} has no effect on {use}{f': {why}' if why else ''}"
    return warnings


def without_effect(use: str, config: Config) -> list[str]:
    """Warnings about typed settings that have no effect because of another setting, which may not have been typed."""
    trains = use not in ("eval", "predict")
    regression = tasks_of(config.data) == (REGRESSION,)
    metric = config.reference.metric
    of_a_known_law = config.model.name == "linreg" and config.data.name == "synthetic"
    unmixed = (trains and config.overfit_batches, "overfit_batches trains on examples as they are")
    if config.batch_size == 1:
        unmixed = (trains, "batch_size=1 has no other image in the batch")
    void = {
        "epochs": (trains and config.fast_dev_run, "fast_dev_run=true trains one epoch"),
        "max_steps": (trains and config.fast_dev_run, "fast_dev_run=true trains one step"),
        "budget": (trains and config.fast_dev_run, "fast_dev_run=true trains one step"),
        "data.augment": (trains and config.overfit_batches, "overfit_batches trains on examples as they are"),
        "data.first_sizes": (trains and config.overfit_batches, "overfit_batches trains on examples as they are"),
        **dict.fromkeys(("data.mixup", "data.cutmix"), unmixed),
        "data.fresh": (trains and config.overfit_batches, "overfit_batches trains on the same rows in each epoch"),
        "model.init_std": (trains and config.model.options.get("start") is not None, "model.start sets all weights"),
        "finetune.backbone_lr": (
            config.finetune.is_frozen,
            "finetune.freeze=backbone without finetune.unfreeze_epoch never trains the backbone",
        ),
        "finetune.unfreeze_epoch": (
            (config.finetune.unfreeze_epoch or 0) > config.epochs and not has_open_end(config),
            f"training ends with epoch {config.epochs}",
        ),
        "early_stopping.min_delta": (not config.early_stopping.patience, "early_stopping.patience=0 never stops"),
        "reference.metric": (
            (metric == "test_accuracy" and regression)
            or (metric == "weight_error" and not of_a_known_law)
            or (metric in OF_NUMBERS and config.data.name != "table"),
            f"this run has no {metric}, so that it ends without a verdict",
        ),
        "reference.source": (metric is None, "reference.metric is null"),
        "reference.value": (metric is None, "reference.metric is null"),
        "reference.tolerance": (metric is None, "reference.metric is null"),
        "overwrite": (trains and config.name is None, "name= is not given, and each new name is another"),
        "plots": (use == "eval" and regression and config.data.name != "table", "it draws nothing for a regression"),
    }
    found = [(key, *void[key]) for key in dict.fromkeys(config.typed) if key in void]
    return [f"warning: {key} has no effect on {use}: {why}" for key, holds, why in found if holds]
