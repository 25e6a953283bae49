import inspect
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.optim import lr_scheduler

from trainer.schedules import SCHEDULES

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "schedule"
TOTAL = 60  # steps, 10 an epoch
ONECYCLE: dict[str, Any] = {"warmup_fraction": 0.3, "initial_factor": 0.04, "final_factor": 0.001, "anneal": "linear"}


def factors(name: str, total_steps: int = TOTAL, **options: Any) -> list[float]:
    factor = partial(SCHEDULES[name], steps_per_epoch=10, total_steps=total_steps, **options)
    return [factor(step) for step in range(total_steps)]


def torch_factors(scheduler: Any, every: int = 1, **options: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
    schedule = scheduler(optimizer, **options)
    values = []
    for step in range(1, TOTAL + 1):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step % every == 0 and step < TOTAL:
            schedule.step()
    return values


def test_every_schedule_has_its_yaml_file() -> None:
    assert {path.stem for path in CONFIGS.rglob("*.yaml")} == set(SCHEDULES)


@pytest.mark.parametrize("name", SCHEDULES)
def test_yaml_keys_are_the_functions_keywords(name: str) -> None:
    keywords = [p.name for p in inspect.signature(SCHEDULES[name]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    options = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert ["steps_per_epoch", "total_steps", *options] == keywords
    assert all(0.0 <= factor <= 1.0 for factor in factors(name, **options))


def test_constant_is_one() -> None:
    assert factors("constant", warmup_epochs=0.0) == [1.0] * TOTAL


@pytest.mark.parametrize(("name", "options"), [("constant", {}), ("step", {"step_size": 100, "gamma": 0.1})])
def test_a_warmup_rises_in_a_line_and_ends(name: str, options: dict[str, float]) -> None:
    rising = factors(name, warmup_epochs=0.4, **options)  # 4 steps of 10 an epoch
    assert rising[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rising[5:] == [1.0] * (TOTAL - 5)


@pytest.mark.parametrize(("step_size", "gamma"), [(1, 0.9), (2, 0.1), (100, 0.1)])
def test_step_is_torchs_step_lr_stepped_once_an_epoch(step_size: int, gamma: float) -> None:
    theirs = torch_factors(lr_scheduler.StepLR, every=10, step_size=step_size, gamma=gamma)
    assert factors("step", step_size=step_size, gamma=gamma, warmup_epochs=0.0) == pytest.approx(
        theirs, rel=0, abs=1e-12
    )


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_is_torchs_cosine_annealing(final: float) -> None:
    theirs = torch_factors(lr_scheduler.CosineAnnealingLR, T_max=TOTAL, eta_min=final)
    assert factors("cosine", warmup_epochs=0.0, final_factor=final) == pytest.approx(theirs, rel=0, abs=1e-12)


@pytest.mark.parametrize("anneal", ["linear", "cos"])
@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.333, 0.9])
def test_onecycle_is_torchs_one_cycle(fraction: float, anneal: str) -> None:
    theirs = torch_factors(
        lr_scheduler.OneCycleLR,
        max_lr=1.0,
        total_steps=TOTAL,
        pct_start=fraction,
        anneal_strategy=anneal,
        div_factor=25.0,
        final_div_factor=40.0,
    )
    ours = factors("onecycle", warmup_fraction=fraction, initial_factor=1 / 25, final_factor=1e-3, anneal=anneal)
    assert ours == pytest.approx(theirs, rel=0, abs=1e-12)


def test_cosine_warms_up_in_equal_parts_and_then_falls() -> None:
    values = factors("cosine", warmup_epochs=1.5, final_factor=0.2)
    assert values[:15] == pytest.approx([k / 16 for k in range(1, 16)])
    assert values[15] == 1.0
    assert all(a > b for a, b in pairwise(values[15:]))
    at_the_end = SCHEDULES["cosine"](TOTAL, steps_per_epoch=10, total_steps=TOTAL, warmup_epochs=1.5, final_factor=0.2)
    assert values[-1] > at_the_end == pytest.approx(0.2)


@pytest.mark.parametrize("anneal", ["linear", "cos"])
def test_onecycle_rises_to_one_falls_and_ends_at_its_final_factor(anneal: str) -> None:
    values = factors("onecycle", **{**ONECYCLE, "anneal": anneal})
    peak = 17  # 0.3 * 60 - 1
    assert values[0] == pytest.approx(0.04)
    assert values[peak] == 1.0
    assert values[-1] == pytest.approx(0.001)
    assert all(a < b for a, b in pairwise(values[: peak + 1]))
    assert all(a > b for a, b in pairwise(values[peak:]))


def test_onecycle_without_warmup_starts_at_the_top() -> None:
    values = factors("onecycle", **{**ONECYCLE, "warmup_fraction": 0.0})
    assert (values[0], values[-1]) == (1.0, pytest.approx(0.001))


@pytest.mark.parametrize(
    ("name", "options", "last"),
    [("cosine", {"warmup_epochs": 1.0, "final_factor": 0.2}, 0.2), ("onecycle", ONECYCLE, 0.001)],
)
def test_the_last_factor_stays_after_the_planned_end(name: str, options: dict[str, Any], last: float) -> None:
    for step in (TOTAL, TOTAL + 1, 3 * TOTAL):
        value = SCHEDULES[name](step, steps_per_epoch=10, total_steps=TOTAL, **options)
        assert value == pytest.approx(last)


def test_a_run_of_one_step_has_the_full_rate() -> None:
    assert factors("cosine", 1, warmup_epochs=0.0, final_factor=0.0) == [1.0]
    assert factors("onecycle", 1, **ONECYCLE) == [1.0]


def test_a_warmup_longer_than_the_run_only_rises() -> None:
    values = factors("cosine", 5, warmup_epochs=1.0, final_factor=0.0)
    assert values == pytest.approx([k / 11 for k in range(1, 6)])
