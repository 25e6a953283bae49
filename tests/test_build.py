"""Losses and optimizers against written-out formulas and torch's plain versions; tables against their YAML files."""

import inspect
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from trainer import build
from trainer.build import LOSSES, OPTIMIZERS, LossFn
from trainer.config.schema import Choice
from trainer.schedules import SCHEDULES

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
PLAIN = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "muon": torch.optim.Muon,
}


def options_of(group: str, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text())
    return loaded


def loss_of(name: str, **options: Any) -> LossFn:
    return build.build_loss(Choice(name, options), "concise")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mean_of(pointwise: Callable[[float], float], y_hat: Tensor, y: Tensor) -> float:
    errors = (y_hat - y).flatten().tolist()
    return math.fsum(pointwise(e) for e in errors) / len(errors)


def pointwise_huber(e: float, delta: float) -> float:
    return e * e / 2 if abs(e) <= delta else delta * (abs(e) - delta / 2)


REGRESSION_LOSSES: list[tuple[str, dict[str, Any], Callable[[float], float]]] = [
    ("mse", {"form": "half"}, lambda e: e * e / 2),
    ("mse", {"form": "mean"}, lambda e: e * e),
    ("l1", {}, abs),
    *(("huber", {"delta": d}, partial(pointwise_huber, delta=d)) for d in (0.1, 1.0, 2.5)),
]


@pytest.mark.parametrize(("name", "options", "pointwise"), REGRESSION_LOSSES)
@pytest.mark.parametrize("shape", [(7, 1), (5, 3), (1, 1)])
def test_regression_losses_are_their_formulas(
    name: str, options: dict[str, Any], pointwise: Callable[[float], float], shape: tuple[int, int]
) -> None:
    y_hat, y = 2 * draw(*shape), draw(*shape, seed=1)
    loss = loss_of(name, **options)(y_hat, y)
    assert loss.shape == ()
    assert float(loss) == pytest.approx(mean_of(pointwise, y_hat, y), rel=0, abs=1e-12)


def test_huber_meets_its_own_branches_at_delta() -> None:
    loss = loss_of("huber", delta=0.5)
    at, above = (float(loss(torch.tensor([[e]], dtype=torch.float64), torch.zeros(1, 1))) for e in (0.5, 0.5 + 1e-9))
    assert at == 0.125
    assert above - at == pytest.approx(0.5e-9, rel=1e-6)


def written_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> float:
    """-sum_k q_k log p_k with q = (1 - s) onehot + s / K, log p_k = z_k - max - log sum exp(z - max)."""
    losses = []
    for z, label in zip(logits.tolist(), labels.tolist(), strict=True):
        log_sum = max(z) + math.log(math.fsum(math.exp(v - max(z)) for v in z))
        target = [smoothing / len(z) + (1 - smoothing) * (k == label) for k in range(len(z))]
        losses.append(-math.fsum(q * (v - log_sum) for q, v in zip(target, z, strict=True)))
    return math.fsum(losses) / len(losses)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy_is_its_formula(smoothing: float) -> None:
    logits, labels = 3 * draw(6, 5), torch.tensor([0, 4, 2, 2, 1, 3])
    loss = loss_of("cross_entropy", label_smoothing=smoothing)(logits, labels)
    assert float(loss) == pytest.approx(written_cross_entropy(logits, labels, smoothing), rel=0, abs=1e-12)


def test_cross_entropy_stands_large_logits() -> None:
    logits = torch.tensor([[1000.0, 0.0], [-1000.0, 0.0]], dtype=torch.float64)
    assert float(loss_of("cross_entropy", label_smoothing=0.0)(logits, torch.tensor([1, 1]))) == 500.0


@pytest.mark.parametrize(("name", "options", "_pointwise"), REGRESSION_LOSSES)
def test_regression_losses_have_the_right_gradients(name: str, options: dict[str, Any], _pointwise: Any) -> None:
    y = draw(4, 2, seed=1)  # |error| is 0.3, 0.7, 1.6, 3: away from the kinks at 0 and at every delta
    error = torch.tensor([[0.3, -0.7], [1.6, -3.0], [-0.3, 0.7], [-1.6, 3.0]], dtype=torch.float64)
    y_hat = (y + error).requires_grad_()
    assert torch.autograd.gradcheck(partial(loss_of(name, **options), y=y), (y_hat,))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_has_the_right_gradient(smoothing: float) -> None:
    logits, labels = draw(4, 3).requires_grad_(), torch.tensor([0, 2, 2, 1])
    loss_fn = loss_of("cross_entropy", label_smoothing=smoothing)
    assert torch.autograd.gradcheck(lambda z: loss_fn(z, labels), (logits,))
    loss_fn(logits, labels).backward()
    target = torch.full((4, 3), smoothing / 3, dtype=torch.float64)
    target[torch.arange(4), labels] += 1 - smoothing
    closed = (logits.detach().softmax(1) - target) / 4  # dL/dz = (softmax(z) - q) / N
    assert logits.grad is not None
    assert torch.allclose(logits.grad, closed, rtol=0, atol=1e-12)


def test_half_mse_has_the_books_gradient() -> None:
    y_hat, y = draw(5, 1).requires_grad_(), draw(5, 1, seed=1)
    loss_of("mse", form="half")(y_hat, y).backward()
    assert y_hat.grad is not None
    assert torch.allclose(y_hat.grad, (y_hat.detach() - y) / 5, rtol=0, atol=1e-12)


