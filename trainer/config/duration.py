"""Which values budget= takes: a time such as 1h30m."""

import re
from dataclasses import dataclass
from typing import Any

SECONDS_IN = {"d": 86400, "h": 3600, "m": 60, "s": 1}
WORDING = re.compile("".join(f"(?:([0-9]{{1,5}}){unit})?" for unit in SECONDS_IN))


def in_seconds(duration: str) -> int:
    """The seconds of a time such as 1h30m; 0 where it is none."""
    found = WORDING.fullmatch(duration)
    return sum(int(n or 0) * unit for n, unit in zip(found.groups(), SECONDS_IN.values(), strict=True)) if found else 0


@dataclass(frozen=True)
class Duration:
    """A time above 0, in days, hours, minutes and seconds."""

    def __str__(self) -> str:
        return "a time such as 45s, 20m, 1h30m or 2d"

    def __call__(self, value: Any) -> Any:
        """Return the value in its final type, or raise ValueError."""
        if not isinstance(value, str) or not in_seconds(value):
            raise ValueError
        return value
