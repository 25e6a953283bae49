"""The hand-written optimizers against torch.optim, step by step and through each other's checkpoints."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.scratch import optim, with_numpy

DOUBLE = torch.float64
OURS: dict[str, Callable[..., Any]] = {
    "SGD": optim.SGD,
    "SGD in NumPy": with_numpy.SGD,
    "Adam": optim.Adam,
    "AdamW": optim.AdamW,
}
PLAIN: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD,
    "SGD in NumPy": torch.optim.SGD,
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
}
BUFFERS = {
    "SGD": {"momentum_buffer"},
    "SGD in NumPy": {"momentum_buffer"},
    "Adam": {"step", "exp_avg", "exp_avg_sq"},
    "AdamW": {"step", "exp_avg", "exp_avg_sq"},
}
SGD_OPTIONS: list[dict[str, Any]] = [
    {"lr": 0.05},
    {"lr": 0.05, "weight_decay": 0.1},
    {"lr": 0.02, "momentum": 0.9},
    {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1},
    {"lr": 0.02, "momentum": 0.9, "nesterov": True},
    {"lr": 0.02, "momentum": 0.5, "nesterov": True, "weight_decay": 0.1},
]
ADAM_OPTIONS: list[dict[str, Any]] = [
    {},
    {"lr": 0.01, "weight_decay": 0.0},
    {"lr": 0.01, "weight_decay": 0.1},
    {"lr": 0.01, "betas": [0.5, 0.9], "eps": 1e-3, "weight_decay": 0.3},
    {"lr": 0.01, "betas": (0.0, 0.0)},
]
RUNS = [
    *((name, options) for name in ("SGD", "SGD in NumPy") for options in SGD_OPTIONS),
    *((name, options) for name in ("Adam", "AdamW") for options in ADAM_OPTIONS),
]
REMEMBERING: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "SGD in NumPy": {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "Adam": {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1},
    "AdamW": {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1},
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def net() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    for i, parameter in enumerate(model.parameters()):
        parameter.data = draw(*parameter.shape, seed=i)
    return model


def take_steps(model: nn.Module, optimizer: Any, steps: int, first: int = 0) -> list[Tensor]:
    """Copies of the parameters after some steps on fresh data each, at a learning rate that the loop sets anew."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in range(first, first + steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 + step % 3) / 2
        optimizer.zero_grad()
        ((model(draw(8, 4, seed=100 + step)) - draw(8, 2, seed=900 + step)) ** 2).mean().backward()
        optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    return [parameter.detach().clone() for parameter in model.parameters()]


def assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def grouped(model: nn.Module, *options: dict[str, Any]) -> list[dict[str, Any]]:
    """The layers of a net as groups with options of their own."""
    return [
        {"params": list(layer.parameters()), **extra}
        for layer, extra in zip((m for m in model.children() if isinstance(m, nn.Linear)), options, strict=True)
    ]


@pytest.mark.parametrize(("name", "options"), RUNS)
def test_100_steps_are_torchs(name: str, options: dict[str, Any]) -> None:
    ours, theirs = net(), net()
    got = take_steps(ours, OURS[name](ours.parameters(), **options), 100)
    expected = take_steps(theirs, PLAIN[name](theirs.parameters(), foreach=False, **options), 100)
    assert_close(got, expected)
    assert not any(torch.equal(a, b) for a, b in zip(got, net().parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        *(
            (name, {"momentum": 0.9, "weight_decay": 0.1}, {"lr": 0.05, "momentum": 0.5, "nesterov": True})
            for name in ("SGD", "SGD in NumPy")
        ),
        *((name, {"lr": 0.1, "weight_decay": 0.2}, {"betas": (0.5, 0.6), "eps": 1e-3}) for name in ("Adam", "AdamW")),
    ],
)
def test_groups_keep_their_own_options(name: str, first: dict[str, Any], second: dict[str, Any]) -> None:
    ours, theirs = net(), net()
    got = take_steps(ours, OURS[name](grouped(ours, first, second), lr=0.01), 100)
    assert_close(got, take_steps(theirs, PLAIN[name](grouped(theirs, first, second), lr=0.01, foreach=False), 100))


@pytest.mark.parametrize("name", OURS)
def test_what_is_kept_has_torchs_names(name: str) -> None:
    ours, theirs = net(), net()
    optimizer, plain = (
        OURS[name](ours.parameters(), **REMEMBERING[name]),
        PLAIN[name](theirs.parameters(), **REMEMBERING[name]),
    )
    assert optimizer.state_dict()["state"] == {}
    take_steps(ours, optimizer, 3)
    take_steps(theirs, plain, 3)
    got, expected = optimizer.state_dict(), plain.state_dict()
    assert {i: set(kept) for i, kept in got["state"].items()} == dict.fromkeys(range(4), BUFFERS[name])
    torch.testing.assert_close(got["state"], expected["state"], rtol=0, atol=1e-12)  # types and shapes too
    for group, wanted in zip(got["param_groups"], expected["param_groups"], strict=True):
        assert group["params"] == wanted["params"] == [0, 1, 2, 3]
        assert {key: wanted[key] for key in group} == group


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("direction", ["from torch", "to torch", "to itself"])
def test_a_checkpoint_of_the_one_goes_on_with_the_other(name: str, direction: str) -> None:
    kind = PLAIN[name] if direction == "from torch" else OURS[name]
    other_kind = PLAIN[name] if direction == "to torch" else OURS[name]
    model, other = net(), net()
    optimizer = kind(grouped(model, REMEMBERING[name], {}), lr=0.03)
    take_steps(model, optimizer, 7)
    saved = optimizer.state_dict()
    kept = {key: value.clone() for key, value in saved["state"][0].items()}
    other.load_state_dict(model.state_dict())
    if direction == "to torch":  # torch's has options that ours has not: it keeps its own, as the program's do
        going_on = other_kind(grouped(other, REMEMBERING[name], {}), lr=0.03)
        going_on.load_state_dict(going_on.state_dict() | {"state": copy.deepcopy(saved["state"])})  # it takes no copies
    else:
        going_on = other_kind(grouped(other, {}, {}), lr=0.5)  # the options come with the state
        going_on.load_state_dict(saved)
    got = take_steps(other, going_on, 7, first=7)
    torch.testing.assert_close(saved["state"][0], kept, rtol=0, atol=0)  # ours does
    assert_close(got, take_steps(model, optimizer, 7, first=7))