def net() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    for i, parameter in enumerate(model.parameters()):
        parameter.data = draw(*parameter.shape, seed=i)
    return model


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 20) -> list[Tensor]:
    """Parameters after some steps on fresh data each, with a learning rate that the loop sets anew."""
    base = optimizer.param_groups[0]["lr"]
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = base * (1 + step % 3) / 2
        optimizer.zero_grad()
        ((model(draw(8, 4, seed=100 + step)) - draw(8, 2, seed=200 + step)) ** 2).mean().backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sgd", {"lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}),
        ("sgd", {"lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.1}),
        ("sgd", {"lr": 0.05, "momentum": 0.9, "nesterov": False, "weight_decay": 0.01}),
        ("sgd", {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
        ("adam", {"lr": 0.01, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}),
        ("adam", {"lr": 0.01, "betas": [0.5, 0.9], "eps": 1e-3, "weight_decay": 0.1}),
        ("adam", {"lr": 0.01, "betas": [0.0, 0.0], "eps": 1e-8, "weight_decay": 0.0}),
        ("adamw", {"lr": 0.01, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}),
        ("adamw", {"lr": 0.01, "betas": [0.5, 0.9], "eps": 1e-3, "weight_decay": 0.3}),
        ("rmsprop", {"lr": 0.01, "alpha": 0.99, "eps": 1e-8, "momentum": 0.0, "weight_decay": 0.0}),
        ("rmsprop", {"lr": 0.01, "alpha": 0.5, "eps": 1e-3, "momentum": 0.9, "weight_decay": 0.1}),
    ],
)
def test_optimizers_are_torchs_plain_ones(name: str, options: dict[str, Any]) -> None:
    ours, theirs = net(), net()
    plain = PLAIN[name](theirs.parameters(), foreach=False, **options)
    got = trained(ours, build.build_optimizer(Choice(name, options), "concise", ours))
    expected = trained(theirs, plain)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(got, expected, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(got, net().parameters(), strict=True))


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")  # of torch 2.11
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_torchs_profiler_is_not_told_of_each_step(name: str) -> None:
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    with torch.profiler.profile() as profile:
        model(draw(5, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    events = {event.key for event in profile.key_averages()}
    assert any("AddmmBackward" in key for key in events)
    assert not [key for key in events if key.startswith("Optimizer.")]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_optimizer_holds_every_parameter_of_the_model() -> None:
    model = net()
    optimizer = build.build_optimizer(Choice("sgd", options_of("optimizer", "sgd")), "concise", model)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert held == [id(p) for p in model.parameters()]


@pytest.mark.parametrize("name", SCHEDULES)
def test_lr_at_is_the_rate_times_the_schedules_factor(name: str) -> None:
    options = options_of("schedule", name)
    lr_at = build.build_schedule(Choice(name, options), 0.3, 5, 40)
    factor = partial(SCHEDULES[name], steps_per_epoch=5, total_steps=40, **options)
    assert [lr_at(step) for step in range(41)] == [0.3 * factor(step) for step in range(41)]


@pytest.mark.parametrize(("group", "table"), [("loss", LOSSES), ("optimizer", OPTIMIZERS)])
def test_every_entry_has_its_yaml_file(group: str, table: dict[str, Any]) -> None:
    assert {path.stem for path in (CONFIGS / group).rglob("*.yaml")} == set(table)


@pytest.mark.parametrize("name", LOSSES)
def test_the_yaml_keys_of_a_loss_are_its_keywords(name: str) -> None:
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    assert [p.name for p in parameters if p.kind is p.KEYWORD_ONLY] == list(options_of("loss", name))
    assert len([p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]) == 2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_yaml_keys_of_an_optimizer_are_torchs_arguments(name: str) -> None:
    """What torch offers beyond them is either how it computes or a variant of the method, listed here by name."""
    how = {"params", "foreach", "maximize", "capturable", "differentiable", "fused"}
    variants = {"dampening", "amsgrad", "centered", "decoupled_weight_decay"}
    variants |= {"ns_coefficients", "adjust_lr_fn", "eps"} if name == "muon" else set()
    accepted = set(inspect.signature(PLAIN[name]).parameters)
    options = options_of("optimizer", name)
    assert set(options) - {"decay_all", "vector_lr"} == accepted - how - variants
    optimizer = build.build_optimizer(Choice(name, options), "concise", net())
    del options["decay_all"], options["vector_lr"]
    for key, value in options.items():
        assert optimizer.defaults[key] == (tuple(value) if isinstance(value, list) else value)


def test_a_models_initial_weights_come_from_the_global_generator_alone() -> None:
    choice = Choice("mlp", {"num_hiddens": [5], "activation": "relu", "dropout": 0.0, "init_std": "torch"})

    def weights(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        return list(build.build_model(choice, "concise", (1, 4, 4), 3).parameters())

    assert all(torch.equal(a, b) for a, b in zip(weights(1), weights(1), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(weights(1), weights(2), strict=True))
    assert {p.dtype for p in weights(1)} == {torch.float32}


def test_parameter_count_leaves_out_what_does_not_learn() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    assert build.parameter_count(model) == (4 * 3 + 3) + (3 + 3) + (3 * 2 + 2)
    model[0].weight.requires_grad_(False)
    assert build.parameter_count(model) == 3 + (3 + 3) + (3 * 2 + 2)
