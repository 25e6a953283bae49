"""What each setting is for: which commands it counts for, and what resume may change."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from trainer.config.options import flatten
from trainer.config.schema import Config

# settings that belong to a command and are never taken from what an earlier one saved
OF_THE_COMMAND = (
    *("resume", "resume_allow", "checkpoint", "input", "split", "plots"),
    *("paths.outputs", "paths.checkpoints", "paths.cache"),
)
# what resume may change: no number depends on it, or only on how far training goes. Another device or number of threads
# rounds differently, and a warning says so.
FREE_ON_RESUME = (
    "checkpoint",
    "choices.device",
    "data.mirror",
    "data.resident",
    "data.workers",
    "device.deterministic",
    "device.index",
    "device.num_threads",
    "early_stopping.",
    "epochs",
    "input",
    "name",
    "paths.",
    "plots",
    "record.",
    "reference.",
    "resume",
    "save.",
    "split",
    "stop_at.",
    "sweep.",
)
HOW_FAR = ("epochs", "early_stopping.", "stop_at.")  # those of them that say when training ends


def fingerprint(config: Config) -> str:
    """SHA-256 of the settings that the numbers depend on: equal for two runs that ought to be the same."""
    return hashlib.sha256(json.dumps(decisive(config.to_dict()), sort_keys=True).encode()).hexdigest()


def decisive(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the numbers depend on, by dotted name."""
    return {key: value for key, value in flatten(plain).items() if not key.startswith(FREE_ON_RESUME)}