def test_a_loaded_state_takes_the_type_of_the_parameters_but_for_the_count() -> None:
    model, other = net(), net().float()
    optimizer, going_on = optim.Adam(model.parameters()), optim.Adam(other.parameters())
    take_steps(model, optimizer, 2)
    going_on.load_state_dict(optimizer.state_dict())
    (kept, *_) = going_on.state_dict()["state"].values()
    assert {key: value.dtype for key, value in kept.items()} == dict.fromkeys(BUFFERS["Adam"], torch.float32)
    assert kept["step"] == 2
    double = optim.Adam(model.parameters())
    double.load_state_dict(optimizer.state_dict())
    (kept, *_) = double.state_dict()["state"].values()
    assert (kept["step"].dtype, kept["exp_avg"].dtype) == (torch.float32, DOUBLE)


@pytest.mark.parametrize(("name", "options"), RUNS)
def test_a_step_leaves_the_gradients_as_they_are(name: str, options: dict[str, Any]) -> None:
    model = net()
    optimizer = OURS[name](model.parameters(), **options)
    model(draw(8, 4)).square().mean().backward()
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    for _ in range(3):
        optimizer.step()
    after = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(after) == 4
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("name", OURS)
def test_what_has_no_gradient_stays_as_it_is(name: str) -> None:
    model = net()
    optimizer = OURS[name](model.parameters(), **REMEMBERING[name])
    first, *others = model.parameters()
    first.grad = torch.ones_like(first)
    optimizer.step()
    assert not torch.equal(first, next(net().parameters()))
    assert all(torch.equal(a, b) for a, b in zip(others, list(net().parameters())[1:], strict=True))
    assert list(optimizer.state_dict()["state"]) == [0]


@pytest.mark.parametrize("name", OURS)
def test_zero_grad_forgets_the_gradients_of_all_groups(name: str) -> None:
    model = net()
    optimizer = OURS[name](grouped(model, {}, {}), lr=0.1)
    model(draw(8, 4)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", OURS)
def test_the_defaults_are_torchs(name: str) -> None:
    ours, plain = OURS[name](net().parameters()), PLAIN[name](net().parameters())
    assert {key: plain.defaults[key] for key in ours.defaults} == ours.defaults


def stepped(w: Tensor, g: Tensor, **options: Any) -> Tensor:
    """A weight after three steps of Muon with the gradients g, 2 g and -g."""
    w = w.clone().requires_grad_()
    optimizer = optim.Muon([w], lr=0.02, **options)
    for factor in (1, 2, -1):
        w.grad = factor * g
        optimizer.step()
    return w.detach()


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (5, 5)])
def test_orthogonalized_keeps_the_directions_and_evens_their_strengths(shape: tuple[int, int]) -> None:
    g = draw(*shape)
    left, strengths, right = torch.linalg.svd(g, full_matrices=False)
    evened = strengths / strengths.square().sum().sqrt()
    for _ in range(5):
        evened = 3.4445 * evened - 4.7750 * evened**3 + 2.0315 * evened**5
    found = optim.orthogonalized(g, 5)
    torch.testing.assert_close(found, left @ evened.diag() @ right, rtol=0, atol=1e-6)  # the norm has 1e-7 added
    assert evened.min() > 0.6
    assert evened.max() < 1.3


@pytest.mark.parametrize("options", [{}, {"nesterov": False}, {"momentum": 0.5, "weight_decay": 0.3}])
@pytest.mark.parametrize("shape", [(3, 7), (7, 3)])
def test_muon_on_matrices_is_torchs_but_for_its_bfloat16(shape: tuple[int, int], options: dict[str, Any]) -> None:
    w, g = draw(*shape), draw(*shape, seed=1)
    theirs = w.clone().requires_grad_()
    optimizer = torch.optim.Muon([theirs], lr=0.02, **{"weight_decay": 0.0} | options)
    for factor in (1, 2, -1):
        theirs.grad = factor * g
        optimizer.step()
    torch.testing.assert_close(stepped(w, g, **options), theirs.detach(), rtol=0, atol=2e-3)
    assert (theirs - w).abs().max() > 0.01


def test_muon_takes_filters_as_matrices_and_vectors_as_sgd_does() -> None:
    w, g = draw(4, 3, 2, 2), draw(4, 3, 2, 2, seed=1)
    assert torch.equal(stepped(w, g).flatten(1), stepped(w.flatten(1), g.flatten(1)))
    vector, slope = draw(6), draw(6, seed=1)
    theirs = vector.clone().requires_grad_()
    sgd = torch.optim.SGD([theirs], lr=0.02, momentum=0.95, nesterov=True)
    for factor in (1, 2, -1):
        theirs.grad = factor * slope
        sgd.step()
    torch.testing.assert_close(stepped(vector, slope), theirs.detach(), rtol=0, atol=1e-12)
