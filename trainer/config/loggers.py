"""Which values logger= takes."""

from dataclasses import dataclass
from typing import Any

LOGGERS = ("tensorboard", "csv", "mlflow", "wandb")


@dataclass(frozen=True)
class Loggers:
    """A list of some of LOGGERS, each once; one alone stands for a list of it, null for an empty one."""

    def __str__(self) -> str:
        return f"a list of {', '.join(LOGGERS)}, each once, [] or null"

    def __call__(self, value: Any) -> Any:
        """Return the value in its final type, or raise ValueError."""
        names = value if isinstance(value, list) else [] if value is None else [value]
        if any(name not in LOGGERS for name in names) or len(set(names)) < len(names):
            raise ValueError
        return names
