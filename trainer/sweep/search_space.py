"""Search spaces: what may be suggested for a setting, as one of Optuna's distributions.

The words `interval(1e-4,1)`, `range(32,256,step=32)` and `choice(a,b)` are read by Hydra, in the sweeper plugin; here
is what they mean, and what is refused. Every bound and every choice has to be allowed for its setting, so that a space
that would fail in one trial of forty fails at once.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainer.config.options import check_choice, check_value
from trainer.config.ranges import RANGES, Range
from trainer.config.schema import GROUPS
from trainer.utils.errors import ConfigError, listed

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Space = dict[str, "BaseDistribution"]
MAX_GRID = 100_000  # points; all of them are held in memory


def interval(key: str, low: float, high: float, *, log: bool, defaults: Mapping[str, Any]) -> "BaseDistribution":
    """Numbers from low to high, both included: whole ones where the setting is, or where int(...) made the bounds so.

    Args:
        log: suggest by the logarithm: as often in 1e-4 to 1e-3 as in 0.1 to 1.
        defaults: every setting of the command with its default.
    Raises:
        ConfigError: bounds that are not finite, not in order, not allowed for the setting, or not above 0 with log.
    """
    from optuna.distributions import FloatDistribution, IntDistribution

    text = f"{key}={'tag(log, ' if log else ''}interval({low:g},{high:g}){')' if log else ''}"
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"{text} is not allowed. Allowed: interval(low,high), two numbers, low below high.")
    if log and low <= 0:
        raise ConfigError(f"{text} is not allowed: a logarithm needs numbers above 0. Allowed: low above 0.")
    rule = RANGES.get(key)
    if isinstance(rule, Range) and rule.whole and low == int(low) and high == int(high):
        low, high = int(low), int(high)
    check_values(key, [low, high], defaults)
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


def steps(key: str, start: float, stop: float, step: float, *, defaults: Mapping[str, Any]) -> "BaseDistribution":
    """The numbers of range(start,stop,step=...), without stop as everywhere in Python.

    Raises:
        ConfigError: there is none, or one is not allowed for the setting.
    """
    from optuna.distributions import FloatDistribution, IntDistribution

    count = math.ceil((stop - start) / step - 1e-9) if step > 0 else 0  # 0.9 / 0.3 is a little above 3
    if count < 1:
        raise ConfigError(
            f"{key}=range({start:g},{stop:g},step={step:g}) holds no number. Allowed: start below stop, step above 0."
        )
    last = start + (count - 1) * step
    last = last if isinstance(last, int) else float(f"{last:.12g}")  # 0.6, not 0.6000000000000001
    check_values(key, [start, last], defaults)
    if isinstance(start, int) and isinstance(step, int):
        return IntDistribution(start, int(last), step=step)
    return FloatDistribution(start, last, step=step)


def choices(
    key: str, values: Sequence[Any], words: Sequence[Any], *, defaults: Mapping[str, Any]
) -> "BaseDistribution":
    """A few values, none nearer to one than to another.

    Args:
        values: as they are.
        words: as they are stored and typed: numbers and truth values as they are, all else as text.
    Raises:
        ConfigError: one is not allowed for the setting.
    """
    from optuna.distributions import CategoricalDistribution

    check_values(key, values, defaults)
    return CategoricalDistribution(list(words))


def check_values(key: str, values: Sequence[Any], defaults: Mapping[str, Any]) -> None:
    """Refuse what the setting does not allow; an option of a choice that is searched too is checked by its run."""
    for value in values:
        if key in GROUPS:
            check_choice(key, str(value))
        elif key in defaults:
            check_value(key, value, defaults[key])


def word(value: Any) -> str:
    """A suggested value as it is typed behind `key=`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def points(space: Space) -> dict[str, list[Any]]:
    """All values of each setting, for sampler=grid.

    Raises:
        ConfigError: a setting has no finite list of values, or there are too many combinations.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    grid: dict[str, list[Any]] = {}
    for key, one in space.items():
        if isinstance(one, CategoricalDistribution):
            grid[key] = list(one.choices)
        elif isinstance(one, IntDistribution):
            grid[key] = list(range(one.low, one.high + 1, one.step))
        elif isinstance(one, FloatDistribution) and one.step is not None:
            count = round((one.high - one.low) / one.step) + 1
            grid[key] = [float(f"{one.low + i * one.step:.12g}") for i in range(count)]
        else:
            raise ConfigError(
                f"hydra.sweeper.sampler=grid tries every combination, and {key} is an interval of real numbers. "
                f"Allowed: lists, choice(...), range(...), int(interval(...)); or another sampler."
            )
    if math.prod(map(len, grid.values())) > MAX_GRID:
        raise ConfigError(f"hydra.sweeper.sampler=grid: more than {MAX_GRID:,} combinations. Allowed: fewer values.")
    return grid


def check_numbers(space: Space) -> None:
    """Refuse what sampler=cmaes cannot suggest.

    Raises:
        ConfigError: names the settings that are no numbers.
    """
    from optuna.distributions import CategoricalDistribution

    if words := [key for key, one in space.items() if isinstance(one, CategoricalDistribution)]:
        raise ConfigError(
            f"hydra.sweeper.sampler=cmaes is for numbers; {listed(words)} is a list of choices. "
            "Allowed: interval(...) and range(...); or another sampler."
        )


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """The keys whose values differ, or that one of the two lacks."""
    keys = dict.fromkeys(itertools.chain(old, new))
    return [key for key in keys if old.get(key) != new.get(key)]
